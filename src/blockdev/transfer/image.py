"""What a disk image file is, as qemu-img sees it and as far as it may be trusted.

An image is refused when it is of no format we take, when it is a file of bytes that nobody called raw, and when it
refers to files outside its own directory: an image from elsewhere must not make us read /etc/shadow into a disk.
"""

from __future__ import annotations

import json
import os
import stat
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from blockdev.constants import VDISK_BYTES_MAX
from blockdev.errors import InvalidArgument, NotFound, ToolFailed
from blockdev.transfer.qemu_img import is_sound, run_qemu_img
from blockdev.watching import Watcher

FORMATS = ("raw", "qcow2", "vmdk", "vdi", "vhdx")
RAW_SUFFIXES = (".raw", ".img")
BACKING_DEPTH_MAX = 64
PROBE_BYTES = 72 << 10
VDI_HEADER_BYTES = 512

# (offset, bytes) of what makes a file of bytes a disk: partition tables, file systems, volume managers, encryption
SIGNATURES = (
    (510, b"\x55\xaa"),  # MBR, FAT, NTFS
    (512, b"EFI PART"),
    (4096, b"EFI PART"),
    (1080, b"\x53\xef"),  # ext2, ext3, ext4
    (0, b"XFSB"),
    (0x10040, b"_BHRfS_M"),  # btrfs
    (1024, b"\x10\x20\xf5\xf2"),  # f2fs
    (0, b"hsqs"),  # squashfs
    (0x8001, b"CD001"),  # ISO 9660
    (0x8001, b"BEA01"),  # UDF
    (0, b"LUKS\xba\xbe"),
    (512, b"LABELONE"),  # LVM physical volume
    (4086, b"SWAPSPACE2"),
)


@dataclass(frozen=True)
class Image:
    path: str  # absolute
    format: str  # one of FORMATS
    size_bytes: int  # of the disk inside, a multiple of 512


def inspect(path: str, format: str | None = None) -> Image:
    """What the image at `path` is; `format` forces one of FORMATS.  Raises NotFound, InvalidArgument, ToolFailed."""
    if format is not None and format not in FORMATS:
        raise InvalidArgument(f"unknown image format {format!r}: use one of {', '.join(FORMATS)}")
    _require_readable_file(path)
    info = _info(path, format)
    found = format or _detected(path, info["format"])
    _refuse_foreign_references(path, info)
    size_bytes = int(info["virtual-size"])
    if size_bytes == 0:
        raise InvalidArgument(f"{path} is empty: a disk has at least 512 bytes")
    if size_bytes > VDISK_BYTES_MAX:
        raise InvalidArgument(f"{path} holds a disk of {size_bytes} bytes; a disk has at most {VDISK_BYTES_MAX}")
    return Image(path, found, size_bytes)


def require_sound(image: Image, watcher: Watcher) -> None:
    """Raises InvalidArgument for a damaged image; qemu-img convert would read what a truncated one lacks as zeros."""
    whole = is_sound(image.path, image.format, watcher) and (image.format != "vdi" or _is_whole_vdi(image.path))
    if not whole:
        raise InvalidArgument(
            f"{image.path} is damaged or cut short (qemu-img check -f {image.format} tells more): get a whole copy"
        )


def _is_whole_vdi(path: str) -> bool:
    """Whether the file is as long as its header says, but for the last block: qemu-img check does not look."""
    with open(path, "rb") as file:
        head = file.read(VDI_HEADER_BYTES)
        file_bytes = file.seek(0, os.SEEK_END)
    data_offset = int.from_bytes(head[0x158:0x15C], "little")
    block_bytes, extra_bytes, _, allocated = struct.unpack_from("<4I", head, 0x178)
    return file_bytes > data_offset + (allocated - 1) * (block_bytes + extra_bytes)


def _require_readable_file(path: str) -> None:
    if not os.path.isabs(path):
        raise InvalidArgument(f"image path {path!r} is not absolute")
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        raise NotFound(f"image {path} does not exist") from None
    except OSError as error:
        raise InvalidArgument(f"image {path}: {error.strerror}") from None
    if not (stat.S_ISREG(mode) or stat.S_ISBLK(mode)):
        raise InvalidArgument(f"image {path} is neither a file nor a block device")
    if not os.access(path, os.R_OK):
        raise InvalidArgument(f"image {path} cannot be read: give the blockdev daemon's user permission to read it")


def _info(path: str, format: str | None) -> dict[str, Any]:
    forced = ["-f", format] if format else []
    try:
        info = json.loads(run_qemu_img(["info", "--output=json", *forced, path]))
    except ToolFailed as error:
        raise InvalidArgument(f"{path} is not a usable disk image: {_reason(error.message, path)}") from None
    assert isinstance(info, dict)
    return info


def _reason(message: str, path: str) -> str:
    """qemu-img's words without the repetition: Could not open 'P': Could not open 'P': X -> X."""
    return message.replace("qemu-img: ", "").replace(f"Could not open '{path}': ", "")


def _detected(path: str, format: str) -> str:
    if format == "luks":  # to us an encrypted disk is bytes: the guest has the key
        format = "raw"
    if format not in FORMATS:
        raise InvalidArgument(
            f"{path} is a {format} image, blockdev takes {', '.join(FORMATS)}: "
            "make one with qemu-img convert -O qcow2 first"
        )
    if format == "raw" and not _carries_a_disk(path):
        raise InvalidArgument(f"{path} is not a disk image that can be recognised; if it is raw, say --format raw")
    return format


def _carries_a_disk(path: str) -> bool:
    if Path(path).suffix.lower() in RAW_SUFFIXES or stat.S_ISBLK(os.stat(path).st_mode):
        return True
    with open(path, "rb") as file:
        head = file.read(PROBE_BYTES)
    return any(head[offset : offset + len(magic)] == magic for offset, magic in SIGNATURES)


def _refuse_foreign_references(path: str, info: dict[str, Any]) -> None:
    """Every file that the image, or its backing chain, refers to must lie in the directory of the image."""
    directory = os.path.realpath(os.path.dirname(path))
    for _ in range(BACKING_DEPTH_MAX):
        backing = info.get("full-backing-filename")
        for name in [*_data_files(info), *([backing] if backing else [])]:
            if not _is_inside(name, directory):
                raise InvalidArgument(
                    f"{path} refers to {name}, outside its own directory: if you trust it, make it whole with "
                    f"qemu-img convert -O qcow2 {path} WHOLE.qcow2 and import that"
                )
        if not backing:
            return
        info = _info(os.path.join(directory, backing), info.get("backing-filename-format"))
    raise InvalidArgument(f"{path} has a backing chain of more than {BACKING_DEPTH_MAX} images")


def _data_files(info: dict[str, Any]) -> list[str]:
    data = info.get("format-specific", {}).get("data", {})
    extents = [extent["filename"] for extent in data.get("extents", [])]
    return extents + ([data["data-file"]] if "data-file" in data else [])


def _is_inside(name: str, directory: str) -> bool:
    first = name.split("/", 1)[0]
    if ":" in first:  # qemu takes that for a protocol or a json: description
        return False
    return os.path.dirname(os.path.realpath(os.path.join(directory, name))) == directory
