"""Instances and fleets, on real emulator processes."""

from __future__ import annotations

import socket
import sys
import tempfile
from collections.abc import Iterator
from contextlib import closing
from functools import partialmethod
from pathlib import Path
from typing import Any

import psutil
import pytest

from pytest_llmperf import ollama
from pytest_llmperf.instances import Fleet
from pytest_llmperf.lane import device_lane
from pytest_llmperf.model import LlmperfError, Spec, Workload
from pytest_llmperf.protocol import Bench
from pytest_llmperf.server import Server, ServerError

GEMMA = "gemma3:4b-it-q4_K_M"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """This test's own temporary folder: scratch folders, the lane and the emulated device are in it."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    for name in ("TMPDIR", "TEMP", "TMP"):
        monkeypatch.setenv(name, str(tmp_path))
    monkeypatch.setenv("LLMPERF_EMULATOR", "speed=20")
    return tmp_path


@pytest.fixture
def fleet(folder: Path) -> Iterator[Fleet]:
    """A fleet of emulators; the test fails when it leaves something behind."""
    with closing(Fleet(None, device_lane("gpu", "a test", print))) as emulators:
        yield emulators
    assert not list(folder.glob("llmperf-*")), "a scratch folder is left"
    assert not psutil.Process().children(recursive=True), "a process is left"
    with device_lane("gpu", "the next test", print) as waited_s:
        assert waited_s < 10


def emulators() -> list[list[str]]:
    lines = [child.cmdline() for child in psutil.Process().children()]
    return [line for line in lines if "pytest_llmperf.emulator" in line]


def test_an_instance_tells_where_and_what_it_is(fleet: Fleet) -> None:
    instance = fleet.start("agent1", {"OLLAMA_NUM_PARALLEL": "2"})
    assert instance.url == f"http://127.0.0.1:{instance.port}"
    assert instance.port > 0
    assert instance.version == "0.33.0"
    assert (instance.emulated, instance.store) == (True, "the emulator")
    assert repr(instance) == f"<Instance agent1 {instance.url}>"
    assert instance.env["OLLAMA_NUM_PARALLEL"] == "2"
    assert f"Listening on 127.0.0.1:{instance.port}" in instance.log.read_text()
    assert fleet.logs() == [instance.log]
    with instance.control() as control:
        assert control.ready() == instance.version


def test_the_environment_of_an_instance_is_for_reading(fleet: Fleet) -> None:
    instance = fleet.start()
    with pytest.raises(TypeError, match="does not support item assignment"):
        instance.env["OLLAMA_NUM_PARALLEL"] = "2"  # type: ignore[index]  # that is the point


def test_instances_share_neither_port_nor_home_nor_log(fleet: Fleet) -> None:
    one, two = fleet.start(), fleet.start()
    assert (one.name, two.name) == ("instance1", "instance2")
    assert one.port != two.port
    assert one.env["HOME"] != two.env["HOME"]
    assert one.log != two.log
    assert fleet.logs() == [one.log, two.log]


@pytest.mark.parametrize("name", ["agent1", "a/b"])
def test_a_name_that_is_taken_or_no_file_name_is_refused(fleet: Fleet, name: str) -> None:
    fleet.start("agent1")
    with pytest.raises(LlmperfError) as caught:
        fleet.start(name)
    legal = "letters, digits, - and _, and no other instance of the test has it"
    assert str(caught.value) == f"no instance can be called {name!r}: a name is {legal}"


def test_a_new_session_restarts_every_instance_in_a_new_folder(fleet: Fleet) -> None:
    instances = [fleet.start("agent1"), fleet.start("agent2", {"OLLAMA_NUM_PARALLEL": "2"})]
    before = [(instance.pid, instance.env["HOME"], instance.log) for instance in instances]
    fleet.new_session()
    after = [(instance.pid, instance.env["HOME"], instance.log) for instance in instances]
    assert not {fact for facts in before for fact in facts} & {fact for facts in after for fact in facts}
    assert not any(psutil.pid_exists(pid) for pid, _, _ in before)
    assert [Path(home).name for _, home, _ in after] == ["agent1", "agent2"]
    assert instances[1].env["OLLAMA_NUM_PARALLEL"] == "2"
    for instance in instances:
        with instance.control() as control:
            assert control.ready() == instance.version


def relay_pids() -> set[int]:
    children = psutil.Process().children(recursive=True)
    return {child.pid for child in children if "pytest_llmperf.relay" in child.cmdline()}


def test_relays_stand_before_the_instances_in_their_order(fleet: Fleet) -> None:
    instances = [fleet.start("agent1"), fleet.start("agent2", {"OLLAMA_CONTEXT_LENGTH": "512"})]
    with instances[1].control() as control:
        control.load(GEMMA, {})
    urls = fleet.relayed(1, 1)
    assert len({*urls, *(instance.url for instance in instances)}) == 4
    assert len(relay_pids()) == 2
    seen = []
    for url in urls:
        with ollama.Control(url) as control:
            seen.append([entry["context_length"] for entry in control.loaded() or ()])
    assert seen == [[], [512]]
    assert fleet.logs() == [instance.log for instance in instances], "a relay's log is no evidence"


def test_relays_make_a_bench_slower_by_their_factors(fleet: Fleet) -> None:
    agent = Workload(name="a", model=GEMMA, options={}, prompts=("Why?",), tokens=40)
    alone = Spec(scenario="one", agents=(agent,), solo_runs=0)
    instance = fleet.start(env={"LLMPERF_EMULATOR": "speed=2,ttft_ms=200,noise=0"})
    direct = Bench(alone, [instance]).session((2,))
    relayed = Bench(alone, [instance], addresses=fleet.relayed(2, 1.5)).session((2,))
    first, whole = (min(relayed.series(m)) / min(direct.series(m)) for m in ("ttft", "makespan"))
    assert 1.6 < first < 2.6
    assert 1.3 < whole < 1.9
    reported = min(relayed.series("decode_rate")) / min(direct.series("decode_rate"))
    assert 0.8 < reported < 1.25, "what the server says of itself is the server's"


def test_relays_are_gone_with_their_session(fleet: Fleet) -> None:
    fleet.start()
    [before] = fleet.relayed(1, 1)
    [pid] = relay_pids()
    fleet.new_session()
    assert not psutil.pid_exists(pid)
    assert relay_pids() == set()
    with ollama.Control(before) as control:
        assert control.ready() is None
    [after] = fleet.relayed(1, 1)
    with ollama.Control(after) as control:
        assert control.ready() == "0.33.0"


def test_relays_are_gone_with_their_fleet(fleet: Fleet) -> None:
    fleet.start()
    fleet.relayed(1, 1)
    [pid] = relay_pids()
    fleet.close()
    assert not psutil.pid_exists(pid)


def test_a_port_in_use_is_an_error_with_its_remedy(fleet: Fleet) -> None:
    with socket.create_server(("127.0.0.1", 0)) as door:
        host = f"127.0.0.1:{door.getsockname()[1]}"
        with pytest.raises(LlmperfError) as caught:
            fleet.start(env={"OLLAMA_HOST": host})
    remedy, _, cause = str(caught.value).partition("\n")
    assert remedy == f"OLLAMA_HOST={host}: the port is in use; leave OLLAMA_HOST out and the server picks a free one"
    assert "exited with code 1 before listening" in cause
    assert cause.endswith(f"Error: listen tcp {host}: bind: address already in use")


def test_an_open_host_is_refused_before_anything_runs(fleet: Fleet) -> None:
    with pytest.raises(LlmperfError, match=r"OLLAMA_HOST=0\.0\.0\.0 would open the server to the network"):
        fleet.start(env={"OLLAMA_HOST": "0.0.0.0"})
    assert not emulators()


def test_a_server_that_exits_is_an_error_with_its_last_words_and_the_others_live_on(fleet: Fleet) -> None:
    first = fleet.start()
    with pytest.raises(ServerError) as caught:
        fleet.start(env={"LLMPERF_EMULATOR": "fault=exit"})
    said = "exited with code 1 before listening; the last lines of its log:\n"
    assert str(caught.value).endswith(f"{said}  Error: llama-server binary not found (fault=exit)")
    assert first.why_dead() is None
    assert fleet.instances == [first]


def test_a_server_that_never_listens_is_given_up_and_stopped(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ollama, "START_LIMIT_S", 0.5)
    with pytest.raises(ServerError, match=r"gave no sign of listening within 0\.5 s; its log is empty$"):
        fleet.start(env={"LLMPERF_EMULATOR": "fault=silent"})
    assert not emulators()


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no TERM to be deaf to")
def test_a_server_deaf_to_term_is_killed(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Server, "stop", partialmethod(Server.stop, grace_s=0.3))
    instance = fleet.start(env={"LLMPERF_EMULATOR": "fault=deaf"})
    instance.stop()
    assert str(instance.why_dead()).startswith("instance1 exited with code -9; the last lines of its log:\n")


def test_a_killed_server_tells_how_it_ended(fleet: Fleet) -> None:
    instance = fleet.start("agent1")
    assert instance.why_dead() is None
    psutil.Process(instance.pid).kill()
    said, _, log = str(instance.why_dead()).partition("; the last lines of its log:\n")
    assert said.startswith("agent1 exited with code ")
    assert 'msg="Listening on ' in log


def test_the_lane_is_held_from_the_first_start_to_the_last_stop(folder: Path) -> None:
    with closing(Fleet(None, device_lane("gpu", "a test", print))) as fleet:
        assert not list(folder.iterdir())
        fleet.start()
        [card] = folder.glob("pytest-llmperf-*-gpu.holder")
        assert card.read_text().startswith("a test (process ")
    assert not card.exists()


def test_a_fleet_that_started_nothing_closes_quietly(fleet: Fleet, folder: Path) -> None:
    fleet.close()
    assert not list(folder.iterdir())


def test_what_was_set_on_purpose_is_known_and_no_secret_is_told(fleet: Fleet, folder: Path) -> None:
    env = {
        "OLLAMA_FLASH_ATTENTION": "1",
        "OLLAMA_API_KEY": "s3cret",
        "MINE": "anything",
        "OLLAMA_TMPDIR": str(folder / "x"),
        "OLLAMA_MODELS": "/models",
    }
    known = fleet.start(env=env).on_purpose
    assert known["OLLAMA_FLASH_ATTENTION"] == "1"
    assert known.keys() == {"OLLAMA_FLASH_ATTENTION", "OLLAMA_API_KEY", "MINE"}
    assert known["MINE"].startswith("sha256:")
    assert known["OLLAMA_API_KEY"] == "set"
    assert "s3cret" not in str(known)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ({"slots": 0}, "slots must be a whole number of at least 1 (requests that an instance works on at once, "),
        ({"slots": "2"}, "slots must be a whole number of at least 1 "),
        ({"gpu": 0}, "gpu must be an index or a UUID as a text, such as '0', not 0"),
        ({"gpu": ""}, "gpu must be an index or a UUID as a text, such as '0', not ''"),
    ],
)
def test_a_factory_is_told_what_is_legal(fleet: Fleet, words: dict[str, Any], sentence: str) -> None:
    with pytest.raises(LlmperfError) as caught:
        fleet.start(**words)
    assert str(caught.value).startswith(sentence)


def test_what_has_a_word_of_its_own_is_not_set_for_all_instances(folder: Path) -> None:
    words = "^ollama_env has 'OLLAMA_NUM_PARALLEL'; the mark declares it as slots="
    fleet = Fleet(None, device_lane("gpu", "a test", print), {"OLLAMA_NUM_PARALLEL": "5"})
    with closing(fleet), pytest.raises(LlmperfError, match=words):
        fleet.start()


def test_a_test_that_keeps_to_some_gpus_gets_no_instance_on_another(folder: Path) -> None:
    with closing(Fleet(None, device_lane("gpu", "a test", print), {}, ["0"])) as fleet:
        with pytest.raises(LlmperfError) as caught:
            fleet.start(gpu="1")
        assert str(caught.value) == (
            "no instance can have gpu='1': the test's mark keeps it to gpus=['0'], whose lanes it holds; name one of "
            "them, or widen the mark"
        )
        assert fleet.start(gpu="0").env["CUDA_VISIBLE_DEVICES"] == "0"
