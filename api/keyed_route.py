"""Routes behind a key: nobody gets a byte of a body read before the key is checked."""

from collections.abc import AsyncGenerator, Callable, Coroutine
from email.message import Message
from typing import Any

from fastapi import APIRouter, Depends, Request, Response, Security
from fastapi.routing import APIRoute
from fastapi.security import HTTPBearer
from starlette.concurrency import run_in_threadpool

from api.schemas.common import ErrorEnvelope
from api.strict_json import parse_json
from core.database import Database
from core.errors import InvalidRequest, TooLarge, Unauthorized
from core.settings import MEBIBYTE
from models.tables import api_key


class StrictRequest(Request):
    """A request that stops reading at a limit and takes only standard JSON."""

    limit: int | None = None

    async def stream(self) -> AsyncGenerator[bytes, None]:
        """Yield the body; `TooLarge` at once if it is declared too long, else when it is."""
        limit = self.limit or self.app.state.settings.limits.request_bytes
        declared = self.headers.get("content-length", "")
        seen = int(declared) if declared.isdecimal() else 0
        if seen <= limit:
            seen = 0
            async for piece in super().stream():
                seen += len(piece)
                if seen > limit:
                    break
                yield piece
        if seen > limit:
            raise TooLarge(f"The body is over the limit of {limit / MEBIBYTE:.4g} MiB.")

    async def json(self) -> Any:
        """Return the body's value, parsed once."""
        if not hasattr(self, "_value"):
            self._value = parse_json(await self.body())
        return self._value


class KeyedRoute(APIRoute):
    """A route that asks for a key, and for sound text, before anything else."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Put the checks in front of FastAPI's handler."""
        handle = super().get_route_handler()
        takes_json = self.body_field is not None

        async def check_first(request: Request) -> Response:
            strict = StrictRequest(request.scope, request.receive)
            strict.state.tenant = await _find_tenant(strict)
            _check_address(strict)
            if takes_json:
                _check_content_type(strict)
                await strict.json()
            return await handle(strict)

        return check_first


async def require_tenant(request: Request) -> str:
    """Return whose key it is; a route that was not made by `keyed_router` has none."""
    tenant = getattr(request.state, "tenant", None)
    if not isinstance(tenant, str):
        raise Unauthorized("This route is not open.")
    return tenant


def keyed_router() -> APIRouter:
    """Return a router under /v1 whose every route is behind a key."""
    return APIRouter(
        prefix="/v1",
        route_class=KeyedRoute,
        dependencies=[Depends(require_tenant), Security(HTTPBearer(auto_error=False))],
        responses={"4XX": {"model": ErrorEnvelope}, "5XX": {"model": ErrorEnvelope}},
    )


async def _find_tenant(request: Request) -> str:
    scheme, _, secret = request.headers.get("authorization", "").partition(" ")
    secret = secret.strip()
    if scheme.lower() != "bearer" or not secret:
        raise Unauthorized(
            "No API key was given; send it as 'Authorization: Bearer <key>'.",
            code="missing_api_key",
        )
    tenant = await run_in_threadpool(_read_tenant, request.app.state.database, secret)
    if tenant is None:
        raise Unauthorized("The API key is unknown or revoked.")
    return tenant


def _read_tenant(database: Database, secret: str) -> str | None:
    with database.reading() as session:
        row = api_key.find_by_secret(session, secret)
        return row.tenant if row else None


def _check_address(request: Request) -> None:
    if "\0" in request.scope["path"] or b"%00" in request.scope["query_string"]:
        raise InvalidRequest("The address holds a NUL character.", code="invalid_text")


def _check_content_type(request: Request) -> None:
    message = Message()
    message["content-type"] = request.headers.get("content-type", "")
    if message.get_content_type() != "application/json":
        raise InvalidRequest(
            "Send a JSON body with the header 'content-type: application/json'.",
            code="invalid_content_type",
        )
