"""One connection of a client: how long it may say nothing where it is its turn to speak."""

import asyncio

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol


class Connection(H11Protocol):
    """Closes where a head does not come, or nothing more of a body, within `timeout_keep_alive`.

    uvicorn waits for ever for the first request, for any of which it has the first bytes, and for
    the rest of a body, also when nobody reads it any more.
    """

    def connection_made(
        self,
        transport: asyncio.Transport,  # type: ignore[override]  # as uvicorn, narrower than asyncio
    ) -> None:
        """Wait for the first request as for others."""
        super().connection_made(transport)
        self._await_more()

    def data_received(self, data: bytes) -> None:
        """Take in what came, and wait for more of the body, or for the next request."""
        super().data_received(data)
        self._await_more()

    def timeout_keep_alive_handler(self) -> None:
        """Close, unless it is us who have not taken what there is."""
        self.timeout_keep_alive_task = None
        if self.flow.read_paused:
            self._await_more()
        else:
            self.transport.close()

    def _await_more(self) -> None:
        if self._lacks(h11.IDLE, h11.SEND_BODY) and self.timeout_keep_alive_task is None:
            self.timeout_keep_alive_task = self.loop.call_later(
                self.timeout_keep_alive, self.timeout_keep_alive_handler
            )

    def _unset_keepalive_if_required(self) -> None:
        """Stop the clock, but not for a part of a head."""
        if not self._lacks(h11.IDLE):
            super()._unset_keepalive_if_required()

    def _lacks(self, *parts: object) -> bool:
        return self.conn.their_state in parts and not self.transport.is_closing()
