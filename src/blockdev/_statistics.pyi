"""Types of the compiled module; what things mean is in _statistics.pyx."""

from collections.abc import Sequence

API_VERSION: int
COUNTED: bool
ROW_BYTES: int
CELL_BYTES: int

class DiskStatistics:
    def __init__(self, id: int) -> None: ...
    @property
    def id(self) -> int: ...

def pack_statistics(disks: Sequence[DiskStatistics], bytes_max: int) -> tuple[bytes, bytes, bytes, int]: ...
def now_ns() -> int: ...
