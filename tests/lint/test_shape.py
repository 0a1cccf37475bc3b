"""The shape of the sources: short functions, small files, telling names, numbers that agree."""

from __future__ import annotations

import re

import pytest

from blockdev import constants
from tests.lint.sources import PACKAGE, enum_constants, functions, shown, sources

FUNCTION_LINES_MAX = 70
FILE_LINES_MAX = 800
BANNED_NAMES = {"helpers", "helper", "utils", "util", "common", "manager", "misc"}
STAR_IMPORT = re.compile(r"^\s*from\s+\S+\s+c?import\s+\*")
TEXTUAL = re.compile(r"^\s*(include\s+['\"]|DEF\s+\w+\s*=|IF\s+.*:\s*$)")
UNCHECKED_CDEF = re.compile(
    r"^\s*cdef\s+(?!class|struct|enum|union|extern|packed)[^=#]*\w\s*\([^)]*\)\s*(nogil\s*)?:?\s*(#.*)?$"
)

CODE = sources(".py", ".pyx", ".pxd")


@pytest.mark.parametrize("path", sources(".py", ".pyx"), ids=shown)
def test_no_function_is_longer_than_70_lines(path) -> None:
    long = [
        f"{shown(path)}:{f.first_line}: {f.name} has {f.line_count} lines"
        for f in functions(path)
        if f.line_count > FUNCTION_LINES_MAX
    ]
    assert not long, "\n".join(long)


def test_no_file_reaches_800_lines() -> None:
    long = [
        f"{shown(path)} has {count} lines"
        for path in CODE
        if (count := len(path.read_text().splitlines())) >= FILE_LINES_MAX
    ]
    assert not long, "\n".join(long)


def test_no_file_or_folder_has_a_name_that_says_nothing() -> None:
    bad = {
        shown(path)
        for path in CODE
        for part in (*path.parent.parts, path.stem)
        if part.lower().strip("_") in BANNED_NAMES
    }
    assert not bad


def test_no_star_imports_and_no_textual_cython_includes() -> None:
    bad = []
    for path in CODE:
        for number, line in enumerate(path.read_text().splitlines(), 1):
            if STAR_IMPORT.match(line) or (path.suffix != ".py" and TEXTUAL.match(line)):
                bad.append(f"{shown(path)}:{number}: {line.strip()}")
    assert not bad, "\n".join(bad)


def test_every_module_says_what_it_is() -> None:
    silent = [
        shown(path)
        for path in CODE
        if path.read_text().strip() and not re.match(r'(#.*\n|\s*\n)*("""|\'\'\')', path.read_text())
    ]
    assert not silent, f"no docstring at the top of {silent}"


def test_constants_are_equal_in_python_and_cython() -> None:
    python = {
        name: value for name, value in vars(constants).items() if isinstance(value, int) and name.isupper()
    }
    seen: dict[str, tuple[str, int]] = {}
    for path in sorted(PACKAGE.glob("*.pxd")):
        for name, value in enum_constants(path).items():
            if name in python:
                assert value == python[name], (
                    f"{name} is {python[name]} in constants.py and {value} in {shown(path)}"
                )
            assert seen.setdefault(name, (shown(path), value))[1] == value, (
                f"{name} differs: {seen[name]}, {shown(path)} {value}"
            )
    assert "BLOCK_BYTES" in seen, "no .pxd names BLOCK_BYTES: this test compares nothing"


def test_every_cython_module_has_its_pxd_contract() -> None:
    missing = [
        shown(path)
        for path in PACKAGE.glob("*.pyx")
        if not path.with_suffix(".pxd").exists() and path.stem != "_nbdkit"
    ]
    assert not missing
