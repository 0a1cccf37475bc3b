"""blockdevd with the console: what `blockdevctl serve` and the console script start.

The API below knows nothing of the pages above it: it is told here what to serve over TCP.
"""

from __future__ import annotations

from blockdev.api import daemon
from blockdev.web.console import create_console


def main() -> None:
    """The console script."""
    daemon.main(create_console)


if __name__ == "__main__":
    main()
