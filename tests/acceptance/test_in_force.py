"""A label that is not in force is no measurement of what it says."""

from __future__ import annotations

import pytest

from .conftest import TEST, Run, emulate

GATE = TEST + "def test_two_agents(llmperf):\n    llmperf.check()\n"


@pytest.mark.parametrize(
    "case",
    [
        (
            "context:2048",
            '"num_ctx": 512',
            "agent1: num_ctx=512 was declared, 2048 is in force: the server raises it to * declare num_ctx=2048",
        ),
        (
            "layers:10",
            '"num_ctx": 512, "num_gpu": 80',
            "agent1: num_gpu=80 was declared, which is all 35 layers; 25 are on the GPU: * or declare num_gpu=25",
        ),
        (
            "slots",
            '"num_ctx": 512}, slots=2, topology="shared", env={"A": "b"',
            "agent1: slots=2 was declared, 1 is in force: this server takes one request at a time * declare slots=1",
        ),
    ],
)
def test_it_is_invalid_and_says_what_to_declare(
    project: pytest.Pytester, run: Run, monkeypatch: pytest.MonkeyPatch, case: tuple[str, str, str]
) -> None:
    fault, options, words = case
    project.makepyfile(test_stack=GATE.replace('"num_ctx": 512', options))
    emulate(monkeypatch, fault=fault)
    result = run("--llmperf-rebaseline", "--llmperf-sessions=1")
    assert result.ret == 1
    result.stdout.fnmatch_lines(
        [
            "llmperf: invalid: test_stack.py::test_two_agents",
            "  what is declared is not in force",
            f"  {words}",
            "invalid: test_stack.py::test_two_agents: what is declared is not in force",
        ]
    )
    assert not list(project.path.glob("baselines"))


def test_layers_that_nobody_declared_are_a_condition_and_not_this_changes_fault(
    project: pytest.Pytester, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    project.makepyfile(test_stack=GATE)
    run("--llmperf-rebaseline", "--llmperf-sessions=1")
    emulate(monkeypatch, fault="layers:10")
    result = run()
    assert result.ret == 1
    result.stdout.fnmatch_lines(["*agent.layers: 35/35 -> 25/35 (the server placed the model otherwise, not this*"])


def test_slots_are_part_of_the_topology(project: pytest.Pytester, run: Run) -> None:
    shared = GATE.replace("tokens=16", 'topology="shared", tokens=16')
    project.makepyfile(test_stack=shared)
    run("--llmperf-rebaseline", "--llmperf-sessions=1")
    project.makepyfile(test_stack=shared.replace("tokens=16", "slots=2, tokens=16"))
    result = run()
    assert result.ret == 1
    result.stdout.fnmatch_lines(["*slots: 1 -> 2 (this change declares another workload)*"])


def test_what_the_user_sets_on_purpose_is_in_force_and_recorded(project: pytest.Pytester, run: Run) -> None:
    project.makeconftest(
        """
        import pytest

        @pytest.fixture
        def ollama_env():
            return {"OLLAMA_FLASH_ATTENTION": "1", "MINE": "everywhere"}
        """
    )
    marked = TEST.replace("tokens=16", 'env={"OLLAMA_KV_CACHE_TYPE": "q8_0"}, tokens=16')
    project.makepyfile(
        test_stack=marked
        + """
def test_two_agents(llmperf, ollama_instances):
    for instance in ollama_instances:
        assert instance.env["OLLAMA_KV_CACHE_TYPE"] == "q8_0"
        assert instance.env["OLLAMA_FLASH_ATTENTION"] == "1"
    llmperf.check()
"""
    )
    assert run("--llmperf-rebaseline", "--llmperf-sessions=1").ret == 0
    text = next(project.path.rglob("baselines/**/*.json")).read_text("utf-8")
    for name, value in (("OLLAMA_KV_CACHE_TYPE", "q8_0"), ("OLLAMA_FLASH_ATTENTION", "1"), ("MINE", "sha256:")):
        assert f'"env.{name}": "{value}' in text


def test_agents_that_would_reload_the_model_in_turns_are_refused_at_collection(
    project: pytest.Pytester, run: Run
) -> None:
    project.makepyfile(
        test_stack="""
import pytest
from pytest_llmperf import Agent

@pytest.mark.llmperf(
    scenario="chimera_hetero", model="m", topology="shared",
    agents=[Agent(options={"num_ctx": 512}), Agent(options={"num_ctx": 1024})],
)
def test_two(llmperf):
    llmperf.check()
"""
    )
    result = run()
    assert result.ret == 2
    result.stdout.fnmatch_lines(
        ["test_stack.py:4: llmperf() agents?0? and agents?1? share a server and its model but differ in num_ctx: *"]
    )


SWAYING = """
import pytest
from pytest_llmperf.instances import Fleet

@pytest.fixture(autouse=True)
def another_server_takes_memory_in_between(monkeypatch):
    new_session = Fleet.new_session

    def crowded(fleet):
        monkeypatch.setenv("LLMPERF_EMULATOR", "speed=4,fault=layers:10")
        new_session(fleet)

    monkeypatch.setattr(Fleet, "new_session", crowded)
"""


def test_a_second_session_that_is_loaded_otherwise_is_invalid(project: pytest.Pytester, run: Run) -> None:
    project.makepyfile(test_stack=GATE)
    project.makeconftest(SWAYING)
    result = run("--llmperf-rebaseline", "--llmperf-sessions=2")
    assert result.ret == 1
    words = "the servers of the next session are not what those of the first were: agent.layers: 35/35 -> 25/35"
    remedy = "free the memory that others took, or declare it (num_gpu=, num_batch=)"
    result.stdout.fnmatch_lines([f"  {words}; {remedy}"])
