"""Every failure as one JSON shape, {"error": {"code", "message"}}, with the HTTP status that fits its class."""

from __future__ import annotations

import logging
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.routing import compile_path

from blockdev import errors
from blockdev.api.misfits import explain
from blockdev.api.schemas import ErrorBody

logger = logging.getLogger(__name__)

STATUS: dict[type[errors.BlockdevError], int] = {
    errors.InvalidArgument: 400,
    errors.NotFound: 404,
    errors.AlreadyExists: 409,
    errors.Busy: 409,
    errors.Locked: 409,
    errors.ReadOnly: 403,
    errors.NotAllowed: 403,
    errors.Gone: 410,
    errors.PoolFull: 507,
    errors.Unavailable: 503,
    errors.Poisoned: 503,
    errors.ToolFailed: 502,
    errors.GuestFailed: 502,
    errors.UnknownFormat: 501,
}
OTHER = 500

_MEANINGS = {
    400: "an argument that cannot be used",
    401: "over TCP: no token, or one that is unknown, expired or removed",
    403: "a write to a snapshot, or a caller who may not ask for this",
    404: "no such VM, disk, snapshot, schedule, job or address",
    405: "this address does not take this method",
    409: "a name that is taken, a thing in use, or a snapshot that is locked",
    410: "deleted meanwhile",
    411: "a body without its length",
    413: "a body that is too large",
    422: "a body or query of the wrong shape, or with what is not known there",
    500: "bytes at rest that do not verify, a failed medium, or a bug",
    501: "a pool or message of a version this build does not read",
    502: "qemu-img, a guest's agent or another program failed",
    503: "the engine does not answer, or refuses writes",
    507: "the pool is full",
}
# By reference and not as FastAPI's "model", of which it would compile one for each status of each operation whenever a process
# starts: 1,500 of them, a quarter of the start.  schemas() has what is referred to.
REFERENCE = "#/components/schemas/{model}"
_CONTENT = {"application/json": {"schema": {"$ref": REFERENCE.format(model=ErrorBody.__name__)}}}
RESPONSES: dict[int | str, dict[str, Any]] = {
    status: {"content": _CONTENT, "description": meaning} for status, meaning in _MEANINGS.items()
}
RESPONSES[401]["headers"] = {"WWW-Authenticate": {"required": True, "schema": {"type": "string"}}}
RESPONSES[405]["headers"] = {"Allow": {"required": True, "schema": {"type": "string"}}}


def schemas() -> dict[str, Any]:
    """What RESPONSES refer to, for the components of an OpenAPI document."""
    whole = ErrorBody.model_json_schema(ref_template=REFERENCE)
    return {**whole.pop("$defs"), ErrorBody.__name__: whole}


def answer(status: int, code: str, message: str) -> JSONResponse:
    """A message may repeat what the client sent, and JSON can hold half of a surrogate pair, which UTF-8 cannot."""
    line = " ".join(message.split()).encode(errors="replace").decode()
    return JSONResponse({"error": {"code": code, "message": line}}, status)


def install(app: FastAPI) -> None:
    """Make `app` answer all failures in this shape."""
    app.add_exception_handler(errors.BlockdevError, _operating)
    app.add_exception_handler(RequestValidationError, _malformed)
    app.add_exception_handler(HTTPException, _protocol)
    app.add_exception_handler(Exception, _bug)


def _operating(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, errors.BlockdevError)
    status = next((STATUS[kind] for kind in type(error).__mro__ if kind in STATUS), OTHER)
    if status >= 500:
        logger.warning("%s %s: %s", request.method, request.url.path, error.message)
    return answer(status, error.code, error.message)


def _malformed(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    return answer(422, errors.InvalidArgument.code, explain(error.errors()))


def _protocol(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    code = errors.NotFound.code if error.status_code == 404 else errors.InvalidArgument.code
    answered = answer(error.status_code, code, f"{request.method} {request.url.path}: {error.detail}")
    answered.headers.update(error.headers or {})
    if error.status_code == 405:
        answered.headers["Allow"] = ", ".join(sorted(_methods(request)))
    return answered


def _methods(request: Request) -> set[str]:
    """All that this address takes; starlette names those of the first route that has it only."""
    app, path = request.app, request.url.path
    if not hasattr(app.state, "methods"):
        paths = app.openapi()["paths"].items()
        app.state.methods = [(compile_path(form)[0], {method.upper() for method in item}) for form, item in paths]
    return next((methods for form, methods in app.state.methods if form.match(path)), {"GET"})  # of openapi.json itself


def _bug(request: Request, error: Exception) -> JSONResponse:
    """The trace is in the log: starlette raises the exception again behind this answer."""
    message = f"internal error: {type(error).__name__}: {error}; see the log of blockdevd"
    return answer(500, errors.BlockdevError.code, message)
