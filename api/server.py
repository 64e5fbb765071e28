"""The HTTP server of the api: how it listens, and how it stops."""

import asyncio
import socket

import uvicorn
from fastapi import FastAPI

from api.connection import Connection
from core.settings import Settings

PATIENCE_SECONDS = 6.0
"""So long answers may go on after a signal; whoever still waits for the engine is told then."""
STOP_SECONDS = 8
"""After so many, who does not take what there is for them is cut off: `graftwork serve` and Docker
kill after 10."""


class Server(uvicorn.Server):
    """Lets answers end when it stops, and tells in time those that will not."""

    def __init__(self, app: FastAPI, settings: Settings) -> None:
        config = uvicorn.Config(
            app,
            http=Connection,
            host=settings.host,
            port=settings.port,
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_keep_alive=75,
            timeout_graceful_shutdown=STOP_SECONDS,
        )
        super().__init__(config)
        self._app = app

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop, as uvicorn does, but leave nobody without a word."""
        telling = asyncio.create_task(self._tell_waiting())
        try:
            await super().shutdown(sockets)
        finally:
            telling.cancel()

    async def _tell_waiting(self) -> None:
        await asyncio.sleep(PATIENCE_SECONDS)
        await self._app.state.engine.close()
