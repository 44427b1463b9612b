"""The device lane, between real processes."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from textwrap import dedent
from threading import Timer
from types import MappingProxyType
from uuid import uuid4

import pytest

from pytest_llmperf import lane
from pytest_llmperf.lane import _shared_folder, device_lane, machine_lanes
from pytest_llmperf.model import LlmperfError
from tests.nvml import stand_in


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


class Taker:
    """A process that runs `code`, takes `lanes`, says for whom it waits, then `held`, and holds them until released."""

    def __init__(self, name: str, code: str, *arguments: object, env: Mapping[str, str] = MappingProxyType({})) -> None:
        take = f"""
            with lane.machine_lanes(lanes, {name!r}, lambda said: print(said, flush=True)):
                print("held", flush=True)
                sys.stdin.read()
        """
        argv = [sys.executable, "-c", f"{dedent(code)}{dedent(take)}", *map(str, arguments)]
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(argv, env={**os.environ, **env}, stdin=pipe, stdout=pipe, text=True)
        self.waiting = f"llmperf: waiting for the device lane, held by {name} (process {self._process.pid})"

    def says(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().rstrip("\n")

    def release(self) -> None:
        self._process.communicate(timeout=30)

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()


Take = Callable[..., Taker]


@pytest.fixture
def take() -> Iterator[Take]:
    with ExitStack() as running:
        yield lambda *args, **kwargs: running.enter_context(closing(Taker(*args, **kwargs)))


# a folder of the test's own: real measurements are not to wait for it
PINNED = """
import sys
from pathlib import Path
from pytest_llmperf import lane
from pytest_llmperf.measuring import _devices

lane._SHARED = Path(sys.argv[1])
lanes = _devices(sys.argv[2:])
"""


def test_tests_on_different_gpus_take_lanes_of_their_own_and_one_that_is_not_pinned_takes_all(
    tmp_path: Path, take: Take
) -> None:
    nvml = stand_in(tmp_path)
    nvml.tell("gpu GPU-aa0 12 7 A", "gpu GPU-bb1 12 7 B")
    folder = tmp_path / "lanes"
    first = take("first", PINNED, folder, "0", env=nvml.env)
    assert first.says() == "held"
    second = take("second", PINNED, folder, "1", env=nvml.env)
    assert second.says() == "held", "another GPU is somebody else's business"
    same = take("same", PINNED, folder, "GPU-bb", env=nvml.env)
    assert same.says() == second.waiting
    second.release()
    assert same.says() == "held"
    unpinned = take("unpinned", PINNED, folder, env=nvml.env)
    assert unpinned.says() == first.waiting
    first.release()
    assert unpinned.says() == same.waiting
    same.release()
    assert unpinned.says() == "held"
    assert take("both", PINNED, folder, "1", "0", env=nvml.env).says() == unpinned.waiting
    unpinned.release()


CROSSED = """
import sys
from pathlib import Path
from pytest_llmperf import lane

lane._SHARED, *devices = map(Path, sys.argv[1:])
inside = lane._SHARED.with_name("inside")
for _ in range(100):
    with lane.machine_lanes([device.name for device in devices], "crossed", print):
        inside.touch(exist_ok=False)
        inside.unlink()
"""


def test_those_who_want_the_same_lanes_in_different_order_never_wait_for_each_other(tmp_path: Path) -> None:
    argvs = [[sys.executable, "-c", CROSSED, str(tmp_path / "lanes"), *order] for order in ("abc", "cba", "bac")]
    crowd = [subprocess.Popen(argv, stderr=subprocess.PIPE, text=True) for argv in argvs]
    try:
        assert [process.communicate(timeout=60)[1] for process in crowd] == [""] * 3
    finally:
        for process in crowd:
            process.kill()
    assert list((tmp_path / "lanes").iterdir()) == []


only_root = pytest.mark.skipif(sys.platform == "win32" or os.getuid() != 0, reason="only root can become another user")


@pytest.fixture
def device() -> Iterator[str]:
    """What no real device is called; its lane is where those of real ones are, and leaves nothing there."""
    name = f"test-{uuid4()}"
    yield name
    left = [*_shared_folder().glob(f"*{name}*")]
    for path in left:
        path.unlink()
    assert left == []


# imported before: another user may not be allowed to read this one's Python
AS_NOBODY = """
import os, sys
from pytest_llmperf import lane

os.umask(0o077)
if os.getuid() == 0 and sys.argv[2] == "nobody":
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)
lanes = [sys.argv[1]]
"""


@pytest.fixture(params=["as it is", "2"])
def protected_regular(request: pytest.FixtureRequest) -> Iterator[None]:
    """Linux's protection of other users' files in sticky folders, at its strictest for a moment.

    With 1 nobody may open another user's file with O_CREAT in a sticky folder that all may write to, as /tmp is, with 2
    nor where only a group may (https://docs.kernel.org/admin-guide/sysctl/fs.html). The folder of the lanes is not
    sticky: there the kernel does not look, and everybody may also remove what a killed user has left.
    """
    if request.param == "as it is":
        yield
        return
    switch = Path("/proc/sys/fs/protected_regular")
    try:
        before = switch.read_text()
        switch.write_text(request.param)
    except OSError as error:
        pytest.skip(f"fs.protected_regular can't be set here: {error}")
    try:
        yield
    finally:
        switch.write_text(before)


@only_root
def test_users_wait_for_each_other(device: str, take: Take, protected_regular: None) -> None:
    theirs = take("theirs", AS_NOBODY, device, "nobody")
    assert theirs.says() == "held"
    ours = take("ours", AS_NOBODY, device, "root")
    assert ours.says() == theirs.waiting
    theirs.release()
    assert ours.says() == "held"
    again = take("again", AS_NOBODY, device, "nobody")
    assert again.says() == ours.waiting
    ours.release()
    assert again.says() == "held"
    again.release()


@only_root
def test_the_lane_of_another_user_who_was_killed_is_free(device: str, take: Take) -> None:
    for holder, waiter in (("nobody", "root"), ("root", "nobody")):
        dead = take("dead", AS_NOBODY, device, holder)
        assert dead.says() == "held"
        dead.close()
        alive = take("alive", AS_NOBODY, device, waiter)
        assert alive.says() == "held"
        alive.release()


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has a folder for what users share")
def test_the_folder_of_the_lanes_is_everybodys_and_a_link_in_its_place_opens_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine, elsewhere = tmp_path / "mine", tmp_path / "elsewhere"
    monkeypatch.setattr(lane, "_SHARED", mine)
    assert [stat.S_IMODE(_shared_folder().stat().st_mode) for _ in range(2)] == [0o777, 0o777]
    elsewhere.mkdir(0o700)
    link = tmp_path / "link"
    link.symlink_to(elsewhere)
    monkeypatch.setattr(lane, "_SHARED", link)
    assert stat.S_IMODE(_shared_folder().stat().st_mode) == 0o700


def test_a_lane_that_cannot_be_locked_says_where_and_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (occupied := tmp_path / "pytest-llmperf").write_text("")
    monkeypatch.setattr(lane, "_SHARED", occupied)
    with pytest.raises(LlmperfError) as caught, machine_lanes(["gpu"], "mine", print):
        pass
    said, _, remedy = str(caught.value).partition("; ")
    assert said.startswith(f"the device lane {occupied / 'pytest-llmperf-gpu.lock'} can't be locked (")
    assert remedy == f"let every user write to {occupied}, or remove it"
