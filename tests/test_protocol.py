"""The protocol of a measurement, on emulator processes."""

from __future__ import annotations

import json
import re
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from threading import Thread

import psutil
import pytest

from pytest_llmperf import chat
from pytest_llmperf.instance import Instance
from pytest_llmperf.metrics import METRICS
from pytest_llmperf.model import Contention, InvalidRunError, LlmperfError, Session, Spec, Workload
from pytest_llmperf.protocol import Bench
from tests.benches import BUSY, GEMMA, LLAMA, Watch, fleets, spec, workload

posix_only = pytest.mark.skipif(sys.platform == "win32", reason="Windows has other exit codes")

Measure = Callable[..., Bench]


@pytest.fixture
def bench_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Measure]:
    """A bench on emulators of this test's own device; they are gone after the test."""
    with fleets(tmp_path, monkeypatch) as fleet_of:

        def start(spec: Spec, emulator: str = "speed=20", usual_ttft: float | None = None) -> Bench:
            fleet = fleet_of()
            names = [agent.name for agent in spec.agents] if spec.topology == "dedicated" else ["shared"]
            return Bench(spec, [fleet.start(name, {"LLMPERF_EMULATOR": emulator}) for name in names], usual_ttft)

        yield start


@pytest.fixture
def watch(monkeypatch: pytest.MonkeyPatch) -> Watch:
    return Watch(monkeypatch)


def causes(session: Session) -> list[str]:
    """Why each run on record doesn't count, "kept" where it does."""
    return ["kept" if sample.kept else sample.cause or "discarded" for sample in session.samples]


WARM_UP = ["a"] * 3 + ["b"] * 3


def test_a_session_is_warm_up_a_discarded_run_and_the_runs(bench_of: Measure, watch: Watch) -> None:
    bench = bench_of(spec(workload("a"), workload("b")))
    bench.load()
    session = bench.session((2, 3))
    assert watch.agents == [*WARM_UP, "a+b", "a+b", "a+b", "a+b"]
    assert causes(session) == ["discarded", "kept", "kept", "kept"]
    assert [run.exchanges[0].tokens for run in watch.runs] == [8] * 6 + [16] * 4
    assert session.series("tokens") == [32, 32, 32]
    assert "parallel_efficiency" not in session.samples[1].values
    assert 0 < session.load_s < 10


def test_a_session_ends_at_the_look_that_is_enough(bench_of: Measure, watch: Watch) -> None:
    looks = list[int]()

    def enough(session: Session) -> bool:
        looks.append(len(session.series("ttft")))
        return len(looks) == 2

    session = bench_of(spec(workload("a"))).session((1, 3, 4), enough)
    assert looks == [1, 3]
    assert causes(session) == ["discarded", "kept", "kept", "kept"]
    assert watch.agents == ["a"] * (3 + 1 + 3)


def test_solo_runs_are_spread_over_the_runs_before_the_first_look(bench_of: Measure, watch: Watch) -> None:
    session = bench_of(spec(workload("a"), workload("b"), topology="shared", solo_runs=3)).session((5, 7))
    solo = ["a", "b"]
    measured = [*solo, "a+b", *solo, "a+b", "a+b", *solo, "a+b", "a+b"]
    assert watch.agents == [*WARM_UP, "a+b", *measured, "a+b", "a+b"]
    assert len(session.series("parallel_efficiency")) == 7


def test_a_single_agent_needs_no_solo_run(bench_of: Measure) -> None:
    session = bench_of(spec(workload("a"))).session((2,))
    assert {"total_throughput", "ttft"} <= session.samples[1].values.keys() <= METRICS.keys()
    assert "overlap_efficiency" not in session.samples[1].values


def test_runs_are_contended_as_the_mark_defines_it(bench_of: Measure) -> None:
    agents = spec(workload("a"), workload("b"))
    late = replace(agents, contention=Contention(contended="ttft +3 s"))
    doubled, delayed = (bench_of(each, usual_ttft=1e-3).session((1,)) for each in (agents, late))
    assert doubled.series("contention_rate") == [100]
    assert delayed.series("contention_rate") == [0]


def test_a_session_can_be_taken_step_by_step(bench_of: Measure) -> None:
    bench = bench_of(spec(workload("a")))
    bench.load()
    bench.warm_up()
    bench.discard()
    assert bench.kept == 0
    assert causes(bench.so_far()) == ["discarded"]
    bench.step()
    first = bench.so_far()
    bench.step()
    assert bench.kept == 2
    assert bench.so_far().samples[:2] == first.samples
    bench.warm_up()
    assert bench.kept == 0, "a new session begins"


def test_agents_are_released_together_and_send_their_prompts_in_order(bench_of: Measure, watch: Watch) -> None:
    bench_of(spec(workload("a", prompts=("Why?", "How?")), workload("b"))).session((1,))
    run = watch.runs[-1]
    first, second = run.tracks[0].exchanges
    assert first.released == run.tracks[1].exchanges[0].released == 0
    assert 0 < first.first_token < first.ended <= second.released < second.first_token < second.ended
    assert 0 <= run.skew < 5


def test_no_prompt_is_ever_sent_twice(bench_of: Measure, monkeypatch: pytest.MonkeyPatch) -> None:
    sent = list[str]()
    encode = chat.request

    def noting(workload: Workload, prompt: str, url: str) -> bytes:
        raw = encode(workload, prompt, url)
        sent.append(json.loads(raw.partition(b"\r\n\r\n")[2])["messages"][0]["content"])
        return raw

    monkeypatch.setattr(chat, "request", noting)
    agents = workload("a", prompts=("Why?", "How?")), workload("b")
    for _ in range(2):
        bench = bench_of(spec(*agents, topology="shared", solo_runs=1))
        bench.session((2,))
        bench.session((2,))
    assert len(set(sent)) == len(sent)
    prefixes = [prompt[: prompt.index("]") + 1] for prompt in sent]
    assert len(set(prefixes)) == len(sent), "a prompt cache matches from the first byte on"
    assert Counter(prompt.rpartition(" ")[2] for prompt in sent) == {"Why?": 4 * 14, "How?": 4 * 4}


def test_a_restarted_server_is_measured_at_its_new_address(bench_of: Measure) -> None:
    bench = bench_of(spec(workload("a")))
    first = bench.session((1,))
    bench.instances[0].restart()
    bench.load()
    second = bench.session((1,))
    assert causes(first) == causes(second) == ["discarded", "kept"]


def test_a_run_that_the_server_refuses_is_replaced_and_stays_on_record(bench_of: Measure, watch: Watch) -> None:
    session = bench_of(spec(workload("a")), "speed=20,fault=hiccup").session((5,))
    assert watch.agents == ["a"] * (3 + 1 + 6), "the ninth is the fifth run"
    assert causes(session) == ["discarded", *["kept"] * 4, BUSY, "kept"]
    assert not session.samples[5].values
    assert len(session.series("ttft")) == 5


def test_a_solo_run_that_the_server_refuses_is_replaced_too(bench_of: Measure, watch: Watch) -> None:
    session = bench_of(spec(workload("a"), solo_runs=5), "speed=20,fault=hiccup").session((5,))
    assert watch.agents == ["a"] * (3 + 1 + 2 * 5 + 1), "the ninth is the third solo run"
    assert causes(session) == ["discarded", "kept", "kept", BUSY, "kept", "kept", "kept"]


def test_a_run_in_which_the_model_is_loaded_is_replaced(bench_of: Measure) -> None:
    session = bench_of(spec(workload("a")), "speed=20,fault=reload").session((5,))
    assert causes(session)[:5] == ["discarded", *["kept"] * 4]
    assert re.fullmatch(r"the server loaded the model during the run \(1\.\d s\)", causes(session)[5])
    assert causes(session)[6:] == ["kept"]
    assert session.samples[5].values["load_time"] > 1500
    assert max(session.series("load_time")) < 1000


def prompts(count: int) -> tuple[str, ...]:
    return ("Why?",) * count


def test_a_session_with_two_of_five_runs_replaced_is_invalid(bench_of: Measure, watch: Watch) -> None:
    bench = bench_of(spec(workload("a"), workload("b", prompts=prompts(2))), "speed=20,fault=hiccup")
    with pytest.raises(InvalidRunError) as caught:
        bench.session((5,))
    assert str(caught.value) == f"2 of 6 runs had to be replaced: {BUSY}; {BUSY}"
    assert watch.agents == [*WARM_UP, "a+b", *["a+b"] * 6], "b's ninth is in the second run, a's in the fifth"


def test_a_run_that_fails_again_when_replaced_makes_the_session_invalid(bench_of: Measure, watch: Watch) -> None:
    agents = workload("a", prompts=prompts(2)), workload("b", prompts=prompts(3))
    with pytest.raises(InvalidRunError) as caught:
        bench_of(spec(*agents), "speed=20,fault=hiccup").session((5,))
    assert str(caught.value) == f"{BUSY}; the run before it could not count either: {BUSY}"
    assert watch.agents == [*WARM_UP, "a+b", "a+b", "a+b"]


def test_a_model_that_stops_early_twice_counts_for_ttft_alone(bench_of: Measure) -> None:
    session = bench_of(spec(workload("a")), "speed=20,fault=short").session((1,))
    assert causes(session) == ["discarded", "the model stopped early (8 of 16 tokens)", "kept"]
    until_the_first_token = {name for name, metric in METRICS.items() if metric.short_runs}
    assert [sample.values.keys() for sample in session.samples] == [until_the_first_token] * 3
    assert len(session.series("ttft")) == 1
    assert not session.series("total_throughput")


def test_a_model_that_stops_early_in_two_of_five_runs_is_refused(bench_of: Measure, watch: Watch) -> None:
    with pytest.raises(InvalidRunError) as caught:
        bench_of(spec(workload("a")), "speed=20,fault=short").session((5,))
    assert str(caught.value) == (
        "the model stops early in 2 of 2 runs, each tried twice: lower tokens= or change prompts="
    )
    assert watch.agents == ["a"] * (3 + 1 + 2 * 2)


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
        bench_of(spec(workload("a")), f"speed=20,fault={fault}").session((1,))
    assert str(caught.value) == words


def kill_after(instance: Instance, answers: int) -> None:
    """Kill a server that has answered so many chats."""
    deadline = time.monotonic() + 20
    while instance.log.read_text().count('"/api/chat"') < answers and time.monotonic() < deadline:
        time.sleep(0.005)
    psutil.Process(instance.pid).kill()


@posix_only
def test_a_server_that_dies_in_a_run_is_named_with_its_end_and_its_log(bench_of: Measure) -> None:
    bench = bench_of(spec(workload("a", tokens=8000), workload("b", tokens=16)))
    killer = Thread(target=kill_after, args=(bench.instances[0], 3))
    killer.start()
    with pytest.raises(InvalidRunError) as caught:
        bench.session((1,))
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
    words = r"does not answer GET /api/tags: .*; a exited with code 0; the last lines"
    with pytest.raises(InvalidRunError, match=words):
        bench.load()


@posix_only
def test_a_run_whose_connection_breaks_is_not_tried_again(bench_of: Measure, watch: Watch) -> None:
    bench = bench_of(spec(workload("a")))
    bench.load()
    bench.warm_up()
    bench.discard()
    bench.instances[0].stop()
    with pytest.raises(InvalidRunError, match=r" does not answer: .*refused; a exited with code 0; the last lines"):
        bench.step()
    assert watch.agents == ["a"] * (3 + 1 + 1)


def test_conditions_name_model_server_and_device(bench_of: Measure) -> None:
    bench = bench_of(spec(workload("a", GEMMA), workload("b", LLAMA)))
    bench.load()
    conditions = bench.conditions()
    assert conditions["server"] == "ollama 0.33.0"
    assert conditions["gpu"] == "CUDA Emulated RTX 4080 Laptop GPU 12.0 GiB"
    assert (conditions["agent1.model"], conditions["agent2.model"]) == (GEMMA, LLAMA)
    assert (conditions["agent1.quantization"], conditions["agent2.quantization"]) == ("Q4_K_M", "Q4_0")
    assert conditions["agent1.digest"] != conditions["agent2.digest"]
    assert (conditions["slots"], conditions["agent1.context"]) == (1, 512)
    assert (conditions["agent1.layers"], conditions["agent2.layers"]) == ("35/35", "33/33")


def test_a_missing_model_is_an_error_before_anything_is_measured(bench_of: Measure, watch: Watch) -> None:
    bench = bench_of(spec(workload("a"), workload("b", "nope:1b"), topology="shared"))
    with pytest.raises(LlmperfError) as caught:
        bench.load()
    said = str(caught.value)
    assert said.startswith("model 'nope:1b' is not in the emulator, which has gemma3:")
    assert said.endswith("; type: ollama pull nope:1b")
    assert not watch.agents


def test_on_a_shared_server_every_agent_has_what_its_own_model_was_loaded_with(bench_of: Measure) -> None:
    small, large = workload("a", GEMMA), replace(workload("b", LLAMA), options={"num_ctx": 1024})
    bench = bench_of(spec(small, large, replace(small, name="c"), topology="shared"))
    bench.load()
    found = bench.conditions()
    assert [found[f"agent{n}.context"] for n in (1, 2, 3)] == [512, 1024, 512]
    assert [found[f"agent{n}.layers"] for n in (1, 2, 3)] == ["35/35", "33/33", "35/35"]
