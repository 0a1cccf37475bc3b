"""Reading the image of a seed as a guest does: by its Rock Ridge or its Joliet names."""

from __future__ import annotations

import io
from typing import BinaryIO, Literal

import pycdlib


def read_image(file: BinaryIO, extension: Literal["rock ridge", "joliet"] = "rock ridge") -> dict[str, str]:
    """Name -> text of every file."""
    disc = pycdlib.PyCdlib()
    disc.open_fp(file)
    key = "rr_path" if extension == "rock ridge" else "joliet_path"
    found = {}
    for record in disc.list_children(**{key: "/"}):
        if record.is_file():
            name = record.rock_ridge.name().decode() if key == "rr_path" else record.file_identifier().decode("utf-16_be")
            text = io.BytesIO()
            disc.get_file_from_iso_fp(text, **{key: f"/{name}"})
            found[name] = text.getvalue().decode()
    disc.close()
    return found
