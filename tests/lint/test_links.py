"""What the documents point to is there: files, headings of files, paths of the tree, programs."""

from __future__ import annotations

import importlib.util
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCUMENTS = [ROOT / "README.md", ROOT / "bench" / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
LINK = re.compile(r"\]\((?!https?:)([^)#\s]*)(?:#([^)\s]+))?\)")
HEADING = re.compile(r"^#+ +(.*)$", re.MULTILINE)
TREE = re.compile(r"(?<![\w./-])((?:bench|docs|scripts|src|targets|tests)/[\w./-]*\w)(?![\w./-]*\*|\w)")
MODULE = re.compile(r"(\S*)python -m ([\w.]+)")
PLACEHOLDER = re.compile(r"\b[A-Z]{3,}\b")


def anchors(document: Path) -> set[str]:
    """As GitHub makes them of headings."""
    bare = (re.sub(r"[^\w\s-]", "", heading.lower()).strip() for heading in HEADING.findall(document.read_text()))
    return {re.sub(r"\s", "-", heading) for heading in bare}


def in_back_ticks(text: str) -> Iterator[str]:
    yield from re.findall(r"`([^`\n]+)`", text)


def is_there(path: str, tracked: set[str]) -> bool:
    """Also a part of a name, such as that of an extension without its ending."""
    return any(one == path or one.startswith((f"{path}/", f"{path}.")) for one in tracked)


@pytest.fixture(scope="module")
def tracked() -> set[str]:
    listed = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=True)
    return set(listed.stdout.splitlines())


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_what_a_document_points_to_is_there(document: Path, tracked: set[str]) -> None:
    text = document.read_text()
    for path, anchor in LINK.findall(text):
        target = document if not path else document.parent / path
        assert target.exists(), path
        assert not anchor or anchor in anchors(target), f"{path}#{anchor}"
    for told in in_back_ticks(text):
        paths = [path for path in TREE.findall(told) if not PLACEHOLDER.search(path)]
        assert not [path for path in paths if not is_there(path, tracked)], told


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_programs_that_a_document_prints_are_there_and_run_by_our_python(document: Path) -> None:
    """Debian has no `python`, and its python3 has not what ours needs."""
    for interpreter, module in MODULE.findall(document.read_text()):
        assert interpreter.endswith(".venv/bin/"), f"{interpreter}python -m {module}"
        assert importlib.util.find_spec(module) is not None, module
