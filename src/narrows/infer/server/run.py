"""The server as a process: it answers until it is told to end, then finishes what it began."""

from __future__ import annotations

import asyncio
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

import uvicorn
from starlette.applications import Starlette

from narrows.data.template import NO_OPTIONS, Options
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
    """Where it is to be found, which is its own from `reserved` on; `name` is the model's there."""

    name: str
    host: str
    bound: socket.socket
    api_key: str | None


def reserved(host: str, port: int) -> socket.socket:
    """Nobody else's from now on, and connected to by nobody yet; port 0 is any that is free.

    Raises BadInput where the address cannot be had: before a model is loaded, not after.
    """
    with _refusing(host, port):
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)[0]
        made = socket.socket(found[0], socket.SOCK_STREAM)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        # Given the port, getaddrinfo would take it modulo 65536; bind refuses it.
        made.bind((found[4][0], port, *found[4][2:]))
    return made


def serve(
    writer: Writer, place: Place, room: Room, limits: Limits, talk: Talk,
    options: Options = NO_OPTIONS,
) -> Tally:  # fmt: skip
    """Answer at `place` until SIGTERM or SIGINT; answers in the making get `limits.drain_s` more.
    The chat template is told the options. Returns what was done.

    Raises BadInput where another one listens there.
    """
    scheduler = scheduler_of(writer, room, talk)
    grammars = Grammars(writer.tokenizer)
    service = Service(place.name, int(time.time()), writer, scheduler, limits, grammars, options)
    try:
        _answer(app(service, _guards(place.host, place.api_key)), place, limits, talk, scheduler)
    finally:
        scheduler.close()
    return scheduler.tally


def serve_encoder(encoder: Embedder, place: Place, queue: int, limits: Limits, talk: Talk) -> None:
    """As `serve`, of a model that makes vectors of texts; so many requests may wait."""
    since, turn, waiting = int(time.time()), asyncio.Lock(), asyncio.Semaphore(queue + 1)
    service = EncoderService(place.name, since, encoder, limits, turn, waiting, Tally())
    _answer(encoder_app(service, _guards(place.host, place.api_key)), place, limits, talk)


def _answer(
    made: Starlette, place: Place, limits: Limits, talk: Talk, scheduler: Scheduler | None = None,
) -> None:  # fmt: skip
    config = uvicorn.Config(
        # What is no HTTP is answered so, and warned of for each.
        made, http=Connection, log_level="error", access_log=False, lifespan="off",
        timeout_graceful_shutdown=int(limits.drain_s) + 2, timeout_keep_alive=30,
        h11_max_incomplete_event_size=2**16,
    )  # fmt: skip
    host, port = place.bound.getsockname()[:2]
    with _refusing(host, port):
        place.bound.listen(2048)
    shown = f"[{host}]" if ":" in host else host
    talk(f"{place.name} at http://{shown}:{port} (ctrl-C ends)")
    server = uvicorn.Server(config)
    for each in (signal.SIGTERM, signal.SIGINT):
        # Uvicorn, once it has ended, raises what told it to: then it is to do nothing more.
        signal.signal(each, lambda number, frame: None)
    try:
        asyncio.run(_until_told(server, place.bound, scheduler, limits.drain_s))
    finally:
        place.bound.close()


def _guards(host: str, api_key: str | None) -> Guards:
    """Bound to this machine alone, it is asked for by the machine's own names alone."""
    local = host == "localhost" or host == "::1" or host.startswith("127.")
    names = (host, "localhost", "127.0.0.1", "[::1]")
    return Guards(api_key, names if local else None)


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


@contextmanager
def _refusing(host: str, port: int) -> Iterator[None]:
    try:
        yield
    except (OSError, OverflowError) as error:
        what = f"{host}:{port} cannot be listened on: {error}"
        raise BadInput(what, hint="another --port, or --port 0 for any that is free") from None
