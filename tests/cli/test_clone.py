"""blockdevctl clone --customize, restore --as and restore --force: on a served home, over NBD."""

from __future__ import annotations

import io
import json
import os
import signal
from pathlib import Path

import pytest
import yaml

import nbd
from blockdev.engine.client import EngineClient
from blockdev.errors import Unavailable
from blockdev.vmmap.machine import mac_address
from tests.cli.served import SECONDS_MAX, Home, until
from tests.cli.test_vm import reads, write
from tests.cloudinit.image import read_image

DOMAIN = "<domain><name>x</name><devices><interface type='network'/><interface type='bridge'/></devices></domain>"


def connect(home: Home, export: str) -> nbd.NBD:
    handle = nbd.NBD()
    handle.connect_uri(home.uri(export))
    return handle


def seed_of(home: Home, vm: str) -> dict[str, str]:
    """The files of a clone's seed, as its guest sees them."""
    handle = connect(home, f"{vm}/seed")
    return read_image(io.BytesIO(handle.pread(handle.get_size(), 0)))


@pytest.fixture
def origin(home: Home, name: str, scratch: Path) -> str:
    """A VM with data and two network interfaces, and a snapshot s."""
    (scratch / "domain.xml").write_text(DOMAIN)
    home("vm", "create", name, "--disk", "root=1M", "--disk", "data=1M", "--config", scratch / "domain.xml")
    write(home, f"{name}/root", 1)
    home("snapshot", "create", name, "--name", "s")
    return name


def test_customized_clones_know_who_they_are(home: Home, origin: str) -> None:
    made = home.json("clone", f"{origin}@s", "--count", "3", "--prefix", f"{origin}_c", "--customize")
    assert made["hostnames"] == {f"{origin}_c-{n}": f"{origin}-c-{n}" for n in (1, 2, 3)}
    for vm in made["vms"]:
        assert [disk["name"] for disk in vm["disks"]] == ["root", "data", "seed"]
        assert vm["cloned_from"] == f"{origin}@s" and reads(home, f"{vm['name']}/root", 1)
        files = seed_of(home, vm["name"])
        assert yaml.safe_load(files["meta-data"]) == {
            "instance-id": vm["uuid"],
            "local-hostname": made["hostnames"][vm["name"]],
        }
        assert files["user-data"].startswith("#cloud-config\n")
        cards = yaml.safe_load(files["network-config"])["ethernets"].values()
        assert [card["match"]["macaddress"] for card in cards] == [mac_address(vm["uuid"], number) for number in (0, 1)]
    assert home.json("vm", "show", f"{origin}_c-2")["disks"][2]["name"] == "seed"


def test_templates_are_filled_for_each_clone(home: Home, origin: str, scratch: Path) -> None:
    (scratch / "user").write_text('#!/bin/sh\necho "${HOME} {@number@} @name@ @hostname@ @mac1@" a@b\n')
    (scratch / "network").write_text("version: 2\nethernets:\n  lan: {match: {macaddress: '@mac0@'}, dhcp6: true}\n")
    templates = ["--user-data", scratch / "user", "--network-config", scratch / "network", "--hostname", "n@number@.@name@"]
    made = home.json("clone", origin, "--count", "2", "--prefix", f"{origin}-t", "--customize", *templates)
    for number, vm in enumerate(made["vms"], 1):
        hostname = f"n{number}.{vm['name']}"
        files = seed_of(home, vm["name"])
        assert files["user-data"] == f'#!/bin/sh\necho "${{HOME}} {{{number}}} {vm["name"]} {hostname} {mac_address(vm["uuid"], 1)}" a@b\n'
        assert mac_address(vm["uuid"], 0) in files["network-config"]
        assert made["hostnames"][vm["name"]] == hostname
    assert made["vms"][0]["cloned_from"].startswith(f"{origin}@clone-")


def test_a_customized_clone_cloned_again_gets_a_new_seed(home: Home, origin: str) -> None:
    home("clone", f"{origin}@s", f"{origin}-1", "--customize")
    assert f"host names {origin}-2" in home("clone", f"{origin}-1", f"{origin}-2", "--customize")
    assert [disk["name"] for disk in home.json("vm", "show", f"{origin}-2")["disks"]] == ["root", "data", "seed"]
    assert f"local-hostname: {origin}-2" in seed_of(home, f"{origin}-2")["meta-data"]
    assert f"local-hostname: {origin}-1" in seed_of(home, f"{origin}-1")["meta-data"]


@pytest.mark.parametrize(
    ("options", "user_data", "status", "words"),
    [
        (["--count", "2", "--prefix", "x", "--customize", "--hostname", "same"], None, 4, "@number@"),
        (["x", "--customize", "--hostname", "a_b"], None, 2, "host name"),
        (["x", "--customize"], "packages: [vim]\n", 2, "#cloud-config"),
        (["x", "--customize"], "\ufeff#cloud-config\n", 2, "byte order mark"),
        (["x", "--customize"], "", 2, "begins with nothing"),
        (["x", "--customize"], "#cloud-config\na: [1\n", 2, "line"),
        (["x", "--customize"], "#!/bin/sh\n@mac2@\n", 2, "@mac2@"),
        (["x", "--hostname", "y"], None, 2, "--customize"),
        (["x", "--customize", "--user-data", "/none"], None, 3, "/none"),
    ],
)
def test_what_cannot_be_a_seed_is_refused_before_anything_is_made(
    home: Home, origin: str, scratch: Path, options: list[str], user_data: str | None, status: int, words: str
) -> None:
    before = home.state()
    if user_data is not None:
        (scratch / "user").write_text(user_data)
        options = [*options, "--user-data", str(scratch / "user")]
    result = home.run("clone", origin, *options)
    assert result.status == status and words in result.error
    assert home.state() == before, "no snapshot either"


def test_customizing_over_rest_is_refused_in_the_same_words(home: Home, origin: str) -> None:
    with home.rest() as rest:
        where = f"/vms/{origin}/clones"
        for customize, status in (
            ({"user_data": "#!\0"}, 400),
            ({"user_data": "x" * 70_000}, 422),
            ({"hostname": "\udcff"}, 422),
            ({"network_config": "version: 9"}, 400),
            ({"surprise": 1}, 422),
        ):
            body = json.dumps({"name": f"{origin}-r", "customize": customize})
            answer = rest.post(where, content=body, headers={"Content-Type": "application/json"})
            assert answer.status_code == status, answer.text
            assert answer.json()["error"]["code"] == "invalid_argument"


def test_ctrl_c_leaves_the_clones_to_the_control_plane_and_says_so(home: Home, origin: str) -> None:
    before = vdisk_count(home)
    cloning = home.start_command("clone", f"{origin}@s", "--count", "300", "--prefix", f"{origin}-i", "--customize")
    until(lambda: vdisk_count(home) > before, "the seeds")
    engine = home.engine_pid()
    os.kill(engine, signal.SIGSTOP)
    try:
        cloning.send_signal(signal.SIGINT)
        said = cloning.communicate(timeout=SECONDS_MAX)[1].strip()
    finally:
        os.kill(engine, signal.SIGCONT)
    assert cloning.returncode == 130 and "goes on" in said and "job list" in said
    with home.rest() as rest:
        until(lambda: len(rest.get("/vms", params={"name": f"{origin}-i-*"}).json()["vms"]) == 300, "the clones")


def test_seeds_that_do_not_fit_are_refused_with_what_to_do(fresh: Home) -> None:
    fresh.path = fresh.above / "small"
    fresh.init("32M")
    fresh.serve()
    fresh("vm", "create", "web", "--disk", "root=64M")
    handle = connect(fresh, "web/root")
    with pytest.raises(nbd.Error, match="ENOSPC"):
        for offset in range(0, 64 << 20, 4096):
            handle.pwrite(os.urandom(4096), offset)
    before = fresh.state()
    refused = fresh.run("clone", "web", "--count", "2", "--prefix", "c", "--customize")
    assert refused.status == 7 and "the seeds of the clones do not fit" in refused.error
    fresh("snapshot", "delete", f"web@{fresh.json('snapshot', 'list', 'web')['snapshots'][0]['name']}", "--yes")
    assert fresh.state() == before


# restore


def test_a_vm_and_a_disk_come_back_beside_what_is_there(home: Home, origin: str) -> None:
    write(home, f"{origin}/root", 2)
    held = connect(home, f"{origin}/root")
    said = home("restore", f"{origin}@s", "--as", f"{origin}-old")
    assert said == f"restored {origin}@s as VM {origin}-old; {origin} is as it was\n"
    assert home.json("vm", "show", f"{origin}-old")["description"].startswith(f"restored from {origin}@s")
    assert home("restore", f"{origin}@s", "--disk", "root", "--as", "older").startswith(f"restored {origin}/root@s as disk {origin}/older")
    assert reads(home, f"{origin}-old/root", 1) and reads(home, f"{origin}/older", 1) and reads(home, f"{origin}/root", 2)
    held.pwrite(b"x" * 512, 0)
    assert home.run("restore", f"{origin}@s", "--as", origin).status == 4
    assert home.run("restore", f"{origin}@s", "--disk", "root", "--as", "data").status == 4


def test_a_restore_says_what_it_left_alone(home: Home, origin: str) -> None:
    home("disk", "add", f"{origin}/more", "1M")
    assert f"; as it was, since {origin}@s has none of that name: more; " in home("restore", f"{origin}@s", "--yes")
    assert "as it was" not in home("restore", f"{origin}@s", "--disk", "root", "--yes")


def test_a_forced_restore_cuts_clients_off_and_says_whom(home: Home, origin: str) -> None:
    write(home, f"{origin}/root", 2)
    held = connect(home, f"{origin}/root")
    held.pwrite(b"y" * 512, 0)
    refused = home.run("restore", f"{origin}@s", "--yes")
    assert refused.status == 5 and f"{origin}/root by" in refused.error and "--force" in refused.error
    assert "cut off" in refused.error
    said = home("restore", f"{origin}@s", "--yes", "--force")
    assert f"cut off: {origin}/root by" in said
    for access in (lambda: held.pwrite(b"z" * 512, 0), lambda: held.pread(512, 0)):
        with pytest.raises(nbd.Error):
            access()
    assert reads(home, f"{origin}/root", 1)


@pytest.mark.parametrize("victim", ["the engine", "the control plane"])
def test_a_kill_while_seeds_are_written_leaves_all_clones_or_none(fresh: Home, victim: str) -> None:
    fresh.serve()
    fresh("vm", "create", "web", "--disk", "root=1M")
    fresh("snapshot", "create", "web", "--name", "s")
    words = ["clone", "web@s", "--count", "300", "--prefix", "c", "--customize"]
    pid = fresh.engine_pid() if victim == "the engine" else fresh.control_pid()
    cloning = fresh.start_command(*words)
    # the engine's own figures do not wait for the operation: 300 seeds more than the one disk, the clones not yet
    until(lambda: vdisk_count(fresh) > 1, "the seeds")
    os.kill(pid, signal.SIGKILL)
    acknowledged = cloning.wait(SECONDS_MAX) == 0
    assert cloning.communicate()[1] or acknowledged
    until(lambda: fresh.run("vm", "create", "next", "--disk", "root=1M").status == 0, "both planes")  # a change: it agrees first
    names = {vm["name"] for vm in fresh.json("vm", "list")["vms"]} - {"web", "next"}
    print(f"{len(names)} clones, acknowledged: {acknowledged}")
    assert len(names) == (300 if acknowledged or names else 0)
    assert vdisk_count(fresh) == 2 + 2 * len(names), "something temporary is left"
    if not names:
        fresh(*words)
    assert "local-hostname: c-300\n" in seed_of(fresh, "c-300")["meta-data"]


def vdisk_count(home: Home) -> int:
    """Of the pool; 0 while the engine is away."""
    client = EngineClient(home.path / "run/engine.sock")
    try:
        return int(client.status()["stats"]["vdisk_count"])
    except Unavailable:
        return 0
    finally:
        client.close()
