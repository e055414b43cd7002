"""HTTP connections that are closed if the client sends no request or does not read the response."""

from __future__ import annotations

import asyncio
from typing import Any, ClassVar

from uvicorn.protocols.http.h11_impl import H11Protocol


class TimedProtocol(H11Protocol):  # type: ignore[misc]
    """HTTP/1.1 of uvicorn, which by itself waits for the headers of a request without end."""

    waiting_seconds: ClassVar[float] = 10
    """From the start of a connection, or the end of an answer, to the end of the next headers."""
    most_connections: ClassVar[int] = 500
    """One more ends the connection that has waited longest for a whole request."""

    # Connections without a whole request; the one that has waited longest is first
    _waiting: ClassVar[dict[TimedProtocol, None]] = {}
    _deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        """Wait for the first request."""
        super().connection_made(transport)
        self._await_request()
        if len(self.connections) > self.most_connections:
            longest_waiting = next(iter(self._waiting))
            longest_waiting.end()

    def data_received(self, data: bytes) -> None:
        """Stop the time limit at the end of the headers, and stop waiting at that of the body."""
        super().data_received(data)
        if self._is_answering():
            self._cancel_deadline()
            if not self.cycle.more_body:
                self._waiting.pop(self, None)

    def on_response_complete(self) -> None:
        """Wait for the next request, unless it is there already."""
        super().on_response_complete()
        if not self._is_answering():
            self._await_request()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop waiting."""
        self._stop_waiting()
        super().connection_lost(exc)

    def end(self) -> None:
        """End the connection now, whatever was not sent yet."""
        self._stop_waiting()
        self.transport.abort()

    def _is_answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _await_request(self) -> None:
        self._stop_waiting()
        self._waiting[self] = None
        self._set_deadline()

    def _set_deadline(self) -> None:
        unsent = self.transport.get_write_buffer_size()
        self._deadline = self.loop.call_later(self.waiting_seconds, self._end_if_idle, unsent)

    def _end_if_idle(self, unsent_before: int) -> None:
        """End the connection, unless the client still reads an answer, such as a long sound."""
        unsent = self.transport.get_write_buffer_size()
        if 0 < unsent < unsent_before:
            self._set_deadline()
        else:
            self.end()

    def _stop_waiting(self) -> None:
        self._waiting.pop(self, None)
        self._cancel_deadline()

    def _cancel_deadline(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
