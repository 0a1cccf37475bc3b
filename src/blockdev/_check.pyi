"""Types of the compiled module; what things mean is in _check.pyx."""

from blockdev._pool import Core, DiskObject
from blockdev.types import Extent

class Checker:
    blocks: int
    def __init__(self, core: Core, read_blocks: bool) -> None: ...
    def walk(self, thing: DiskObject) -> list[tuple[Extent, str]]: ...
