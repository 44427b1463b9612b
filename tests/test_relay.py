"""The relay as a real process, before raw sockets with a known schedule and before the emulator."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from http.client import HTTPConnection
from itertools import count
from pathlib import Path

import psutil
import pytest

from pytest_llmperf import chat, ollama
from pytest_llmperf.model import Workload
from pytest_llmperf.relay import Delay, forward
from pytest_llmperf.server import Server
from pytest_llmperf.stream import Connection, lines
from pytest_llmperf.traffic import Recording
from tests.emulator.instances import GEMMA, Instance, environment, eventually

Deed = Callable[[socket.socket], None]
Step = bytes | float | Deed

posix_only = pytest.mark.skipif(sys.platform == "win32", reason="Windows has neither these signals nor descriptors")

ARGV = [sys.executable, "-m", "pytest_llmperf.relay"]
REQUEST = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
END = b"0\r\n\r\n"
BINARY = bytes(range(256)) * 4096
LIMIT_S = 20


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def whole(body: bytes) -> bytes:
    return b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)


def reset(peer: socket.socket) -> None:
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    peer.close()


def until_gone(peer: socket.socket) -> None:
    assert peer.recv(1) == b"", "the client asked once more"


@contextmanager
def serving(*deeds: Deed) -> Iterator[str]:
    """A server that does one deed per connection, side by side."""
    with socket.create_server(("127.0.0.1", 0)) as door, ThreadPoolExecutor(len(deeds)) as pool:
        door.settimeout(LIMIT_S)

        def meet(deed: Deed) -> None:
            peer, _ = door.accept()
            with peer:
                peer.settimeout(LIMIT_S)
                peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                deed(peer)

        met = [pool.submit(meet, deed) for deed in deeds]
        yield f"http://127.0.0.1:{door.getsockname()[1]}"
        for one in met:
            one.result(timeout=LIMIT_S)


def answering(*answers: Sequence[Step]) -> Deed:
    """Plays one answer per request: bytes to send, seconds to wait, a deed."""

    def play(peer: socket.socket) -> None:
        for steps in answers:
            assert peer.recv(1 << 16) == REQUEST
            for step in steps:
                take(peer, step)

    return play


def take(peer: socket.socket, step: Step) -> None:
    if isinstance(step, bytes):
        peer.sendall(step)
    elif isinstance(step, float):
        time.sleep(step)
    else:
        step(peer)


class Relays:
    """Starts relays; `url` and `server` are those of the latest."""

    def __init__(self, folder: Path, running: ExitStack) -> None:
        self._folder, self._running, self._numbers = folder, running, count(1)

    def start(self, url: str, first: float = 1, rest: float = 1) -> str:
        argv = [*ARGV, url, "--first", str(first), "--rest", str(rest)]
        log = self._folder / f"relay{next(self._numbers)}"
        self.server = server = Server(argv, env=os.environ, cwd=Path.cwd(), log_path=log)
        self._running.callback(self._stop, server)
        self.url = server.wait_until(lambda: ollama.listening(server.log_text()), limit_s=LIMIT_S, what="listening")
        return self.url

    def _stop(self, server: Server) -> None:
        server.stop()
        assert server.exit_code in {-signal.SIGTERM, 1}  # 1: how psutil kills on Windows
        assert re.fullmatch(r"Listening on 127\.0\.0\.1:\d+ \(version relay\)\n", server.log_text())


@pytest.fixture
def relays(tmp_path: Path) -> Iterator[Relays]:
    """All that a relay ever prints is where it listens: that is checked after every test."""
    with ExitStack() as running:
        yield Relays(tmp_path, running)


@pytest.fixture
def emulator(tmp_path: Path) -> Iterator[str]:
    """The URL of an emulator that is 20 times as fast."""
    instance = Instance.start(environment(tmp_path, "instance", "speed=20", {}))
    try:
        instance.wait_until_ready()
        yield f"http://{instance.address}"
    finally:
        instance.stop()


def recorded(url: str, request: bytes = REQUEST) -> Recording:
    with closing(Connection(url, LIMIT_S)) as connection:
        return connection.exchange(request)


def heard(recording: Recording) -> bytes:
    return b"".join(read.data for read in recording.reads)


def arrivals(recording: Recording) -> dict[str, float]:
    """When each line came, in seconds after the request."""
    return {line.text: line.at - recording.sent for line in lines(recording)[1]}


def connected(url: str) -> socket.socket:
    host, port = url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=LIMIT_S)


def nobody() -> str:
    """The URL of a port that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as door:
        return f"http://127.0.0.1:{door.getsockname()[1]}"


@pytest.mark.parametrize("factor", [1, 1.5])
@pytest.mark.parametrize(
    "pieces",
    [
        pytest.param([whole(b"one\n")], id="content-length"),
        pytest.param([whole(BINARY)], id="binary"),
        pytest.param([CHUNKED + chunk(b"one\n"), 0.02, chunk(BINARY), 0.02, chunk(b"two\n") + END], id="chunked"),
        pytest.param([CHUNKED[:9], 0.02, CHUNKED[9:-2], 0.02, CHUNKED[-2:], 0.02, chunk(b"") + END], id="head split"),
        pytest.param([b"SSH-2.0-OpenSSH_9.6\r\n" + BINARY], id="no HTTP"),
    ],
)
def test_an_answer_passes_unchanged(relays: Relays, pieces: list[Step], factor: float) -> None:
    with serving(answering(pieces)) as url:
        recording = recorded(relays.start(url, factor, factor))
    assert heard(recording) == b"".join(piece for piece in pieces if isinstance(piece, bytes))


def test_a_request_passes_unchanged(relays: Relays) -> None:
    request = b"POST / HTTP/1.1\r\nContent-Length: %d\r\n\r\n%b" % (len(BINARY), BINARY)

    def echo(peer: socket.socket) -> None:
        got = b""
        while len(got) < len(request):
            got += peer.recv(1 << 16)
        peer.sendall(whole(got))

    with serving(echo) as url:
        assert heard(recorded(relays.start(url, 2, 2), request)) == whole(request)


def test_the_first_byte_of_the_body_comes_by_the_first_factor(relays: Relays) -> None:
    with serving(answering([CHUNKED, 0.2, chunk(b"one\n"), chunk(b"two\n") + END])) as url:
        came = arrivals(recorded(relays.start(url, first=3)))
    assert 0.55 < came["one"] <= came["two"]


def test_later_bytes_come_by_the_other_factor(relays: Relays) -> None:
    with serving(answering([0.2, CHUNKED + chunk(b"one\n"), 0.8, chunk(b"two\n") + END])) as url:
        came = arrivals(recorded(relays.start(url, rest=6)))
    assert came["one"] < 1.1, "it would be 1.2 by the other factor"
    assert came["two"] > 5.5


def test_factors_of_one_delay_nothing(relays: Relays) -> None:
    with serving(answering([0.2, CHUNKED + chunk(b"one\n"), 0.2, chunk(b"two\n") + END])) as url:
        came = arrivals(recorded(relays.start(url)))
    assert 0.15 < came["one"] < came["two"] < 2


def test_each_request_of_a_connection_has_its_own_clock(relays: Relays) -> None:
    deed = answering([0.1, whole(b"one\n")], [0.1, whole(b"two\n")])
    with serving(deed) as url, closing(Connection(relays.start(url, first=3))) as connection:
        one = arrivals(connection.exchange(REQUEST))["one"]
        time.sleep(1)
        two = arrivals(connection.exchange(REQUEST))["two"]
    assert one > 0.25
    assert 0.25 < two < 2, "on the first request's clock it would be 2.9"


def test_connections_do_not_wait_for_one_another(relays: Relays) -> None:
    agents = 4
    with serving(*[answering([0.3, whole(b"one\n")])] * agents) as url, ThreadPoolExecutor(agents) as pool:
        relays.start(url, first=3)
        began = time.perf_counter()
        came = [arrivals(recording)["one"] for recording in pool.map(recorded, [relays.url] * agents)]
        took = time.perf_counter() - began
    assert min(came) > 0.85
    assert took < 3, "one after the other they would take 3.6"


def test_delays_are_exact() -> None:
    delay = Delay(3, 2)
    assert delay.due(b"unasked", 1) == 1
    delay.asked(10)
    delay.asked(10.5)
    assert delay.due(CHUNKED, 11) == 13
    assert delay.due(b"one", 12) == 16
    assert delay.due(b"early", 12.5) == 16
    assert delay.due(b"two", 14) == 18
    delay.asked(20)
    assert delay.due(CHUNKED + b"one", 21) == 23
    assert delay.due(b"two", 22) == 24


@pytest.mark.parametrize("cut", range(1, len(CHUNKED) + 1))
def test_a_body_begins_after_its_head_wherever_that_is_cut(cut: int) -> None:
    delay = Delay(3, 2)
    delay.asked(0)
    pieces = [CHUNKED[:cut], CHUNKED[cut:], b"one", b"two"]
    assert [delay.due(piece, 10 * n) for n, piece in enumerate(pieces) if piece][-2:] == [60, 60]
    assert delay.due(b"three", 40) == 80


@pytest.mark.parametrize("leave", [socket.socket.close, reset])
def test_a_cut_answer_is_handed_on_and_then_cut(relays: Relays, leave: Deed) -> None:
    cut = CHUNKED + chunk(b"one\n") + b"4\r\ntw"
    with serving(answering([0.1, cut, leave])) as url:
        recording = recorded(relays.start(url, first=3))
    assert heard(recording) == cut
    assert arrivals(recording)["one"] > 0.25


def test_a_client_that_goes_away_ends_the_answer(relays: Relays) -> None:
    with serving(answering([CHUNKED + chunk(b"one\n"), until_gone])) as url, connected(relays.start(url)) as client:
        client.sendall(REQUEST)
        assert client.recv(5) == b"HTTP/"


def test_a_client_need_not_wait_for_what_is_not_due_yet(relays: Relays) -> None:
    deed = answering([0.1, whole(b"one\n"), until_gone])
    with serving(deed) as url, connected(relays.start(url, first=1e6)) as client:
        client.sendall(REQUEST)
        time.sleep(0.3)  # the answer is there by now, and due in a day


def test_a_server_that_closes_an_idle_connection_is_passed_on(relays: Relays) -> None:
    with serving(socket.socket.close) as url, connected(relays.start(url)) as client:
        assert client.recv(1) == b""


def test_a_server_that_breaks_off_a_request_is_passed_on(relays: Relays) -> None:
    def break_off(peer: socket.socket) -> None:
        assert peer.recv(1) == BINARY[:1]
        reset(peer)

    with serving(break_off) as url, connected(relays.start(url)) as client, pytest.raises(ConnectionError):
        client.sendall(BINARY * 64)


def test_no_task_is_left_behind() -> None:
    async def leave_while_an_answer_waits() -> set[asyncio.Task[None]]:
        (client, near), (far, server) = socket.socketpair(), socket.socketpair()
        with client, server:
            ends = [await asyncio.open_connection(sock=end) for end in (near, far)]
            forwarding = asyncio.create_task(forward(ends[0], ends[1], Delay(1e6, 1)))
            client.sendall(REQUEST)
            await asyncio.sleep(0.1)
            server.sendall(whole(b"one\n"))
            await asyncio.sleep(0.1)
        await forwarding
        for _, writer in ends:
            writer.close()
        await asyncio.sleep(0.1)
        return asyncio.all_tasks() - {asyncio.current_task()}

    assert asyncio.run(leave_while_an_answer_waits()) == set()


@posix_only
@pytest.mark.parametrize("end", [socket.socket.close, reset, until_gone])
def test_no_socket_is_left_behind(relays: Relays, end: Deed) -> None:
    with serving(answering([CHUNKED, end])) as url:
        relays.start(url)
        process = psutil.Process(relays.server.pid)
        before = process.num_fds()
        with connected(relays.url) as client:
            client.sendall(REQUEST)
            assert client.recv(5) == b"HTTP/"
        eventually(lambda: process.num_fds() == before)


def test_a_server_that_is_not_there_is_a_502(relays: Relays) -> None:
    url = nobody()
    client = HTTPConnection(relays.start(url).removeprefix("http://"), timeout=LIMIT_S)
    with closing(client):
        client.request("POST", "/api/chat", BINARY * 16)
        answer = client.getresponse()
        error = json.loads(answer.read())["error"]
    assert (answer.status, answer.reason, answer.will_close) == (502, "Bad Gateway", True)
    address = f"('127.0.0.1', {url.rpartition(':')[2]})"
    assert error == f"{url} can't be reached: Connect call failed {address}; start the server there and ask again"


def test_a_stream_of_the_emulator_comes_later_and_is_the_same(relays: Relays, emulator: str) -> None:
    with ollama.Control(emulator) as control:
        control.load(GEMMA, {})
    relays.start(emulator, first=4, rest=2)
    direct, relayed = (streamed(url) for url in (emulator, relays.url))
    assert contents(relayed) == contents(direct)
    *_, final = map(json.loads, relayed)
    first, *_, last = relayed.values()
    assert first > 4 * 0.9 * final["prompt_eval_duration"] / 1e9
    assert last > 2 * 0.9 * final["total_duration"] / 1e9


def streamed(url: str) -> dict[str, float]:
    agent = Workload(name="agent", model=GEMMA, prompts=(), tokens=60, options={})
    return arrivals(recorded(url, chat.request(agent, "hello", url)))


def contents(answer: Iterable[str]) -> list[str]:
    return [json.loads(line)["message"]["content"] for line in answer]


def test_control_calls_pass_on_one_connection(relays: Relays, emulator: str) -> None:
    with ollama.Control(emulator) as direct, ollama.Control(relays.start(emulator)) as relayed:
        assert relayed.ready() == direct.ready()
        assert relayed.models() == direct.models()
        assert relayed.loaded() == []


@posix_only
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_at_once_and_in_silence(tmp_path: Path, number: signal.Signals) -> None:
    with serving(answering([CHUNKED + chunk(b"one\n"), until_gone])) as url:
        relay = subprocess.Popen([*ARGV, url], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        with relay:
            assert relay.stdout
            listening = ollama.listening(relay.stdout.readline())
            assert listening
            with connected(listening) as client:
                client.sendall(REQUEST)
                assert client.recv(5) == b"HTTP/"
                relay.send_signal(number)
                assert relay.wait(LIMIT_S) == -number
            assert relay.stdout.read() == ""


NO_URL = "can't be relayed; give http://HOST:PORT, e.g. http://127.0.0.1:11434"
NO_FACTOR = "is no factor; give a number from 1 up, e.g. 1.25 for a quarter longer"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["https://127.0.0.1:1"], f"argument URL: 'https://127.0.0.1:1' {NO_URL}"),
        (["127.0.0.1:1"], f"argument URL: '127.0.0.1:1' {NO_URL}"),
        (["http://127.0.0.1"], f"argument URL: 'http://127.0.0.1' {NO_URL}"),
        (["http://127.0.0.1:99999"], f"argument URL: 'http://127.0.0.1:99999' {NO_URL}"),
        (["http://127.0.0.1:1/v1"], f"argument URL: 'http://127.0.0.1:1/v1' {NO_URL}"),
        (["http://127.0.0.1:1", "--first", "0.9"], f"argument --first: '0.9' {NO_FACTOR}"),
        (["http://127.0.0.1:1", "--first", "nan"], f"argument --first: 'nan' {NO_FACTOR}"),
        (["http://127.0.0.1:1", "--rest", "inf"], f"argument --rest: 'inf' {NO_FACTOR}"),
        (["http://127.0.0.1:1", "--rest", "twice"], f"argument --rest: 'twice' {NO_FACTOR}"),
        ([], "the following arguments are required: URL"),
    ],
)
def test_wrong_arguments_say_what_is_legal(arguments: list[str], words: str) -> None:
    ended = subprocess.run([*ARGV, *arguments], capture_output=True, text=True, timeout=LIMIT_S, check=False)
    assert ended.returncode == 2
    assert ended.stdout == ""
    assert ended.stderr.splitlines()[-1] == f"python -m pytest_llmperf.relay: error: {words}"


def test_it_stands_alone() -> None:
    code = "import sys, pytest_llmperf.relay; print(*sorted(name for name in sys.modules if 'llmperf' in name))"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=LIMIT_S, check=True)
    assert said.stdout.split() == ["pytest_llmperf", "pytest_llmperf.relay"]
