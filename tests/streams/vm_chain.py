"""A VM with a chain of snapshots between which everything changes that can, and the calls that tests make, over REST: quick."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import httpx
import xxhash

from blockdev.transfer.nbd import Export
from tests.cli.served import Home

MEBIBYTE = 1 << 20
NAMES = ("one", "two", "three")


class Api:
    """A home's REST API; whatever is refused raises, unless it is asked for with `try_job`."""

    def __init__(self, home: Home) -> None:
        self.home = home
        self._client: httpx.Client = home.rest()

    def __call__(self, method: str, path: str, **named: Any) -> Any:
        answer = self._client.request(method, path, **named)
        assert answer.status_code < 300, answer.text
        return answer.json()

    def refusal(self, method: str, path: str) -> dict[str, str]:
        """Why it is refused."""
        answer = self._client.request(method, path)
        assert answer.status_code >= 400, answer.text
        error: dict[str, str] = answer.json()["error"]
        return error

    def try_job(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """How the job ended, or the error of a request that no job was made of."""
        answer = self._client.post(path, json=body)
        job: dict[str, Any] = answer.json()
        if answer.status_code != 202:
            return {"state": "refused", **job}
        return self.wait(job)

    def wait(self, job: dict[str, Any]) -> dict[str, Any]:
        while job["state"] not in ("done", "failed", "cancelled"):
            job = self("GET", f"/jobs/{job['id']}", params={"after": job["version"], "wait_seconds": 10})
        return job

    def job(self, path: str, body: dict[str, Any]) -> Any:
        ended = self.try_job(path, body)
        assert ended["state"] == "done", ended
        return ended["result"]

    def export(self, vm: str, snapshot: str, file: Path, since: str | None = None, **more: Any) -> Any:
        return self.job(f"/vms/{vm}/snapshots/{snapshot}/export", {"path": str(file), "since": since, **more})

    def load(self, file: Path, **more: Any) -> Any:
        return self.job("/streams/import", {"path": str(file), **more})

    def snapshot(self, vm: str, name: str) -> Any:
        return self("GET", f"/vms/{vm}/snapshots/{name}")

    def take(self, vm: str, name: str, description: str = "") -> Any:
        return self("POST", f"/vms/{vm}/snapshots", json={"name": name, "description": description})

    def objects(self) -> tuple[int, int]:
        """How many vdisks and snapshots the pool has: also those that nobody is told of."""
        stats = self("GET", "/status")["engine"]["stats"]
        return stats["vdisk_count"], stats["snapshot_count"]

    def close(self) -> None:
        self._client.close()


def change(home: Home, export: str, size_bytes: int, chosen: random.Random) -> None:
    """Random writes, zeros and discards, of any sector."""
    with Export(home.path / "run/nbd.sock", export) as disk:
        for _ in range(60):
            offset = chosen.randrange(size_bytes // 512) * 512
            length = min(chosen.choice((512, 4096, 20480, 262144)), size_bytes - offset)
            kind = chosen.random()
            if kind < 0.6:
                disk.write(offset, chosen.randbytes(length))
            elif kind < 0.75:
                disk.write(offset, chosen.randbytes(512) * (length // 512))
            else:
                disk.zero(offset, length)
        disk.flush()


def digest(home: Home, export: str) -> tuple[int, str]:
    """All that a disk holds."""
    found = xxhash.xxh3_128()
    with Export(home.path / "run/nbd.sock", export) as disk:
        for offset in range(0, disk.size_bytes, MEBIBYTE):
            found.update(disk.read(offset, min(MEBIBYTE, disk.size_bytes - offset)))
        return disk.size_bytes, found.hexdigest()


def digests(api: Api, vm: str, snapshot: str) -> dict[str, tuple[int, str]]:
    return {disk["name"]: digest(api.home, disk["export"]) for disk in api.snapshot(vm, snapshot)["disks"]}


class Chain:
    """The VM, and its snapshots as three files."""

    def __init__(self, api: Api, directory: Path, vm: str, seed: int) -> None:
        chosen = random.Random(seed)
        self.vm, self._api = vm, api
        disks = [{"name": "root", "size_bytes": 24 * MEBIBYTE}, {"name": "data", "size_bytes": 8 * MEBIBYTE + 512}]
        api("POST", "/vms", json={"name": vm, "disks": disks, "config": "<one/>"})
        self._change("root", 24 * MEBIBYTE, chosen)
        self._change("data", 8 * MEBIBYTE + 512, chosen)
        api.take(vm, "one", "the first")
        self._change("root", 24 * MEBIBYTE, chosen)
        self._resize("data", 12 * MEBIBYTE)
        self._change("data", 12 * MEBIBYTE, chosen)
        self._add("more", 4 * MEBIBYTE)
        self._change("more", 4 * MEBIBYTE, chosen)
        api("PUT", f"/vms/{vm}/config", json={"config": "<two/>"})
        api.take(vm, "two")
        self._resize("root", 16 * MEBIBYTE)
        self._resize("root", 20 * MEBIBYTE + 512)
        self._change("root", 20 * MEBIBYTE + 512, chosen)
        api("DELETE", f"/vms/{vm}/disks/data")
        self._add("data", 2 * MEBIBYTE)
        self._change("data", 2 * MEBIBYTE, chosen)
        api("DELETE", f"/vms/{vm}/disks/more")
        api.take(vm, "three")
        self.digests = {name: digests(api, vm, name) for name in NAMES}
        self.files = [directory / f"{vm}-{name}.bds" for name in NAMES]
        self.made = [self.export(api, vm, number, file) for number, file in enumerate(self.files)]

    @staticmethod
    def export(api: Api, vm: str, number: int, file: Path) -> Any:
        """The snapshot of that number; all but the first as what changed."""
        return api.export(vm, NAMES[number], file, NAMES[number - 1] if number else None)

    def _change(self, disk: str, size_bytes: int, chosen: random.Random) -> None:
        change(self._api.home, f"{self.vm}/{disk}", size_bytes, chosen)

    def _resize(self, disk: str, size_bytes: int) -> None:
        self._api("PATCH", f"/vms/{self.vm}/disks/{disk}", json={"size_bytes": size_bytes, "force_shrink": True})

    def _add(self, disk: str, size_bytes: int) -> None:
        self._api("POST", f"/vms/{self.vm}/disks", json={"name": disk, "size_bytes": size_bytes})
