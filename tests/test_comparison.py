"""Comparisons on emulator processes: turns, equal counts, and the refusal of sides that don't fit beside each other."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pytest_llmperf.comparison import Comparison
from pytest_llmperf.instances import Fleet
from pytest_llmperf.model import LlmperfError, Spec, Workload
from pytest_llmperf.protocol import Bench
from tests.benches import BUSY, LLAMA, Watch, fleets, spec, workload

Compare = Callable[..., Comparison]


def side(fleet: Fleet, name: str, spec: Spec, emulator: str) -> Bench:
    servers = len(spec.agents) if spec.topology == "dedicated" else 1
    return Bench(spec, [fleet.start(f"{name}{n}", {"LLMPERF_EMULATOR": emulator}) for n in range(1, servers + 1)])


@pytest.fixture
def compare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Compare]:
    """A comparison on emulators of this test's own device; they are gone after the test."""
    with fleets(tmp_path, monkeypatch) as fleet_of:

        def start(
            control: Spec, treatment: Spec, *emulators: str, binary: str | None = None, memory: str = "12"
        ) -> Comparison:
            fleet = fleet_of(binary)
            settings = [f"{emulator},vram_gb={memory}" for emulator in emulators or ("speed=20", "speed=20")]
            benches = [
                side(fleet, name, spec, emulator)
                for name, spec, emulator in zip(("control", "treatment"), (control, treatment), settings, strict=True)
            ]
            return Comparison("tests/test_chat.py::test_faster", "this", *benches)

        yield start


@pytest.fixture
def watch(monkeypatch: pytest.MonkeyPatch) -> Watch:
    return Watch(monkeypatch)


WARM_UP = ["a", "a", "a", "b", "b", "b", "a", "b"]


def test_the_sides_take_turns_in_abba_order(compare: Compare, watch: Watch) -> None:
    comparison = compare(spec(workload("a")), spec(workload("b")))
    assert watch.agents == WARM_UP
    comparison.take(3)
    assert "".join(watch.agents[len(WARM_UP) :]) == "abbaab"
    comparison.take(5)
    assert "".join(watch.agents[len(WARM_UP) :]) == "abbaabbaab", "the order goes on where it was"
    comparison.take(5)
    assert len(watch.agents) == len(WARM_UP) + 10
    assert [len(each.series("ttft")) for each in comparison.sides] == [5, 5]
    assert comparison.runs == 5


def test_the_sides_can_have_other_agents_and_other_servers(compare: Compare, watch: Watch) -> None:
    pair = [workload("a1"), workload("a2")]
    comparison = compare(spec(*pair, topology="shared", solo_runs=1), spec(workload("b", tokens=8)))
    comparison.take(2)
    assert watch.agents[-6:] == ["a1", "a2", "a1+a2", "b", "b", "a1+a2"]
    assert comparison.control.series("tokens") == [32, 32]
    assert comparison.treatment.series("tokens") == [8, 8]
    assert comparison.control.conditions["agents"] == 2
    assert comparison.treatment.conditions["topology"] == "dedicated"
    assert {len(comparison.control.sessions), len(comparison.treatment.sessions)} == {1}


def test_a_run_that_is_replaced_leaves_the_counts_equal(compare: Compare, watch: Watch) -> None:
    comparison = compare(spec(workload("a")), spec(workload("b")), "speed=20", "speed=20,fault=hiccup")
    comparison.take(5)
    assert "".join(watch.agents[len(WARM_UP) :]) == "abbaabbaabb", "the ninth of b is its fifth run"
    control, treatment = comparison.sides
    assert [len(each.series("ttft")) for each in (control, treatment)] == [5, 5]
    assert [sample.cause for sample in treatment.samples if not sample.kept] == ["", BUSY]
    assert [sample.kept for sample in control.samples] == [False] + [True] * 5


def test_a_slower_side_shows(compare: Compare) -> None:
    comparison = compare(spec(workload("a")), spec(workload("b")), "speed=20", "speed=20,slowdown=4")
    comparison.take(2)
    assert comparison.control["total_throughput"] > 1.5 * comparison.treatment["total_throughput"]


REMEDY = "compare smaller models or contexts, or record a baseline for each"
GEMMA_AND_LLAMA = "together they need 8.1 GB (control1 gemma3:4b-it-q4_K_M 3.4 GB, treatment1 "
GEMMA_AND_LLAMA += "llama3.1:8b-instruct-q4_0 4.7 GB)"


def refused(compare: Compare, control: Workload, treatment: Workload, memory: str) -> str:
    with pytest.raises(LlmperfError) as caught:
        compare(spec(control), spec(treatment), memory=memory)
    said = str(caught.value)
    assert said.startswith("control and treatment can't both stay loaded: ")
    return said.removeprefix("control and treatment can't both stay loaded: ")


def test_sides_that_only_fit_in_part_are_refused_with_the_memory_they_need(compare: Compare, watch: Watch) -> None:
    said = refused(compare, workload("a"), workload("b", LLAMA), "6")
    assert said == f"{GEMMA_AND_LLAMA}, and treatment1 has only 3.0 GB of 4.7 GB on the GPU; {REMEDY}"
    assert not watch.agents, "nothing is measured before"


def test_sides_whose_layers_do_not_fit_are_refused_with_what_is_loaded(compare: Compare, watch: Watch) -> None:
    said, _, cause = refused(compare, workload("a"), workload("b", LLAMA, num_gpu=33), "6").partition("\n")
    need = "together they need at least 8.1 GB, the control holds 3.4 GB (control1 gemma3:4b-it-q4_K_M 3.4 GB)"
    assert said == f"{need}, and loading the treatment failed; {REMEDY}"
    assert "/api/generate answered 500: llama-server process has terminated: " in cause
    assert "out of memory" in cause
    assert not watch.agents


def test_a_control_that_fits_only_in_part_is_refused_too(compare: Compare) -> None:
    said = refused(compare, workload("a", LLAMA), workload("b"), "4")
    assert "and control1 has only 4.2 GB of 4.7 GB on the GPU" in said


def test_layers_that_an_agent_keeps_off_the_gpu_are_no_lack_of_memory(compare: Compare, watch: Watch) -> None:
    models = workload("a", num_gpu=17), workload("b", LLAMA)
    compare(spec(*models, topology="shared"), spec(workload("c", num_gpu=0)))
    assert watch.agents[-1] == "c"


def test_one_agents_layers_say_nothing_of_another_agents_model(compare: Compare) -> None:
    models = workload("a", num_gpu=17), workload("b", LLAMA)
    with pytest.raises(LlmperfError, match=r"control1 has only 4\.\d GB of 4\.7 GB on the GPU"):
        compare(spec(*models, topology="shared"), spec(workload("c", num_gpu=0)), memory="4")


def test_without_a_gpu_there_is_nothing_to_refuse(compare: Compare, watch: Watch) -> None:
    compare(spec(workload("a", num_gpu=0)), spec(workload("b", LLAMA, num_gpu=0)), memory="1")
    assert watch.agents == WARM_UP


OLD = f"""#!{sys.executable}
import sys
from pytest_llmperf.emulator import __main__, server

del server.Handler._ROUTES["/api/ps"]
sys.exit(__main__.main(sys.argv[1:]))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="Windows starts no scripts")
def test_servers_that_cannot_tell_what_is_loaded_are_not_refused(
    compare: Compare, watch: Watch, tmp_path: Path
) -> None:
    binary = tmp_path / "ollama"
    binary.write_text(OLD)
    binary.chmod(0o755)
    comparison = compare(spec(workload("a")), spec(workload("b", LLAMA)), binary=str(binary), memory="6")
    assert watch.agents == WARM_UP
    assert comparison.control.emulated is False


@pytest.mark.skipif(sys.platform == "win32", reason="Windows starts no scripts")
def test_a_load_that_fails_on_such_servers_is_told_as_it_is(compare: Compare, tmp_path: Path) -> None:
    binary = tmp_path / "ollama"
    binary.write_text(OLD)
    binary.chmod(0o755)
    with pytest.raises(LlmperfError, match=r"^http://127.*/api/generate answered 500: llama-server process has termin"):
        compare(spec(workload("a")), spec(workload("b", LLAMA, num_gpu=33)), binary=str(binary), memory="6")
