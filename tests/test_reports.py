"""The texts people read: a failed test's, the summary's, a rebaseline's, and the numbers in all of them."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from textwrap import dedent

import pytest

from pytest_llmperf import baseline as files
from pytest_llmperf import rebaseline
from pytest_llmperf.model import Entry, Row, Session, Spec, Verdict, worst
from pytest_llmperf.report import failure, terminal
from pytest_llmperf.report.words import COLUMNS, cells, number, quantity, relative, shift, table, worst_first
from pytest_llmperf.verdicts import against_baseline, against_floor
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
DUAL = replace(spec(), gated=GATED, floors={"total_throughput": 90.0})


def rows(of: Spec, now: Session, **changed: str) -> list[Row]:
    found = replace(measured(now), conditions={**CONDITIONS, **changed})
    gated = [against_baseline(metric, of, found, baseline(BEFORE, BEFORE)) for metric in of.gated]
    return gated + [against_floor(metric, found, floor) for metric, floor in of.floors.items()]


def text(indented: str) -> str:
    return dedent(indented).strip("\n")


def test_a_regressed_test_with_a_floor() -> None:
    found = failure.judged(
        rows(DUAL, SLOW), measured(SLOW), DUAL, command=COMMAND, notes=["a note"], evidence=".llmperf/last/two-1f"
    )
    assert found == text(
        """
        llmperf: regressed: tests/test_chat.py::test_two_agents
          emulated-rtx4080 (emulated), chimera_homo, 2 agents on dedicated instances
          total_throughput varies by 0.952 % between runs; contended: 1 of 5 runs (1 .. 66 %)

          metric              baseline           now       change         90 % interval          margin    runs    verdict
          ------------------  -----------------  --------  -------------  ---------------------  --------  ------  ---------
          total_throughput    100 tok/s          80 tok/s  -20.0 % worse  -21.8 .. -18.2 %       5 %       10 v 5  regressed
          total_throughput    at least 90 tok/s  80 tok/s  -              79 .. 81 tok/s         -         5       regressed
          ttft                400 ms             410 ms    +2.5 % worse   -16.3 .. +25.6 %       30 %      10 v 5  held
          overlap_efficiency  98 %               98 %      +0.00 points   -2.05 .. +2.05 points  5 points  10 v 5  held

          a note
          to accept these numbers: pytest tests/test_chat.py::test_two_agents --llmperf-rebaseline
          server logs and runs: .llmperf/last/two-1f
        """  # noqa: E501  # a table is as wide as its columns
    )


def test_a_test_that_is_not_comparable() -> None:
    of = replace(DUAL, floors={})
    changed = {"agent.digest": "77ab", "server": "ollama 0.13.0"}
    found = failure.judged(rows(of, SLOW, **changed), measured(SLOW), of, command=COMMAND, notes=[])
    assert found == text(
        """
        llmperf: not comparable: tests/test_chat.py::test_two_agents
          emulated-rtx4080 (emulated), chimera_homo, 2 agents on dedicated instances
          total_throughput varies by 0.952 % between runs; contended: 1 of 5 runs (1 .. 66 %)

          metric              baseline    now       change         90 % interval          margin    runs    verdict
          ------------------  ----------  --------  -------------  ---------------------  --------  ------  --------------
          total_throughput    100 tok/s   80 tok/s  -20.0 % worse  -21.8 .. -18.2 %       5 %       10 v 5  not comparable
          ttft                400 ms      410 ms    +2.5 % worse   -16.3 .. +25.6 %       30 %      10 v 5  not comparable
          overlap_efficiency  98 %        98 %      +0.00 points   -2.05 .. +2.05 points  5 points  10 v 5  not comparable

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
    assert failure.judged(rows(of, one), now, of, command=COMMAND, notes=[]) == text(
        """
        llmperf: invalid: tests/test_chat.py::test_two_agents
          amd-ryzen-32c-linux, single_agent, 1 agent
          a single run: its spread is unknown

          metric              baseline        now       change          90 % interval    margin    runs    verdict
          ------------------  --------------  --------  --------------  ---------------  --------  ------  ------------
          overlap_efficiency  -               -         -               -                -         0       invalid
          total_throughput    100 tok/s       80 tok/s  -20.0 % worse   can't tell       5 %       10 v 1  inconclusive
          ttft                400 ms          300 ms    -25.0 % better  can't tell       30 %      10 v 1  inconclusive
          ttft                at most 500 ms  300 ms    -               can't tell       -         1       inconclusive

          invalid (overlap_efficiency): no run gave a value; it may need several agents, or this server may not report it
          inconclusive (total_throughput, ttft): 10 baseline and 1 candidate runs can't decide: needs C(m+n, n) >= 20, i.e. at least 2 candidate runs
          inconclusive (ttft): 1 run can't decide: 5 runs are needed for a bound at level .05
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


def test_a_metric_the_baseline_lacks_is_recorded_by_the_same_command() -> None:
    of = replace(spec(), gated=("makespan",))
    found = failure.judged(rows(of, session(makespan=[2.0])), measured(SLOW), of, command=COMMAND, notes=[])
    assert found.splitlines()[0] == f"llmperf: no baseline: {TEST}"
    assert found.splitlines()[-2:] == [
        "  no baseline (makespan): the baseline was recorded without this metric",
        f"  to record one: {COMMAND}",
    ]


def test_a_broken_floor_is_not_put_right_by_a_new_baseline() -> None:
    of = replace(spec(), gated=(), floors={"total_throughput": 90.0})
    found = failure.judged(rows(of, SLOW), measured(SLOW), of, command=COMMAND, notes=[])
    assert "regressed" in found
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


def test_the_summary_of_a_run() -> None:
    found = rows(DUAL, SLOW)
    better = Row(
        metric="ttft", verdict="improved", value=200, baseline=400, change=-0.5, margin=0.3, runs=5, baseline_runs=20
    )
    quick = replace(entry("improved", "test_b.py::test_quick"), rows=(better,), command="pytest b --llmperf-rebaseline")
    slow = replace(entry(worst([row.verdict for row in found])), rows=tuple(found), notes=("a note",))
    broken = replace(
        entry("invalid", "test_c.py::test_dead"), notes=("agent1 exited\nlast words",), machine="m-8c-linux"
    )
    entries = [quick, replace(slow, passed=False), replace(broken, emulated=False), entry(None, "test_d.py::test_own")]
    assert "\n".join([*terminal.body(entries), terminal.count(entries, 6)]) == text(
        """
        measured on emulated-rtx4080 (emulated)
        test                                 metric              baseline           now       change          margin    runs    verdict
        -----------------------------------  ------------------  -----------------  --------  --------------  --------  ------  ---------
        tests/test_chat.py::test_two_agents  total_throughput    100 tok/s          80 tok/s  -20.0 % worse   5 %       10 v 5  regressed
                                             total_throughput    at least 90 tok/s  80 tok/s  -               -         5       regressed
                                             ttft                400 ms             410 ms    +2.5 % worse    30 %      10 v 5  held
                                             overlap_efficiency  98 %               98 %      +0.00 points    5 points  10 v 5  held
        test_b.py::test_quick                ttft                400 ms             200 ms    -50.0 % better  30 %      20 v 5  improved
        invalid: test_c.py::test_dead: agent1 exited
        regressed: tests/test_chat.py::test_two_agents: a note
        test_b.py::test_quick improved; to tighten its baseline: pytest b --llmperf-rebaseline
        llmperf: 3 gated: 1 improved, 1 regressed, 1 invalid; 1 measured, not judged; 2 marked tests not measured
        """  # noqa: E501
    )


def test_a_run_that_judged_nothing_has_no_table() -> None:
    assert terminal.body([]) == []
    assert terminal.body([entry(None), written(None, passed=True)]) == []


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
    ],
)
def test_the_last_line_counts_every_test_once(entries: list[Entry], marked: int, line: str) -> None:
    assert terminal.count(entries, marked) == line


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


@pytest.mark.parametrize(
    ("row", "interval", "margin"),
    [
        (Row(metric="total_throughput", verdict="held", low=-0.01, high=0.02, margin=0.07), "-2.0 .. +1.0 %", "7 %"),
        (Row(metric="ttft", verdict="held", low=-0.01, high=0.02, margin=0.125), "-1.0 .. +2.0 %", "12.5 %"),
        (
            Row(metric="overlap_efficiency", verdict="held", low=-1, high=2.5, margin=5),
            "-2.50 .. +1.00 points",
            "5 points",
        ),
        (Row(metric="queue_wait", verdict="held", low=-1, high=2.5, margin=50), "-1.00 .. +2.50 ms", "50 ms"),
        (Row(metric="total_throughput", verdict="inconclusive", low=-math.inf, high=1.0), "can't tell", "-"),
        (Row(metric="ttft", verdict="inconclusive", low=-1.0, high=math.inf), "can't tell", "-"),
        (Row(metric="ttft", verdict="held", low=390, high=410, margin=500, floor=True), "390 .. 410 ms", "-"),
        (Row(metric="speedup", verdict="held", low=1.5, high=1.75, margin=1, floor=True), "1.5 .. 1.75 x", "-"),
    ],
)
def test_intervals_and_margins_are_in_the_unit_of_the_change(row: Row, interval: str, margin: str) -> None:
    assert cells(row, ["90 % interval", "margin"]) == [interval, margin]


def test_a_cell_per_column_and_the_worst_rows_first() -> None:
    held, invalid = Row(metric="ttft", verdict="held", value=400, runs=5), Row(metric="makespan", verdict="invalid")
    assert cells(held, [*COLUMNS]) == ["ttft", "-", "400 ms", "-", "-", "-", "5", "held"]
    assert [row.metric for row in worst_first([held, invalid, held])] == ["makespan", "ttft", "ttft"]


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
