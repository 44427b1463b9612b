"""Looks, second sessions, comparisons, policies and self-checks, as a user sees them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.acceptance.conftest import INI, TEST, Run, emulate

CHECKED = TEST + "def test_two_agents(llmperf):\n    llmperf.check()\n"

IN_THE_SECOND_SESSION = """
import os
import pytest
from pytest_llmperf.instances import Fleet

@pytest.fixture(autouse=True)
def _another_machine_state(monkeypatch):
    restart = Fleet.new_session
    def changed(fleet):
        monkeypatch.setenv("LLMPERF_EMULATOR", {emulator!r})
        restart(fleet)
    monkeypatch.setattr(Fleet, "new_session", changed)
"""


def recorded(project: pytest.Pytester, run: Run, source: str = CHECKED, *options: str) -> pytest.RunResult:
    project.makepyfile(test_stack=source)
    result = run("--llmperf-rebaseline", *(options or ("--llmperf-sessions=1",)))
    assert result.ret == 0
    return result


def second_session(project: pytest.Pytester, emulator: str) -> None:
    """What the emulator does from a test's second session on."""
    project.makeconftest(IN_THE_SECOND_SESSION.format(emulator=emulator))


def ini(project: pytest.Pytester, line: str) -> None:
    project.makeini(f"{INI}{line}\n")


def test_a_regression_is_measured_again_and_both_sessions_are_shown(
    project: pytest.Pytester, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorded(project, run)
    emulate(monkeypatch, slowdown=2)
    red = run()
    assert red.ret == 1
    red.stdout.fnmatch_lines(
        [
            "llmperf: regressed: test_stack.py::test_two_agents",
            "*metric * catches 4 in 5 * runs * verdict*",
            "*total_throughput * % worse *25 % * (*) * 5 v 5 * regressed",
            "*  second session * % worse *25 % * (*) * 5 v 5 * regressed",
            "llmperf: 1 gated: 1 regressed",
        ]
    )
    (numbers,) = (project.path / ".llmperf").rglob("measured.json")
    sessions = json.loads(numbers.read_text("utf-8"))["sessions"]
    assert [sum(run.get("kept", True) for run in session["runs"]) for session in sessions] == [5, 5]


def test_a_regression_that_a_second_session_does_not_show_is_inconclusive(
    project: pytest.Pytester, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorded(project, run)
    second_session(project, "speed=4")
    emulate(monkeypatch, slowdown=2)
    calm = run()
    assert calm.ret == 0
    calm.stdout.fnmatch_lines(
        [
            "test_stack.py::test_two_agents * total_throughput * % worse * 5 v 5 * inconclusive",
            " *  second session * 5 v 5 * held",
            "*: inconclusive (total_throughput): not confirmed: a second session did not show it",
            "llmperf: 1 gated: 1 inconclusive",
        ]
    )


@pytest.mark.parametrize(("policy", "code"), [("pass", 0), ("fail-if-worse", 1), ("fail", 1)])
def test_an_estimate_beyond_the_margin_twice_fails_where_the_ini_says_so(
    project: pytest.Pytester, run: Run, monkeypatch: pytest.MonkeyPatch, policy: str, code: int
) -> None:
    source = CHECKED.replace("metrics=", "max_runs=5, session_sd={'total_throughput': 0.3}, metrics=")
    recorded(project, run, source)
    ini(project, f"llmperf_inconclusive = {policy}")
    emulate(monkeypatch, slowdown=1.6)
    result = run()
    assert result.ret == code
    result.stdout.fnmatch_lines(["*second session * % worse *", "llmperf: 1 gated: 1 inconclusive*"])
    if code:
        result.stdout.fnmatch_lines(
            [
                "llmperf: inconclusive: test_stack.py::test_two_agents",
                f"*llmperf_inconclusive = {policy}*",
                "*to accept these numbers: pytest test_stack.py::test_two_agents --llmperf-rebaseline",
            ]
        )


def test_an_inconclusive_test_that_is_not_worse_passes_fail_if_worse(project: pytest.Pytester, run: Run) -> None:
    recorded(project, run, CHECKED.replace("metrics=", "session_sd={'total_throughput': 0.3}, metrics="))
    ini(project, "llmperf_inconclusive = fail-if-worse")
    result = run()
    assert result.ret == 0
    result.stdout.fnmatch_lines(
        [
            "*inconclusive (total_throughput): can never decide*",
            "llmperf: 1 gated: 1 inconclusive; 1 metric can never decide",
        ]
    )


def test_an_unknown_word_for_inconclusive_is_refused(project: pytest.Pytester, run: Run) -> None:
    ini(project, "llmperf_inconclusive = warn")
    result = run()
    assert result.ret == 4
    result.stderr.fnmatch_lines(["ERROR: ini llmperf_inconclusive takes pass, fail-if-worse, fail, not 'warn'"])


def test_a_test_that_is_decided_stops_early_and_one_that_is_not_takes_all_its_runs(
    project: pytest.Pytester, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorded(project, run, CHECKED.replace("metrics=", "session_sd={'total_throughput': 0.15}, metrics="))
    emulate(monkeypatch, slowdown=4)
    run().stdout.fnmatch_lines(["*total_throughput * 5 v 5 * regressed"])
    # on the margin of 25 %: neither held nor, with sessions that differ by 15 %, worse for sure
    emulate(monkeypatch, slowdown=1.33)
    run().stdout.fnmatch_lines(["*total_throughput * 5 v 10 * inconclusive"])


def test_a_rebaseline_warns_of_a_margin_that_it_cannot_see(
    project: pytest.Pytester, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = CHECKED.replace('"total_throughput": 0.25', '"total_throughput": 0.005')
    result = recorded(project, run, source)
    result.stdout.fnmatch_lines(
        ["test_stack.py::test_two_agents: warning: total_throughput: this baseline would only catch a worsening of *"]
    )


COMPARING = (
    TEST.replace(', margins={"total_throughput": 0.25}', "")
    + """
def test_dual_answers_sooner(llmperf):
    comparison = llmperf.compare(control={"topology": "shared"}, treatment={"topology": "dedicated"})
"""
)


def test_two_topologies_are_compared_without_a_baseline(project: pytest.Pytester, run: Run) -> None:
    claim = '    llmperf.assert_faster(comparison, metric="ttft", by=0.1)\n'
    project.makepyfile(test_stack=COMPARING + claim)
    result = run()
    assert result.ret == 0
    result.stdout.fnmatch_lines(
        [
            "*test_dual_answers_sooner * ttft * ms (control) * % better * by 10 % * held",
            "llmperf: 1 gated: 1 held",
        ]
    )
    assert list((project.path).glob("baselines")) == []


def test_a_refuted_claim_fails_with_both_sides(project: pytest.Pytester, run: Run) -> None:
    project.makepyfile(test_stack=COMPARING + "    llmperf.assert_faster(comparison, by=0.15)\n")
    result = run()
    assert result.ret == 1
    result.stdout.fnmatch_lines(
        [
            "llmperf: regressed: test_stack.py::test_dual_answers_sooner",
            "  emulated-rtx4080 (emulated), control and treatment in turns, 5 runs each",
            "  control -> treatment: topology: shared -> dedicated",
            "*total_throughput * tok/s (control) * by 15 % * regressed",
            "  regressed (total_throughput): refuted: the gain is smaller for sure",
        ]
    )
    kept = {path.name for path in (project.path / ".llmperf").rglob("*.json")}
    assert kept == {"control.json", "treatment.json"}


def test_equal_sides_are_no_slower_and_not_shown_to_be_faster(project: pytest.Pytester, run: Run) -> None:
    alone = TEST.replace("chimera_homo", "single_agent")
    equal = alone + "def test_equal(llmperf):\n    comparison = llmperf.compare(control={}, treatment={})\n"
    project.makepyfile(test_stack=equal + "    llmperf.assert_no_slower(comparison)\n")
    result = run()
    assert result.ret == 0
    result.stdout.fnmatch_lines(["*total_throughput * tok/s (control) * 25 % * 5 v 5 *"])
    project.makepyfile(test_stack=equal + "    llmperf.assert_faster(comparison, by=0.1)\n")
    assert run().ret == 1


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (
            "llmperf.compare(control={'topologie': 'shared'}, treatment={})",
            "  compare(): control has no 'topologie' (did you mean topology?); a side takes scenario, *",
        ),
        (
            "llmperf.compare(control={}, treatment={'topology': 'both'})",
            "  compare(): treatment: topology must be 'dedicated' or 'shared', not 'both'",
        ),
        (
            "llmperf.compare(control={}, treatment={'agents': 1})",
            "  compare(): treatment: agents must be 2 or more for scenario='chimera_homo', not 1",
        ),
        (
            "llmperf.compare(control={}, treatment={})",
            "  compared, never judged; call assert_faster or assert_no_slower with the comparison",
        ),
        (
            "llmperf.assert_faster(llmperf.compare(control={}, treatment={}), metric='speed')",
            "  assert_faster: metric has no 'speed' (did you mean speedup?); *",
        ),
        (
            "llmperf.assert_faster(llmperf.compare(control={}, treatment={}), by=-1)",
            "  assert_faster: by must be a fraction from 0 to below 10 (0.15 for 15 %), not -1",
        ),
    ],
)
def test_what_is_wrong_with_a_comparison_is_said(
    project: pytest.Pytester, run: Run, monkeypatch: pytest.MonkeyPatch, body: str, words: str
) -> None:
    emulate(monkeypatch, vram_gb=24)
    project.makepyfile(test_stack=TEST + f"def test_it(llmperf):\n    {body}\n")
    result = run()
    assert result.ret == 1
    result.stdout.fnmatch_lines(["llmperf: invalid: test_stack.py::test_it", words, "llmperf: 1 gated: 1 invalid"])


@pytest.mark.parametrize(
    ("word", "words"),
    [
        ("max_runs=2", "  a comparison needs max_runs of at least 3, not 2"),
        (
            "floors={'ttft': 5}",
            "  a comparison is not held to limits: take the floor for ttft off this test's mark",
        ),
    ],
)
def test_a_mark_that_a_comparison_cannot_hold_is_refused(
    project: pytest.Pytester, run: Run, word: str, words: str
) -> None:
    body = "    llmperf.assert_no_slower(comparison)\n"
    project.makepyfile(test_stack=COMPARING.replace("metrics=", f"{word}, metrics=") + body)
    result = run()
    assert result.ret == 1
    result.stdout.fnmatch_lines(["llmperf: invalid: test_stack.py::test_dual_answers_sooner", words])


def test_a_comparison_has_nothing_to_record(project: pytest.Pytester, run: Run) -> None:
    project.makepyfile(test_stack=COMPARING + "    llmperf.assert_no_slower(comparison)\n")
    result = run("--llmperf-rebaseline", "-rs")
    result.assert_outcomes(skipped=1)
    result.stdout.fnmatch_lines(["*a comparison has no baseline to record or to check*"])


def test_models_that_do_not_fit_side_by_side_are_refused_with_their_memory(
    project: pytest.Pytester, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    project.makepyfile(test_stack=COMPARING + "    llmperf.assert_no_slower(comparison)\n")
    emulate(monkeypatch, vram_gb=8)
    run().stdout.fnmatch_lines(
        [
            "llmperf: invalid: test_stack.py::test_dual_answers_sooner",
            "  control and treatment can't both stay loaded: together they need * GB (control1 gemma3* GB, *",
            "  server logs and runs: .llmperf/last/test_dual_answers_sooner-*",
        ]
    )
    assert list((project.path / ".llmperf").rglob("control1.log"))


def test_a_self_check_prints_both_rates_and_the_deviation_to_declare(project: pytest.Pytester, run: Run) -> None:
    project.makepyfile(test_stack=CHECKED.replace("metrics=", "max_runs=5, metrics="))
    result = run("--llmperf-selfcheck", "--llmperf-sessions=3")
    assert result.ret == 0
    result.stdout.fnmatch_lines(
        [
            "test * metric * cried wolf * noticed * slowed by * sessions differ by * declared",
            "test_stack.py::test_two_agents * total_throughput * 0 of 3 (0 .. 63 %) * 3 of 3 (37 .. 100 %) * 4?.? % *",
            "* any of them * 0 of 3 (0 .. 63 %) * 3 of 3 (37 .. 100 %) *",
            "llmperf: 1 checked against itself",
        ]
    )
    assert not Path(project.path / "baselines").exists()


def test_a_self_check_does_not_record(project: pytest.Pytester, run: Run) -> None:
    result = run("--llmperf-selfcheck", "--llmperf-rebaseline")
    assert result.ret == 4
    result.stderr.fnmatch_lines(["ERROR: --llmperf-rebaseline and --llmperf-selfcheck exclude each other; *"])
    few = run("--llmperf-selfcheck", "--llmperf-sessions=2")
    few.stderr.fnmatch_lines(["ERROR: --llmperf-sessions takes a number from 3 up, not 2"])


ALONE = TEST.replace("chimera_homo", "single_agent").replace("warmup_requests=1, ", "warmup_requests=0, ")
LIMITED = ALONE.replace('metrics=["total_throughput"], margins={"total_throughput": 0.25},', "metrics=[], {limit},")
CHECK = "def test_it(llmperf):\n    llmperf.check()\n"


def test_a_policy_is_held_and_a_crossed_level_fails(
    project: pytest.Pytester, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    project.makepyfile(test_stack=LIMITED.replace("{limit}", 'policies=["appendix-h2"]') + CHECK)
    run().stdout.fnmatch_lines_random(
        [
            "*ttft * at most 2000 ms * appendix-h2, critical * 5 * held",
            "*total_throughput * at least 80 tok/s * appendix-h2, critical * 5 * held",
            "llmperf: 1 gated: 1 held",
        ]
    )
    emulate(monkeypatch, slowdown=12)
    red = run()
    assert red.ret == 1
    red.stdout.fnmatch_lines(["*total_throughput * at least 80 tok/s * appendix-h2, critical * regressed"])


@pytest.mark.parametrize(("policy", "code"), [("pass", 0), ("fail", 1)])
def test_a_share_of_contended_runs_says_how_many_clean_runs_a_claim_takes(
    project: pytest.Pytester, run: Run, policy: str, code: int
) -> None:
    limit = 'contention={"contended": "speedup < 1.5"}'
    project.makepyfile(test_stack=LIMITED.replace("single_agent", "chimera_homo").replace("{limit}", limit) + CHECK)
    ini(project, f"llmperf_inconclusive = {policy}")
    result = run()
    assert result.ret == code
    result.stdout.fnmatch_lines(
        [
            "*0 of 5 runs contended: compatible with up to 45 %; 59 clean runs are needed to claim < 5 %*",
            "llmperf: 1 gated: 1 inconclusive",
        ]
    )


def test_a_floor_that_five_runs_can_tell_takes_no_more(project: pytest.Pytester, run: Run) -> None:
    project.makepyfile(test_stack=LIMITED.replace("{limit}", 'floors={"ttft": 150}') + CHECK)
    run().stdout.fnmatch_lines(["*ttft * at most 150 ms * 5 * held"])


def test_skipping_is_no_way_past_a_regression(
    project: pytest.Pytester, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorded(project, run)
    body = "    try:\n        llmperf.check()\n    except BaseException:\n        pytest.skip('flaky')\n"
    project.makepyfile(test_stack=TEST + "def test_two_agents(llmperf):\n" + body)
    emulate(monkeypatch, slowdown=2)
    red = run("--llmperf-require=1")
    red.assert_outcomes(failed=1)
    red.stdout.fnmatch_lines(["llmperf: regressed: test_stack.py::test_two_agents"])


def test_measured_and_skipped_is_measured_and_never_judged(project: pytest.Pytester, run: Run) -> None:
    recorded(project, run)
    body = "    llmperf.measure()\n    pytest.skip('later')\n"
    project.makepyfile(test_stack=TEST + "def test_two_agents(llmperf):\n" + body)
    red = run()
    red.assert_outcomes(failed=1)
    red.stdout.fnmatch_lines(["  measured, never judged; *"])


def test_a_self_check_needs_a_gated_metric_and_ignores_require(project: pytest.Pytester, run: Run) -> None:
    project.makepyfile(test_stack=LIMITED.replace("{limit}", 'floors={"ttft": 150}') + CHECK)
    result = run("--llmperf-selfcheck", "--llmperf-require=1", "-rs")
    assert result.ret == 0
    result.stdout.fnmatch_lines(["*a test that gates no metric has nothing to check against itself*"])
