"""From the mark to the verdict and back to a new baseline, as a user sees it."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from tests.acceptance.conftest import TEST, Run, emulate

CHECKED = TEST + "def test_two_agents(llmperf):\n    llmperf.check()\n"
HELD = "llmperf: 1 gated: 1 held"


def recorded(project: pytest.Pytester, run: Run, source: str = CHECKED) -> Path:
    """The baseline file of a project with one test, just recorded."""
    project.makepyfile(test_stack=source)
    run("--llmperf-rebaseline", "--llmperf-sessions=1").assert_outcomes(passed=1)
    (path,) = (project.path / "baselines").rglob("*.json")
    return path


def test_a_recorded_test_holds_and_a_slower_server_fails_it(
    project: pytest.Pytester, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = recorded(project, run)
    assert path.relative_to(project.path).parts[:3] == ("baselines", "emulated-rtx4080", "test_stack")
    held = run()
    assert held.ret == 0
    said = ["measured on emulated-rtx4080 (emulated)", "LLMPERF_EMULATOR=speed=4 was in force", HELD]
    held.stdout.fnmatch_lines(said)
    emulate(monkeypatch, slowdown=2)
    for options in ((), ("-n2",)):
        red = run(*options)
        assert red.ret == 1
        red.assert_outcomes(failed=1)
        red.stdout.fnmatch_lines(
            [
                "llmperf: regressed: test_stack.py::test_two_agents",
                "  emulated-rtx4080 (emulated), chimera_homo, 2 agents on dedicated instances",
                "*metric * baseline * now * change * 90 % interval * margin * runs * verdict*",
                "*total_throughput * tok/s * tok/s * % worse *.. *25 %* 5 v 5 * regressed*",
                "*to accept these numbers: pytest test_stack.py::test_two_agents --llmperf-rebaseline",
                "*server logs and runs: .llmperf/last/test_two_agents-*",
                "llmperf: 1 gated: 1 regressed",
            ]
        )
        assert "assertions.py" not in red.stdout.str()
        assert "Traceback" not in red.stdout.str()


def test_a_regression_is_a_failure_and_no_error_in_junit(
    project: pytest.Pytester, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorded(project, run)
    emulate(monkeypatch, slowdown=2)
    run("--junitxml=report.xml")
    (suite,) = ET.parse(project.path / "report.xml").getroot().iter("testsuite")
    assert (suite.get("failures"), suite.get("errors")) == ("1", "0")
    (failure,) = suite.iter("failure")
    assert "llmperf: regressed: test_stack.py::test_two_agents" in (failure.text or "")


def test_a_faster_server_is_improved_and_says_how_to_tighten_the_baseline(
    project: pytest.Pytester, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    emulate(monkeypatch, slowdown=2)
    recorded(project, run)
    emulate(monkeypatch)
    better = run()
    assert better.ret == 0
    better.stdout.fnmatch_lines(
        [
            "*improved; to tighten its baseline: pytest test_stack.py::test_two_agents --llmperf-rebaseline",
            "llmperf: 1 gated: 1 improved",
        ]
    )


def test_a_changed_option_is_not_comparable_and_named_old_to_new(project: pytest.Pytester, run: Run) -> None:
    recorded(project, run)
    project.makepyfile(test_stack=CHECKED.replace('"num_ctx": 512', '"num_ctx": 1024'))
    result = run()
    assert result.ret == 1
    result.stdout.fnmatch_lines(
        [
            "llmperf: not comparable: test_stack.py::test_two_agents",
            "*total_throughput * tok/s * % * not comparable*",
            "*agent.options.num_ctx: 512 -> 1024 (this change declares another workload)*",
            "*to record a baseline under today's conditions: pytest test_stack.py::test_two_agents --llmperf-*",
            "llmperf: 1 gated: 1 not comparable",
        ]
    )


def test_without_a_baseline_nothing_is_spent_and_the_command_is_given(
    project: pytest.Pytester, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    project.makepyfile(test_stack=CHECKED)
    emulate(monkeypatch, fault="exit")  # a server that was started would be the error
    result = run()
    assert result.ret == 1
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        [
            "llmperf: no baseline: test_stack.py::test_two_agents",
            "  nothing is recorded for this test on emulated-rtx4080 (baselines/emulated-rtx4080/test_stack/*.json)",
            "  to record one: pytest test_stack.py::test_two_agents --llmperf-rebaseline",
            "llmperf: 1 gated: 1 no baseline",
        ]
    )


def test_a_renamed_test_is_told_which_file_was_its_own(project: pytest.Pytester, run: Run) -> None:
    path = recorded(project, run)
    project.makepyfile(test_stack=CHECKED.replace("test_two_agents", "test_a_pair"))
    result = run()
    assert result.ret == 1
    old = path.relative_to(project.path).as_posix()
    result.stdout.fnmatch_lines(
        [
            "llmperf: no baseline: test_stack.py::test_a_pair",
            f"  {old} was recorded for test_stack.py::test_two_agents, which is gone and declared the same; renamed?",
            f"    git mv {old} baselines/emulated-rtx4080/test_stack/test_a_pair-*.json",
        ]
    )
    move = next(line for line in result.outlines if "git mv" in line).split()
    Path(project.path / move[2]).rename(project.path / move[3])
    run().stdout.fnmatch_lines([HELD])


def test_an_id_survives_a_rename(project: pytest.Pytester, run: Run) -> None:
    named = CHECKED.replace("scenario=", 'id="the pair", scenario=')
    path = recorded(project, run, named)
    assert path.relative_to(project.path).parts[:2] == ("baselines", "emulated-rtx4080")
    assert path.name.startswith("the-pair-")
    (project.path / "test_stack.py").unlink()
    project.makepyfile(test_moved=named.replace("test_two_agents", "test_a_pair"))
    run().stdout.fnmatch_lines([HELD])


def test_a_truncated_baseline_is_named_before_anything_is_spent(
    project: pytest.Pytester, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = recorded(project, run)
    path.write_text(path.read_text("utf-8")[:-200], "utf-8")
    emulate(monkeypatch, fault="exit")
    result = run()
    assert result.ret == 1
    file = path.relative_to(project.path).as_posix()
    result.stdout.fnmatch_lines(
        [
            "llmperf: no baseline: test_stack.py::test_two_agents",
            f"  {file}: is truncated (*); restore it with git checkout -- {file}, or record it anew with *",
        ]
    )


def test_a_folder_of_baselines_beside_the_tests_is_named_as_its_user_sees_it(
    project: pytest.Pytester, run: Run
) -> None:
    tests = project.mkdir("tests")
    (tests / "pytest.ini").write_text("[pytest]\nllmperf_backend = emulator\nllmperf_baselines = ../numbers\n", "utf-8")
    (tests / "test_stack.py").write_text(CHECKED, "utf-8")
    run("tests", "--llmperf-rebaseline", "--llmperf-sessions=1").stdout.fnmatch_lines(["numbers/emulated-*: new, *"])
    (path,) = (project.path / "numbers").rglob("*.json")
    path.write_text("{", "utf-8")
    run("tests").stdout.fnmatch_lines(["  numbers/emulated-rtx4080/test_stack/test_two_agents-*.json: is truncated (*"])


def test_a_baseline_folder_that_is_a_file_is_one_sentence(project: pytest.Pytester, run: Run) -> None:
    project.makepyfile(test_stack=CHECKED)
    (project.path / "baselines").write_text("", "utf-8")
    for options in ((), ("--llmperf-rebaseline",)):
        run(*options).stdout.fnmatch_lines(
            ["  llmperf_baselines = baselines: can't be used (Not a directory); make it a writable folder, or set *"]
        )


def test_a_rebaseline_shows_old_and_new_and_leaves_other_tests_alone(
    project: pytest.Pytester, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    two = CHECKED + "\ndef test_other(llmperf):\n    llmperf.check()\n"
    project.makepyfile(test_stack=two)
    first = run("--llmperf-rebaseline", "--llmperf-sessions=2", "-n2")
    first.stdout.fnmatch_lines(["baselines/*/test_two_agents-*.json: new, 2 sessions of 5 runs", "llmperf: 2 recorded"])
    files = {path.name[:10]: path for path in (project.path / "baselines").rglob("*.json")}
    other = files["test_other"].read_bytes()
    emulate(monkeypatch, slowdown=2)
    second = run("--llmperf-rebaseline", "--llmperf-sessions=1", "-k", "two_agents")
    assert second.ret == 0
    second.stdout.fnmatch_lines(
        [
            "baselines/*/test_two_agents-*.json: changed, 1 session of 5 runs",
            "  total_throughput: * -> * tok/s (-* % worse)",
            "llmperf: 1 recorded; 1 marked test not measured",
        ]
    )
    assert files["test_other"].read_bytes() == other
    sessions = json.loads(files["test_two_a"].read_text("utf-8"))["sessions"]
    assert [[run_.get("kept", True) for run_ in session["runs"]] for session in sessions] == [[False] + [True] * 5]


def test_a_test_that_fails_otherwise_is_not_recorded_and_is_named(project: pytest.Pytester, run: Run) -> None:
    source = TEST.replace("margins=", 'floors={"total_throughput": 10_000}, margins=')
    project.makepyfile(test_stack=source + "def test_two_agents(llmperf):\n    llmperf.check()\n")
    result = run("--llmperf-rebaseline", "--llmperf-sessions=1")
    assert result.ret == 1
    result.stdout.fnmatch_lines(
        [
            "*total_throughput * at least 10000 tok/s * regressed*",
            "not recorded: test_stack.py::test_two_agents: it failed (regressed)",
        ]
    )
    assert not list((project.path / "baselines").rglob("*.json"))


def test_floors_alone_need_no_baseline(project: pytest.Pytester, run: Run) -> None:
    source = TEST[: TEST.index("metrics=")] + 'metrics=[], floors={"overlap_efficiency": 60, "ttft": 2000})\n'
    project.makepyfile(test_stack=source + "def test_two_agents(llmperf):\n    llmperf.check()\n")
    result = run()
    assert result.ret == 0
    result.stdout.fnmatch_lines(["*overlap_efficiency * at least 60 % * held", "*ttft * at most 2000 ms * held", HELD])


def test_measured_and_never_judged_fails(project: pytest.Pytester, run: Run) -> None:
    recorded(project, run)
    project.makepyfile(test_stack=CHECKED.replace("llmperf.check()", "llmperf.measure()"))
    result = run()
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        ["llmperf: invalid: test_stack.py::test_two_agents", "  measured, never judged; end the test with *check()*"]
    )


def test_a_second_measurement_fails_and_names_parametrize(project: pytest.Pytester, run: Run) -> None:
    recorded(project, run)
    project.makepyfile(test_stack=CHECKED + "    llmperf.measure()\n")
    result = run()
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["  measured twice; a test is one measurement: use @pytest.mark.parametrize*"])


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("no-done", "the stream ended without done after * chunks (HTTP 200)"),
        ("error", "the server answered 200 with an error after * chunks: *"),
        ("short", "the model stops early in * of * runs, each tried twice: lower tokens= or change prompts="),
        ("exit", "*pytest_llmperf.emulator serve exited with code 1 before listening; the last lines of its log:"),
    ],
)
def test_a_broken_measurement_is_invalid(
    project: pytest.Pytester, run: Run, monkeypatch: pytest.MonkeyPatch, fault: str, words: str
) -> None:
    recorded(project, run)
    emulate(monkeypatch, fault=fault)
    result = run()
    assert result.ret == 1
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        ["llmperf: invalid: test_stack.py::test_two_agents", f"  {words}", "llmperf: 1 gated: 1 invalid"]
    )


def test_a_model_the_server_does_not_have_says_where_was_searched_and_what_to_type(
    project: pytest.Pytester, run: Run
) -> None:
    project.makepyfile(test_stack=CHECKED.replace("gemma3:4b-it-q4_K_M", "gemma9:1b"))
    run("--llmperf-rebaseline").stdout.fnmatch_lines(
        ["  model 'gemma9:1b' is not in the emulator, which has gemma3:4b-it-q4_K_M, *; *"]
    )


def test_the_helpers_judge_what_they_name(project: pytest.Pytester, run: Run) -> None:
    source = TEST.replace('metrics=["total_throughput"]', 'metrics=["total_throughput", "ttft", "overlap_efficiency"]')
    body = """def test_two_agents(llmperf):
    measured = llmperf.measure()
    llmperf.assert_throughput(measured)
    llmperf.assert_ttft(measured, at_most=2000)
    llmperf.assert_efficiency(measured, overlap=60, parallel=10)
    assert 0 < measured["ttft"] < 2000
    assert len(measured.series("total_throughput")) == 5
"""
    recorded(project, run, source.replace("solo_runs=0", "solo_runs=1") + body)
    result = run()
    assert result.ret == 0
    rows = [line.split()[0] for line in result.outlines if line.endswith(" held") and not line.startswith("llmperf")]
    assert len(rows) == 4
    regression = body.replace("overlap=60, parallel=10", "parallel=99")
    project.makepyfile(test_stack=source.replace("solo_runs=0", "solo_runs=1") + regression)
    run().stdout.fnmatch_lines(["*parallel_efficiency * at least 99 % * regressed"])


def test_three_agents_on_one_shared_instance_wait_for_each_other(project: pytest.Pytester, run: Run) -> None:
    source = TEST.replace("scenario=", 'agents=3, topology="shared", scenario=').replace("tokens=16", "tokens=8")
    project.makepyfile(
        test_stack=source.replace("metrics=", 'floors={"overlap_efficiency": 40}, metrics=')
        + """
def test_three(llmperf, ollama_instances):
    assert [instance.name for instance in ollama_instances] == ["shared"]
    measured = llmperf.check()
    # FIFO on one slot, N equal agents of one call: (N + 1) / (2 N)
    assert abs(measured["overlap_efficiency"] - 100 * 4 / 6) < 8
    assert measured["queue_wait"] > 20
    assert measured["requests"] == 1 and measured["tokens"] == 24
"""
    )
    run("--llmperf-rebaseline", "--llmperf-sessions=1").assert_outcomes(passed=1)
    run("-p", "no:xdist").stdout.fnmatch_lines([HELD])


JUDGED_WRONGLY = [
    (
        "    measured = llmperf.measure()\n    llmperf.assert_ttft(measured, at_most='500')\n",
        "  floors['ttft'] must be a number above 0 in the metric's unit, ms, not '500'",
    ),
    (
        "    import dataclasses\n    llmperf.assert_throughput(dataclasses.replace(llmperf.measure()), at_least=1)\n",
        "  the helpers judge what this test's own llmperf.measure() returned, nothing else",
    ),
    (
        (
            "    with __import__('contextlib').suppress(BaseException):\n"
            "        llmperf.assert_throughput(llmperf.measure(), at_least=100_000)\n"
        ),
        "  total_throughput  at least 100000 tok/s * regressed",
    ),
]


@pytest.mark.parametrize(("body", "words"), JUDGED_WRONGLY, ids=["no number", "not its own", "swallowed"])
def test_a_helper_is_not_talked_out_of_its_verdict(project: pytest.Pytester, run: Run, body: str, words: str) -> None:
    recorded(project, run)
    project.makepyfile(test_stack=TEST + "def test_two_agents(llmperf):\n" + body)
    result = run()
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines([words])
    assert "assertions.py" not in result.stdout.str()


def test_a_measurement_that_could_not_be_made_is_no_pass_either(project: pytest.Pytester, run: Run) -> None:
    body = "    with __import__('contextlib').suppress(BaseException):\n        llmperf.check()\n"
    project.makepyfile(test_stack=TEST + "def test_two_agents(llmperf):\n" + body)
    result = run()
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["llmperf: no baseline: test_stack.py::test_two_agents"])


def test_declared_floors_must_be_judged_and_need_five_runs(project: pytest.Pytester, run: Run) -> None:
    floors = TEST.replace("metrics=", 'floors={"ttft": 2000}, metrics=')
    recorded(project, run, floors + "def test_two_agents(llmperf):\n    llmperf.check()\n")
    judged = "def test_two_agents(llmperf):\n    llmperf.assert_no_regression(llmperf.measure())\n"
    project.makepyfile(test_stack=floors + judged)
    run().stdout.fnmatch_lines(["  never judged: the mark's floor for ttft; llmperf.check() judges all"])
    few = "def test_two_agents(llmperf):\n    llmperf.assert_ttft(llmperf.measure(), at_most=2000)\n"
    project.makepyfile(test_stack=TEST.replace("metrics=", "max_runs=3, metrics=") + few)
    run().stdout.fnmatch_lines(["  a floor for ttft needs max_runs of at least 5, not 3"])


def test_a_server_started_differently_on_purpose_is_not_comparable(project: pytest.Pytester, run: Run) -> None:
    recorded(project, run)
    project.makeconftest(
        """
        import pytest

        @pytest.fixture
        def ollama_env():
            return {"OLLAMA_FLASH_ATTENTION": "1"}
        """
    )
    result = run()
    assert result.ret == 1
    result.stdout.fnmatch_lines(["*env.OLLAMA_FLASH_ATTENTION: not set -> 1 (this change declares another workload)"])


def test_a_test_whose_teardown_fails_is_not_recorded(project: pytest.Pytester, run: Run) -> None:
    project.makepyfile(
        test_stack=TEST
        + """
@pytest.fixture
def stack():
    yield
    raise RuntimeError("in teardown")

def test_two_agents(stack, llmperf):
    llmperf.check()
"""
    )
    result = run("--llmperf-rebaseline", "--llmperf-sessions=1")
    result.stdout.fnmatch_lines(["not recorded: test_stack.py::test_two_agents: it did not pass"])
    assert not list((project.path / "baselines").rglob("*.json"))


def test_the_next_command_repeats_what_decided_where_to_look(project: pytest.Pytester, run: Run) -> None:
    project.makepyfile(test_stack=CHECKED)
    options = ("-o", "llmperf_baselines=elsewhere", "--llmperf-backend=emulator")
    again = "--override-ini=llmperf_baselines=elsewhere --llmperf-backend=emulator --llmperf-rebaseline"
    run(*options).stdout.fnmatch_lines([f"  to record one: pytest test_stack.py::test_two_agents {again}"])
