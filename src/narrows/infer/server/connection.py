"""A connection, as uvicorn has it, but for two things: who asks and then closes that direction is
still answered, and a stream's parts may be written without a turn of its task for each.
"""

from __future__ import annotations

import asyncio
from typing import Any, final

import h11
from starlette.types import Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

DIRECT = "narrows.write"
"""The extension of a request's scope that holds `Connection.write`."""
_PROBE_S = 1.0


@final
class Connection(H11Protocol):
    """HTTP/1.1 between bytes and the application."""

    def __init__(self, *words: Any, **named: Any) -> None:
        super().__init__(*words, **named)
        self._inner, self.app = self.app, self._answered
        self._silent = False

    def write(self, part: bytes) -> bool:
        """Write more of the body that is being streamed; False where it cannot be taken now."""
        if self.flow.write_paused or self.transport.is_closing():
            return False
        self.transport.write(b"%x\r\n%b\r\n" % (len(part), part))
        return True

    def eof_received(self) -> bool | None:  # type: ignore[override]
        """Whether to stay open: for who has asked for what is not answered yet."""
        asked = self.cycle is not None and not self.cycle.response_complete
        self._silent = asked and not self.cycle.more_body
        if self._silent:
            self._probe()
        return self._silent

    def on_response_complete(self) -> None:
        """Take the next request; from a silent client those that it sent before are all."""
        super().on_response_complete()
        if self._silent and self.cycle.response_complete:
            self.transport.close()

    async def _answered(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["http_version"] == "1.1":
            # Such a body comes in chunks; to older clients it is what comes until the end.
            scope["extensions"] = {DIRECT: self.write}
        await self._inner(scope, receive, send)

    def _probe(self) -> None:
        """Who closed both directions looks the same until something is sent: then its system says
        so. Any client passes over a 100 before the response.
        """
        waits = not (self.cycle.response_started or self.transport.is_closing())
        if waits and self.scope["http_version"] == "1.1":
            told = h11.InformationalResponse(status_code=100, headers=[], reason="Continue")
            self.transport.write(self.conn.send(told) or b"")
            asyncio.get_running_loop().call_later(_PROBE_S, self._probe)
