"""The kernel's receive stamps: what they are worth, and when they are not taken."""

from __future__ import annotations

import socket
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from threading import Thread

import pytest

from pytest_llmperf.agents import run_together
from pytest_llmperf.stamps import MOST_DRIFT_S, Offsets, at_arrival
from pytest_llmperf.stream import Connection
from pytest_llmperf.traffic import Read, Recording

EPOCH = 1_800_000_000.0


def recording(*reads: tuple[float, float]) -> Recording:
    """Sent at 10 s; each read with the stamp taken after it and the kernel's, in seconds of one clock."""
    kernel = [round((EPOCH + arrived) * 1e9) if arrived else 0 for _, arrived in reads]
    return Recording(10.0, 10.0, tuple(Read(at, b"x", ns) for (at, _), ns in zip(reads, kernel, strict=True)))


def placed(found: Recording, *, drift: float = 0.0) -> list[tuple[float, float]]:
    (settled,) = at_arrival([found], Offsets(EPOCH, EPOCH + drift))
    return [(read.at, read.late) for read in settled.reads]


def near(*pairs: tuple[float, float]) -> list[object]:
    return [pytest.approx(pair, abs=1e-6) for pair in pairs]


def test_a_read_is_at_its_arrival_and_how_late_its_reader_was_is_known() -> None:
    assert placed(recording((11.0, 10.9), (12.0, 11.5))) == near((10.9, 0.1), (11.5, 0.5))


def test_a_read_without_a_stamp_of_the_kernel_keeps_its_own() -> None:
    assert placed(recording((11.0, 0.0), (12.0, 11.5))) == near((11.0, 0.0), (11.5, 0.5))


@pytest.mark.parametrize("arrived", [9.9, 11.1])
def test_a_stamp_outside_the_time_that_was_waited_is_not_believed(arrived: float) -> None:
    assert placed(recording((11.0, arrived))) == near((11.0, 0.0))


def test_an_arrival_before_the_one_before_is_not_believed() -> None:
    assert placed(recording((11.0, 10.9), (12.0, 10.8))) == near((10.9, 0.1), (12.0, 0.0))


def test_clocks_that_drift_apart_during_a_run_drop_its_stamps() -> None:
    assert placed(recording((11.0, 10.9)), drift=2 * MOST_DRIFT_S) == near((11.0, 0.0))
    assert placed(recording((11.0, 10.9)), drift=-2 * MOST_DRIFT_S) == near((11.0, 0.0))
    assert placed(recording((11.0, 10.9)), drift=MOST_DRIFT_S / 2)[0][1] == pytest.approx(0.1, abs=1e-4)


@pytest.fixture
def answering() -> Iterator[tuple[str, list[float]]]:
    """A server that answers one request with three chunks 100 ms apart; its URL, and when it sent each."""
    sent = list[float]()

    def serve(door: socket.socket) -> None:
        client, _ = door.accept()
        with client:
            client.recv(1 << 16)
            client.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
            for number in range(3):
                time.sleep(0.1)
                sent.append(time.perf_counter())
                client.sendall(b"3\r\n{}\n\r\n" + b"0\r\n\r\n" * (number == 2))
            client.recv(1)

    with socket.create_server(("127.0.0.1", 0)) as door:
        thread = Thread(target=serve, args=(door,), daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{door.getsockname()[1]}", sent
        thread.join(10)


class Dozing:
    """A client that comes to every read 50 ms late, as one that waits for a processor."""

    def __init__(self, url: str) -> None:
        self._connection = Connection(url)

    def prepare(self) -> None:
        self._connection.connect()
        see = self._connection._receive

        def late(source: socket.socket, view: memoryview) -> tuple[int, int]:
            source.recv(1, socket.MSG_PEEK)
            time.sleep(0.05)
            return see(source, view)

        self._connection._receive = late  # type: ignore[method-assign]

    def work(self, released: float) -> Recording:
        with closing(self._connection):
            return self._connection.exchange(b"GET / HTTP/1.1\r\n\r\n", released)

    def close(self) -> None:
        self._connection.close()

    def abort(self) -> None:
        self._connection.abort()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux stamps what it receives")
def test_a_late_reader_still_knows_when_bytes_arrived(answering: tuple[str, list[float]]) -> None:
    url, sent = answering
    done = run_together([Dozing(url)])
    (found,) = at_arrival(done.results, done.offsets)
    _, *chunks = found.reads
    assert len(chunks) == len(sent) == 3
    for read, at in zip(chunks, sent, strict=True):
        assert read.late > 0.04
        assert -0.001 < read.at - at < 0.03
