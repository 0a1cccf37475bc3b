"""The image of a seed disk: ISO 9660 with Joliet and Rock Ridge and the volume id `cidata`, by pycdlib, its one room."""

from __future__ import annotations

from collections.abc import Callable
from io import BytesIO
from typing import NamedTuple

import pycdlib

from blockdev.cloudinit.files import Files
from blockdev.constants import BLOCK_BYTES

VOLUME_ID = "cidata"  # by which cloud-init's NoCloud finds it
FILE_MODE = 0o100444
_ZEROS = bytes(BLOCK_BYTES)


class Seed(NamedTuple):
    """One image, without its zeros."""

    size_bytes: int  # a multiple of BLOCK_BYTES
    parts: list[tuple[int, bytes]]  # (offset, data): runs of blocks that are not all zeros

    def write(self, write: Callable[[int, bytes], None]) -> None:
        """Into a disk that is all zeros, by `write` of (offset, data)."""
        for offset, data in self.parts:
            write(offset, data)


def build_seed(files: Files) -> Seed:
    """About a millisecond; the image has 68 KiB with small files, of which 36 KiB are not zeros."""
    found = {"meta-data": files.meta_data, "user-data": files.user_data}
    if files.network_config is not None:
        found["network-config"] = files.network_config
    image = BytesIO()
    disc = pycdlib.PyCdlib()
    disc.new(interchange_level=3, joliet=3, rock_ridge="1.09", vol_ident=VOLUME_ID)
    for number, (name, text) in enumerate(found.items()):
        data = text.encode()
        plain = f"/FILE{number}.;1"  # what a reader of neither extension sees
        disc.add_fp(BytesIO(data), len(data), plain, rr_name=name, joliet_path=f"/{name}", file_mode=FILE_MODE)
    disc.write_fp(image)
    disc.close()
    return _without_zeros(image.getvalue())


def _without_zeros(image: bytes) -> Seed:
    size_bytes = -len(image) % BLOCK_BYTES + len(image)
    image = image.ljust(size_bytes, b"\0")
    parts: list[tuple[int, bytes]] = []
    begun: int | None = None
    for offset in range(0, size_bytes + BLOCK_BYTES, BLOCK_BYTES):
        has_data = image[offset : offset + BLOCK_BYTES] not in (_ZEROS, b"")
        if has_data and begun is None:
            begun = offset
        elif not has_data and begun is not None:
            parts.append((begun, image[begun:offset]))
            begun = None
    return Seed(size_bytes, parts)
