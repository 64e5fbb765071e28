"""One connection of a client: how long it may be without a request."""

import asyncio

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol


class Connection(H11Protocol):
    """Closes where no request comes within `timeout_keep_alive`, whatever comes of its head.

    uvicorn waits for ever for the first request, and for any of which it has the first bytes.
    """

    def connection_made(
        self,
        transport: asyncio.Transport,  # type: ignore[override]  # as uvicorn, narrower than asyncio
    ) -> None:
        """Wait for the first request as for others."""
        super().connection_made(transport)
        self._await_request()

    def data_received(self, data: bytes) -> None:
        """Take in what came; behind the body of a request that was refused, wait for the next."""
        super().data_received(data)
        self._await_request()

    def _await_request(self) -> None:
        if self._lacks_request and self.timeout_keep_alive_task is None:
            self.timeout_keep_alive_task = self.loop.call_later(
                self.timeout_keep_alive, self.timeout_keep_alive_handler
            )

    def _unset_keepalive_if_required(self) -> None:
        """Stop the clock, but not for a part of a head."""
        if not self._lacks_request:
            super()._unset_keepalive_if_required()

    @property
    def _lacks_request(self) -> bool:
        return self.conn.their_state is h11.IDLE and not self.transport.is_closing()
