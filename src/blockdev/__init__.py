"""blockdev: block storage that knows what a virtual machine is."""

from blockdev import _pool

if _pool.API_VERSION != 1:
    raise ImportError("blockdev's extensions are of another version than its Python code: run make build")

from blockdev._pool import VDisk, VDiskSnapshot  # noqa: E402
from blockdev.pool import Pool  # noqa: E402
from blockdev.types import Extent  # noqa: E402

__all__ = ["Extent", "Pool", "VDisk", "VDiskSnapshot"]
