"""Ways to other homes: added, tested, throttled, removed."""

from __future__ import annotations

import json
import re
from collections import Counter
from typing import Any

from blockdev.clock import monotonic_seconds
from blockdev.constants import REPLICATION_PORT
from blockdev.errors import AlreadyExists, Busy, InvalidArgument
from blockdev.replicate.keys import fingerprint, parse_key
from blockdev.replicate.model import Path, PathTest
from blockdev.replicate.parts import ANSWER_SECONDS_MAX, Parts
from blockdev.replicate.sender import Requester
from blockdev.replicate.throttle import Throttle
from blockdev.vmmap.catalog_replication import PathRow
from blockdev.vmmap.events import enumerate_some
from blockdev.vmmap.names import check_name
from blockdev.written import show_count

PORT = REPLICATION_PORT
PATHS_OF_HOME_MAX = 32  # as it lets a home have twice as many connections (server.py), and ends the oldest for another
LEVEL = 3
LEVEL_MAX = 19
_HOST = re.compile(r"[A-Za-z0-9.:_%-]{1,255}")  # a name, or an IPv4 or IPv6 address


class PathOperations(Parts):
    """The operations on paths."""

    def list_paths(self) -> list[Path]:
        """By name."""
        with self._catalog.transaction():
            counts = Counter(row.path_id for row in self._catalog.protections())
            return [self._view_path(row, counts[row.id]) for row in self._catalog.paths()]

    def show_path(self, name: str) -> Path:
        """NotFound."""
        with self._catalog.transaction():
            row = self._path(name)
            return self._view_path(row, sum(one.path_id == row.id for one in self._catalog.protections()))

    def add_path(
        self, name: str, host: str, port: int = PORT, key: str | None = None, code: str | None = None, level: int = LEVEL
    ) -> Path:
        """A way to the home at host:port, which must have this public key, or whose invitation's code is this.

        With a key nothing is connected yet.  With a code both ends know each other's keys afterwards.
        InvalidArgument; AlreadyExists, also for one path more to a home than it serves at a time; NotAllowed: the code is not (or no more) valid, or the other end's key is not
        what the code says; Unavailable.
        """
        if (key is None) == (code is None):
            raise InvalidArgument("give the other end's public key, or the code of its invitation")
        check_endpoint(host, port)
        check_level(level)
        self._check_new_path(name, None if key is None else parse_key(key))
        pinned = parse_key(key) if key is not None else self._pair(host, port, code or "")
        with self._catalog.transaction(grows=True):
            self._check_new_path(name, pinned)
            self._catalog.insert_path(name, host, port, pinned, level, "{}", self._now())
        return self.show_path(name)

    def _check_new_path(self, name: str, key: str | None) -> None:
        check_name("path", name)
        if self._catalog.path_named(name) is not None:
            raise AlreadyExists(f"there is a path {name} already: choose another name")
        self._check_room(key)

    def _check_room(self, key: str | None) -> None:
        """For one path more to the home that has this key."""
        same = [one.name for one in self._catalog.paths() if one.key == key]
        if len(same) >= PATHS_OF_HOME_MAX:
            raise AlreadyExists(
                f"paths {enumerate_some(same)} go to that home already, which serves {PATHS_OF_HOME_MAX} at a time: remove one of them, or use it"
            )

    def _pair(self, host: str, port: int, code: str) -> str:
        """The key of the other end, which knows ours then."""
        return self._transport.pair(host, port, code)

    def test_path(self, name: str) -> PathTest:
        """Connect and ask.  NotFound; Unavailable: it cannot be reached; NotAllowed: it does not know this home, or is another."""
        row = self._path(name)
        requester = Requester("test", {})
        answer = self._request(row, requester, ANSWER_SECONDS_MAX)
        vms, space_bytes, back = answer.get("vms"), answer.get("space_bytes"), answer.get("path_back")
        return PathTest(
            path=name,
            rtt_ms=round(self._transport.measure(row) * 1000, 3),
            software=requester.software,
            version=requester.version,
            features=requester.features,
            peer=str(answer.get("peer")),
            vms=[str(glob) for glob in vms] if isinstance(vms, list) else [],
            space_bytes=space_bytes if isinstance(space_bytes, int) else None,
            path_back=back if isinstance(back, str) else None,
        )

    def change_path(
        self,
        name: str,
        *,
        host: str | None = None,
        port: int | None = None,
        key: str | None = None,
        level: int | None = None,
        throttle: dict[str, Any] | None = None,
    ) -> Path:
        """All that is given, or nothing when one of it cannot be.

        host, port: the same home is reached there now.  key: it has this public key now.  With either, what is being sent is
        cut, and goes on over there.  level: of compression, 0 (none) to 19; transfers that begin follow.  throttle: replaces
        what there was (replicate.throttle.Throttle's JSON); what is being sent follows at once.
        InvalidArgument; NotFound; AlreadyExists: as `add_path`.
        """
        if host is None and port is not None:
            raise InvalidArgument("a port goes with its host: give both")
        if host is None and key is None and level is None and throttle is None:
            raise InvalidArgument("nothing to change: give host, key, throttle or level")
        given: dict[str, Any] = {}
        if host is not None:
            check_endpoint(host, port or PORT)
            given |= {"host": host, "port": port or PORT}
        if level is not None:
            check_level(level)
            given["level"] = level
        if key is not None:
            given["key"] = parse_key(key)
        limits = None if throttle is None else Throttle.from_json(throttle)
        if limits is not None:
            given["throttle"] = json.dumps(limits.to_json())
        with self._catalog.transaction(grows=True):
            before = self._path(name)
            after = before._replace(**given)
            if after.key != before.key:
                self._check_room(after.key)
            self._catalog.change_path(after)
        if limits is not None:
            self._transport.set_throttle(before.id, limits)
        if host is not None or after.key != before.key:
            self._transport.close_path(before.id)
            self._dispatcher.look()
            for one in {before.key, after.key}:  # whichever the dispatcher knows by now
                self._dispatcher.reached(one)
        return self.show_path(name)

    def remove_path(self, name: str, force: bool = False) -> Path:
        """What it was is returned.  Busy: VMs are protected over it, unless forced: they are not, then.  NotFound."""
        with self._catalog.transaction():
            was, row = self.show_path(name), self._path(name)
            if was.protected_count and not force:
                raise Busy(f"{show_count(was.protected_count, 'VM')} protected over path {name}: unprotect first, or force it (--force)")
            self._catalog.delete_path(row.id)
        self._dispatcher.look()
        self._transport.close_path(row.id)
        return was

    def _view_path(self, row: PathRow, protected_count: int) -> Path:
        peer = self._catalog.peer_of_key(row.key)
        way = self._dispatcher.way(row.id)
        error = None if way is None or way.retry.error is None else way.retry.error.message
        moving = [lane.flow for lane in self._dispatcher.lanes() if lane.row.path_id == row.id and lane.flow.moving]
        now = monotonic_seconds()
        return Path(
            name=row.name,
            host=row.host,
            port=row.port,
            key=row.key,
            fingerprint=fingerprint(row.key),
            peer=None if peer is None else peer.name,
            level=row.level,
            throttle=Throttle.from_json(json.loads(row.throttle)).to_json(),
            connected=self._transport.is_connected(row.id),
            error=error,
            protected_count=protected_count,
            running_count=len(moving),
            network_bytes_per_second=sum(flow.rates(now).recent.network for flow in moving),
            created=row.created,
        )


def check_endpoint(host: str, port: int) -> None:
    """InvalidArgument when nothing can be reached there."""
    if not isinstance(host, str) or _HOST.fullmatch(host) is None:
        raise InvalidArgument(f"{host!r} is no host: give a name or an IP address")
    if isinstance(port, bool) or not isinstance(port, int) or not 0 < port < 65536:
        raise InvalidArgument(f"{port!r} is no port: 1 to 65535")


def check_level(level: int) -> None:
    """InvalidArgument when zstd has no such level."""
    if isinstance(level, bool) or not isinstance(level, int) or not 0 <= level <= LEVEL_MAX:
        raise InvalidArgument(f"{level!r} is no level of compression: 0 (none) to {LEVEL_MAX}")
