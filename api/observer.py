"""What every response gets: an id of the server's own making, a log line, a count, a safe 500."""

from time import perf_counter

import structlog
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.errors import internal_error
from api.metrics import Metrics
from core.ids import new_id

QUIET = ("/livez", "/readyz", "/health", "/metrics")
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
FRAMINGS = {b"content-length", b"transfer-encoding"}
"""Of both, a proxy may have believed the one that we do not: what it took for the rest of a body
must not be read as somebody's next request (RFC 9112, 6.1)."""

CLIENT_GONE = 499

log = structlog.get_logger(__name__)


class Observer:
    """Wraps the whole application."""

    def __init__(self, app: ASGIApp, *, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = new_id("req")
        marks = [(b"x-request-id", request_id.encode()), (b"x-content-type-options", b"nosniff")]
        if {name for name, _ in scope["headers"]} >= FRAMINGS:
            marks.append((b"connection", b"close"))
        status = 0
        started = perf_counter()

        async def send_marked(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", ()), *marks]
            await send(message)

        with structlog.contextvars.bound_contextvars(request_id=request_id):
            try:
                await self._app(scope, receive, send_marked)
            except ClientDisconnect:
                status = status or CLIENT_GONE  # nobody is there to be answered
            except Exception:  # a bug of a route must not leave its caller without an answer
                log.exception("unexpected error")
                if status == 0:
                    await internal_error()(scope, receive, send_marked)
            finally:
                self._record(scope, status=status, seconds=perf_counter() - started)

    def _record(self, scope: Scope, *, status: int, seconds: float) -> None:
        route = getattr(scope.get("route"), "path", "unmatched")
        method = scope["method"] if scope["method"] in METHODS else "OTHER"
        self._metrics.observe(route, method=method, status=status, seconds=seconds)
        if route not in QUIET:
            milliseconds = round(seconds * 1000, 1)
            log.info("request", route=route, method=method, status=status, ms=milliseconds)
