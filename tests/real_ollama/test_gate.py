"""The gate on a genuine Ollama, through the plugin's own fixtures: recorded, held, regressed, compared, checked."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import psutil
import pytest

from .genuine import Genuine

# num_thread 1: two servers with two threads each on two cores would wait for each other at every layer
TEST = """
import pytest

@pytest.mark.llmperf(
    scenario="chimera_homo", model="medium", options={"num_thread": 1, "num_ctx": 512}, tokens=48,
    metrics=["total_throughput"], margins={"total_throughput": 0.3},
)
def test_two_agents(llmperf):
    llmperf.check()
"""
CONFINED = """#!{python}
import os, sys
os.sched_setaffinity(0, {{0}})
os.execv({binary!r}, [{binary!r}, *sys.argv[1:]])
"""


@pytest.fixture
def project(pytester: pytest.Pytester, genuine_ollama: Genuine, monkeypatch: pytest.MonkeyPatch) -> pytest.Pytester:
    monkeypatch.setenv("OLLAMA_MODELS", str(genuine_ollama.models))
    monkeypatch.delenv("CI", raising=False)
    use(pytester, genuine_ollama.binary)
    pytester.makepyfile(test_stack=TEST)
    return pytester


def use(project: pytest.Pytester, binary: Path) -> None:
    # whether a shared runner is quiet is not what these tests are about
    project.makeini(f"[pytest]\nllmperf_ollama = {binary}\nllmperf_quiet_wait = off\n")


def run(project: pytest.Pytester, *options: str) -> pytest.RunResult:
    result = project.runpytest_subprocess("-p", "no:cacheprovider", *options, timeout=300)
    ours = str(Path(os.environ["OLLAMA_MODELS"]).parent)
    command_lines = [" ".join(process.info["cmdline"] or ()) for process in psutil.process_iter(["cmdline"])]
    assert [line for line in command_lines if line.startswith(ours)] == []
    return result


def test_recorded_held_then_regressed_on_one_core_then_not_comparable(
    project: pytest.Pytester, genuine_ollama: Genuine
) -> None:
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("two servers can only be squeezed onto one core where there are two")
    recorded = run(project, "--llmperf-rebaseline")
    assert recorded.ret == 0
    recorded.stdout.fnmatch_lines(
        ["baselines/*-linux/test_stack/test_two_agents-*.json: new, 4 sessions of 5 runs", "llmperf: 1 recorded"]
    )
    (path,) = (project.path / "baselines").rglob("*.json")
    text = path.read_text("utf-8")
    assert '"emulated": false' in text
    assert '"server": "ollama 0.5.4' in text

    held = run(project)
    assert held.ret == 0
    held.stdout.fnmatch_lines(["*total_throughput * 20 v * held", "llmperf: 1 gated: 1 held"])

    wrapper = project.path / "confined-ollama"
    wrapper.write_text(CONFINED.format(python=sys.executable, binary=str(genuine_ollama.binary)), "utf-8")
    wrapper.chmod(0o755)
    use(project, wrapper)
    squeezed = run(project)
    assert squeezed.ret == 1
    squeezed.stdout.fnmatch_lines(
        [
            "llmperf: regressed: test_stack.py::test_two_agents",
            "*total_throughput * % worse * regressed",
            "*second session * % worse * regressed",
            "*to accept these numbers: pytest test_stack.py::test_two_agents --llmperf-rebaseline",
        ]
    )

    use(project, genuine_ollama.binary)
    project.makepyfile(test_stack=TEST.replace('"num_thread": 1', '"num_thread": 2'))
    other = run(project)
    assert other.ret == 1
    other.stdout.fnmatch_lines(
        [
            "llmperf: not comparable: test_stack.py::test_two_agents",
            "*agent.options.num_thread: 1 -> 2 (this change declares another workload)*",
        ]
    )


def test_a_model_that_is_not_in_the_store_says_which_store_and_what_to_type(
    project: pytest.Pytester, genuine_ollama: Genuine
) -> None:
    project.makepyfile(test_stack=TEST.replace('"medium"', '"gemma3:4b"'))
    result = run(project, "--llmperf-rebaseline")
    result.assert_outcomes(failed=1)
    store = genuine_ollama.models
    result.stdout.fnmatch_lines(
        [
            "llmperf: invalid: test_stack.py::test_two_agents",
            f"  model 'gemma3:4b' is not in the model store {store}, which has medium:latest, small:latest; type: *",
        ]
    )
    assert "ollama pull gemma3:4b" in result.stdout.str()


ALONE = """
import pytest

@pytest.mark.llmperf(
    scenario="single_agent", model="small", options={"num_thread": 1, "num_ctx": 512}, tokens=24, max_runs=5,
    metrics=["total_throughput"], margins={"total_throughput": 0.4},
)
def test_alone(llmperf):
"""


def test_two_models_take_turns_on_servers_that_both_stay_loaded(project: pytest.Pytester) -> None:
    project.makepyfile(
        test_stack=ALONE + "    sides = llmperf.compare(control={'model': 'medium'}, treatment={})\n"
        "    llmperf.assert_faster(sides, by=0.2)\n"
    )
    result = run(project)
    assert result.ret == 0
    result.stdout.fnmatch_lines(
        ["*total_throughput * tok/s (control) * % better * by 20 % * 5 v 5 * held", "llmperf: 1 gated: 1 held"]
    )


def test_a_relay_slows_a_real_server_down_and_the_gate_notices(project: pytest.Pytester) -> None:
    project.makepyfile(test_stack=ALONE + "    llmperf.check()\n")
    result = run(project, "--llmperf-selfcheck", "--llmperf-sessions=3")
    assert result.ret == 0
    result.stdout.fnmatch_lines(
        ["test_stack.py::test_alone * total_throughput * 3 of 3 (37 .. 100 %) *", "llmperf: 1 checked against itself"]
    )
