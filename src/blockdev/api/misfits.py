"""What does not fit the form of a request: which part, what is wrong with it and what to send instead, in words of ours."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from fastapi import Request
from fastapi.dependencies.models import Dependant
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute

UNKNOWN = "unknown_parameter"
SHOWN_CHARACTERS_MAX = 80
TOLD_MAX = 5
WHOLE, NUMBER, TEXT = "a whole number", "a number", "a text in quotes"
LIST, OBJECT = "a list, such as [...]", "an object, such as {...}"
TIME = "a time with its zone, such as 2026-11-28T14:05:09Z"
KINDS = {
    "int": WHOLE,
    "float": NUMBER,
    "finite_number": NUMBER,
    "decimal": NUMBER,
    "string": TEXT,
    "bool": "true or false",
    "list": LIST,
    "tuple": LIST,
    "dict": OBJECT,
    "model": OBJECT,
    "datetime": TIME,
    "date": TIME,
    "timezone": TIME,
    "bytes": TEXT,
}
BOUNDS: dict[str, Callable[[Mapping[str, Any]], str]] = {
    "greater_than_equal": lambda bound: f"must be at least {bound['ge']}",
    "greater_than": lambda bound: f"must be more than {bound['gt']}",
    "less_than_equal": lambda bound: f"must be at most {bound['le']}",
    "less_than": lambda bound: f"must be less than {bound['lt']}",
    "string_too_short": lambda bound: f"must have at least {bound['min_length']} characters",
    "string_too_long": lambda bound: f"must have at most {bound['max_length']} characters",
    "too_short": lambda bound: f"must have at least {bound['min_length']} entries",
    "too_long": lambda bound: f"must have at most {bound['max_length']} entries",
    "string_pattern_mismatch": lambda bound: f"must be of the form {bound['pattern']}",
    "literal_error": lambda bound: f"must be {bound['expected']}",
    "enum": lambda bound: f"must be {bound['expected']}",
}


def refuse_unknown_parameters(request: Request) -> None:
    """RequestValidationError: the query has a parameter that the address does not take; a misspelt one is not left out unsaid."""
    if not request.scope["query_string"]:
        return
    route = request.scope["route"]
    assert isinstance(route, APIRoute)
    known = set(_parameters(route.dependant))
    unknown = [name for name in dict.fromkeys(request.query_params) if name not in known]
    if unknown:
        takes = {"takes": ", ".join(sorted(known)) or "none"}
        raise RequestValidationError([{"type": UNKNOWN, "loc": ("query", name), "input": name, "msg": "", "ctx": takes} for name in unknown])


def _parameters(dependant: Dependant) -> Iterator[str]:
    for one in dependant.query_params:
        yield one.alias
    for inner in dependant.dependencies:
        yield from _parameters(inner)


def explain(found: Sequence[Mapping[str, Any]]) -> str:
    """One sentence for each misfit, of what pydantic found."""
    told = list(dict.fromkeys(_sentence(one) for one in _merged(found)))
    more = len(told) - TOLD_MAX
    return "; ".join(told[:TOLD_MAX]) + (f"; and {more} more" if more > 0 else "")


def _merged(found: Sequence[Mapping[str, Any]]) -> Iterator[Mapping[str, Any]]:
    """What could be one of several words is one misfit, not one for each list of them; the lists' own names are not told."""
    words: dict[tuple[Any, ...], list[str]] = {}
    plain = [one | {"loc": tuple(part for part in one["loc"] if not (isinstance(part, str) and "[" in part))} for one in map(dict, found)]
    for one in plain:
        if one["type"] == "literal_error":
            words.setdefault(one["loc"], []).append(one["ctx"]["expected"])
    for one in plain:
        yield one | {"ctx": {"expected": " or ".join(words[one["loc"]])}} if one["type"] == "literal_error" else one


def _sentence(one: Mapping[str, Any]) -> str:
    kind, bound, given = one["type"], one.get("ctx") or {}, one.get("input")
    where, *path = one["loc"] or ("body",)
    name = ".".join(str(part) for part in path)
    if kind == "json_invalid":
        return f"the body is no JSON: {bound.get('error', 'it cannot be read')}"
    thing = (f"{name} in the body" if where == "body" else f"the parameter {name}") if name else "the body"
    if kind == UNKNOWN:
        return f"there is no parameter {str(given)[:SHOWN_CHARACTERS_MAX]!r} here: leave it out (known: {bound['takes']})"
    if kind == "missing":
        return f"{thing} is missing: send it" + ("" if name else ", as JSON")
    if kind == "extra_forbidden":
        return f"{thing} is not known here: leave it out"
    if kind in BOUNDS:
        return f"{thing} {BOUNDS[kind](bound)}{_not_given(given)}"
    known = KINDS.get(kind) or KINDS.get(kind.partition("_")[0])
    if known is not None:
        return f"{thing} must be {known}{_not_given(given)}"
    return f"{thing} cannot be used: {str(one['msg']).removeprefix('Value error, ')}"


def _not_given(given: Any) -> str:
    """What came instead.  A text is not repeated: it may be a secret at a wrong place, and answers are kept with the job."""
    if given is None or isinstance(given, bool):
        return f", not {({None: 'null', True: 'true', False: 'false'})[given]}"
    if isinstance(given, int | float):
        return f", not {given}" if len(repr(given)) <= SHOWN_CHARACTERS_MAX else ""
    return ""
