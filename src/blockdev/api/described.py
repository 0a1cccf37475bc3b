"""What the fields of answers mean, for the OpenAPI document: in the words beside them in the classes that they come from.

A value of ours says there once what its fields are, in a comment; who reads the document has no other place to look.
"""

from __future__ import annotations

import ast
import inspect
import re
import sys
from collections.abc import Iterable, Iterator
from dataclasses import is_dataclass
from functools import cache
from typing import Any, get_args, get_type_hints

from pydantic import BaseModel

FIELD = re.compile(r"\s+(?P<name>\w+): [^#]*#\s*(?P<words>.+)")


def describe(schemas: dict[str, Any], roots: Iterable[Any]) -> None:
    """Give the properties of `schemas` the words that the classes of `roots` and of their fields have; what is described stays."""
    for cls in _classes(roots, set()):
        schema = schemas.get(cls.__name__, {})
        if "description" in schema:
            schema["description"] = _in_json(schema["description"])
        properties = schema.get("properties", {})
        for name, words in _words(cls.__module__).get(cls.__name__, {}).items():
            if name in properties:
                properties[name].setdefault("description", words)


def _classes(annotations: Iterable[Any], seen: set[Any]) -> Iterator[type]:
    for one in annotations:
        yield from _classes(get_args(one), seen)
        if isinstance(one, type) and one not in seen and (is_dataclass(one) or issubclass(one, BaseModel)):
            seen.add(one)
            yield one
            yield from _classes(get_type_hints(one).values(), seen)


@cache
def _words(module: str) -> dict[str, dict[str, str]]:
    """By class and field."""
    source = inspect.getsource(sys.modules[module])
    lines = source.splitlines()
    classes = [node for node in ast.parse(source).body if isinstance(node, ast.ClassDef)]
    return {one.name: dict(_fields(one, lines)) for one in classes}


def _fields(cls: ast.ClassDef, lines: list[str]) -> Iterator[tuple[str, str]]:
    for node in cls.body:
        match = FIELD.match(lines[(node.end_lineno or 0) - 1]) if isinstance(node, ast.AnnAssign) else None
        if match:
            yield match["name"], _in_json(match["words"])


def _in_json(words: str) -> str:
    return re.sub(r"\bNone\b", "null", words)
