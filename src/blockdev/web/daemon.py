"""blockdevd with the console: what `blockdevctl serve` and the console script start.

The API below knows nothing of the pages above it: it is told here what to serve over TCP.
"""

from __future__ import annotations

import gc

gc.disable()  # what is imported stays: to look through it again and again was a sixth of the imports' 1.3 s (measured)

from blockdev.api import daemon  # noqa: E402
from blockdev.web.console import create_console  # noqa: E402

gc.freeze()
gc.enable()


def main() -> None:
    """The console script."""
    daemon.main(create_console)


if __name__ == "__main__":
    main()
