"""The sources of the project, read the way the lint tests want them: imports, function spans, enum constants.

Python is parsed with ast.  Cython is read by line: its grammar is Python's for all that is asked here.
"""

from __future__ import annotations

import ast
import functools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "src" / "blockdev"
FOLDERS = ("src", "targets", "tests", "bench", "scripts")
CYTHON_IMPORT = re.compile(r"^\s*(?:from\s+([\w.]+)\s+c?import\s+(.+)|c?import\s+([\w., ]+))")
CYTHON_FUNCTION = re.compile(
    r"^(\s*)(?:async\s+def|def|cpdef|cdef)\b(?!\s+(?:class|struct|union|enum|extern|packed)\b)(.*)"
)
ENUM_CONSTANT = re.compile(r"^    \s*([A-Z][A-Z0-9_]*)\s*=\s*([^#]+)")


class Function(NamedTuple):
    name: str
    first_line: int
    line_count: int


class Import(NamedTuple):
    module: str  # "blockdev.engine.server" or "click"
    line: int


def sources(*suffixes: str) -> list[Path]:
    """Files of the project with one of the suffixes, generated and hidden ones left out."""
    found = [ROOT / "setup.py"] if ".py" in suffixes else []
    for folder in FOLDERS:
        found += [
            path for path in sorted((ROOT / folder).rglob("*")) if path.suffix in suffixes and path.is_file()
        ]
    return [
        path
        for path in found
        if not any(part.startswith(".") or part == "build" for part in path.relative_to(ROOT).parts)
    ]


def shown(path: Path) -> str:
    return str(path.relative_to(ROOT))


def module_name(path: Path) -> str:
    """The dotted name under which a file of the package is imported."""
    if path.is_relative_to(ROOT / "targets"):
        parts = ["blockdev", "targets", *path.relative_to(ROOT / "targets").with_suffix("").parts]
    else:
        parts = list(path.relative_to(ROOT / "src").with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def package_sources() -> list[Path]:
    """Every .py, .pyx and .pxd that is installed as part of blockdev."""
    inside = (ROOT / "src", ROOT / "targets")
    return [
        path for path in sources(".py", ".pyx", ".pxd") if any(path.is_relative_to(root) for root in inside)
    ]


@functools.cache  # each of a dozen rules asks for those of every file
def imports(path: Path) -> list[Import]:
    text = path.read_text()
    return list(_python_imports(path, text) if path.suffix == ".py" else _cython_imports(text))


def _python_imports(path: Path, text: str) -> Iterator[Import]:
    package = module_name(path) if path.name == "__init__.py" else module_name(path).rpartition(".")[0]
    tree = ast.parse(text)
    for_types = {id(inner) for node in ast.walk(tree) if _is_type_checking(node) for inner in ast.walk(node)}
    for node in ast.walk(tree):
        if id(node) in for_types:
            continue
        if isinstance(node, ast.Import):
            yield from (Import(alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*above, *([node.module] if node.module else [])])
            yield from (Import(_resolve(base, alias.name), node.lineno) for alias in node.names)


def _is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def _cython_imports(text: str) -> Iterator[Import]:
    for number, line in enumerate(text.splitlines(), 1):
        match = CYTHON_IMPORT.match(line)
        if match is None:
            continue
        base, names, plain = match.groups()
        if plain:
            yield from (Import(name.split()[0], number) for name in plain.split(",") if name.strip())
        else:
            yield from (
                Import(_resolve(base, name.split()[0]), number)
                for name in re.sub(r"[()\\]|#.*", "", names).split(",")
                if name.strip()
            )
            if re.sub(r"[()\\]|#.*", "", names).strip() == "":
                yield Import(base, number)


def _resolve(base: str, name: str) -> str:
    """`from blockdev import vmmap` names a module, `from blockdev.types import Extent` a thing in one."""
    if base == "blockdev" and any(
        (root / name).is_dir() or list(root.glob(f"{name}.py*")) or list(root.glob(f"{name}.pxd"))
        for root in (PACKAGE,)
    ):
        return f"blockdev.{name}"
    return base


def functions(path: Path) -> list[Function]:
    text = path.read_text()
    return list(_python_functions(text) if path.suffix == ".py" else _cython_functions(text.splitlines()))


def _python_functions(text: str) -> Iterator[Function]:
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield Function(node.name, node.lineno, (node.end_lineno or node.lineno) - node.lineno + 1)


def _cython_functions(lines: list[str]) -> Iterator[Function]:
    for index, line in enumerate(lines):
        match = CYTHON_FUNCTION.match(line)
        if match is None or "(" not in match.group(2):
            continue
        body = _signature_end(lines, index)
        if body is None:
            continue
        end = _block_end(lines, body, len(match.group(1)))
        name = re.search(r"(\w+)\s*\(", match.group(2))
        yield Function(name.group(1) if name else "?", index + 1, end - index)


def _signature_end(lines: list[str], index: int) -> int | None:
    """The line after the colon of a definition; None for a declaration without a body (`cdef int x = f(1)`)."""
    depth = 0
    for here in range(index, len(lines)):
        code = lines[here].split("#")[0].rstrip()
        depth += code.count("(") - code.count(")")
        if depth == 0:
            return here + 1 if code.endswith(":") else None
    return None


def _block_end(lines: list[str], start: int, indent: int) -> int:
    end = start
    for here in range(start, len(lines)):
        stripped = lines[here].strip()
        if not stripped:
            continue
        if len(lines[here]) - len(lines[here].lstrip()) <= indent:
            break
        end = here + 1
    return end


def enum_constants(path: Path) -> dict[str, int]:
    """NAME = number of the enums in a .pxd; an expression may use names that came before it."""
    found: dict[str, int] = {}
    for line in path.read_text().splitlines():
        match = ENUM_CONSTANT.match(line)
        if match:
            try:
                found[match.group(1)] = int(
                    eval(match.group(2).strip().rstrip(","), {"__builtins__": {}}, dict(found))
                )
            except (NameError, SyntaxError, TypeError):
                continue
    return found
