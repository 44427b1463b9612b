"""When tests measure: after all others, once more where something disturbed them, and within --llmperf-budget."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET

import pytest

from tests.acceptance.conftest import TEST, Run

CHECKED = TEST + "def test_two_agents(llmperf):\n    llmperf.check()\n"
HELD = "llmperf: 1 gated: 1 held"
FLOORS = TEST[: TEST.index("metrics=")] + 'metrics=[], floors={"ttft": 2000})\n' + CHECKED.removeprefix(TEST)
DISTURBED = "mongod used 3.2 of 4 cores"
DISTURBANCE = f"""
import itertools, os
import pytest

@pytest.fixture(scope="session")
def stack():
    print("stack up")
    yield
    print("stack down")

@pytest.fixture(autouse=True)
def disturb(stack, monkeypatch):
    from pytest_llmperf import protocol
    from pytest_llmperf.model import DisturbedError

    genuine = protocol.Bench.session

    def session(*arguments):
        if next(tries) < int(os.environ["DISTURBED"]):
            raise DisturbedError("{DISTURBED}")
        return genuine(*arguments)

    monkeypatch.setattr(protocol.Bench, "session", session)
    if next(setups) and os.environ.get("SECOND_TRY") == "crashes":
        os._exit(1)

tries, setups = itertools.count(), itertools.count()
"""


@pytest.fixture
def recorded(project: pytest.Pytester, run: Run) -> pytest.Pytester:
    """A project whose only marked test was just recorded, in one session."""
    project.makepyfile(test_stack=CHECKED)
    run("--llmperf-rebaseline", "--llmperf-sessions=1").assert_outcomes(passed=1)
    return project


def disturbed(project: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, *, times: int) -> None:
    """So many measurements of each process end as if something else had used the machine."""
    project.makeconftest(DISTURBANCE)
    monkeypatch.setenv("DISTURBED", str(times))


def test_marked_tests_run_after_the_others_and_each_in_the_order_of_the_file(
    project: pytest.Pytester, run: Run
) -> None:
    project.makepyfile(
        test_stack="""
        import pytest

        marked = pytest.mark.llmperf(scenario="single_agent", model="gemma3:4b-it-q4_K_M")

        @marked
        def test_b(): pass
        def test_c(): pass
        @marked
        def test_a(): pass
        def test_d(): pass
        """
    )
    for options in ((), ("-n2", "--dist=loadfile")):
        result = run("-v", *options)
        result.assert_outcomes(passed=4)
        passed = [re.findall("::(test_.)", line)[0] for line in result.outlines if "PASSED" in line]
        assert passed == ["test_c", "test_d", "test_b", "test_a"]


@pytest.mark.parametrize("options", [("--pdb",), ("-n1",)])
def test_a_disturbed_test_is_measured_again_at_the_end_and_only_that_counts(
    recorded: pytest.Pytester, run: Run, monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...]
) -> None:
    disturbed(recorded, monkeypatch, times=1)
    recorded.makepyfile(test_unit=TEST + "def test_after_it():\n    pass\n")
    result = run("-x", "-v", "--llmperf-require=1", "--junitxml=report.xml", *options)
    assert result.ret == 0
    result.stdout.re_match_lines(
        [
            r".*(test_two_agents POSTPONED|POSTPONED .*test_two_agents)",
            r".*(test_two_agents PASSED|PASSED .*test_two_agents)",
            f"test_stack.py::test_two_agents was disturbed and tried again: {DISTURBED}",
            HELD + "; 1 marked test not measured",
            ".*2 passed, 1 postponed in .*",
        ]
    )
    (suite,) = ET.parse(recorded.path / "report.xml").getroot().iter("testsuite")
    assert (suite.get("tests"), suite.get("failures"), suite.get("errors")) == ("2", "0", "0")
    assert sorted(case.get("name", "") for case in suite.iter("testcase")) == ["test_after_it", "test_two_agents"]


def test_a_test_that_is_disturbed_again_is_invalid(
    recorded: pytest.Pytester, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    disturbed(recorded, monkeypatch, times=2)
    recorded.makepyfile(test_unrecorded=CHECKED.replace("test_two_agents", "test_never_recorded"))
    result = run("-s")
    assert result.ret == 1
    result.assert_outcomes(failed=2)
    result.stdout.fnmatch_lines(
        [
            "llmperf: no baseline: test_unrecorded.py::test_never_recorded",
            "llmperf: invalid: test_stack.py::test_two_agents",
            f"  {DISTURBED}",
            f"test_stack.py::test_two_agents was disturbed and tried again: {DISTURBED}",
            "llmperf: 2 gated: 1 no baseline, 1 invalid",
        ]
    )
    said = result.stdout.str()
    assert (said.count("stack up"), said.count("stack down")) == (2, 2)


def test_a_disturbed_test_that_is_never_measured_again_is_a_failed_test(
    recorded: pytest.Pytester, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    disturbed(recorded, monkeypatch, times=1)
    monkeypatch.setenv("SECOND_TRY", "crashes")
    result = run("-n1", "--max-worker-restart=0", "--junitxml=report.xml")
    assert result.ret == 1
    result.stdout.fnmatch_lines(
        [
            f"llmperf: disturbed, and its worker crashed before it was measured again: {DISTURBED}",
            f"test_stack.py::test_two_agents was disturbed and not tried again: {DISTURBED}",
            "*1 failed, 1 postponed in *",
        ]
    )
    (case,) = ET.parse(recorded.path / "report.xml").iter("testcase")
    assert case.get("name") == "test_two_agents"
    assert case.find("failure") is not None


MEASURED_BEFORE = """
@pytest.fixture
def measured(llmperf):
    return llmperf.measure()

def test_two_agents(llmperf, measured):
    llmperf.assert_no_regression(measured)
"""


def test_what_a_fixture_measured_is_measured_again_too_and_no_budget_stops_it(
    recorded: pytest.Pytester, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    disturbed(recorded, monkeypatch, times=1)
    recorded.makepyfile(test_stack=TEST + MEASURED_BEFORE)
    result = run("--junitxml=report.xml", "--llmperf-budget=7s")
    assert result.ret == 0
    result.stdout.fnmatch_lines(
        [
            f"test_stack.py::test_two_agents was disturbed and tried again: {DISTURBED}",
            HELD,
            "*1 passed, 1 postponed*",
        ]
    )
    assert len([*ET.parse(recorded.path / "report.xml").iter("testcase")]) == 1


def test_what_would_not_fit_in_the_budget_is_not_measured_and_missing(recorded: pytest.Pytester, run: Run) -> None:
    refused = run("--llmperf-budget=1s", "--llmperf-require=all", "-rs")
    assert refused.ret == 1
    refused.assert_outcomes(skipped=1)
    refused.stdout.fnmatch_lines(
        [
            "llmperf: --llmperf-require=all: 0 tests were judged, 1 required; not judged: *test_two_agents",
            "llmperf: 1 marked test not measured",
            "SKIPPED *: llmperf: not measured: it takes about * s, and 1 s of --llmperf-budget=1s are left",
        ]
    )


def test_all_workers_pay_for_what_they_measure_from_one_budget(recorded: pytest.Pytester, run: Run) -> None:
    recorded.makepyfile(test_floors=FLOORS)
    for number, options in enumerate([(), ("-n2", "--dist=loadfile")], start=1):
        run("--llmperf-budget=1h", *options).assert_outcomes(passed=2)
        taken = (recorded.path / f"runpytest-{number}" / "llmperf-spent").read_text("utf-8").split()
        assert len(taken) == 4
        assert 0.2 < sum(map(float, taken)) < 60


def test_a_run_says_beforehand_how_long_it_takes(recorded: pytest.Pytester, run: Run) -> None:
    recorded.makepyfile(test_new=CHECKED)
    for options in (("-q",), ("-n2",)):
        result = run("--collect-only", *options)
        result.stdout.re_match_lines(
            [
                r"no baseline  test_new\.py::test_two_agents",
                r"about \d+ s +test_stack\.py::test_two_agents",
                r"llmperf: 2 marked tests take about \d+ s \(1 without a baseline not counted\)",
            ]
        )
