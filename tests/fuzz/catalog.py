"""Target `catalog`: texts that the catalog keeps.

An input is texts parted by two NUL bytes: a configuration, a description, a name.  Each is refused, or read back as it was,
also by the next control plane after it has come to agreement with the pool.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager

from blockdev.engine.client import EngineClient
from blockdev.errors import AlreadyExists, InvalidArgument
from blockdev.vmmap.catalog import Catalog
from blockdev.vmmap.service import VMs
from tests.fuzz.harness import Harness
from tests.fuzz.homes import ServedHome
from tests.vmmap.world import Clock

PART = b"\0\0"
TEXTS = (b"", b"<domain>\xc3\xa9</domain>", b"a\0b", b"\xed\xa0\x80", b"\xff", b"x" * 5000, b"web", b"s1", b"a/b", b"~", b"'; --")


class Catalogs(Harness):
    def __init__(self) -> None:
        self._served = ServedHome()
        self._served.start()

    def one_input(self, data: bytes) -> None:
        config, description, name = ([text(part) for part in data.split(PART)] + ["", "", "new"])[:3]
        kept: list[tuple[Callable[[VMs], str | None], str]] = []
        with self._control_plane() as vms:
            if accepted(lambda: vms.set_config("web", config)):
                kept.append((lambda vms: vms.get_config("web"), config))
            if accepted(lambda: vms.set_description("web", description)):
                kept.append((lambda vms: vms.show_vm("web").description, description))
            if accepted(lambda: vms.create_snapshot("web", name, description)):
                kept.append((lambda vms: vms.show_snapshot("web", name).config, vms.get_config("web")))
                kept.append((lambda vms: vms.show_snapshot("web", name).description, description))
            if accepted(lambda: vms.create_vm(name, [(name, 4096)], config)):
                kept.append((lambda vms: vms.get_config(name), config))
            check(vms, kept)
        if kept:
            with self._control_plane() as vms:
                vms.reconcile()
                check(vms, kept)
            self._served.restart()

    @contextmanager
    def _control_plane(self) -> Iterator[VMs]:
        home = self._served.home
        with closing(Catalog(str(home.catalog))) as catalog, closing(EngineClient(home.engine_socket)) as engine:
            yield VMs(catalog, engine, clock=Clock())

    def seeds(self) -> dict[str, bytes]:
        return {
            "texts": PART.join([b"<domain>\xc3\xa9</domain>", b"a description", b"new-1"]),
            "half-a-pair": PART.join([b"\xed\xa0\x80", b"\xed\xb0\x80"]),
            "nul": PART.join([b"a\0b", b"\0"]),
            "taken": PART.join([b"", b"", b"web"]),
        }

    def mutate(self, data: bytes, chance: random.Random) -> bytes | None:
        parts = data.split(PART)
        parts[chance.randrange(len(parts))] = chance.choice(TEXTS)
        return PART.join(parts)

    def close(self) -> None:
        self._served.close()


def make(name: str) -> Harness:
    return Catalogs()


def text(part: bytes) -> str:
    """Also half of a surrogate pair, which JSON can hold."""
    try:
        return part.decode(errors="surrogatepass")
    except UnicodeDecodeError:
        return part.decode(errors="replace")


def accepted(change: Callable[[], object]) -> bool:
    try:
        change()
    except (InvalidArgument, AlreadyExists) as error:
        assert error.message
        return False
    return True


def check(vms: VMs, kept: list[tuple[Callable[[VMs], str | None], str]]) -> None:
    for read, expected in kept:
        found = read(vms)
        assert found == expected, f"{(found or '')[:60]!r} was read, {expected[:60]!r} was kept"
