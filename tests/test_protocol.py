"""The protocol of a measurement, on emulator processes."""

from __future__ import annotations

import json
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing, nullcontext
from pathlib import Path
from threading import Thread

import psutil
import pytest

from pytest_llmperf import ollama
from pytest_llmperf.instances import Fleet, Instance
from pytest_llmperf.metrics import METRICS
from pytest_llmperf.model import InvalidRunError, LlmperfError, Spec, Topology, Workload
from pytest_llmperf.protocol import Bench
from pytest_llmperf.traffic import Run

GEMMA = "gemma3:4b-it-q4_K_M"
LLAMA = "llama3.1:8b-instruct-q4_0"

posix_only = pytest.mark.skipif(sys.platform == "win32", reason="Windows has other exit codes")

Measure = Callable[..., "WatchedBench"]


class WatchedBench(Bench):
    """Notes every run, warm-ups and solo runs included."""

    def __init__(self, spec: Spec, instances: list[Instance], usual_ttft: float | None = None) -> None:
        super().__init__(spec, instances, usual_ttft)
        self.runs = list[Run]()

    def _together(self, agents: Mapping[int, Workload]) -> Run:
        self.runs.append(super()._together(agents))
        return self.runs[-1]

    def agents_per_run(self) -> list[str]:
        return ["+".join(track.agent for track in run.tracks) for run in self.runs]


def workload(name: str, model: str = GEMMA, tokens: int = 16, prompts: tuple[str, ...] = ("Why?",)) -> Workload:
    return Workload(name=name, model=model, options={"num_ctx": 512}, prompts=prompts, tokens=tokens)


def spec(*agents: Workload, topology: Topology = "dedicated", max_runs: int = 3, solo_runs: int = 0) -> Spec:
    return Spec(scenario="chimera_homo", agents=agents, topology=topology, max_runs=max_runs, solo_runs=solo_runs)


@pytest.fixture
def bench_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Measure]:
    """A bench on emulators of this test's own device; they are gone after the test."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    for name in ("TMPDIR", "TEMP", "TMP"):
        monkeypatch.setenv(name, str(tmp_path))
    with ExitStack() as running:

        def start(spec: Spec, emulator: str = "speed=20", usual_ttft: float | None = None) -> WatchedBench:
            fleet = running.enter_context(closing(Fleet(None, nullcontext(0.0))))
            names = [agent.name for agent in spec.agents] if spec.topology == "dedicated" else ["shared"]
            instances = [fleet.start(name, {"LLMPERF_EMULATOR": emulator}) for name in names]
            return WatchedBench(spec, instances, usual_ttft)

        yield start
    assert not psutil.Process().children(recursive=True), "a process is left"


WARM_UP = ["a"] * 3 + ["b"] * 3


def test_a_session_is_warm_up_a_discarded_run_and_the_runs(bench_of: Measure) -> None:
    bench = bench_of(spec(workload("a"), workload("b")))
    session = bench.session()
    assert bench.agents_per_run() == [*WARM_UP, "a+b", "a+b", "a+b", "a+b"]
    assert [sample.kept for sample in session.samples] == [False, True, True, True]
    assert [run.exchanges[0].tokens for run in bench.runs] == [8] * 6 + [16] * 4
    assert session.series("tokens") == [32, 32, 32]
    assert "parallel_efficiency" not in session.samples[1].values
    assert 0 < session.load_s < 10


def test_solo_runs_are_spread_over_the_session(bench_of: Measure) -> None:
    bench = bench_of(spec(workload("a"), workload("b"), topology="shared", max_runs=5, solo_runs=3))
    session = bench.session()
    solo = ["a", "b"]
    measured = [*solo, "a+b", *solo, "a+b", "a+b", *solo, "a+b", "a+b"]
    assert bench.agents_per_run() == [*WARM_UP, "a+b", *measured]
    assert len(session.series("parallel_efficiency")) == 5


def test_a_single_agent_needs_no_solo_run(bench_of: Measure) -> None:
    session = bench_of(spec(workload("a"), max_runs=2)).session()
    assert {"total_throughput", "ttft"} <= session.samples[1].values.keys() <= METRICS.keys()
    assert "overlap_efficiency" not in session.samples[1].values


def test_agents_are_released_together_and_send_their_prompts_in_order(bench_of: Measure) -> None:
    bench = bench_of(spec(workload("a", prompts=("Why?", "How?")), workload("b"), max_runs=1))
    bench.session()
    run = bench.runs[-1]
    first, second = run.tracks[0].exchanges
    assert first.released == run.tracks[1].exchanges[0].released == 0
    assert 0 < first.first_token < first.ended <= second.released < second.first_token < second.ended
    assert 0 <= run.skew < 5


def test_no_prompt_is_ever_sent_twice(bench_of: Measure, monkeypatch: pytest.MonkeyPatch) -> None:
    sent = list[str]()
    encode = ollama.request

    def noting(workload: Workload, prompt: str, url: str) -> bytes:
        raw = encode(workload, prompt, url)
        sent.append(json.loads(raw.partition(b"\r\n\r\n")[2])["messages"][0]["content"])
        return raw

    monkeypatch.setattr(ollama, "request", noting)
    agents = workload("a", prompts=("Why?", "How?")), workload("b")
    for _ in range(2):
        bench = bench_of(spec(*agents, topology="shared", max_runs=2, solo_runs=1))
        bench.session()
        bench.session()
    assert len(set(sent)) == len(sent)
    prefixes = [prompt[: prompt.index("]") + 1] for prompt in sent]
    assert len(set(prefixes)) == len(sent), "a prompt cache matches from the first byte on"
    assert Counter(prompt.rpartition(" ")[2] for prompt in sent) == {"Why?": 4 * 14, "How?": 4 * 4}


def test_a_restarted_server_is_measured_at_its_new_address(bench_of: Measure) -> None:
    bench = bench_of(spec(workload("a"), max_runs=1))
    first = bench.session()
    bench.instances[0].restart()
    second = bench.session()
    assert len(first.samples) == len(second.samples) == 2


def test_a_model_that_stops_early_is_tried_twice_and_refused(bench_of: Measure) -> None:
    bench = bench_of(spec(workload("a"), max_runs=2), "speed=20,fault=short")
    with pytest.raises(InvalidRunError) as caught:
        bench.session()
    assert str(caught.value) == (
        "the model stops early in 2 of 2 runs, each tried twice: lower tokens= or change prompts="
    )
    assert bench.agents_per_run() == ["a"] * (3 + 1 + 2 * 2)


EOF = "an error was encountered while running the model: unexpected EOF"


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("no-done", "the stream ended without done after 4 chunks (HTTP 200)"),
        ("error", f"the server answered 200 with an error after 3 chunks: {EOF}"),
    ],
)
def test_a_broken_stream_makes_the_run_invalid(bench_of: Measure, fault: str, words: str) -> None:
    with pytest.raises(InvalidRunError) as caught:
        bench_of(spec(workload("a")), f"speed=20,fault={fault}").session()
    assert str(caught.value) == words


def kill_after(instance: Instance, answers: int) -> None:
    """Kill a server that has answered so many chats."""
    deadline = time.monotonic() + 20
    while instance.log.read_text().count('"/api/chat"') < answers and time.monotonic() < deadline:
        time.sleep(0.005)
    psutil.Process(instance.pid).kill()


@posix_only
def test_a_server_that_dies_in_a_run_is_named_with_its_end_and_its_log(bench_of: Measure) -> None:
    bench = bench_of(spec(workload("a", tokens=8000), workload("b", tokens=16), max_runs=1))
    killer = Thread(target=kill_after, args=(bench.instances[0], 3))
    killer.start()
    with pytest.raises(InvalidRunError) as caught:
        bench.session()
    killer.join()
    said, _, log = str(caught.value).partition("; the last lines of its log:\n")
    broken, _, end = said.rpartition("; a exited with code ")
    assert broken
    assert end == str(-signal.SIGKILL)
    assert '"/api/chat"' in log


@posix_only
def test_a_server_that_died_before_the_session_is_named_too(bench_of: Measure) -> None:
    bench = bench_of(spec(workload("a")))
    bench.instances[0].stop()
    words = r"does not answer POST /api/generate: .*; a exited with code 0; the last lines"
    with pytest.raises(InvalidRunError, match=words):
        bench.session()


def test_conditions_name_model_server_and_device(bench_of: Measure) -> None:
    conditions = bench_of(spec(workload("a", GEMMA), workload("b", LLAMA))).conditions()
    assert conditions["server"] == "ollama 0.33.0"
    assert conditions["gpu"] == "CUDA Emulated RTX 4080 Laptop GPU 12.0 GiB"
    assert (conditions["agent1.model"], conditions["agent2.model"]) == (GEMMA, LLAMA)
    assert (conditions["agent1.quantization"], conditions["agent2.quantization"]) == ("Q4_K_M", "Q4_0")
    assert conditions["agent1.digest"] != conditions["agent2.digest"]


def test_a_missing_model_is_an_error_before_anything_is_measured(bench_of: Measure) -> None:
    bench = bench_of(spec(workload("a"), workload("b", "nope:1b"), topology="shared"))
    with pytest.raises(LlmperfError) as caught:
        bench.conditions()
    said = str(caught.value)
    assert said.startswith("model 'nope:1b' is not in the emulator, which has gemma3:")
    assert said.endswith("; type: ollama pull nope:1b")
    assert not bench.runs
