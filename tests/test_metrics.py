"""Every metric against values computed by hand, and what must hold for any run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_llmperf.metrics import (
    HEADLINES,
    METRICS,
    UNGATEABLE,
    Reference,
    default_gated,
    gateable,
    percentile,
    sample,
    summaries,
)
from pytest_llmperf.model import Sample
from pytest_llmperf.traffic import Exchange, Run, Track
from tests.builders import ending, exchange, run

ALONE = Reference()
FIRST = exchange(1.0, first_token=0.2, tokens=21, gaps=(0.04, 0.05), total=0.95, load=0.05, prompt_eval=0.10, eval=0.50)
SECOND = exchange(
    3.0, released=1.0, first_token=1.4, tokens=41, gaps=(0.06,), total=1.90, load=0.10, prompt_eval=0.20, eval=1.50
)
OTHER = exchange(4.0, first_token=0.3, tokens=101, gaps=(0.02, 0.03), total=3.9, load=0.2, prompt_eval=0.3, eval=2.5)
PAIR = run((FIRST, SECOND), OTHER)
SOLO = (run(exchange(2.0, tokens=62)), run(exchange(2.0, tokens=98)))


def value(metric: str, of: Run, reference: Reference = ALONE) -> float | None:
    return METRICS[metric].read(of, reference)


def without(of: Exchange, *durations: str) -> Exchange:
    return replace(of, server={name: s for name, s in of.server.items() if name not in durations})


def test_a_run_of_two_agents_and_three_requests_by_hand() -> None:
    found = sample(PAIR, Reference(SOLO, usual_ttft=150.0))
    assert found.kept
    assert found.values == pytest.approx(
        {
            "total_throughput": 163 / 4,
            "ttft": 300,  # of 200, 400, 300
            "ttft_p95": 390,
            "overlap_efficiency": 100 * (3 + 4) / (2 * 4),
            "makespan": 4,
            "requests": 2,
            "parallel_efficiency": 100 * (163 / 4) / (160 / 4) / 2,
            "speedup": (3 + 4) / 4,
            "decode_rate": (60 / 2.0 + 100 / 2.5) / 2,
            "contention_rate": 0,
            "queue_wait": 300,  # of 300, 100, 900
            "itl_p50": 40,  # of 20, 30, 40, 50, 60
            "itl_p99": 59.6,
            "load_time": 200,
            "tokens": 163,
        }
    )


def test_a_run_of_one_agent_has_nothing_to_share() -> None:
    found = sample(run(OTHER), ALONE).values
    assert found == pytest.approx(
        {
            "total_throughput": 101 / 4,
            "ttft": 300,
            "ttft_p95": 300,
            "makespan": 4,
            "requests": 1,
            "decode_rate": 40,
            "queue_wait": 900,
            "itl_p50": 25,
            "itl_p99": 29.9,
            "load_time": 200,
            "tokens": 101,
        }
    )


def test_a_run_of_three_agents() -> None:
    found = sample(ending(1.0, 2.0, 4.0), ALONE).values
    assert found["overlap_efficiency"] == pytest.approx(100 * 7 / 12)
    assert found["speedup"] == pytest.approx(7 / 4)
    assert found["total_throughput"] == pytest.approx(30 / 4)


@pytest.mark.parametrize(
    ("sum_s", "makespan_s", "speedup", "efficiency"),
    [  # TR116, Rust client, Gemma 3, baseline_vs_chimera runs 1 and 2
        (108.25491, 55.5356535, 1.94928668, 97.4643342),
        (117.146573, 59.4970346, 1.96894809, 98.4474047),
    ],
)
def test_the_studies_own_runs(sum_s: float, makespan_s: float, speedup: float, efficiency: float) -> None:
    recorded = ending(makespan_s, sum_s - makespan_s)
    assert value("speedup", recorded) == pytest.approx(speedup, abs=1e-7)
    assert value("overlap_efficiency", recorded) == pytest.approx(efficiency, abs=1e-6)


@given(agents=st.integers(2, 6), calls=st.integers(1, 10), seconds=st.floats(0.01, 100))
def test_agents_that_queue_for_one_slot_overlap_as_queueing_says(agents: int, calls: int, seconds: float) -> None:
    tracks = [[exchange((call * agents + n) * seconds) for call in range(calls)] for n in range(1, agents + 1)]
    expected = 100 * (2 * calls * agents - agents + 1) / (2 * calls * agents)
    assert value("overlap_efficiency", run(*tracks)) == pytest.approx(expected)


durations = st.floats(1e-3, 1e4)


@given(seconds=st.lists(durations, min_size=2, max_size=8))
def test_overlap_lies_between_one_agent_at_a_time_and_all_to_the_end(seconds: Sequence[float]) -> None:
    overlap = value("overlap_efficiency", ending(*seconds))
    assert overlap is not None
    assert 100 / len(seconds) <= overlap * (1 + 1e-12)
    assert overlap <= 100 * (1 + 1e-12)


@given(one=durations, two=durations)
def test_overlap_of_two_is_told_by_the_shorter_share(one: float, two: float) -> None:
    expected = 100 * (1 + min(one, two) / max(one, two)) / 2
    assert value("overlap_efficiency", ending(one, two)) == pytest.approx(expected)


@given(seconds=st.lists(durations, min_size=2, max_size=8), slowdown=st.floats(1, 100))
def test_a_common_slowdown_is_seen_by_throughput_and_never_by_overlap(
    seconds: Sequence[float], slowdown: float
) -> None:
    before, after = ending(*seconds), ending(*(slowdown * s for s in seconds))
    assert value("overlap_efficiency", after) == pytest.approx(value("overlap_efficiency", before))
    throughput = value("total_throughput", before)
    assert throughput is not None
    assert value("total_throughput", after) == pytest.approx(throughput / slowdown)


@given(seconds=st.lists(durations, min_size=2, max_size=8))
def test_agents_that_run_one_after_the_other_have_the_parallel_efficiency_of_one(seconds: Sequence[float]) -> None:
    ends = [sum(seconds[: n + 1]) for n in range(len(seconds))]
    alone = Reference(tuple(ending(s) for s in seconds))
    assert value("parallel_efficiency", ending(*ends), alone) == pytest.approx(100 / len(seconds))


@pytest.mark.parametrize("solo", [(), (ending(2.0, tokens=0),)])
def test_without_solo_tokens_there_is_no_parallel_efficiency(solo: tuple[Run, ...]) -> None:
    assert value("parallel_efficiency", PAIR, Reference(solo)) is None


def test_two_rounds_of_solo_runs_count_together() -> None:
    rounds = (ending(1.0, tokens=50), ending(3.0, tokens=50))
    assert value("parallel_efficiency", PAIR, Reference(rounds)) == pytest.approx(100 * 40.75 / 25 / 2)


def test_time_to_the_first_token_counts_from_the_requests_own_release() -> None:
    assert value("ttft", run(exchange(9.0, released=5.0, first_token=5.25))) == pytest.approx(250)


def test_decoding_begins_after_the_first_token() -> None:
    one_token = exchange(2.0, tokens=1, total=0.5, load=0.5)
    assert value("decode_rate", run(exchange(1.0, tokens=11, eval=2.0))) == pytest.approx(5)
    assert value("decode_rate", run((exchange(1.0, tokens=11, eval=2.0), one_token))) == pytest.approx(5)
    assert value("decode_rate", run(one_token)) is None
    assert value("decode_rate", run((exchange(1.0, tokens=11, eval=2.0), exchange(2.0, tokens=2)))) is None


@pytest.mark.parametrize(
    ("metric", "missing"),
    [
        ("decode_rate", ["eval"]),
        ("queue_wait", ["eval"]),
        ("queue_wait", ["total"]),
        ("load_time", ["load"]),
    ],
)
def test_what_a_server_does_not_report_is_absent(metric: str, missing: Sequence[str]) -> None:
    bare = run(without(FIRST, *missing), without(OTHER, *missing))
    assert metric not in sample(bare, ALONE).values
    assert metric in sample(run(FIRST, OTHER), ALONE).values


@pytest.mark.parametrize("missing", ["eval", "total"])
@pytest.mark.parametrize("metric", ["decode_rate", "queue_wait"])
def test_one_request_without_a_report_never_bends_the_value_of_the_run(metric: str, missing: str) -> None:
    found = sample(run((FIRST, without(SECOND, missing)), OTHER), ALONE).values
    if metric == "decode_rate" and missing == "total":
        assert found[metric] == pytest.approx(35)
    else:
        assert metric not in found


def test_a_client_that_saw_everything_at_once_knows_no_gaps() -> None:
    found = sample(run(replace(OTHER, gaps=())), ALONE).values
    assert not {"itl_p50", "itl_p99"} & found.keys()


def test_a_duration_the_server_left_out_was_zero() -> None:
    cached = without(OTHER, "prompt_eval")
    assert value("queue_wait", run(cached)) == pytest.approx(1200)
    assert value("queue_wait", run(without(OTHER, "prompt_eval", "load"))) == pytest.approx(1400)
    assert value("queue_wait", run(exchange(1.0, tokens=1, total=0.5))) == pytest.approx(500)


def test_loading_is_the_longest_of_the_run() -> None:
    assert value("load_time", run((FIRST, SECOND), without(OTHER, "load"))) == pytest.approx(100)


def test_a_gap_belongs_to_the_run_and_not_to_its_request() -> None:
    requests = [exchange(1.0, gaps=(0.001 * n, 0.001 * (n + 1))) for n in range(1, 101, 2)]
    assert value("itl_p50", run(requests)) == pytest.approx(50.5)
    assert value("itl_p99", run(requests)) == pytest.approx(99.01)


@pytest.mark.parametrize(
    ("values", "share", "expected"),
    [([7], 0.99, 7), ([3, 1], 0.5, 2), ([1, 2, 3, 4], 0, 1), ([4, 2, 3, 1], 1, 4), ([10, 20, 30], 0.75, 25)],
)
def test_percentiles_lie_between_neighbours(values: list[float], share: float, expected: float) -> None:
    assert percentile(values, share) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("usual", "expected"),
    [(None, None), (150.0, 0.0), (149.9, 100.0), (1000.0, 0.0)],
)
def test_a_run_is_contended_where_an_agent_waits_twice_as_long_as_usual(
    usual: float | None, expected: float | None
) -> None:
    late, quick = exchange(1.0, first_token=0.3), exchange(1.0, first_token=0.01)
    assert value("contention_rate", run(quick, late), Reference(usual_ttft=usual)) == expected
    assert value("contention_rate", run(late, quick), Reference(usual_ttft=usual)) == expected


def test_an_agents_slow_request_among_quick_ones_is_no_contention() -> None:
    quick = exchange(1.0, first_token=0.1)
    many = [quick, exchange(3.0, released=1.0, first_token=2.0), quick]
    assert value("contention_rate", run(many), Reference(usual_ttft=100.0)) == 0


@pytest.mark.parametrize(
    ("usual", "late", "expected"),
    [(None, 9.0, None), (200.0, 3.2, 0.0), (199.9, 3.2, 100.0), (1000.0, 3.2, 0.0)],
)
def test_a_run_is_contended_where_an_agent_waits_three_seconds_longer_than_usual(
    usual: float | None, late: float, expected: float | None
) -> None:
    waiting, quick = exchange(9.0, first_token=late), exchange(9.0, first_token=0.01)
    reference = Reference(usual_ttft=usual, contended="ttft +3 s")
    assert value("contention_rate", run(quick, waiting), reference) == expected
    assert value("contention_rate", run(waiting, quick), reference) == expected


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [((4.0,), None), ((4.0, 2.0), 0.0), ((4.0, 1.99), 100.0), ((4.0, 1.0, 0.9), 100.0), ((4.0, 1.0, 1.0), 0.0)],
)
@pytest.mark.parametrize("usual", [None, 1.0])
def test_a_run_is_contended_where_fewer_than_one_and_a_half_agents_are_in_flight(
    seconds: Sequence[float], usual: float | None, expected: float | None
) -> None:
    reference = Reference(usual_ttft=usual, contended="speedup < 1.5")
    assert value("contention_rate", ending(*seconds), reference) == expected


def test_a_run_that_ended_early_counts_for_its_first_tokens_only() -> None:
    short = run((FIRST, replace(SECOND, budget=42)), OTHER)
    assert sample(short, Reference(SOLO, usual_ttft=1.0)).values == pytest.approx({"ttft": 300, "ttft_p95": 390})


def kept(**values: float) -> Sample:
    return Sample(values)


def test_a_session_is_summarised_over_its_kept_runs() -> None:
    samples = [
        Sample({"total_throughput": 1.0, "ttft": 9000.0, "contention_rate": 100.0}, kept=False),
        kept(total_throughput=96.0, ttft=400.0, contention_rate=0.0),
        kept(total_throughput=100.0, ttft=500.0, contention_rate=100.0),
        kept(total_throughput=104.0, ttft=900.0, contention_rate=0.0),
        kept(ttft=100.0, contention_rate=0.0),
    ]
    assert summaries(samples) == pytest.approx(
        {"total_throughput": 100, "ttft": 450, "contention_rate": 25, "cv": 100 * 4 / 100}
    )


def test_two_runs_vary_by_their_sample_deviation() -> None:
    assert summaries([kept(total_throughput=90.0), kept(total_throughput=110.0)])["cv"] == pytest.approx(10 * 2**0.5)


def test_one_run_does_not_vary_and_none_has_nothing_to_say() -> None:
    assert summaries([kept(total_throughput=96.0)]) == {"total_throughput": 96.0}
    assert summaries([Sample({"ttft": 1.0}, kept=False)]) == {}


@pytest.mark.parametrize("name", METRICS)
def test_the_table_is_consistent(name: str) -> None:
    metric = METRICS[name]
    top = 1.0 if metric.scale == "ratio" else 100.0
    assert metric.name == name
    assert 0 < (metric.interleaved_margin or metric.margin) <= metric.margin < top
    assert 0 <= metric.session_sd < metric.margin
    assert (metric.gate == "listed") or name in gateable()
    assert metric.unit in {"tok/s", "ms", "s", "%", "x", ""}


def test_every_metric_is_gateable_or_only_reported() -> None:
    assert set(gateable()) | UNGATEABLE == METRICS.keys()
    assert not set(gateable()) & UNGATEABLE
    assert set(HEADLINES) <= set(gateable())


def test_taking_turns_allows_a_finer_margin_for_first_tokens_alone() -> None:
    finer = {name: metric.interleaved_margin for name, metric in METRICS.items() if metric.interleaved_margin}
    assert finer == {"ttft": 0.10, "ttft_p95": 0.10}
    assert {METRICS[name].margin for name in finer} == {0.30}


@pytest.mark.parametrize(
    ("agents", "expected"),
    [
        (1, ("total_throughput", "ttft")),
        (2, ("total_throughput", "ttft", "overlap_efficiency")),
        (8, ("total_throughput", "ttft", "overlap_efficiency")),
    ],
)
def test_what_is_gated_unless_the_mark_says_otherwise(agents: int, expected: tuple[str, ...]) -> None:
    assert default_gated(agents) == expected


def slower(of: Run, factor: float) -> Run:
    """The same run with every duration stretched, on both clocks."""

    def stretched(request: Exchange) -> Exchange:
        return replace(
            request,
            released=factor * request.released,
            first_token=factor * request.first_token,
            ended=factor * request.ended,
            gaps=tuple(factor * gap for gap in request.gaps),
            server={name: factor * s for name, s in request.server.items()},
        )

    tracks = (Track(agent=t.agent, exchanges=tuple(map(stretched, t.exchanges))) for t in of.tracks)
    return Run(tracks=tuple(tracks))


BLIND = {"overlap_efficiency", "speedup", "contention_rate"}


@pytest.mark.parametrize("name", [*gateable(), "contention_rate"])
def test_a_slower_run_is_worse_in_every_metric_that_can_see_it(name: str) -> None:
    reference = Reference(SOLO, usual_ttft=1000.0)
    before, after = value(name, PAIR, reference), value(name, slower(PAIR, 1.5), reference)
    assert before is not None
    assert after is not None
    if name in BLIND:
        assert after == pytest.approx(before)
    else:
        assert (after > before) == (METRICS[name].better == "lower")
