"""The timed client on real sockets, and on recorded bytes where the place of every cut matters."""

from __future__ import annotations

import json
import socket
import struct
import time
from bisect import bisect
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_llmperf.model import InvalidRunError
from pytest_llmperf.stream import Connection, _End, lines
from pytest_llmperf.traffic import Line, Read, Recording

Step = bytes | float | Callable[[socket.socket], None]

REQUEST = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
END = b"0\r\n\r\n"
APART = 0.02


def hang_up(peer: socket.socket) -> None:
    peer.close()


def reset(peer: socket.socket) -> None:
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    peer.close()


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def whole(body: bytes, status: str = "200 OK") -> bytes:
    return f"HTTP/1.1 {status}\r\ncontent-length: {len(body)}\r\n\r\n".encode() + body


@contextmanager
def scripted(*connections: Sequence[Sequence[Step]], host: str = "127.0.0.1") -> Iterator[str]:
    """A server that plays one answer per request, connection by connection: bytes to send, seconds to wait, a deed."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.create_server((host, 0), family=family) as door, ThreadPoolExecutor(1) as pool:
        door.settimeout(10)
        playing = pool.submit(_play, door, connections)
        yield f"http://{f'[{host}]' if ':' in host else host}:{door.getsockname()[1]}"
        playing.result(timeout=10)


def _play(door: socket.socket, connections: Sequence[Sequence[Sequence[Step]]]) -> None:
    for answers in connections:
        peer, _ = door.accept()
        with peer:
            peer.settimeout(10)
            peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for steps in answers:
                assert peer.recv(1 << 16).startswith(b"GET ")
                for step in steps:
                    _take(peer, step)
            if peer.fileno() >= 0:
                assert peer.recv(1) == b"", "the client asked once more"


def _take(peer: socket.socket, step: Step) -> None:
    if isinstance(step, bytes):
        peer.sendall(step)
    elif isinstance(step, float):
        time.sleep(step)
    else:
        step(peer)


def answers_of(url: str, count: int = 1, stall_limit_s: float = 10) -> list[tuple[int, list[str]]]:
    """Status and lines of `count` answers over one connection, closed as soon as the last one has ended."""
    with closing(Connection(url, stall_limit_s)) as connection:
        connection.connect()
        recordings = [connection.exchange(REQUEST) for _ in range(count)]
    return [(status, [line.text for line in found]) for status, found in map(lines, recordings)]


def recorded(*reads: bytes) -> Recording:
    """Reads stamped 1, 2, 3, ... seconds."""
    return Recording(0, 0, tuple(Read(float(number), data) for number, data in enumerate(reads, start=1)))


ACCENTED = "é\N{SNOWMAN}".encode()


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        pytest.param([whole(b"one\ntwo\n")], (200, ["one", "two"]), id="content-length"),
        pytest.param([whole(b"one\ntwo")], (200, ["one", "two"]), id="no newline at the end"),
        pytest.param([whole(b"")], (200, []), id="empty body"),
        pytest.param([whole(b"one\n")[:-4], APART, b"on", APART, b"e\n"], (200, ["one"]), id="body after head"),
        pytest.param([CHUNKED + chunk(b"one\n") + chunk(b"two\n") + END], (200, ["one", "two"]), id="chunked"),
        pytest.param([CHUNKED + END], (200, []), id="chunked and empty"),
        pytest.param([CHUNKED[:9], APART, CHUNKED[9:-3], APART, CHUNKED[-3:] + END], (200, []), id="head split"),
        pytest.param([CHUNKED + b"4\r\non", APART, b"e\n\r\n" + END], (200, ["one"]), id="line split"),
        pytest.param(
            [CHUNKED + b"6\r\n" + ACCENTED[:1], APART, ACCENTED[1:3], APART, ACCENTED[3:] + b"\n\r\n" + END],
            (200, ["é\N{SNOWMAN}"]),
            id="characters split",
        ),
        pytest.param(
            [CHUNKED + b"4\r\none\n\r", APART, b"\n0", APART, b"\r\n\r", APART, b"\n"], (200, ["one"]), id="end split"
        ),
        pytest.param(
            [whole(b'{"error":"model not found"}', "404 Not Found")],
            (404, ['{"error":"model not found"}']),
            id="error status",
        ),
        pytest.param([b"HTTP/1.0 200 OK\r\n\r\none\n", hang_up], (200, ["one"]), id="ended by closing"),
    ],
)
def test_an_answer_is_read_to_its_end_and_no_further(steps: list[Step], expected: tuple[int, list[str]]) -> None:
    with scripted([steps]) as url:
        assert answers_of(url) == [expected]


def test_a_connection_is_kept_for_the_next_request() -> None:
    with scripted([[whole(b"one\n")], [CHUNKED + chunk(b"two\n"), APART, END], [whole(b"three\n")]]) as url:
        assert answers_of(url, count=3) == [(200, ["one"]), (200, ["two"]), (200, ["three"])]


def test_a_connection_that_the_server_closed_is_opened_anew() -> None:
    with scripted([[CHUNKED + chunk(b"one\n"), hang_up]], [[whole(b"two\n")]]) as url:
        assert answers_of(url, count=2) == [(200, ["one"]), (200, ["two"])]


def test_stamps_are_taken_as_the_bytes_arrive() -> None:
    with scripted([[CHUNKED + chunk(b"one\n"), 0.4, chunk(b"two\n") + END]]) as url, closing(Connection(url)) as client:
        before = time.perf_counter()
        recording = client.exchange(REQUEST)
        after = time.perf_counter()
    one, two = lines(recording)[1]
    assert before <= recording.released == recording.sent <= one.at
    assert two.at - one.at > 0.2
    assert two.at <= after


def test_a_request_can_be_due_before_it_is_sent() -> None:
    with scripted([[whole(b"")]]) as url, closing(Connection(url)) as client:
        due = time.perf_counter() - 1
        recording = client.exchange(REQUEST, due)
    assert recording.released == due
    assert recording.sent >= due + 1


def test_an_ipv6_address_is_understood() -> None:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError as error:
        pytest.skip(f"no IPv6 here: {error}")
    with scripted([[whole(b"one\n")]], host="::1") as url:
        assert answers_of(url) == [(200, ["one"])]


NOT_WHOLE = r"^the server's answer is no whole HTTP response: "


@pytest.mark.parametrize(
    ("sent", "words"),
    [
        pytest.param(b"", NOT_WHOLE + "the connection was closed before it began$", id="nothing"),
        pytest.param(CHUNKED[:20], NOT_WHOLE, id="half a head"),
        pytest.param(CHUNKED, NOT_WHOLE + "peer closed connection without sending complete", id="head only"),
        pytest.param(CHUNKED + b"8\r\non", NOT_WHOLE + "peer closed connection without sending", id="half a line"),
        pytest.param(whole(b"one")[:-1], NOT_WHOLE + r"peer closed .* \(received 2 bytes, expected 3\)$", id="short"),
        pytest.param(b"SSH-2.0-OpenSSH_9.6\r\n\r\n", NOT_WHOLE + "illegal status line", id="no HTTP"),
    ],
)
def test_an_answer_that_is_not_whole_is_an_invalid_run(sent: bytes, words: str) -> None:
    with scripted([[sent, hang_up]]) as url, pytest.raises(InvalidRunError, match=words):
        answers_of(url)


def test_a_stream_that_is_cut_keeps_its_whole_lines_only() -> None:
    with scripted([[CHUNKED + chunk(b"one\n") + b"4\r\ntw", hang_up]]) as url:
        assert answers_of(url) == [(200, ["one"])]


def test_a_connection_that_breaks_is_an_invalid_run() -> None:
    with scripted([[CHUNKED + chunk(b"one\n"), reset]]) as url:
        with pytest.raises(InvalidRunError) as caught:
            answers_of(url)
        assert str(caught.value) == f"{url} broke the connection: Connection reset by peer"


def test_a_server_that_is_not_there_is_an_invalid_run() -> None:
    with socket.create_server(("127.0.0.1", 0)) as door:
        url = f"http://127.0.0.1:{door.getsockname()[1]}"
    with pytest.raises(InvalidRunError) as caught:
        Connection(url).connect()
    assert str(caught.value) == f"{url} does not answer: Connection refused"


def test_a_stream_that_stalls_is_given_up() -> None:
    with scripted([[CHUNKED + chunk(b"one\n")]]) as url:
        with pytest.raises(InvalidRunError) as caught:
            answers_of(url, stall_limit_s=0.2)
        assert str(caught.value) == f"{url} sent no byte for 0.2 s"


def test_a_line_has_the_stamp_of_the_read_that_completed_it() -> None:
    recording = recorded(CHUNKED + b"8\r\non", b"e\ntwo\n", b"\r\n" + chunk(b"three\n"), END)
    assert lines(recording) == (
        200,
        [Line(2, "one", alone=False), Line(2, "two", alone=False), Line(3, "three", alone=True)],
    )


def test_a_line_without_an_end_is_not_alone_beside_another() -> None:
    assert lines(recorded(whole(b"one\ntwo"))) == (200, [Line(1, "one", alone=False), Line(1, "two", alone=False)])


def test_empty_lines_are_none() -> None:
    assert lines(recorded(CHUNKED, chunk(b"\n \r\none\n\n"), END)) == (200, [Line(2, "one", alone=True)])


@st.composite
def answers_in_pieces(draw: st.DrawFn) -> tuple[list[str], list[bytes], list[int]]:
    """NDJSON lines, the bytes of an answer that holds them cut anywhere, and the piece that completes each line."""
    texts = [json.dumps({"text": text}, ensure_ascii=False) for text in draw(st.lists(st.text(), max_size=6))]
    body = "".join(f"{text}\n" for text in texts).encode()
    raw, places = draw(st.sampled_from([_with_length, _in_chunks]))(draw, body)
    everywhere = st.just(set(range(1, len(raw))))
    cuts = sorted(draw(everywhere | st.sets(st.integers(1, len(raw) - 1), max_size=20)))
    pieces = [raw[a:b] for a, b in pairwise([0, *cuts, len(raw)])]
    ends = [place for place, byte in zip(places, body, strict=True) if byte == ord("\n")]
    return texts, pieces, [bisect(cuts, end) for end in ends]


def _with_length(_: st.DrawFn, body: bytes) -> tuple[bytes, list[int]]:
    raw = whole(body)
    return raw, list(range(len(raw) - len(body), len(raw)))


def _in_chunks(draw: st.DrawFn, body: bytes) -> tuple[bytes, list[int]]:
    limits = sorted(draw(st.sets(st.integers(0, len(body)), max_size=8)) | {0, len(body)})
    raw, places = bytearray(CHUNKED), list[int]()
    for data in (body[a:b] for a, b in pairwise(limits)):
        begin = len(raw) + len(b"%x\r\n" % len(data))
        places += range(begin, begin + len(data))
        raw += chunk(data)
    return bytes(raw + END), places


@given(answers_in_pieces())
def test_however_an_answer_is_cut_its_lines_and_its_end_are_the_same(
    answer: tuple[list[str], list[bytes], list[int]],
) -> None:
    texts, pieces, completing = answer
    end, early = _End(), list[bool]()
    for piece in pieces:
        early.append(end.reached)
        end.see(piece)
    assert end.reached
    assert not any(early)

    status, found = lines(Recording(0, 0, tuple(Read(float(at), piece) for at, piece in enumerate(pieces))))
    assert status == 200
    assert [line.text for line in found] == texts
    assert [line.at for line in found] == completing
    assert [line.alone for line in found] == [completing.count(at) == 1 for at in completing]
