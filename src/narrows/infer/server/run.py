"""The server as a process: it answers until it is told to end, then finishes what it began."""

from __future__ import annotations

import asyncio
import signal
import socket
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import uvicorn
from starlette.applications import Starlette

from narrows.infer.engine import Room, scheduler_of
from narrows.infer.generate import Writer
from narrows.infer.grammar import Grammars
from narrows.infer.scheduler import Scheduler
from narrows.infer.server.app import Guards, app
from narrows.infer.server.connection import Connection
from narrows.infer.server.encoder import EncoderService, encoder_app
from narrows.infer.server.service import Limits, Service
from narrows.infer.tally import Tally
from narrows.spec.errors import BadInput

if TYPE_CHECKING:
    from narrows.infer.embedding import Embedder

Talk = Callable[[str], None]


class Place(NamedTuple):
    """Where it is to be found; `name` is the model's there."""

    name: str
    host: str
    port: int
    api_key: str | None


def serve(writer: Writer, place: Place, room: Room, limits: Limits, talk: Talk) -> Tally:
    """Answer at `place` until SIGTERM or SIGINT; answers in the making get `limits.drain_s` more.
    Returns what was done.

    Raises BadInput where the address cannot be had.
    """
    listening = _listening(place)
    scheduler = scheduler_of(writer, room, talk)
    grammars = Grammars(writer.tokenizer)
    service = Service(place.name, int(time.time()), writer, scheduler, limits, grammars)
    try:
        _answer(app(service, _guards(place)), place, listening, limits, talk, scheduler)
    finally:
        scheduler.close()
    return scheduler.tally


def serve_encoder(encoder: Embedder, place: Place, queue: int, limits: Limits, talk: Talk) -> None:
    """As `serve`, of a model that makes vectors of texts; so many requests may wait."""
    listening, waiting = _listening(place), asyncio.Semaphore(queue + 1)
    since = int(time.time())
    turn = asyncio.Lock()
    service = EncoderService(place.name, since, encoder, limits, turn, waiting, Tally())
    _answer(encoder_app(service, _guards(place)), place, listening, limits, talk)


def _answer(
    made: Starlette, place: Place, listening: socket.socket, limits: Limits, talk: Talk,
    scheduler: Scheduler | None = None,
) -> None:  # fmt: skip
    config = uvicorn.Config(
        # What is no HTTP is answered so, and warned of for each.
        made, http=Connection, log_level="error", access_log=False, lifespan="off",
        timeout_graceful_shutdown=int(limits.drain_s) + 2, timeout_keep_alive=30,
        h11_max_incomplete_event_size=2**16,
    )  # fmt: skip
    host, port = listening.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    talk(f"{place.name} at http://{shown}:{port} (ctrl-C ends)")
    server = uvicorn.Server(config)
    for each in (signal.SIGTERM, signal.SIGINT):
        # Uvicorn, once it has ended, raises what told it to: then it is to do nothing more.
        signal.signal(each, lambda number, frame: None)
    try:
        asyncio.run(_until_told(server, listening, scheduler, limits.drain_s))
    finally:
        listening.close()


def _guards(place: Place) -> Guards:
    """Bound to this machine alone, it is asked for by the machine's own names alone."""
    local = place.host == "localhost" or place.host == "::1" or place.host.startswith("127.")
    names = (place.host, "localhost", "127.0.0.1", "[::1]")
    return Guards(place.api_key, names if local else None)


async def _until_told(
    server: uvicorn.Server, listening: socket.socket, scheduler: Scheduler | None, drain_s: float
) -> None:
    """Uvicorn waits for open responses; the scheduler takes nothing more meanwhile."""
    serving = asyncio.ensure_future(server.serve(sockets=[listening]))
    while not server.should_exit and not serving.done():
        await asyncio.sleep(0.1)
    if scheduler is not None:
        await asyncio.to_thread(scheduler.close, drain_s=drain_s)
    await serving


def _listening(place: Place) -> socket.socket:
    try:
        found = socket.getaddrinfo(place.host, None, type=socket.SOCK_STREAM)[0]
        made = socket.socket(found[0], socket.SOCK_STREAM)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        # Given the port, getaddrinfo would take it modulo 65536; bind refuses it.
        made.bind((found[4][0], place.port, *found[4][2:]))
        made.listen(2048)
    except (OSError, OverflowError) as error:
        what = f"{place.host}:{place.port} cannot be listened on: {error}"
        raise BadInput(what, hint="another --port, or --port 0 for any that is free") from None
    return made
