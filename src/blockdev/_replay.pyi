"""Types of the compiled module; what things mean is in _replay.pyx."""

from collections.abc import Callable, Mapping

from blockdev._pool import Core, DiskObject

class Replay:
    def __init__(
        self,
        core: Core,
        segment_id: int,
        index: int,
        lsn: int,
        objects: Mapping[int, DiskObject],
        resident_nodes_max: int,
        dirty_nodes_max: int,
        kept_bytes_max: int,
    ) -> None: ...
    @property
    def batch_count(self) -> int: ...
    def find(self) -> None: ...
    def end(self) -> tuple[int, int, int]: ...
    def apply(self, on_record: Callable[[bytes, int], None], before_spill: Callable[[], None]) -> None: ...
    def finish(self, segments_path: str) -> tuple[int, int]: ...
