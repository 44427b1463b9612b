"""Which rows fail a test, what the failure says, and what the controller is told."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import NoReturn

import pytest

from pytest_llmperf.case import Case, NoBaselineError
from pytest_llmperf.docket import Docket
from pytest_llmperf.model import FAILING, DisturbedError, InvalidRunError, LlmperfError, Sample, Session, Verdict
from pytest_llmperf.outcome import Row
from pytest_llmperf.settings import INCONCLUSIVE
from tests.builders import MACHINE, TEST, measured, session, settings, spec

GATED = replace(spec(), gated=("total_throughput", "ttft"))
RUNS = session(total_throughput=[100.0, 101, 99], ttft=[400.0, 401, 399])
HELD = Row(metric="ttft", verdict="held", value=400, baseline=400, change=0, low=-0.1, high=0.1, margin=0.3)
UNSURE = replace(HELD, verdict="inconclusive", high=0.4, reason="runs differ too much among themselves")
WORSE_TWICE = replace(UNSURE, change=0.35, high=0.8, worse_twice=True, again=replace(UNSURE, change=0.4))
REGRESSED = replace(HELD, verdict="regressed", change=0.5, low=0.4, high=0.6)
NOT_SHOWN = Row(
    metric="total_throughput", verdict="inconclusive", against="control", claim=True, margin=0.15,
    reason="not shown: the gain may be smaller",
)  # fmt: skip
TWICE = "(estimated beyond the margin in two sessions)"


def docket(rootdir: Path, policy: str = "pass", *, rebaseline: bool = False) -> Docket:
    chosen = replace(settings(rootdir), inconclusive=policy, rebaseline=rebaseline)
    found = Docket(Case(TEST, GATED, chosen, {TEST}))
    found.measured = measured(RUNS)
    return found


def failing(of: Docket, *rows: Row) -> list[str]:
    """The lines of the failure that these rows make."""
    with pytest.raises(pytest.fail.Exception) as caught:
        of.add(rows)
    assert not caught.value.pytrace
    return str(caught.value).splitlines()


def fails(of: Docket, *rows: Row) -> bool:
    try:
        of.add(rows)
    except pytest.fail.Exception:
        return True
    return False


@pytest.mark.parametrize(
    ("row", "policies"),
    [
        (HELD, set()),
        (replace(HELD, verdict="improved"), set()),
        (UNSURE, {"fail"}),
        (WORSE_TWICE, {"fail", "fail-if-worse"}),
        (REGRESSED, set(INCONCLUSIVE)),
        (replace(HELD, verdict="invalid"), set(INCONCLUSIVE)),
        (replace(HELD, verdict="not comparable"), set(INCONCLUSIVE)),
        (replace(HELD, verdict="no baseline"), set(INCONCLUSIVE)),
        (NOT_SHOWN, set(INCONCLUSIVE)),
        (replace(NOT_SHOWN, verdict="held"), set()),
        (replace(NOT_SHOWN, verdict="regressed"), set(INCONCLUSIVE)),
        (replace(UNSURE, against="floor"), {"fail"}),
    ],
)
def test_which_rows_fail_a_test_under_which_policy(tmp_path: Path, row: Row, policies: set[str]) -> None:
    assert {policy for policy in INCONCLUSIVE if fails(docket(tmp_path, policy), row)} == policies
    assert {policy for policy in INCONCLUSIVE if fails(docket(tmp_path, policy), HELD, row, HELD)} == policies


@pytest.mark.parametrize(
    ("policy", "rows", "said"),
    [
        (
            "fail-if-worse",
            [WORSE_TWICE, UNSURE],
            f"llmperf_inconclusive = fail-if-worse makes ttft fail the test {TWICE}",
        ),
        (
            "fail",
            [replace(WORSE_TWICE, metric="total_throughput"), UNSURE],
            "llmperf_inconclusive = fail makes total_throughput, ttft fail the test",
        ),
    ],
)
def test_an_inconclusive_test_that_fails_says_why_and_how_to_accept_it(
    tmp_path: Path, policy: str, rows: list[Row], said: str
) -> None:
    lines = failing(docket(tmp_path, policy), *rows)
    assert lines[0] == f"llmperf: inconclusive: {TEST}"
    assert f"  {said}" in lines
    assert f"  to accept these numbers: pytest {TEST} --llmperf-rebaseline" in lines
    assert lines[-1].startswith("  server logs and runs: .llmperf/last/")


@pytest.mark.parametrize("row", [REGRESSED, NOT_SHOWN])
def test_what_fails_by_itself_does_not_blame_the_policy(tmp_path: Path, row: Row) -> None:
    lines = failing(docket(tmp_path, "fail-if-worse"), row, UNSURE)
    assert not any("llmperf_inconclusive" in line for line in lines)


def test_a_claim_that_is_not_shown_offers_no_baseline(tmp_path: Path) -> None:
    lines = failing(docket(tmp_path), NOT_SHOWN)
    assert lines[0] == f"llmperf: inconclusive: {TEST}"
    assert "  inconclusive (total_throughput): not shown: the gain may be smaller" in lines
    assert not any("--llmperf-rebaseline" in line for line in lines)


def test_a_failure_lists_all_that_was_judged_before_and_a_row_once(tmp_path: Path) -> None:
    found = docket(tmp_path)
    found.add([HELD], "ttft")
    found.add([HELD, replace(HELD, metric="makespan")], "ttft", "makespan")
    lines = failing(found, replace(REGRESSED, metric="total_throughput"))
    metrics = [line.split()[0] for line in lines if line.endswith(("held", "regressed"))]
    assert metrics == ["total_throughput", "ttft", "makespan"]
    assert (found.judged, found.verdict) == ({"ttft", "makespan"}, "regressed")


def test_a_failure_says_what_is_worth_knowing_of_its_runs(tmp_path: Path) -> None:
    found = docket(tmp_path)
    replaced = Sample({"ttft": 900.0}, kept=False, cause="the model stopped early (3 of 48 tokens)")
    found.measured = measured(Session((*RUNS.samples, replaced), 0.5), RUNS)
    lines = failing(found, REGRESSED)
    assert "  session 1: a run was replaced: the model stopped early (3 of 48 tokens)" in lines
    entry = found.entry(passed=False)
    assert entry is not None
    assert entry.remarks == ("session 1: a run was replaced: the model stopped early (3 of 48 tokens)",)


def test_opposite_directions_are_a_note(tmp_path: Path) -> None:
    found = docket(tmp_path)
    found.add([replace(HELD, metric="overlap_efficiency", low=-9, high=-5)])
    lines = failing(found, replace(REGRESSED, metric="total_throughput"))
    assert any("point in opposite directions" in line for line in lines)


def test_a_swallowed_failure_stays_one(tmp_path: Path) -> None:
    found = docket(tmp_path)
    assert fails(found, REGRESSED)
    with pytest.raises(pytest.fail.Exception, match=f"^llmperf: regressed: {TEST}"):
        found.refuse()
    broken = docket(tmp_path)
    with pytest.raises(pytest.fail.Exception) as first:
        broken.fail("invalid", "agent1 exited with code 1")
    with pytest.raises(pytest.fail.Exception) as again:
        broken.fail_again()
    assert str(first.value) == str(again.value) == f"llmperf: invalid: {TEST}\n  agent1 exited with code 1"
    docket(tmp_path).fail_again()


@pytest.mark.parametrize(
    ("error", "verdict", "last"),
    [
        (NoBaselineError("nothing is recorded"), "no baseline", f"  to record one: pytest {TEST} --llmperf-rebaseline"),
        (LlmperfError("no such binary"), "invalid", "  no such binary"),
        (pytest.fail.Exception("llmperf: no server"), "invalid", "  no server"),
    ],
)
def test_what_the_user_can_put_right_is_a_failure_of_text_only(
    tmp_path: Path, error: BaseException, verdict: Verdict, last: str
) -> None:
    found = docket(tmp_path)
    with pytest.raises(pytest.fail.Exception) as caught, found.plainly():
        raise error
    assert str(caught.value).splitlines()[0] == f"llmperf: {verdict}: {TEST}"
    assert str(caught.value).splitlines()[-1] == last
    assert found.verdict == verdict


def test_what_something_else_broke_is_told_apart_also_through_a_fixture(tmp_path: Path) -> None:
    busy = "mongod used 3.2 of 4 cores"
    for error, disturbed in ((InvalidRunError(busy), ""), (DisturbedError(busy), busy)):
        found = docket(tmp_path)
        with pytest.raises(pytest.fail.Exception, match=f"^llmperf: invalid: {TEST}\n  {busy}"), found.plainly():
            raise error
        assert found.disturbed == disturbed
        of_fixture = docket(tmp_path)
        with pytest.raises(pytest.fail.Exception), of_fixture.plainly():
            fixture_fails(error)
        assert of_fixture.disturbed == disturbed


def fixture_fails(error: LlmperfError) -> NoReturn:
    """As a fixture of ours does it."""
    try:
        raise error
    except LlmperfError:
        raise pytest.fail.Exception(f"llmperf: {error}", pytrace=False) from None


def test_a_test_that_measured_nothing_has_no_entry(tmp_path: Path) -> None:
    found = docket(tmp_path)
    found.measured = None
    assert found.entry(passed=True) is None
    assert found.verdict is None


def test_an_entry_tells_what_was_judged_and_how_to_accept_it(tmp_path: Path) -> None:
    found = docket(tmp_path)
    found.add([HELD], "ttft")
    entry = found.entry(passed=True)
    assert entry is not None
    assert (entry.test, entry.verdict, entry.machine, entry.emulated) == (TEST, "held", MACHINE, True)
    assert (entry.rows, entry.gated, entry.notes, entry.record) == ((HELD,), GATED.gated, (), None)
    assert entry.command == f"pytest {TEST} --llmperf-rebaseline"
    assert type(entry).from_payload(entry.to_payload()) == entry


def test_a_row_with_a_second_session_travels_as_builtins(tmp_path: Path) -> None:
    found = docket(tmp_path)
    found.add([WORSE_TWICE])
    entry = found.entry(passed=True)
    assert entry is not None
    assert type(entry).from_payload(entry.to_payload()) == entry


def test_a_rebaseline_records_and_warns_of_a_weak_one(tmp_path: Path) -> None:
    entry = docket(tmp_path, rebaseline=True).entry(passed=True)
    assert entry is not None
    assert entry.record is not None
    assert entry.record.sessions == (RUNS,)
    assert entry.verdict is None
    assert entry.remarks == tuple(
        f"warning: {metric}: this baseline is too small to decide anything; record more (--llmperf-sessions=N)"
        for metric in GATED.gated
    )


@pytest.mark.parametrize(
    ("row", "kept"), [(HELD, False), (replace(HELD, verdict="improved"), False), (UNSURE, True), (REGRESSED, True)]
)
def test_evidence_is_left_of_what_did_not_hold(tmp_path: Path, row: Row, *, kept: bool) -> None:
    log = tmp_path / "agent1.log"
    log.write_text("last words", "utf-8")
    found = docket(tmp_path)
    assert fails(found, row) == (row.verdict in FAILING)
    found.settle([log])
    files = {path.name for path in (tmp_path / ".llmperf").rglob("*.*") if path.is_file()} - {".gitignore"}
    assert files == ({"agent1.log", "measured.json"} if kept else set())
