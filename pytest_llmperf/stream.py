"""The timed client: one blocking socket, two stamps on every read, nothing parsed before the run is over.

One stamp is taken after the read, in `time.perf_counter()` seconds; on Linux the other is the kernel's, of the bytes'
arrival. Parsing beside a stream would delay the next stamp, and what an HTTP client
object burns per chunk is taken from a model that runs on the same cores; so the timed path is sockets and bytes only.
"""

from __future__ import annotations

import socket
import struct
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from urllib.parse import urlsplit

import h11

from pytest_llmperf.model import InvalidRunError
from pytest_llmperf.traffic import Line, Read, Recording

STALL_LIMIT_S = 300.0
"""A stream without a byte for this long is given up; it covers queueing and prefill of a long prompt."""

PATIENCE_S = 20.0
"""After this long without a byte, and again after as long, the server is asked whether it lives."""

_SO_TIMESTAMPNS = 35
"""Linux's number, which the socket module does not name; the message that carries the stamp has the same."""

_TIMESPEC = struct.Struct("@qq")
_STAMPED = sys.platform == "linux" and struct.calcsize("P") == 8
_ROOM = socket.CMSG_SPACE(_TIMESPEC.size) if _STAMPED else 0

_CHUNKED_END = b"\r\n0\r\n\r\n"  # JSON escapes CR and LF, so no NDJSON payload can hold it


class Connection:
    """One kept-alive connection of one agent; `alive` tells of a server that is silent whether it answers others."""

    def __init__(
        self, url: str, stall_limit_s: float = STALL_LIMIT_S, alive: Callable[[], bool] = lambda: True
    ) -> None:
        self.url, self._stall_limit_s, self._alive = url, stall_limit_s, alive
        self._socket: socket.socket | None = None
        self._buffer = bytearray(1 << 16)

    def connect(self) -> None:
        """Open the connection, before the agents are released; InvalidRunError when nothing answers."""
        self.close()
        where = urlsplit(self.url)
        try:
            self._socket = socket.create_connection((where.hostname, where.port), timeout=10)
        except OSError as error:
            raise InvalidRunError(f"{self.url} does not answer: {error.strerror or error}") from error
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if _STAMPED:
            self._socket.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)
        self._socket.settimeout(min(PATIENCE_S, self._stall_limit_s))

    def close(self) -> None:
        """Close it, if it is open."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def abort(self) -> None:
        """Break the connection that another thread waits at."""
        if (open_ := self._socket) is not None:
            with suppress(OSError):
                open_.shutdown(socket.SHUT_RDWR)

    def exchange(self, request: bytes, released: float | None = None) -> Recording:
        """Send one request and record its answer to the last byte; `released` is when it was due (default: now)."""
        if self._socket is None:
            self.connect()
        assert self._socket is not None  # noqa: S101 - connect() opened it
        try:
            sent = time.perf_counter()
            self._socket.sendall(request)
            return Recording(sent if released is None else released, sent, tuple(self._reads(self._socket)))
        except OSError as error:
            raise InvalidRunError(f"{self.url} broke the connection: {error.strerror or error}") from error

    def _reads(self, source: socket.socket) -> Iterator[Read]:
        view, end = memoryview(self._buffer), _End()
        while not end.reached:
            size, kernel_ns = self._receive(source, view)
            stamp = time.perf_counter()
            if not size:
                return self.close()
            data = bytes(view[:size])
            end.see(data)
            yield Read(stamp, data, kernel_ns)

    def _receive(self, source: socket.socket, view: memoryview) -> tuple[int, int]:
        silent_since = time.perf_counter()
        while True:
            try:
                return _stamped_read(source, view) if _STAMPED else (source.recv_into(view), 0)
            except TimeoutError:
                silent_s = time.perf_counter() - silent_since
                if not self._alive():
                    raise InvalidRunError(f"{self.url} sent no byte for {silent_s:.0f} s and answers nobody") from None
                if silent_s >= self._stall_limit_s:
                    raise InvalidRunError(f"{self.url} sent no byte for {self._stall_limit_s:g} s") from None


def _stamped_read(source: socket.socket, view: memoryview) -> tuple[int, int]:
    """How many bytes there were, and the kernel's stamp of the last of them in ns since the epoch, 0 without one."""
    size, control, _, _ = source.recvmsg_into([view], _ROOM)
    for level, kind, data in control:
        if (level, kind, len(data)) == (socket.SOL_SOCKET, _SO_TIMESTAMPNS, _TIMESPEC.size):
            seconds, nanoseconds = _TIMESPEC.unpack(data)
            return size, seconds * 1_000_000_000 + nanoseconds
    return size, 0


class _End:
    """Notices the end of a response with as little work as possible: a look at the head, then at the last bytes."""

    def __init__(self) -> None:
        self.reached = False
        self._tail, self._missing, self._in_body = b"", 0, False

    def see(self, data: bytes) -> None:
        self._tail += data
        if not self._in_body:
            head, separator, body = self._tail.partition(b"\r\n\r\n")
            if not separator:
                return
            self._in_body, self._missing = True, _content_length(head)
            data, self._tail = body, b"\r\n" + body
        if self._missing >= 0:
            self._missing -= len(data)
            self.reached = self._missing <= 0
        else:
            self.reached = self._tail.endswith(_CHUNKED_END)
        self._tail = self._tail[-len(_CHUNKED_END) :]


def _content_length(head: bytes) -> int:
    """The body's length from the head, -1 where it is chunked."""
    for line in head.lower().split(b"\r\n"):
        if line.startswith(b"content-length:"):
            return int(line.partition(b":")[2])
    return -1


def lines(recording: Recording) -> tuple[int, list[Line]]:
    """The answer's HTTP status and its body's non-empty lines, each with the stamp of the read that completed it.

    The last piece of a body that was cut off is no line. Raises InvalidRunError for what is no HTTP, and for an answer
    that was cut off before its first line.
    """
    status, pieces, cut = _body(recording)
    if pieces and not cut:
        at, data = pieces[-1]
        pieces[-1] = at, data + b"\n"  # the body's end ends its last line
    rest, found = b"", list[Line]()
    for at, data in pieces:
        *complete, rest = (rest + data).split(b"\n")
        found += _stamped(at, complete)
    if cut and not found:
        raise InvalidRunError(f"the server's answer is no whole HTTP response: {cut}")
    return status, found


def _body(recording: Recording) -> tuple[int, list[tuple[float, bytes]], str]:
    """Status, the body's piece in each read, and what is wrong with the response, empty where nothing is."""
    parser = h11.Connection(h11.CLIENT)
    parser.send(h11.Request(method="GET", target="/", headers=[("Host", "x")]))
    parser.send(h11.EndOfMessage())
    status, pieces = 0, list[tuple[float, bytes]]()
    if not recording.reads:
        return status, pieces, "the connection was closed before it began"
    try:
        for at, data, *_ in recording.reads:
            parser.receive_data(data)
            events = list(_events(parser))
            status = next((event.status_code for event in events if isinstance(event, h11.Response)), status)
            pieces.append((at, b"".join(bytes(event.data) for event in events if isinstance(event, h11.Data))))
        parser.receive_data(b"")
        list(_events(parser))
    except h11.RemoteProtocolError as error:
        return status, pieces, str(error)
    return status, pieces, ""


def _stamped(at: float, complete: list[bytes]) -> Iterator[Line]:
    texts = [text.decode("utf-8", "replace") for text in complete if text.strip()]
    return (Line(at, text, alone=len(texts) == 1) for text in texts)


def _events(parser: h11.Connection) -> Iterator[h11.Event]:
    while isinstance(event := parser.next_event(), h11.Event):
        yield event
        if isinstance(event, h11.EndOfMessage | h11.ConnectionClosed):
            return
