"""What is said whatever the verdict: replaced runs, cold starts, drift, and baselines that see too little."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import replace
from random import Random

import pytest

from pytest_llmperf.measured import Measured
from pytest_llmperf.model import Baseline, Sample, Session, Spec
from pytest_llmperf.remarks import on_baseline, on_runs
from pytest_llmperf.verdicts import against_baseline
from tests.builders import baseline, measured, session, spec

QUIET = [100.0, 101, 99, 100.5, 99.5]
COLD = "the first run is out of line in {}: a cold start? It is judged like the others; raise warmup_requests"
DRIFT = "{} got worse from run to run (Kendall, p = {}): look at clocks and temperature; the verdict stands"


def narrow(*metrics: str, margin: float = 0.02) -> Spec:
    return replace(spec(), gated=metrics, margins=dict.fromkeys(metrics, margin))


def said(*, within: float = 0.02, **series: Sequence[float]) -> list[str]:
    return on_runs(narrow(*series, margin=within), {"session 1": session(**series)})


def test_quiet_runs_are_not_worth_a_word() -> None:
    assert said(total_throughput=QUIET, ttft=[4 * value for value in QUIET]) == []
    assert on_runs(narrow("ttft"), {}) == []
    assert said(ttft=[400.0]) == []


def test_a_replaced_run_is_listed_with_its_cause_and_session() -> None:
    cause = "the server loaded the model during the run (3.1 s)"
    discarded, replaced = Sample({"ttft": 900.0}, kept=False), Sample({"ttft": 950.0}, kept=False, cause=cause)
    runs = (discarded, Sample({"ttft": 400.0}), replaced, Sample({"ttft": 401.0}))
    calm = session(ttft=[400.0, 401])
    assert on_runs(narrow("ttft"), {"session 1": calm, "session 2": Session(runs, 0.5)}) == [
        "session 2: a run was replaced: the server loaded the model during the run (3.1 s)"
    ]
    assert on_runs(narrow(), {"control": calm, "treatment": Session(runs, 0.5)}) == [
        "treatment: a run was replaced: the server loaded the model during the run (3.1 s)"
    ]


def test_a_cold_start_is_said_for_all_its_metrics_at_once() -> None:
    cold = said(total_throughput=[60, *QUIET], ttft=[900, 400, 410, 390, 405, 395], makespan=[2.0, *QUIET])
    assert cold == [f"session 1: {COLD.format('total_throughput, ttft')}"]


def test_a_first_run_that_is_better_than_the_others_is_no_cold_start() -> None:
    assert said(total_throughput=[160, *QUIET], ttft=[200, 400, 410, 390, 405, 395]) == []


@pytest.mark.parametrize(
    ("series", "lines"),
    [
        # 1/120 and 1/5040 of all orders fall throughout
        ({"total_throughput": [99, 98, 96, 95, 94]}, [DRIFT.format("total_throughput", "0.0083")]),
        ({"ttft": [400, 410, 420, 425, 430, 440, 445]}, [DRIFT.format("ttft", "0.0002")]),
        (
            {"total_throughput": [99, 98, 96, 95, 94, 92, 90], "ttft": [400, 410, 405, 425, 430, 440, 445]},
            [DRIFT.format("total_throughput, ttft", "0.0014")],
        ),
        ({"total_throughput": [94, 95, 96, 98, 99]}, []),
        ({"total_throughput": [99, 98, 96, 94, 95]}, []),
        ({"total_throughput": [99, 98, 96, 95]}, []),
    ],
)
def test_a_metric_that_got_worse_from_run_to_run_is_said(series: dict[str, list[float]], lines: list[str]) -> None:
    assert on_runs(narrow(*series), {"session 1": session(**series)}) == [f"session 1: {line}" for line in lines]


def test_each_session_speaks_for_itself() -> None:
    falling, calm = session(ttft=[400, 410, 420, 425, 430]), session(ttft=[400, 410, 390, 405, 395])
    (line,) = on_runs(narrow("ttft"), {"session 1": calm, "session 2": falling})
    assert line.startswith("session 2: ttft got worse")


def test_drift_of_unchanged_runs_is_rare() -> None:
    # 80 metrics of true size 1/120: 0.67 lines a job; 400 jobs have a standard error of .04
    random = Random(3)
    jobs = [{f"s{i}": session(ttft=[random.gauss(400, 9) for _ in range(5)]) for i in range(80)} for _ in range(40)]
    drifts = sum("got worse" in line for job in jobs for line in on_runs(narrow("ttft", margin=1e-9), job))
    assert 10 <= drifts <= 50
    assert not [line for job in jobs for line in on_runs(replace(spec(), gated=("ttft",)), job) if "got worse" in line]


def test_what_differs_by_less_than_the_margin_is_not_worth_a_word() -> None:
    falling, cold = [99.0, 98, 96, 95, 94], [90.0, 100, 100.1, 99.9, 100]
    assert len(said(total_throughput=falling)) == len(said(total_throughput=cold)) == 1
    assert said(within=0.06, total_throughput=falling) == said(within=0.11, total_throughput=cold) == []
    assert len(said(within=4.0, overlap_efficiency=falling)) == 1
    assert said(within=5.0, overlap_efficiency=falling) == []


# ------------------------------------------------------------------------------------------------------ weak baselines

METRICS = ("total_throughput", "ttft", "overlap_efficiency")
TYPICAL = {"total_throughput": 100.0, "ttft": 400.0, "overlap_efficiency": 95.0}


def drawn(random: Random, metric: str, noise: float, offset: float = 0.0, runs: int = 5) -> Session:
    """A session of one metric: `noise` and `offset` are standard deviations of its logarithm."""
    typical = TYPICAL[metric] * math.exp(random.gauss(0, offset))
    return session(**{metric: [typical * math.exp(random.gauss(0, noise)) for _ in range(runs)]})


def weak(metric: str, noise: float, offset: float = 0.0, seed: int = 1, sessions: int = 4) -> Baseline:
    random = Random(seed)
    return baseline(*(drawn(random, metric, noise, offset) for _ in range(sessions)))


def gating(metric: str, **words: dict[str, float]) -> Spec:
    return replace(spec(), gated=(metric,), **words)  # type: ignore[arg-type]


@pytest.mark.parametrize("metric", METRICS)
def test_a_baseline_that_sees_its_margin_is_not_worth_a_word(metric: str) -> None:
    assert on_baseline(gating(metric), weak(metric, noise=0.005)) == []


def named(line: str, metric: str) -> float:
    """The margin that a warning says would work."""
    found = re.search(rf"; margins={{'{metric}': ([0-9.]+)}} would work$", line)
    assert found is not None, line
    return float(found[1])


NARROW = {"total_throughput": 0.05, "ttft": 0.10, "overlap_efficiency": 5.0}
NOISE_OF_RUNS = {"total_throughput": 0.09, "ttft": 0.18, "overlap_efficiency": 0.09}
NOISE_OF_SESSIONS = {"total_throughput": 0.04, "ttft": 0.05, "overlap_efficiency": 0.05}


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("blurred", ["runs", "sessions"])
def test_the_margin_that_a_warning_names_holds_an_unchanged_candidate(metric: str, blurred: str) -> None:
    noise = NOISE_OF_RUNS[metric] if blurred == "runs" else 0.003
    offset = NOISE_OF_SESSIONS[metric] if blurred == "sessions" else 0.0
    old = weak(metric, noise, offset)
    tight = gating(metric, session_sd={metric: 0.0}, margins={metric: NARROW[metric]})
    (line,) = on_baseline(tight, old)
    helps = "; more runs may help; margins=" if blurred == "runs" else " and can never decide"
    assert helps in line
    wide = replace(tight, margins={metric: named(line, metric)})
    assert on_baseline(wide, old) == []

    random = Random(2)
    unchanged = [measured(drawn(random, metric, noise, offset)) for _ in range(60)]
    narrowly, widely = (sum(holds(metric, of, one, old) for one in unchanged) for of in (tight, wide))
    assert widely >= 42, "4 in 5 on average over baselines; the bound leaves 2 standard errors of 60 candidates"
    assert narrowly <= 18


def holds(metric: str, of: Spec, candidate: Measured, old: Baseline) -> bool:
    return against_baseline(metric, of, candidate, old).verdict in {"held", "improved"}


def test_a_warning_says_what_is_seen_what_would_help_and_what_would_work() -> None:
    old = baseline(*[session(ttft=[380, 390, 400, 410, 420])] * 4)
    # ln(410/400) of 20 v 5 runs at .025; offsets of sqrt(1 + 1/4) * 1.96 * 0.2
    (line,) = on_baseline(gating("ttft", session_sd={"ttft": 0.2}), old)
    assert line == (
        "warning: ttft: this baseline would only catch a worsening of about 93.8 % at a margin of 30 % and can never "
        "decide, however many sessions are recorded: session offsets alone (+-55 %) reach the margin of 30 %; it takes "
        "a wider margin or steadier sessions; margins={'ttft': 0.94} would work"
    )


def test_points_are_named_in_the_metrics_unit() -> None:
    old = baseline(*[session(overlap_efficiency=[98, 88, 93, 83, 78])] * 2)
    (line,) = on_baseline(gating("overlap_efficiency", margins={"overlap_efficiency": 2.0}), old)
    seen, works = r"a worsening of about [\d.]+ points", r"margins={'overlap_efficiency': [\d.]+} would work"
    assert re.search(f"{seen} at a margin of 2 points and can never decide: record more sessions: .*; {works}$", line)


def test_a_margin_that_no_mark_may_declare_is_not_named() -> None:
    old = weak("ttft", noise=0.02)
    (line,) = on_baseline(gating("ttft", session_sd={"ttft": 0.5}), old)
    assert line.endswith("; no margin below 1 would work")


def test_a_baseline_without_bounds_says_so() -> None:
    assert on_baseline(gating("ttft"), baseline(session(ttft=[400.0, 401]))) == [
        "warning: ttft: this baseline is too small to decide anything; record more (--llmperf-sessions=N)"
    ]


@pytest.mark.parametrize(
    ("odd", "reason"),
    [
        (
            session(makespan=[2.0] * 5),
            "no run gave a value; it may need several agents, or this server may not report it",
        ),
        (session(ttft=[400.0, float("nan"), 400]), "a run has nan ms, which is no measured value"),
    ],
)
def test_a_session_that_cannot_be_judged_is_named(odd: Session, reason: str) -> None:
    assert on_baseline(gating("ttft"), baseline(session(ttft=QUIET), odd)) == [
        f"warning: ttft: session 2 can't be judged: {reason}"
    ]
