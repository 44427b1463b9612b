"""The texts people read: a failed test's, the summary's, a rebaseline's, and the numbers in all of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from textwrap import dedent

import pytest

from pytest_llmperf import baseline as files
from pytest_llmperf import rebaseline
from pytest_llmperf.limits import against_floor
from pytest_llmperf.measured import Measured
from pytest_llmperf.model import Baseline, Session, Sharper, Spec, Verdict, worst
from pytest_llmperf.outcome import Against, Check, Entry, Row
from pytest_llmperf.report import failure, selfcheck, terminal
from pytest_llmperf.report.words import COLUMNS, cells, number, quantity, relative, shift, size, table, worst_first
from pytest_llmperf.verdicts import against_baseline, against_control, gain
from tests.builders import CONDITIONS, MACHINE, TEST, baseline, measured, session, spec

COMMAND = f"pytest {TEST} --llmperf-rebaseline"
GATED = ("total_throughput", "ttft", "overlap_efficiency")
BEFORE = session(
    total_throughput=[100, 101, 99, 100.5, 99.5],
    ttft=[400, 410, 390, 405, 395],
    overlap_efficiency=[98, 98.5, 97.5, 98.2, 97.8],
)
SLOW = session(
    total_throughput=[80, 81, 79, 80.4, 79.6],
    ttft=[410, 420, 400, 415, 405],
    overlap_efficiency=[98, 98.5, 97.5, 98.2, 97.8],
    contention_rate=[0, 100, 0, 0, 0],
)
DUAL = replace(spec(), gated=GATED, session_sd={"ttft": 0.05}, floors={"total_throughput": 90.0})


OLD = baseline(BEFORE, BEFORE)


def under(*sessions: Session, **changed: str) -> Measured:
    """Measured in these sessions, under conditions of which some changed."""
    return replace(measured(*sessions), conditions={**CONDITIONS, **changed})


def rows(of: Spec, now: Measured, old: Baseline = OLD) -> list[Row]:
    gated = [against_baseline(metric, of, now, old) for metric in of.gated]
    return gated + [against_floor(metric, now, floor) for metric, floor in of.floors.items()]


def judged(of: Spec, now: Measured, old: Baseline = OLD, notes: Sequence[str] = (), evidence: str = "") -> str:
    head = failure.measured(now, of)
    return failure.judged(TEST, rows(of, now, old), head=head, notes=notes, command=COMMAND, evidence=evidence)


def text(indented: str) -> str:
    return dedent(indented).strip("\n")


def test_a_regressed_test_with_a_floor() -> None:
    assert judged(DUAL, under(SLOW), notes=["a note"], evidence=".llmperf/last/two-1f") == text(
        """
        llmperf: regressed: tests/test_chat.py::test_two_agents
          emulated-rtx4080 (emulated), chimera_homo, 2 agents on dedicated instances
          total_throughput varies by 0.952 % between runs; contended: 1 of 5 runs (1 .. 66 %)

          metric              baseline           now       change         90 % interval          margin    catches 4 in 5          runs    verdict
          ------------------  -----------------  --------  -------------  ---------------------  --------  ----------------------  ------  ---------
          total_throughput    100 tok/s          80 tok/s  -20.0 % worse  -22.1 .. -17.9 %       5 %       6.23 % (sessions)       10 v 5  regressed
          total_throughput    at least 90 tok/s  80 tok/s  -              79 .. 81 tok/s         -         1.5 tok/s (runs)        5       regressed
          ttft                400 ms             410 ms    +2.5 % worse   -9.3 .. +15.9 %        30 %      38.2 % (sessions)       10 v 5  held
          overlap_efficiency  98 %               98 %      +0.00 points   -2.45 .. +2.45 points  5 points  6.23 points (sessions)  10 v 5  held

          a note
          to accept these numbers: pytest tests/test_chat.py::test_two_agents --llmperf-rebaseline
          server logs and runs: .llmperf/last/two-1f
        """  # noqa: E501  # a table is as wide as its columns
    )


def test_a_second_session_stands_below_the_first() -> None:
    assert judged(replace(DUAL, floors={}), under(SLOW, BEFORE)) == text(
        """
        llmperf: inconclusive: tests/test_chat.py::test_two_agents
          emulated-rtx4080 (emulated), chimera_homo, 2 agents on dedicated instances
          total_throughput varies by 11.74 % between runs; contended: 1 of 5 runs (1 .. 66 %)

          metric              baseline    now        change         90 % interval          margin    catches 4 in 5          runs    verdict
          ------------------  ----------  ---------  -------------  ---------------------  --------  ----------------------  ------  ------------
          total_throughput    100 tok/s   80 tok/s   -20.0 % worse  -22.1 .. -17.9 %       5 %       6.23 % (sessions)       10 v 5  inconclusive
          second session      100 tok/s   100 tok/s  +0.0 %         -2.2 .. +2.3 %         5 %       6.06 % (sessions)       10 v 5  held
          ttft                400 ms      410 ms     +2.5 % worse   -9.3 .. +15.9 %        30 %      38.2 % (sessions)       10 v 5  held
          overlap_efficiency  98 %        98 %       +0.00 points   -2.45 .. +2.45 points  5 points  6.23 points (sessions)  10 v 5  held

          inconclusive (total_throughput): not confirmed: a second session did not show it
          to accept these numbers: pytest tests/test_chat.py::test_two_agents --llmperf-rebaseline
        """  # noqa: E501
    )


def test_a_test_that_is_not_comparable() -> None:
    changed = under(SLOW, **{"agent.digest": "77ab", "server": "ollama 0.13.0"})
    assert judged(replace(DUAL, floors={}), changed) == text(
        """
        llmperf: not comparable: tests/test_chat.py::test_two_agents
          emulated-rtx4080 (emulated), chimera_homo, 2 agents on dedicated instances
          total_throughput varies by 0.952 % between runs; contended: 1 of 5 runs (1 .. 66 %)

          metric              baseline    now       change         90 % interval          margin    catches 4 in 5          runs    verdict
          ------------------  ----------  --------  -------------  ---------------------  --------  ----------------------  ------  --------------
          total_throughput    100 tok/s   80 tok/s  -20.0 % worse  -22.1 .. -17.9 %       5 %       6.23 % (sessions)       10 v 5  not comparable
          ttft                400 ms      410 ms    +2.5 % worse   -9.3 .. +15.9 %        30 %      38.2 % (sessions)       10 v 5  not comparable
          overlap_efficiency  98 %        98 %      +0.00 points   -2.45 .. +2.45 points  5 points  6.23 points (sessions)  10 v 5  not comparable

          not comparable (total_throughput, ttft, overlap_efficiency):
            agent.digest: a2af6cc3eb7fa8be -> 77ab (the model in the store changed, not this change)
            server: ollama 0.12.3 -> ollama 0.13.0 (the runner changed, not this change)
          to record a baseline under today's conditions: pytest tests/test_chat.py::test_two_agents --llmperf-rebaseline
        """  # noqa: E501
    )


def test_a_single_run_on_a_machine_of_its_own_says_what_it_cannot_tell() -> None:
    of = replace(spec(agents=1), scenario="single_agent", gated=GATED, floors={"ttft": 500.0})
    one = session(total_throughput=[80], ttft=[300])
    now = replace(measured(one), machine="amd-ryzen-32c-linux", emulated=False)
    assert judged(of, now) == text(
        """
        llmperf: invalid: tests/test_chat.py::test_two_agents
          amd-ryzen-32c-linux, single_agent, 1 agent
          a single run: its spread is unknown

          metric              baseline        now       change          90 % interval    margin    catches 4 in 5    runs    verdict
          ------------------  --------------  --------  --------------  ---------------  --------  ----------------  ------  ------------
          overlap_efficiency  -               -         -               -                -         -                 0       invalid
          total_throughput    100 tok/s       80 tok/s  -20.0 % worse   can't tell       5 %       -                 10 v 1  inconclusive
          ttft                400 ms          300 ms    -25.0 % better  can't tell       30 %      -                 10 v 1  inconclusive
          ttft                at most 500 ms  300 ms    -               can't tell       -         -                 1       inconclusive

          invalid (overlap_efficiency): the metric disappeared: the baseline has it and no run gave a value; it may need several agents, or this server may not report it
          inconclusive (total_throughput, ttft): 10 baseline and 1 candidate run can't decide: it takes at least 2 candidate runs, or more baseline sessions
          inconclusive (ttft): 1 run can't decide: 5 runs are needed for a bound at level .05
        """  # noqa: E501
    )


FAST = session(total_throughput=[120, 121, 119, 120.5, 119.5], ttft=[200, 210, 190, 205, 195])
FASTER = session(total_throughput=[115, 116, 114, 115.5, 114.5], ttft=[200, 210, 190, 205, 195])


def test_a_comparison_shows_its_control_and_what_is_claimed() -> None:
    claims = [
        gain("total_throughput", 0.15, DUAL, (BEFORE, FAST)),
        gain("total_throughput", 0.15, DUAL, (BEFORE, FASTER)),
        gain("ttft", 0.6, DUAL, (BEFORE, FAST)),
        against_control("total_throughput", DUAL, (BEFORE, FAST)),
    ]
    head = failure.compared(under(BEFORE), under(FAST, agents="3", server="ollama 0.13.0"))
    assert failure.judged(TEST, [row for row, _ in claims], head=head, notes=[], command=COMMAND) == text(
        """
        llmperf: regressed: tests/test_chat.py::test_two_agents
          emulated-rtx4080 (emulated), control and treatment in turns, 5 runs each
          control -> treatment: agents: 2 -> 3, server: ollama 0.12.3 -> ollama 0.13.0

          metric            baseline             now        change          90 % interval     margin    catches 4 in 5    runs    verdict
          ----------------  -------------------  ---------  --------------  ----------------  --------  ----------------  ------  ------------
          ttft              400 ms (control)     200 ms     -50.0 % better  -52.5 .. -47.4 %  by 60 %   -                 5 v 5   regressed
          total_throughput  100 tok/s (control)  115 tok/s  +15.0 % better  +13.4 .. +16.6 %  by 15 %   -                 5 v 5   inconclusive
          total_throughput  100 tok/s (control)  120 tok/s  +20.0 % better  +18.4 .. +21.6 %  by 15 %   -                 5 v 5   held
          total_throughput  100 tok/s (control)  120 tok/s  +20.0 % better  +18.4 .. +21.6 %  5 %       5.63 % (runs)     5 v 5   improved

          regressed (ttft): refuted: the gain is smaller for sure
          inconclusive (total_throughput): not shown: the gain may be smaller; more runs would tell (max_runs=)
        """  # noqa: E501
    )


def test_sides_that_differ_in_nothing_or_in_what_one_does_not_set_are_said() -> None:
    assert failure.compared(under(BEFORE), under(FAST))[1] == "control -> treatment: no difference"
    said = failure.compared(under(BEFORE), under(FAST, **{"agent.options.num_batch": "64"}))[1]
    assert said == "control -> treatment: agent.options.num_batch: not set -> 64"


def test_a_policy_is_named_with_its_level() -> None:
    beyond = "warning: beyond 400 ms (appendix-h2, warning) for sure"
    levels = [
        replace(against_floor("ttft", under(SLOW), 300), policy="appendix-h2, critical"),
        replace(against_floor("ttft", under(SLOW), 500), policy="appendix-h2, critical", reason=beyond),
    ]
    assert failure.judged(TEST, levels, head=["where"], notes=[], command=COMMAND) == text(
        """
        llmperf: regressed: tests/test_chat.py::test_two_agents
          where

          metric    baseline        now     change    90 % interval    margin                 catches 4 in 5    runs    verdict
          --------  --------------  ------  --------  ---------------  ---------------------  ----------------  ------  ---------
          ttft      at most 300 ms  410 ms  -         400 .. 420 ms    appendix-h2, critical  15 ms (runs)      5       regressed
          ttft      at most 500 ms  410 ms  -         400 .. 420 ms    appendix-h2, critical  15 ms (runs)      5       held

          held (ttft): warning: beyond 400 ms (appendix-h2, warning) for sure
        """  # noqa: E501
    )


@pytest.mark.parametrize(
    ("now", "said"),
    [
        (
            session(total_throughput=[90, 110], contention_rate=[0, 0]),
            "total_throughput varies by 14.14 % between runs; contended: 0 of 2 runs (0 .. 78 %)",
        ),
        (session(contention_rate=[100, 100, 0, 100, 100]), "contended: 4 of 5 runs (34 .. 99 %)"),
        (session(total_throughput=[90, 110]), "total_throughput varies by 14.14 % between runs"),
    ],
)
def test_the_spread_is_said_as_far_as_it_is_known(now: Session, said: str) -> None:
    assert failure.spread(measured(now)) == said


def test_a_broken_floor_is_not_put_right_by_a_new_baseline() -> None:
    found = judged(replace(spec(), gated=(), floors={"total_throughput": 90.0}), under(SLOW))
    assert found.splitlines()[0] == f"llmperf: regressed: {TEST}"
    assert "--llmperf-rebaseline" not in found


def test_a_test_that_could_not_be_judged() -> None:
    assert failure.broken("no baseline", TEST, "nothing is recorded\n  git mv a b", command=COMMAND) == text(
        """
        llmperf: no baseline: tests/test_chat.py::test_two_agents
          nothing is recorded
            git mv a b
          to record one: pytest tests/test_chat.py::test_two_agents --llmperf-rebaseline
        """
    )
    assert failure.broken("invalid", TEST, "agent1 exited with code 1", command=COMMAND) == text(
        """
        llmperf: invalid: tests/test_chat.py::test_two_agents
          agent1 exited with code 1
        """
    )


def entry(verdict: Verdict | None, test: str = TEST) -> Entry:
    return Entry(test=test, verdict=verdict, machine=MACHINE, emulated=True)


def written(verdict: Verdict | None, *, passed: bool) -> Entry:
    return replace(entry(verdict), record=baseline(BEFORE), passed=passed)


BETTER = Row(
    metric="ttft", verdict="improved", value=200, baseline=400, change=-0.5, margin=0.3, runs=5, baseline_runs=20,
    catches80=0.35, sharper="runs",
)  # fmt: skip


def test_the_summary_of_a_run() -> None:
    quick = replace(entry("improved", "test_b.py::test_quick"), rows=(BETTER,), command="pytest b --llmperf-rebaseline")
    found = rows(DUAL, under(SLOW, SLOW))
    slow = replace(entry(worst([row.verdict for row in found])), rows=tuple(found), notes=("a note",), passed=False)
    slow = replace(slow, remarks=("session 1: this is in the failure's text",))
    narrow = rows(replace(spec(), gated=("ttft",), margins={"ttft": 0.2}), under(BEFORE))
    never = replace(entry("inconclusive", "test_e.py::test_narrow"), rows=tuple(narrow))
    never = replace(never, remarks=("session 1: a run was replaced: the model stopped early (3 of 48 tokens)",))
    dead = replace(entry("invalid", "test_c.py::test_dead"), notes=("agent1 exited\nlast words",), passed=False)
    own = replace(entry(None, "test_d.py::test_own"), remarks=("warning: ttft: this baseline is weak",))
    entries = [quick, never, slow, dead, own]
    assert "\n".join([*terminal.body(entries), terminal.count(entries, 7)]) == text(
        """
        measured on emulated-rtx4080 (emulated)
        test                                 metric              baseline           now       change          margin    catches 4 in 5          runs    verdict
        -----------------------------------  ------------------  -----------------  --------  --------------  --------  ----------------------  ------  ------------
        tests/test_chat.py::test_two_agents  total_throughput    100 tok/s          80 tok/s  -20.0 % worse   5 %       6.23 % (sessions)       10 v 5  regressed
                                             second session      100 tok/s          80 tok/s  -20.0 % worse   5 %       6.06 % (sessions)       10 v 5  regressed
                                             total_throughput    at least 90 tok/s  80 tok/s  -               -         0.75 tok/s (runs)       10      regressed
                                             ttft                400 ms             410 ms    +2.5 % worse    30 %      38.2 % (sessions)       10 v 5  held
                                             overlap_efficiency  98 %               98 %      +0.00 points    5 points  6.23 points (sessions)  10 v 5  held
        test_e.py::test_narrow               ttft                400 ms             400 ms    +0.0 %          20 %      43.6 % (sessions)       10 v 5  inconclusive
        test_b.py::test_quick                ttft                400 ms             200 ms    -50.0 % better  30 %      35 % (runs)             20 v 5  improved
        invalid: test_c.py::test_dead: agent1 exited
        regressed: tests/test_chat.py::test_two_agents: a note
        test_e.py::test_narrow: inconclusive (ttft): can never decide, however many sessions are recorded: session offsets alone (+-27.1 %) reach the margin of 20 %; it takes a wider margin or steadier sessions
        test_e.py::test_narrow: session 1: a run was replaced: the model stopped early (3 of 48 tokens)
        test_d.py::test_own: warning: ttft: this baseline is weak
        test_b.py::test_quick improved; to tighten its baseline: pytest b --llmperf-rebaseline
        llmperf: 4 gated: 1 improved, 1 inconclusive, 1 regressed, 1 invalid; 1 metric can never decide; 1 measured, not judged; 2 marked tests not measured
        """  # noqa: E501
    )


def test_a_comparison_has_no_baseline_to_tighten() -> None:
    faster = replace(entry("improved"), rows=(replace(BETTER, against="control"),))
    assert not any("tighten" in line for line in terminal.body([faster]))


def test_a_run_that_judged_nothing_has_no_table() -> None:
    assert terminal.body([]) == []
    assert terminal.body([entry(None), written(None, passed=True)]) == []


def test_a_disturbed_test_has_a_line_that_says_what_it_was_and_what_became_of_it() -> None:
    postponed = {
        "test_b.py::test_two": "mongod used 3.2 of 4 cores",
        "test_a.py::test_one": "agent1 exited\nlast words",
    }
    assert terminal.disturbed(postponed, {"test_b.py::test_two"}) == [
        "test_a.py::test_one was disturbed and not tried again: agent1 exited",
        "test_b.py::test_two was disturbed and tried again: mongod used 3.2 of 4 cores",
    ]


@pytest.mark.parametrize(
    ("estimates", "lines"),
    [
        (
            [("test_a.py::test_one", 24.2), ("test_a.py::test_two", None), ("test_b.py::test_three", 200.0)],
            [
                "about 24 s        test_a.py::test_one",
                "no baseline       test_a.py::test_two",
                "about 3 min 20 s  test_b.py::test_three",
                "llmperf: 3 marked tests take about 3 min 44 s (1 without a baseline not counted)",
            ],
        ),
        (
            [("test_a.py::test_one", 24.2)],
            ["about 24 s  test_a.py::test_one", "llmperf: 1 marked test takes about 24 s"],
        ),
        (
            [("test_a.py::test_one", None)],
            [
                "no baseline  test_a.py::test_one",
                "llmperf: no telling how long 1 marked test takes: nothing is recorded",
            ],
        ),
        ([], []),
    ],
)
def test_a_forecast_has_a_line_for_each_test_and_their_sum(
    estimates: list[tuple[str, float | None]], lines: list[str]
) -> None:
    assert terminal.forecast(estimates) == lines


NEVER = Row(metric="ttft", verdict="inconclusive", never=True)
CHECKED = replace(entry(None), checks=(Check(metric="", trials=6, alarms=0),))


@pytest.mark.parametrize(
    ("entries", "marked", "line"),
    [
        (
            [entry(v) for v in ("held",) * 9 + ("improved", "regressed", "not comparable")],
            14,
            "llmperf: 12 gated: 9 held, 1 improved, 1 regressed, 1 not comparable; 2 marked tests not measured",
        ),
        (
            [entry(v) for v in ("invalid", "no baseline", "inconclusive", "invalid")],
            5,
            "llmperf: 4 gated: 1 inconclusive, 1 no baseline, 2 invalid; 1 marked test not measured",
        ),
        ([entry("held")], 1, "llmperf: 1 gated: 1 held"),
        ([], 3, "llmperf: 3 marked tests not measured"),
        ([written(None, passed=True)] * 2, 2, "llmperf: 2 recorded"),
        ([written("held", passed=True)], 2, "llmperf: 1 gated: 1 held; 1 recorded; 1 marked test not measured"),
        (
            [written(None, passed=True), written("regressed", passed=False)],
            2,
            "llmperf: 1 gated: 1 regressed; 1 recorded; 1 not recorded",
        ),
        ([written(None, passed=False)], 1, "llmperf: 1 not recorded"),
        ([entry(None)], 1, "llmperf: 1 measured, not judged"),
        (
            [replace(entry("inconclusive"), rows=(NEVER, BETTER))],
            1,
            "llmperf: 1 gated: 1 inconclusive; 1 metric can never decide",
        ),
        (
            [replace(entry("inconclusive"), rows=(NEVER, NEVER)), replace(entry("regressed"), rows=(NEVER,))],
            2,
            "llmperf: 2 gated: 1 inconclusive, 1 regressed; 3 metrics can never decide",
        ),
        ([CHECKED], 2, "llmperf: 1 checked against itself; 1 marked test not measured"),
        ([CHECKED, CHECKED, entry(None)], 3, "llmperf: 2 checked against themselves; 1 measured, not judged"),
    ],
)
def test_the_last_line_counts_every_test_once(entries: list[Entry], marked: int, line: str) -> None:
    assert terminal.count(entries, marked) == line


CHECKS = (
    Check(metric="total_throughput", trials=6, alarms=0, noticed=6, slowed=0.0975, session_sd=0.01234, declared=0.01),
    Check(metric="ttft", trials=6, alarms=1, noticed=5, slowed=0.69, session_sd=0.02, declared=0.10),
    Check(metric="overlap_efficiency", trials=6, alarms=0, session_sd=1.26, declared=1.0),
    Check(metric="queue_wait", trials=6, alarms=0, declared=10.0),
    Check(metric="", trials=6, alarms=1, noticed=6),
)


def test_a_self_check_has_a_row_per_metric_and_says_what_to_declare() -> None:
    other = replace(entry(None, "test_b.py::test_quick"), checks=CHECKS[1:2])
    assert "\n".join(terminal.body([replace(entry(None), checks=CHECKS), other])) == text(
        """
        test                                 metric              cried wolf          noticed               slowed by    sessions differ by    declared
        -----------------------------------  ------------------  ------------------  --------------------  -----------  --------------------  ----------
        tests/test_chat.py::test_two_agents  total_throughput    0 of 6 (0 .. 39 %)  6 of 6 (61 .. 100 %)  9.8 %        1.23 %                1 %
                                             ttft                1 of 6 (1 .. 58 %)  5 of 6 (42 .. 99 %)   69.0 %       2 %                   10 %
                                             overlap_efficiency  0 of 6 (0 .. 39 %)  -                     -            1.26 points           1 point
                                             queue_wait          0 of 6 (0 .. 39 %)  -                     -            -                     10 ms
                                             any of them         1 of 6 (1 .. 58 %)  6 of 6 (61 .. 100 %)  -            -                     -
        test_b.py::test_quick                ttft                1 of 6 (1 .. 58 %)  5 of 6 (42 .. 99 %)   69.0 %       2 %                   10 %
        tests/test_chat.py::test_two_agents: declare session_sd={'total_throughput': 0.012, 'overlap_efficiency': 1.3}
        """  # noqa: E501
    )


def test_a_deviation_that_rounds_to_what_is_declared_is_not_asked_for() -> None:
    close = replace(entry(None), checks=(replace(CHECKS[0], session_sd=0.01004),))
    assert not any("declare " in line for line in selfcheck.lines([close]))
    assert selfcheck.lines([]) == []


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0, "0"),
        (-0.0, "0"),
        (-1e-13, "0"),
        (0.00004, "0"),
        (0.00006, "0.0001"),
        (0.012345, "0.0123"),
        (-0.5, "-0.5"),
        (7, "7"),
        (87.314, "87.31"),
        (99.996, "100"),
        (999.96, "1000"),
        (1234.5, "1234"),
        (9999.6, "10000"),
        (-12345.6, "-12346"),
        (1.5e9, "1500000000"),
    ],
)
def test_a_number_has_four_digits_and_no_exponent(value: float, shown: str) -> None:
    assert number(value) == shown


@pytest.mark.parametrize(
    ("metric", "value", "shown"),
    [
        ("total_throughput", 87.314, "87.31 tok/s"),
        ("ttft", 12345.6, "12346 ms"),
        ("tokens", 96, "96"),
        ("speedup", 1.9, "1.9 x"),
        ("queue_wait", None, "-"),
    ],
)
def test_a_quantity_has_its_unit(metric: str, value: float | None, shown: str) -> None:
    assert quantity(metric, value) == shown


@pytest.mark.parametrize(
    ("metric", "worsening", "shown"),
    [
        ("total_throughput", 0.231, "-23.1 % worse"),
        ("total_throughput", -0.231, "+23.1 % better"),
        ("total_throughput", 0.0004, "+0.0 %"),
        ("total_throughput", 0.0, "+0.0 %"),
        ("ttft", 0.231, "+23.1 % worse"),
        ("ttft", -0.231, "-23.1 % better"),
        ("ttft", -0.0004, "+0.0 %"),
        ("overlap_efficiency", 4.5, "-4.50 points worse"),
        ("overlap_efficiency", -0.25, "+0.25 points better"),
        ("queue_wait", 80, "+80.00 ms worse"),
        ("queue_wait", -80, "-80.00 ms better"),
        ("queue_wait", -0.004, "+0.00 ms"),
    ],
)
def test_a_change_has_the_metrics_own_sign_and_a_word(metric: str, worsening: float, shown: str) -> None:
    assert shift(metric, worsening) == shown


def row(metric: str, low: float, high: float, margin: float | None = None, against: Against = "baseline") -> Row:
    return Row(metric=metric, verdict="held", low=low, high=high, margin=margin, against=against)


@pytest.mark.parametrize(
    ("of", "interval", "margin"),
    [
        (row("total_throughput", -0.01, 0.02, 0.07), "-2.0 .. +1.0 %", "7 %"),
        (row("total_throughput", -0.01, 0.02, -math.expm1(math.log1p(-0.05))), "-2.0 .. +1.0 %", "5 %"),
        (row("ttft", -0.01, 0.02, 0.125), "-1.0 .. +2.0 %", "12.5 %"),
        (row("overlap_efficiency", -1, 2.5, 5), "-2.50 .. +1.00 points", "5 points"),
        (row("overlap_efficiency", -1, 2.5, 1), "-2.50 .. +1.00 points", "1 point"),
        (row("queue_wait", -1, 2.5, 50), "-1.00 .. +2.50 ms", "50 ms"),
        (row("total_throughput", -math.inf, 1.0), "can't tell", "-"),
        (row("ttft", -1.0, math.inf), "can't tell", "-"),
        (row("ttft", 390, 410, 500, "floor"), "390 .. 410 ms", "-"),
        (row("speedup", 1.5, 1.75, 1, "floor"), "1.5 .. 1.75 x", "-"),
        (row("ttft", -0.01, 0.02, 0.1, "control"), "-1.0 .. +2.0 %", "10 %"),
        (replace(row("ttft", -0.6, -0.5, 0.5, "control"), claim=True), "-60.0 .. -50.0 %", "by 50 %"),
        (
            replace(row("overlap_efficiency", -9, -7, 5, "control"), claim=True),
            "+7.00 .. +9.00 points",
            "by 5 points",
        ),
    ],
)
def test_intervals_and_margins_are_in_the_unit_of_the_change(of: Row, interval: str, margin: str) -> None:
    assert cells(of, ["90 % interval", "margin"]) == [[interval, margin]]


@pytest.mark.parametrize(
    ("of", "cell"),
    [
        (row("ttft", -0.01, 0.02), "400 ms"),
        (row("ttft", -0.01, 0.02, against="control"), "400 ms (control)"),
        (row("ttft", 390, 410, 500, "floor"), "at most 500 ms"),
        (row("overlap_efficiency", 97, 98, 95, "floor"), "at least 95 %"),
    ],
)
def test_what_a_row_is_judged_against_is_said(of: Row, cell: str) -> None:
    assert cells(replace(of, baseline=None if of.against == "floor" else 400), ["baseline"]) == [[cell]]


@pytest.mark.parametrize(
    ("metric", "against", "catches", "sharper", "cell"),
    [
        ("total_throughput", "baseline", 0.0757, "runs", "7.57 % (runs)"),
        ("total_throughput", "control", 0.05, "runs", "5 % (runs)"),
        ("ttft", "baseline", 1.234, "sessions", "123 % (sessions)"),
        ("overlap_efficiency", "baseline", 7.5, "sessions", "7.5 points (sessions)"),
        ("queue_wait", "baseline", 1234.5, "runs", "1230 ms (runs)"),
        ("ttft", "floor", 12.345, "runs", "12.35 ms (runs)"),
        ("ttft", "baseline", None, "runs", "-"),
        ("ttft", "baseline", None, None, "-"),
    ],
)
def test_the_power_is_said_with_what_would_better_it(
    metric: str, against: Against, catches: float | None, sharper: Sharper | None, cell: str
) -> None:
    of = Row(metric=metric, verdict="held", against=against, catches80=catches, sharper=sharper)
    assert cells(of, ["catches 4 in 5"]) == [[cell]]


@pytest.mark.parametrize(
    ("metric", "amount", "shown"),
    [("ttft", 0.3, "30 %"), ("overlap_efficiency", 1.0, "1 point"), ("overlap_efficiency", 0.0, "0 points"),
     ("queue_wait", 10.04, "10 ms"), ("speedup", 0.012345, "1.23 %")],
)  # fmt: skip
def test_a_size_has_no_direction(metric: str, amount: float, shown: str) -> None:
    assert size(metric, amount) == shown


def test_a_cell_per_column_and_the_worst_rows_first() -> None:
    held, invalid = Row(metric="ttft", verdict="held", value=400, runs=5), Row(metric="makespan", verdict="invalid")
    assert cells(held, [*COLUMNS]) == [["ttft", "-", "400 ms", "-", "-", "-", "-", "5", "held"]]
    assert [one.metric for one in worst_first([held, invalid, held])] == ["makespan", "ttft", "ttft"]


def test_a_second_session_has_a_line_of_its_own() -> None:
    again = Row(metric="ttft", verdict="held", value=410, baseline=400, change=0.025, runs=5, baseline_runs=20)
    first = replace(again, verdict="inconclusive", value=600, change=0.5, runs=10, again=again)
    assert cells(first, ["metric", "now", "change", "runs", "verdict"]) == [
        ["ttft", "600 ms", "+50.0 % worse", "20 v 10", "inconclusive"],
        ["second session", "410 ms", "+2.5 % worse", "20 v 5", "held"],
    ]


def test_a_table_has_no_trailing_blanks() -> None:
    assert table(["a", "b"], [["1", ""], ["x", "2"]]) == ["a    b", "---  ---", "1", "x    2"]


def test_a_path_is_seen_from_a_folder(tmp_path: Path) -> None:
    assert relative(tmp_path / "baselines/a.json", tmp_path) == "baselines/a.json"
    assert relative(tmp_path / "baselines/a.json", tmp_path / "deep/in") == "../../baselines/a.json"


def recording(path: Path, *sessions: Session) -> Entry:
    return replace(entry(None), record=baseline(*sessions), path=str(path), passed=True)


def write(rootdir: Path, *entries: Entry) -> tuple[list[str], bool]:
    return rebaseline.write(entries, rootdir)


NEW = [
    "  total_throughput: 100 tok/s",
    "  ttft: 400 ms",
    "  overlap_efficiency: 98 %",
]


def test_a_rebaseline_writes_new_changed_and_unchanged_files_and_says_which(tmp_path: Path) -> None:
    path = tmp_path / "baselines/a.json"
    assert write(tmp_path, recording(path, BEFORE)) == (["baselines/a.json: new, 1 session of 5 runs", *NEW], True)
    assert files.load(path) == baseline(BEFORE)
    stamp = path.stat().st_mtime_ns
    assert write(tmp_path, recording(path, BEFORE))[0] == [
        "baselines/a.json: unchanged, 1 session of 5 runs",
        "  total_throughput: 100 -> 100 tok/s (as before)",
        "  ttft: 400 -> 400 ms (as before)",
        "  overlap_efficiency: 98 -> 98 % (as before)",
    ]
    assert path.stat().st_mtime_ns == stamp
    other = session(total_throughput=[80], ttft=[300], overlap_efficiency=[99.5], makespan=[12.5])
    assert write(tmp_path, recording(path, other, other))[0] == [
        "baselines/a.json: changed, 2 sessions of 1 run",
        "  total_throughput: 100 -> 80 tok/s (-20.0 % worse)",
        "  ttft: 400 -> 300 ms (-25.0 % better)",
        "  overlap_efficiency: 98 -> 99.5 % (+1.50 points better)",
        "  makespan: 12.5 s",
    ]
    assert files.load(path) == baseline(other, other)


def test_sessions_of_different_length_are_both_named(tmp_path: Path) -> None:
    found, _ = write(tmp_path, recording(tmp_path / "a.json", BEFORE, session(ttft=[400, 400, 400, 400])))
    assert found[0] == "a.json: new, 2 sessions of 4/5 runs"


def test_a_value_that_was_zero_has_no_change_in_percent(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write(tmp_path, recording(path, session(ttft=[0.0])))
    assert write(tmp_path, recording(path, session(ttft=[5.0])))[0][1:] == ["  ttft: 0 -> 5 ms"]


def test_what_cannot_be_read_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text("<<<<<<< ours", "utf-8")
    said = ["a.json: replaced what could not be read, 1 session of 5 runs", *NEW]
    assert write(tmp_path, recording(path, BEFORE)) == (said, True)
    assert files.load(path) == baseline(BEFORE)


def test_what_cannot_be_written_is_named_and_the_others_are_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("in the way", "utf-8")
    lines, complete = write(
        tmp_path, recording(tmp_path / "file/a.json", BEFORE), recording(tmp_path / "b.json", BEFORE)
    )
    assert not complete
    assert lines[0].startswith(f"not recorded: {TEST}: file/a.json: can't be ")
    assert lines[1] == "b.json: new, 1 session of 5 runs"
    assert files.load(tmp_path / "b.json") == baseline(BEFORE)


@pytest.mark.parametrize(
    ("failed", "why"),
    [
        (written("regressed", passed=False), "it failed (regressed)"),
        (written("held", passed=False), "it did not pass"),
        (written(None, passed=False), "it did not pass"),
        (entry("invalid"), "it failed (invalid)"),
    ],
)
def test_a_test_that_did_not_pass_is_not_recorded_and_says_why(tmp_path: Path, failed: Entry, why: str) -> None:
    path = tmp_path / "a.json"
    assert write(tmp_path, replace(failed, path=str(path))) == ([f"not recorded: {TEST}: {why}"], True)
    assert not path.exists()
