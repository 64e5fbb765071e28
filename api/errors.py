"""Every error as OpenAI's envelope: one table from exceptions to answers."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from api.schemas.common import ErrorDetail, ErrorEnvelope, ErrorWithReport
from core.errors import GraftworkError, InvalidRequest, TooLarge, Unauthorized

RETRY_AFTER_SECONDS = 2
RESTARTING = ("engine_unavailable", "server_stopping")
RESTART_SECONDS = 5
"""So long the engine takes to come back; a client with two retries must outlast it."""
SHOWN_PROBLEMS = 5
SHOWN_PATH = 128

log = structlog.get_logger(__name__)


class Refused(GraftworkError):
    """An error whose status was decided elsewhere: by the engine, or by the framework."""

    def __init__(self, message: str, *, status: int, code: str, param: str | None = None) -> None:
        super().__init__(message, code=code, param=param)
        self.status = status
        self.type = "invalid_request_error" if status < 500 else "server_error"


class Reported(InvalidRequest):
    """A refusal with findings that no sentence holds; the envelope carries them as `report`."""

    def __init__(self, message: str, *, code: str, param: str, report: dict[str, Any]) -> None:
        super().__init__(message, code=code, param=param)
        self.report = report


def envelope(error: GraftworkError) -> ErrorEnvelope:
    """Return the body for an error."""
    told: dict[str, Any] = {
        "message": _printable(error.message),
        "type": error.type,
        "param": None if error.param is None else _printable(error.param),
        "code": error.code,
    }
    if isinstance(error, Reported):
        return ErrorEnvelope(error=ErrorWithReport(**told, report=error.report))
    return ErrorEnvelope(error=ErrorDetail(**told))


def _printable(text: str) -> str:
    """Escape halves of surrogate pairs, which UTF-8 cannot carry back to who sent them."""
    return text.encode("utf-8", "backslashreplace").decode()


def answer(error: GraftworkError) -> JSONResponse:
    """Return the response for an error, with the headers that steer the client's retries."""
    return JSONResponse(
        envelope(error).model_dump(), status_code=error.status, headers=_headers(error)
    )


def _headers(error: GraftworkError) -> dict[str, str]:
    if error.status in (429, 503):
        seconds = RESTART_SECONDS if error.code in RESTARTING else RETRY_AFTER_SECONDS
        return {"retry-after": str(seconds)}
    headers = {"x-should-retry": "false"} if error.status < 500 else {}
    if isinstance(error, Unauthorized):
        headers["www-authenticate"] = "Bearer"
    if isinstance(error, TooLarge):
        headers["connection"] = "close"
    return headers


def internal_fault() -> GraftworkError:
    """Return what is told of a fault of ours; what it was stays in the log."""
    return GraftworkError("Something went wrong on our side; the log says what.")


def internal_error() -> JSONResponse:
    """Return the response for a fault of ours."""
    return answer(internal_fault())


def add_handlers(app: FastAPI) -> None:
    """Teach an application the table."""
    app.exception_handler(GraftworkError)(_on_our_error)
    app.exception_handler(RequestValidationError)(_on_invalid_request)
    app.exception_handler(HTTPException)(_on_http_error)


async def _on_our_error(_request: Request, error: GraftworkError) -> JSONResponse:
    if error.status >= 500:
        log.error("request failed", code=error.code, message=error.message)
    return answer(error)


async def _on_invalid_request(_request: Request, error: RequestValidationError) -> JSONResponse:
    return answer(explain(error.errors(), body=error.body))


async def _on_http_error(request: Request, error: HTTPException) -> JSONResponse:
    path = request.scope["path"]
    not_found = (
        f"{request.method} {path[:SHOWN_PATH]} is not offered."
        if path.startswith("/v1/")
        else "No such address; every route is under /v1."
    )
    messages = {
        404: (not_found, "not_found"),
        405: (f"{request.method} is not possible here.", "method_not_allowed"),
    }
    message, code = messages.get(error.status_code, (str(error.detail), "invalid_request"))
    response = answer(Refused(message, status=error.status_code, code=code))
    response.headers.update(error.headers or {})
    return response


def explain(problems: Sequence[Mapping[str, Any]], *, body: Any) -> InvalidRequest:
    """Turn pydantic's complaints into one error that names the parameters at fault."""
    by_param: dict[str, list[Mapping[str, Any]]] = {}
    for problem in problems:
        by_param.setdefault(_param(problem, body=body), []).append(problem)
    if deeper := by_param.keys() - {parent for param in by_param for parent in _parents(param)}:
        by_param = {param: found for param, found in by_param.items() if param in deeper}
    sentences = [_sentence(param, found) for param, found in by_param.items()]
    shown = " ".join(sentences[:SHOWN_PROBLEMS])
    if len(sentences) > SHOWN_PROBLEMS:
        shown += f" And {len(sentences) - SHOWN_PROBLEMS} more."
    param, found = next(iter(by_param.items()))
    return InvalidRequest(shown, code=_code(found), param=param or None)


def _param(problem: Mapping[str, Any], *, body: Any) -> str:
    """Return the dotted path of a complaint, without the names of union members in it."""
    place, *path = problem["loc"]
    if place != "body":
        return ".".join(map(str, path))
    kept: list[str] = []
    inside = body
    for number, part in enumerate(path):
        last = number == len(path) - 1
        if _holds(inside, part):
            inside = inside[part]
        elif not (last and problem["type"] == "missing"):
            continue
        kept.append(str(part)[:64])
    return ".".join(kept)


def _parents(param: str) -> Iterator[str]:
    """Yield the paths above one; of a union only the member that got deepest is worth a word."""
    while "." in param:
        param = param.rpartition(".")[0]
        yield param


def _holds(inside: Any, part: Any) -> bool:
    if isinstance(inside, list):
        return isinstance(part, int) and part < len(inside)
    return isinstance(inside, dict) and part in inside


def _code(problems: Sequence[Mapping[str, Any]]) -> str:
    kinds = {
        "extra_forbidden": "unknown_parameter",
        "missing": "missing_required_parameter",
        "unsupported_content": "unsupported_content",
    }
    return kinds.get(problems[0]["type"], "invalid_value")


def _sentence(param: str, problems: Sequence[Mapping[str, Any]]) -> str:
    kind = problems[0]["type"]
    if not param:
        return "The body must be a JSON object."
    if kind == "extra_forbidden":
        return f"Unknown parameter: '{param}'."
    if kind == "missing":
        return f"Missing required parameter: '{param}'."
    messages = (str(problem["msg"]).removeprefix("Value error, ") for problem in problems)
    text = "; or ".join(dict.fromkeys(messages))
    return f"Invalid value for '{param}': {text[:1].lower()}{text[1:]}."
