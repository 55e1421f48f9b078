"""uvicorn's HTTP connections, with a time for headers and room for new ones, so that slow clients shut nobody out.

uvicorn waits without end for a request's headers, and above its limit of connections refuses everybody.
"""

import asyncio

from uvicorn.protocols.http.h11_impl import H11Protocol

HEADER_TIMEOUT = 10  # seconds from a connection, or a response, to the next request's complete headers
RESPONSE_TIMEOUT = 120  # seconds for a client to take a response
MAX_CONNECTIONS = 200  # at once; for another one, the oldest that waits for its client is closed


class BoundedProtocol(H11Protocol):
    """An HTTP connection."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._since = self.loop.time()
        self._timer: asyncio.TimerHandle | None = None
        self._expect_headers()
        if len(self.connections) > MAX_CONNECTIONS:
            idle = [one for one in self.connections if isinstance(one, BoundedProtocol) and one.waits_for_client]
            min(idle, key=lambda one: one._since).transport.abort()  # itself waits, so there is one

    @property
    def waits_for_client(self) -> bool:
        """Whether a request is to come, whole or in part, or the client does not take its response."""
        if self.cycle is None or self.cycle.response_complete or self.cycle.more_body:
            return True
        return self.flow.write_paused

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self._timer and self.cycle is not None and not self.cycle.response_complete:
            self._timer.cancel()
            self._timer = None

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.cycle.response_complete:  # it may have begun the next one
            self._expect_headers()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._timer:
            self._timer.cancel()
        super().connection_lost(exc)

    def _expect_headers(self) -> None:
        if self._timer:
            self._timer.cancel()
        seconds = RESPONSE_TIMEOUT if self.transport.get_write_buffer_size() else HEADER_TIMEOUT
        self._timer = self.loop.call_later(seconds, self.transport.abort)
