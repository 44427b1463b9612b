"""`python -m pytest_llmperf.relay http://HOST:PORT`: stands between clients and a server, and slows its answers down.

A process of its own, standard library only. Bytes pass unchanged; times are `loop.time()` seconds.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import signal
import sys
from contextlib import closing, suppress
from urllib.parse import urlsplit

_READ = 1 << 16
_HEAD_END = b"\r\n\r\n"

Stream = tuple[asyncio.StreamReader, asyncio.StreamWriter]
Waiting = asyncio.Queue[tuple[float, bytes]]
"""When bytes are due, and the bytes."""

_GONE = (0.0, b"")


class Delay:
    """When the bytes of one connection's answers are due: `factor` times as long after their request as they came.

    The factor is `first` until the first byte of an answer's body has come, `rest` afterwards. The next request begins
    with the first request bytes after bytes of an answer: HTTP/1.1 without pipelining.
    """

    def __init__(self, first: float, rest: float) -> None:
        self._first, self._rest = first, rest
        self._asking, self._in_body, self._tail = False, False, b""
        self._asked, self._due = math.inf, 0.0

    def asked(self, at: float) -> None:
        """Bytes of a request are forwarded now."""
        if not self._asking:
            self._asking, self._in_body, self._tail = True, False, b""
            self._asked = at

    def due(self, data: bytes, at: float) -> float:
        """When to hand on bytes of an answer that came at `at`: never before those that came earlier."""
        factor = self._rest if self._in_body else self._first
        self._asking = False
        if not self._in_body:
            self._look_for_body(data)
        self._due = max(self._due, at + (factor - 1) * max(0.0, at - self._asked))
        return self._due

    def _look_for_body(self, data: bytes) -> None:
        seen = self._tail + data
        self._in_body = bool(seen.partition(_HEAD_END)[2])
        self._tail = seen[-len(_HEAD_END) :]


async def forward(client: Stream, server: Stream, delay: Delay) -> None:
    """Pass bytes both ways until the client goes, or the server has gone and what it said is handed on."""
    waiting: Waiting = asyncio.Queue()
    listening = asyncio.create_task(_listen(server[0], waiting, delay))
    asking = asyncio.create_task(_ask(client[0], server[1], delay))
    answering = asyncio.create_task(_answer(waiting, client[1]))
    await asyncio.wait([asking, answering], return_when=asyncio.FIRST_COMPLETED)
    for task in (listening, asking, answering):
        task.cancel()


async def _ask(source: asyncio.StreamReader, sink: asyncio.StreamWriter, delay: Delay) -> None:
    loop = asyncio.get_running_loop()
    while data := await _read(source):
        delay.asked(loop.time())
        await _write(sink, data)


async def _listen(source: asyncio.StreamReader, waiting: Waiting, delay: Delay) -> None:
    loop = asyncio.get_running_loop()
    while data := await _read(source):
        waiting.put_nowait((delay.due(data, loop.time()), data))
    waiting.put_nowait(_GONE)


async def _answer(waiting: Waiting, sink: asyncio.StreamWriter) -> None:
    loop = asyncio.get_running_loop()
    while (answer := await waiting.get()) != _GONE:
        due, data = answer
        await asyncio.sleep(due - loop.time())
        await _write(sink, data)


async def _read(source: asyncio.StreamReader) -> bytes:
    """The next bytes; none once the peer has gone, in whichever way."""
    with suppress(OSError):
        return await source.read(_READ)
    return b""


async def _write(sink: asyncio.StreamWriter, data: bytes) -> None:
    """Send, unless the peer has gone: that the reader of the same connection notices."""
    with suppress(OSError):
        if not sink.is_closing():
            sink.write(data)
            await sink.drain()


async def _refuse(client: Stream, why: str) -> None:
    source, sink = client
    if not await _read(source):
        return
    body = json.dumps({"error": why}).encode()
    head = "HTTP/1.1 502 Bad Gateway\r\nContent-Type: application/json\r\nConnection: close\r\n"
    await _write(sink, f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
    with suppress(OSError):
        sink.write_eof()
    while await _read(source):  # closing with request bytes unread would reset the connection, the answer with it
        pass


async def serve(url: str, first: float, rest: float) -> None:
    """Relay each connection to a free port of 127.0.0.1 over one of its own to `url`; runs until it is cancelled."""
    where = urlsplit(url)

    async def relay(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        with closing(sink):
            try:
                server = await asyncio.open_connection(where.hostname, where.port)
            except OSError as error:
                why = f"{url} can't be reached: {error.strerror or error}; start the server there and ask again"
                await _refuse((source, sink), why)
                return
            with closing(server[1]):
                await forward((source, sink), server, Delay(first, rest))

    listener = await asyncio.start_server(relay, "127.0.0.1", 0)  # asyncio sets TCP_NODELAY itself, on both sides
    sys.stderr.write(f"Listening on 127.0.0.1:{listener.sockets[0].getsockname()[1]} (version relay)\n")
    sys.stderr.flush()
    await listener.serve_forever()


def main(argv: list[str]) -> None:
    """Serve until a signal ends the process; exit code 2 for arguments that are not legal."""
    parser = argparse.ArgumentParser("python -m pytest_llmperf.relay", description="Slow a server's answers down.")
    parser.add_argument("url", metavar="URL", type=_url, help="the server, e.g. http://127.0.0.1:11434")
    for name, what in [("--first", "the time to the first byte of a body"), ("--rest", "the time to all others")]:
        parser.add_argument(name, metavar="FACTOR", type=_factor, default=1.0, help=f"how many times as long {what}")
    chosen = parser.parse_args(argv)
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends it at once and without a traceback, as TERM does
    asyncio.run(serve(chosen.url, chosen.first, chosen.rest))


def _url(text: str) -> str:
    with suppress(ValueError):
        url = urlsplit(text)
        if url.scheme == "http" and url.hostname and url.port and url.path in ("", "/") and not url.query:
            return text
    raise argparse.ArgumentTypeError(f"{text!r} can't be relayed; give http://HOST:PORT, e.g. http://127.0.0.1:11434")


def _factor(text: str) -> float:
    with suppress(ValueError):
        if 1 <= (factor := float(text)) < math.inf:
            return factor
    raise argparse.ArgumentTypeError(f"{text!r} is no factor; give a number from 1 up, e.g. 1.25 for a quarter longer")


if __name__ == "__main__":
    main(sys.argv[1:])
