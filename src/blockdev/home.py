"""The directory of one installation: which path is what (docs/architecture.md), and how it is made."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from blockdev import _medium, beside
from blockdev.errors import InvalidArgument, NotFound, Unavailable, medium_failure

SOCKET_PATH_BYTES_MAX = 107  # sockaddr_un.sun_path without its terminating zero
UNFINISHED_KEYS = re.compile(r"\.(api|identity)-.+")  # of the API's certificate and of the home's own key; in keys/ whatever is called so is ours
LONGEST_SOCKET = "nbd-4194304.new"  # the NBD socket before the engine serves, with the largest process id


def default_home() -> Path:
    """BLOCKDEV_HOME, else the place that fits the user."""
    named = os.environ.get("BLOCKDEV_HOME")
    if named:
        return Path(named)
    if os.geteuid() == 0:
        return Path("/var/lib/blockdev")
    return Path.home() / ".local/share/blockdev"


@dataclass(frozen=True)
class Home:
    """Paths below one home directory.  `path` is absolute: the processes below it run with another directory."""

    path: Path

    @classmethod
    def at(cls, path: str | Path | None = None) -> Home:
        """The home at `path` (default: default_home()).  Raises InvalidArgument if its sockets could not be bound."""
        home = cls(Path(path or default_home()).expanduser().absolute())
        if len(bytes(home.run / LONGEST_SOCKET)) > SOCKET_PATH_BYTES_MAX:
            raise InvalidArgument(
                f"home {home.path} is too long a path: a socket below it would have more than the "
                f"{SOCKET_PATH_BYTES_MAX} bytes that a Unix socket may have; choose a shorter --home"
            )
        return home

    @property
    def pool(self) -> Path:
        return self.path / "pool"

    @property
    def catalog(self) -> Path:
        return self.path / "catalog.db"

    @property
    def keys(self) -> Path:
        return self.path / "keys"

    @property
    def run(self) -> Path:
        return self.path / "run"

    @property
    def nbd_socket(self) -> Path:
        return self.run / "nbd.sock"

    @property
    def engine_socket(self) -> Path:
        return self.run / "engine.sock"

    @property
    def api_socket(self) -> Path:
        return self.run / "api.sock"

    @property
    def serve_lock(self) -> Path:
        """Held with flock by `blockdevctl serve` for as long as it lives; the file itself means nothing."""
        return self.run / "serve.lock"

    @property
    def control_lock(self) -> Path:
        """Held with flock by `blockdevd`."""
        return self.run / "blockdevd.lock"

    def require_initialised(self) -> None:
        """Raises NotFound unless `blockdevctl init` was run here, Unavailable when that cannot be seen."""
        try:
            is_there = self.pool.is_dir()
        except PermissionError:
            raise self.of_another() from None
        if not is_there:
            raise NotFound(f"{self.path} is not a blockdev home: run blockdevctl --home {self.path} init first")

    def make_directories(self) -> None:
        """The home, keys/ and run/, for the owner alone; what exists keeps its mode, but run/ and keys/ are private.

        They, and what is in keys/, are durable then, without what killed makers of keys left.

        Unavailable: the home is another user's; MediumError.
        """
        _medium.make_directories(str(self.path))
        try:
            for private in (self.keys, self.run):
                private.mkdir(mode=0o700, exist_ok=True)
                private.chmod(0o700)
        except PermissionError:
            raise self.of_another() from None
        except OSError as failure:
            raise medium_failure(failure.filename or str(self.path), failure.errno or 0) from None
        beside.clear(str(self.keys), UNFINISHED_KEYS)
        for changed in (self.path, self.keys):  # a key that others know must stay, even if whoever made it was killed at once
            _medium.sync_directory(str(changed))

    def of_another(self) -> Unavailable:
        return Unavailable(f"{self.path} is another user's: become that user")
