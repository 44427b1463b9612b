"""The HTTP door: routes, streaming, request log."""

from __future__ import annotations

import json
import os
import socket
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import chain
from socketserver import TCPServer
from time import perf_counter_ns
from typing import Any, ClassVar

from pytest_llmperf.emulator import api, log, models
from pytest_llmperf.emulator.engine import Engine

VERSION = "0.33.0"
PHYSICS = 1
"""Raised by hand when the emulated device behaves differently; each answer names it, as no Ollama does."""

_JSON = "application/json; charset=utf-8"
_NDJSON = "application/x-ndjson"
_TEXT = "text/plain; charset=utf-8"
_CLIENT_GONE = 499


class Server(ThreadingHTTPServer):
    """Listens as soon as it exists; OSError when it can't. Port 0 lets the system choose."""

    daemon_threads = True
    block_on_close = False
    request_queue_size = 128
    allow_reuse_address = os.name != "nt"  # on Windows it would let two servers share a port

    def __init__(self, address: tuple[str, int], engine: Engine) -> None:
        self.engine, self.fault = engine, engine.config.physics.fault
        if ":" in address[0]:
            self.address_family = socket.AF_INET6
        super().__init__(address, Handler)

    def server_bind(self) -> None:
        """Bind without HTTPServer's look-up of the host's full name, which can take seconds."""
        if sys.platform == "win32":
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_EXCLUSIVEADDRUSE, 1)
        TCPServer.server_bind(self)

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ANN401
        """Log what went wrong in a request, unless the client just went away."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class Handler(BaseHTTPRequestHandler):
    """One connection: keep-alive, one chunk per token, nothing sent before the first token."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: Server

    def do_GET(self) -> None:
        """Answer any method: the route decides."""
        started = perf_counter_ns()
        self._status = 200
        try:
            self._route(started)
        except api.ApiError as error:
            self._json({"error": error.message}, error.status)
        except RuntimeError as error:
            self._json({"error": str(error)}, 500)
        except ConnectionError:
            self._status, self.close_connection = _CLIENT_GONE, True
        finally:
            seconds = (perf_counter_ns() - started) / 1e9
            log.request(self._status, seconds, self.client_address[0], (self.command, self.path))

    do_HEAD = do_POST = do_PUT = do_DELETE = do_GET  # noqa: N815

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Nothing: gin's line stands for http.server's."""

    def version_string(self) -> str:
        """What the Server header says, in http.server's own error pages too."""
        return f"pytest-llmperf-emulator/{PHYSICS}"

    def _route(self, started: int) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = self.path.partition("?")[0]
        methods = self._ROUTES.get(path)
        if methods is None:
            return self._send(b"404 page not found", "text/plain", 404)
        answer = methods.get("GET" if self.command == "HEAD" else self.command)
        if answer is None:
            return self._send(b"405 method not allowed", "text/plain", 405)
        return answer(self, body, started)

    def _root(self, _body: bytes, _started: int) -> None:
        self._send(b"Ollama is running", _TEXT)

    def _version(self, _body: bytes, _started: int) -> None:
        self._json({"version": VERSION})

    def _tags(self, _body: bytes, _started: int) -> None:
        self._json(models.tags(self.server.fault.capabilities))

    def _ps(self, _body: bytes, _started: int) -> None:
        self._json(api.running(self.server.engine.loaded()))

    def _show(self, raw: bytes, _started: int) -> None:
        body = api.parse(raw, "ShowRequest")
        _, model = api.model_of(body, (400, "model is required"))
        self._json(models.show(model, self.server.fault.capabilities))

    def _generate(self, raw: bytes, started: int) -> None:
        self._complete(raw, started, api.GENERATE)

    def _chat(self, raw: bytes, started: int) -> None:
        if busy := self.server.fault.refuse():
            raise api.ApiError(503, busy)
        self._complete(raw, started, api.CHAT)

    def _complete(self, raw: bytes, started: int, dialect: api.Dialect) -> None:
        engine = self.server.engine
        body = api.parse(raw, dialect.struct)
        job = api.job_of(body, dialect, engine.config)
        if not job.prompt and job.keep_alive is not None and job.keep_alive < 1:  # Ollama counts whole seconds here
            engine.unload(job.model)
            return self._json(api.idle(job.name, dialect, "unload"))
        if not job.prompt:
            with engine.runner(job):
                pass
            return self._json(api.idle(job.name, dialect, "load"))
        with closing(engine.generate(job, started)) as pieces:
            records = api.records(job, dialect, body, pieces)
            return self._json(api.whole(dialect, records)) if body.get("stream") is False else self._stream(records)

    def _stream(self, records: Iterator[api.Body]) -> None:
        first = next(records)
        self._head(200, ("Content-Type", _NDJSON), ("Transfer-Encoding", "chunked"))
        try:
            for record in chain([first], records):
                self._chunk(_line(record) + b"\n")
        except RuntimeError as error:
            self._chunk(_line({"error": str(error)}) + b"\n")
        self._chunk(b"")

    def _chunk(self, data: bytes) -> None:
        self.wfile.write(b"%x\r\n%b\r\n" % (len(data), data))

    def _json(self, value: object, status: int = 200) -> None:
        self._send(_line(value), _JSON, status)

    def _send(self, content: bytes, kind: str, status: int = 200) -> None:
        self._head(status, ("Content-Type", kind), ("Content-Length", str(len(content))))
        if self.command != "HEAD":
            self.wfile.write(content)

    def _head(self, status: int, *headers: tuple[str, str]) -> None:
        self._status = status
        self.send_response_only(status)
        for name, value in (*headers, ("Server", self.version_string()), ("Date", self.date_time_string())):
            self.send_header(name, value)
        self.end_headers()

    _ROUTES: ClassVar[Mapping[str, Mapping[str, Callable[[Handler, bytes, int], None]]]] = {
        "/": {"GET": _root},
        "/api/version": {"GET": _version},
        "/api/tags": {"GET": _tags},
        "/api/ps": {"GET": _ps},
        "/api/show": {"POST": _show},
        "/api/generate": {"POST": _generate},
        "/api/chat": {"POST": _chat},
    }


def _line(value: object) -> bytes:
    line = json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode()
    return line[: len(line) // 2] if isinstance(value, api.Garbled) else line
