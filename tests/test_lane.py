"""The device lane, between real processes."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from textwrap import dedent
from threading import Timer

import pytest

from pytest_llmperf.lane import device_lane


@pytest.fixture
def lane_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A temporary folder of this test's own, where its lanes are."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


@contextmanager
def another_holder(folder: Path, device: str) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the lane until its stdin is closed."""
    code = f"""
        import sys
        from pytest_llmperf.lane import device_lane
        with device_lane({device!r}, "tests/test_other.py::test_it", print):
            print("held", flush=True)
            sys.stdin.read()
    """
    argv, env = [sys.executable, "-c", dedent(code)], {**os.environ, "TMPDIR": str(folder), "TEMP": str(folder)}
    pipe = subprocess.PIPE
    with subprocess.Popen(argv, env=env, stdin=pipe, stdout=pipe, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process


def test_the_lane_keeps_processes_apart_and_says_who_holds_it(
    lane_folder: Path,
) -> None:
    said = list[str]()
    with another_holder(lane_folder, "gpu") as other:
        assert other.stdin is not None
        Timer(1.5, other.stdin.close).start()
        with device_lane("gpu", "mine", said.append) as waited:
            assert waited > 1
            assert other.wait(10) == 0
    holder = f"tests/test_other.py::test_it (process {other.pid})"
    assert said == [f"llmperf: waiting for the device lane, held by {holder}"]


def test_a_killed_holder_frees_the_lane(lane_folder: Path) -> None:
    with another_holder(lane_folder, "gpu") as other:
        other.kill()
        with device_lane("gpu", "mine", print) as waited:
            assert waited < 10


def test_lanes_of_different_devices_are_independent(lane_folder: Path) -> None:
    with another_holder(lane_folder, "gpu0") as other, device_lane("gpu1", "mine", print):
        assert other.poll() is None
        other.kill()


HURRIED = """
import pathlib, sys
from pytest_llmperf.lane import device_lane

inside = pathlib.Path(sys.argv[1])
for _ in range(40):
    with device_lane("gpu", "hurried", print):
        inside.touch(exist_ok=False)
        inside.unlink()
"""


def test_a_lane_excludes_also_while_its_file_comes_and_goes(lane_folder: Path, tmp_path: Path) -> None:
    argv = [sys.executable, "-c", HURRIED, str(tmp_path / "inside")]
    env = {**os.environ, "TMPDIR": str(lane_folder), "TEMP": str(lane_folder)}
    crowd = [subprocess.Popen(argv, env=env, stderr=subprocess.PIPE, text=True) for _ in range(4)]
    assert [process.communicate(timeout=60)[1] for process in crowd] == [""] * 4
    assert list(lane_folder.iterdir()) == []


def test_a_lane_is_given_back_after_an_error_and_leaves_nothing(lane_folder: Path) -> None:
    with pytest.raises(ZeroDivisionError), device_lane("gpu", "mine", print):
        raise ZeroDivisionError
    with device_lane("gpu", "mine again", print) as waited:
        assert waited < 10
        [card] = lane_folder.glob("*-gpu.holder")
        assert card.read_text() == f"mine again (process {os.getpid()})"
    assert list(lane_folder.iterdir()) == []
