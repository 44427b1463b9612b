"""The mark: each mistake is one line that says where, what is wrong and what is legal."""

from __future__ import annotations

import math
import xml.etree.ElementTree as ET
from collections.abc import Callable
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pytest_llmperf import markers, team
from pytest_llmperf.legal import OF_CONTENTION, WORDS
from pytest_llmperf.metrics import METRICS, gateable
from pytest_llmperf.model import Agent, Contention, LlmperfError, Spec, Workload
from pytest_llmperf.policies import POLICIES
from pytest_llmperf.values import OPTIONS

pytest_plugins = ("pytester",)

Mistakes = Callable[..., list[str]]

HOMO = {"scenario": "chimera_homo", "model": "m"}
ALONE = {"scenario": "single_agent", "model": "m"}
HETERO = {"scenario": "chimera_hetero", "model": "m"}
BASELINE = {"scenario": "baseline_vs_chimera", "model": "m"}
HOT, COLD = Agent(options={"temperature": 1.0}), Agent(options={"temperature": 0})


@pytest.fixture
def plugin() -> tuple[str, ...]:
    installed = any(entry.value == "pytest_llmperf.plugin" for entry in entry_points(group="pytest11"))
    return () if installed else ("-p", "pytest_llmperf.plugin")


@pytest.fixture
def collected(pytester: pytest.Pytester, plugin: tuple[str, ...]) -> Callable[[str], list[pytest.Item]]:
    """The tests of a source text, as nodes."""

    def collect(source: str) -> list[pytest.Item]:
        pytester.plugins = list(plugin[1:])
        return pytester.getitems(source)

    return collect


@pytest.fixture
def item(collected: Callable[[str], list[pytest.Item]]) -> pytest.Item:
    return collected("def test_it(): pass")[0]


@pytest.fixture
def mistakes(item: pytest.Item) -> Mistakes:
    """What is wrong with a mark, without the place."""

    def check(**words: object) -> list[str]:
        item.own_markers = [pytest.mark.llmperf(**words).mark]
        return [line.partition(": llmperf() ")[2] for line in markers.problems(item)]

    return check


@pytest.fixture
def spec(item: pytest.Item) -> Callable[..., Spec]:
    def build(**words: object) -> Spec:
        item.own_markers = [pytest.mark.llmperf(**words).mark]
        return markers.spec_of(item)

    return build


NAMES = ", ".join(POLICIES)
NOTHING = "metrics=[] gates nothing; leave it out for the default metrics, or hold"
STATED = "is stated for 2 agents on dedicated instances; this test has"
BASELESS = "compares with a baseline, and metrics=[] reads none;"

WRONG_VALUES = [
    ({"model": ""}, "model must be the name of a model, such as 'gemma3:4b-it-q4_K_M', not ''"),
    ({"options": "num_ctx"}, "options must be a dict of Ollama's options, not 'num_ctx'"),
    ({"options": {"num_ctx": 512.5}}, "options['num_ctx'] must be a whole number, not 512.5"),
    ({"options": {"num_gpu": True}}, "options['num_gpu'] must be a whole number, not True"),
    ({"options": {"temperature": "hot"}}, "options['temperature'] must be a number, not 'hot'"),
    ({"options": {"temperature": math.nan}}, "options['temperature'] must be a number, not nan"),
    ({"options": {"use_mmap": 1}}, "options['use_mmap'] must be True or False, not 1"),
    ({"options": {"stop": "END"}}, "options['stop'] must be a list of texts, not 'END'; write ['END']"),
    (
        {"options": {"num_predict": 64}},
        "options has 'num_predict', which the mark declares once for all agents: use tokens=64",
    ),
    ({"agents": 0}, "agents must be a whole number from 1 to 1000, or a list of Agent(...), not 0"),
    ({"agents": 10**12}, f"agents must be a whole number from 1 to 1000, or a list of Agent(...), not {10**12}"),
    ({"agents": ["a", "b"]}, "agents must be a whole number from 1 to 1000, or a list of Agent(...), not ['a', 'b']"),
    (
        {"agents": [Agent(name=""), Agent()]},
        "agents[0].name must be letters, digits, - and _ (it names a folder), not ''",
    ),
    ({"topology": "split"}, "topology must be 'dedicated' or 'shared', not 'split'"),
    (
        {"slots": 0},
        (
            "slots must be a whole number of at least 1 (requests that an instance works on at once, "
            "OLLAMA_NUM_PARALLEL), not 0"
        ),
    ),
    ({"env": "A=1"}, "env must be a dict of environment variables of every instance, not 'A=1'"),
    ({"env": {"OLLAMA_KEEP_ALIVE": 5}}, "env['OLLAMA_KEEP_ALIVE'] must be a text, not 5"),
    ({"env": {"OLLAMA_NUM_PARALLEL": "2"}}, "env has 'OLLAMA_NUM_PARALLEL'; the mark declares it as slots="),
    ({"env": {"OLLAMA_HOST": "0.0.0.0"}}, "env has 'OLLAMA_HOST'; every instance picks a free port of its own"),
    ({"env": {"": "x"}}, "env has ''; an environment variable has a name"),
    (
        {"gpus": "0"},
        (
            "gpus must be a list of one or more indexes or UUIDs of GPUs as texts, one per instance by turns, not '0'; "
            "write ['0']"
        ),
    ),
    (
        {"prompts": "Hi"},
        f"prompts must be {WORDS['prompts'].phrase}, not 'Hi'; write ['Hi']",
    ),
    (
        {"prompts": []},
        "prompts must be a list of one or more non-empty texts (the requests of an agent in one run), not []",
    ),
    ({"tokens": 1}, "tokens must be a whole number of at least 2 (num_predict of every request), not 1"),
    ({"tokens": True}, "tokens must be a whole number of at least 2 (num_predict of every request), not True"),
    ({"max_runs": 0}, "max_runs must be a whole number of at least 2 (runs at most; one run decides nothing), not 0"),
    (
        {"max_runs": "5"},
        "max_runs must be a whole number of at least 2 (runs at most; one run decides nothing), not '5'",
    ),
    (
        {"warmup_requests": -1},
        "warmup_requests must be a whole number of at least 0 (per agent, before the first run), not -1",
    ),
    ({"solo_runs": 1.0}, "solo_runs must be a whole number of at least 0 (of each agent alone), not 1.0"),
    (
        {"metrics": "ttft"},
        f"metrics must be a list of {', '.join(gateable())}, not 'ttft'; write ['ttft']",
    ),
    (
        {"metrics": []},
        f"{NOTHING} floors={{...}}, policies=[...] or contention={{...}} alone",
    ),
    ({"policies": "whitepaper"}, f"policies must be a list of {NAMES}, not 'whitepaper'; write ['whitepaper']"),
    (
        {"policies": ["whitepaper", "appendix_h2"]},
        f"policies has no 'appendix_h2' (did you mean appendix-h2?); policies are {NAMES}",
    ),
    ({"contention": 0.05}, "contention must be a dict of target, limit, contended, not 0.05"),
    (
        {"contention": {"targets": 2}},
        "contention has no 'targets' (did you mean target?); it takes target, limit, contended",
    ),
    (
        {"contention": {"target": 0}},
        "contention['target'] must be a percentage from 0.1 to 100 (2 means 2 %), not 0",
    ),
    (
        {"contention": {"target": 2, "limit": 0.05}},
        "contention['limit'] must be a percentage from 0.1 to 100 (2 means 2 %), not 0.05",
    ),
    (
        {"contention": {"limit": 101}},
        "contention['limit'] must be a percentage from 0.1 to 100 (2 means 2 %), not 101",
    ),
    (
        {"contention": {"contended": "ttft"}},
        "contention['contended'] must be 'ttft doubled', 'ttft +3 s' or 'speedup < 1.5', not 'ttft'",
    ),
    (
        {"metrics": ["ttfb"]},
        f"metrics has no 'ttfb' (did you mean ttft?); metrics that can be gated are {', '.join(gateable())}",
    ),
    ({"metrics": ["cv"]}, f"metrics has no 'cv'; metrics that can be gated are {', '.join(gateable())}"),
    (
        {"margins": 0.05},
        "margins must be a dict from metric to number (the smallest worsening that matters), not 0.05",
    ),
    ({"margins": {"ttft": 30}}, "margins['ttft'] must be a fraction between 0 and 1 (0.3 means 30 %), not 30"),
    ({"margins": {"ttft": 0}}, "margins['ttft'] must be a fraction between 0 and 1 (0.3 means 30 %), not 0"),
    (
        {"margins": {"ttfb": 0.1}},
        f"margins has no 'ttfb' (did you mean ttft?); metrics that can be gated are {', '.join(gateable())}",
    ),
    ({"margins": {"ttft": 1}}, "margins['ttft'] must be a fraction between 0 and 1 (0.3 means 30 %), not 1"),
    (
        {"margins": {"total_throughput": 5}},
        "margins['total_throughput'] must be a fraction between 0 and 1 (0.05 means 5 %), not 5",
    ),
    (
        {"margins": {"overlap_efficiency": 0}},
        "margins['overlap_efficiency'] must be a number above 0 in the metric's unit, %, not 0",
    ),
    (
        {"session_sd": {"ttft": 1.0}},
        "session_sd['ttft'] must be a fraction of at least 0 and below 1 (0.1 means 10 %), not 1.0",
    ),
    (
        {"session_sd": {"overlap_efficiency": -1}},
        "session_sd['overlap_efficiency'] must be a number of at least 0 in the metric's unit, %, not -1",
    ),
    ({"floors": {"ttft": math.inf}}, "floors['ttft'] must be a number above 0 in the metric's unit, ms, not inf"),
    (
        {"floors": {"tokens": 3}},
        f"floors has no 'tokens'; metrics that can be gated are {', '.join(gateable())}",
    ),
    ({"id": "a::b"}, "id must be a non-empty text without '::', not 'a::b'"),
]


@pytest.mark.parametrize(("words", "sentence"), WRONG_VALUES, ids=[sentence[:32] for _, sentence in WRONG_VALUES])
def test_a_wrong_value_is_one_sentence(mistakes: Mistakes, words: dict[str, object], sentence: str) -> None:
    assert mistakes(**{**HOMO, **words}) == [sentence]


CONTRADICTIONS = [
    ({"model": "m"}, "needs scenario=, which must be 'single_agent', 'baseline_vs_chimera', 'chimera_homo' or"),
    ({"scenario": "chimera_homo"}, "needs model=, such as model='gemma3:4b-it-q4_K_M'"),
    (
        {"scenario": "chimera_hetero", "agents": [Agent(model="a"), Agent()]},
        "needs model= on the mark or on every Agent; agents[1] has none",
    ),
    ({**ALONE, "agents": 3}, "agents must be exactly 1 for scenario='single_agent', not 3"),
    ({**HOMO, "agents": 1}, "agents must be 2 or more for scenario='chimera_homo', not 1"),
    ({**HETERO, "agents": [HOT]}, "agents must be 2 or more for scenario='chimera_hetero', not 1"),
    (
        {**HETERO, "agents": 2},
        "scenario='chimera_hetero' needs agents=[Agent(...), Agent(...)] that differ in model or options",
    ),
    (HETERO, "scenario='chimera_hetero' needs agents=[Agent(...), Agent(...)] that differ in model or options"),
    (
        {**HETERO, "agents": [HOT, HOT]},
        "agents must differ in model or options for scenario='chimera_hetero', but they are all alike",
    ),
    (
        {**HOMO, "agents": [HOT, HOT, COLD]},
        "agents must be alike for scenario='chimera_homo', but agents[2] has another model or other options",
    ),
    (
        BASELINE,
        "scenario='baseline_vs_chimera' compares options with the server's defaults: it needs options={...}",
    ),
    (
        {**BASELINE, "agents": [HOT, COLD]},
        "agents[0].options must be left out for scenario='baseline_vs_chimera': agent 1 has the server's defaults",
    ),
    (
        {**HETERO, "agents": [Agent(name="agent2", options={"seed": 1}), Agent()]},
        "agents[1] and agents[0] are both named 'agent2'; every agent needs a name of its own",
    ),
    (
        {**HOMO, "metrics": ["parallel_efficiency"], "solo_runs": 0},
        "parallel_efficiency compares with solo runs: solo_runs must be at least 1 (3 by default), not 0",
    ),
    (
        {**ALONE, "metrics": ["ttft", "speedup"]},
        "speedup needs several agents and can't be gated or have a floor here; the test has 1",
    ),
    (
        {**ALONE, "floors": {"overlap_efficiency": 90}},
        "overlap_efficiency needs several agents and can't be gated or have a floor here; the test has 1",
    ),
    (
        {**HOMO, "metrics": ["overlap_efficiency", "speedup"]},
        (
            "metrics: overlap_efficiency and speedup alone can't see a slowdown that hits all agents alike; "
            "list total_throughput or ttft too"
        ),
    ),
    ({**HOMO, "floors": {"ttft": 500}, "max_runs": 3}, "floors need max_runs of at least 5, not 3"),
    ({**HOMO, "policies": ["whitepaper"], "max_runs": 4}, "policies need max_runs of at least 5, not 4"),
    (
        {**HOMO, "policies": ["report-11.2"], "agents": 3, "topology": "shared"},
        f"policies: 'report-11.2' {STATED} 3 agents on a shared instance",
    ),
    (
        {**HOMO, "policies": ["appendix-h2", "whitepaper"], "agents": 3},
        f"policies: 'whitepaper' {STATED} 3 agents on dedicated instances",
    ),
    ({**ALONE, "policies": ["appendix-h2", "whitepaper"]}, f"policies: 'whitepaper' {STATED} a single agent"),
    (
        {**HOMO, "contention": {"target": 10}},
        "contention: target must be at most limit, not 10 with a limit of 5",
    ),
    (
        {**ALONE, "contention": {"contended": "speedup < 1.5"}},
        "contention: 'speedup < 1.5' needs several agents; the test has 1",
    ),
    (
        {**HOMO, "contention": {}, "metrics": []},
        f"contention: 'ttft doubled' {BASELESS} list metrics, or take contended='speedup < 1.5'",
    ),
    ({**HOMO, "metrics": [], "policies": []}, NOTHING),
    (
        {**BASELINE, "options": {"num_ctx": 512, "temperature": 1}, "topology": "shared"},
        (
            "agents[0] and agents[1] share a server and its model but differ in num_ctx: each request would load the "
            "model anew; make them equal, or take topology='dedicated'"
        ),
    ),
    ({**HOMO, "gpus": ["0", "1", "2"]}, "gpus names 3 GPUs for 2 instances; each has one at most"),
    ({**HOMO, "topology": "shared", "gpus": ["0", "1"]}, "gpus names 2 GPUs for 1 instance; each has one at most"),
]


@pytest.mark.parametrize(("words", "sentence"), CONTRADICTIONS, ids=[text[:40] for _, text in CONTRADICTIONS])
def test_words_that_contradict_each_other_are_one_sentence(
    mistakes: Mistakes, words: dict[str, object], sentence: str
) -> None:
    (found,) = mistakes(**words)
    assert found.startswith(sentence)


LEGAL = [
    HOMO,
    {**HOMO, "agents": 4, "topology": "shared", "options": {"stop": ["\n"], "temperature": 1, "use_mmap": False}},
    {**HOMO, "agents": [Agent(model="m"), Agent(prompts=["Other words."])]},
    {"scenario": "chimera_homo", "agents": (Agent(model="m"), Agent(model="m"))},
    {**HETERO, "agents": [Agent(model="other"), Agent()]},
    {**BASELINE, "options": {"num_gpu": 80}, "agents": 3},
    {**BASELINE, "agents": [Agent(), HOT]},
    {**ALONE, "floors": {"decode_rate": 40}, "max_runs": 7},
    {**HOMO, "margins": {"overlap_efficiency": 7, "ttft": 0.5}, "session_sd": {"ttft": 0}},
    {**HOMO, "metrics": [], "policies": ["appendix-h2", "report-11.2", "whitepaper"], "max_runs": 5},
    {**HOMO, "agents": 3, "topology": "shared", "policies": ("appendix-h2",)},
    {**HOMO, "metrics": [], "contention": {"contended": "speedup < 1.5"}, "max_runs": 2},
    {**HOMO, "contention": {"target": 5, "limit": 5, "contended": "ttft +3 s"}},
    {**ALONE, "policies": ["appendix-h2"], "contention": {"target": 0.1, "limit": 100}},
    {**HOMO, "policies": []},
    {**HOMO, "slots": 2, "env": {"OLLAMA_FLASH_ATTENTION": "1"}, "gpus": ("GPU-4711",)},
    {**BASELINE, "options": {"num_gpu": 80, "temperature": 1}, "topology": "shared"},
    {**HOMO, "metrics": ("parallel_efficiency",), "margins": {"parallel_efficiency": 0.02}, "solo_runs": 1},
]


@pytest.mark.parametrize("words", LEGAL)
def test_a_legal_mark_has_no_mistakes(mistakes: Mistakes, words: dict[str, object]) -> None:
    assert mistakes(**words) == []


def test_a_misspelt_word_of_an_agent_is_a_mistake_of_the_mark(mistakes: Mistakes) -> None:
    words: dict[str, Any] = {"optoins": {"num_ctx": 512}}
    assert mistakes(**HOMO, agents=[Agent(), Agent(**words)]) == [
        "agents[1] has no argument 'optoins' (did you mean options?); Agent takes name, model, options, prompts"
    ]


def test_every_mistake_of_a_mark_is_reported(mistakes: Mistakes) -> None:
    found = mistakes(
        scenario="chimera_homo",
        tolerence=3,
        tokens=0,
        options={"num_gpus": 80, "seed": "x"},
        margins={"ttft": 30, "speedup": 0.1},
        floors={"makespan": 9},
        max_runs=4,
    )
    starts = [
        "has no argument 'tolerence'; it takes scenario, model, options,",
        "tokens must be",
        "options has no 'num_gpus' (did you mean num_gpu?); Ollama takes draft_num_predict, f16_kv, frequency_penalty,",
        "options['seed'] must be a whole number, not 'x'",
        "margins['ttft'] must be",
        "needs model=",
        "floors need max_runs",
    ]
    assert [line[: len(start)] for line, start in zip(found, starts, strict=True)] == starts


def test_a_misspelt_required_word_is_not_reported_as_missing_too(mistakes: Mistakes) -> None:
    (found,) = mistakes(senario="chimera_homo", model="m")
    assert found.startswith("has no argument 'senario' (did you mean scenario?); it takes scenario, model,")


def test_an_unknown_option_lists_every_legal_one_sorted(mistakes: Mistakes) -> None:
    (found,) = mistakes(**HOMO, options={"num_gpus": 80})
    assert found.endswith(f"Ollama takes {', '.join(sorted(OPTIONS))}")
    assert "num_predict" not in OPTIONS


def test_a_position_is_no_place_for_a_word(item: pytest.Item) -> None:
    item.own_markers = [pytest.mark.llmperf("chimera_homo", **HOMO).mark]
    (line,) = markers.problems(item)
    assert line.endswith(f"llmperf() takes keywords only, not 'chimera_homo'; it takes {', '.join(WORDS)}")


def test_a_value_is_shown_alike_in_every_process(mistakes: Mistakes) -> None:
    first, second = mistakes(**HOMO, id=object()), mistakes(**HOMO, id=object())
    assert first == second == ["id must be a non-empty text without '::', not <object object>"]


ODD = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.sampled_from([HOT, Agent(name="a\nb")]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from([*METRICS, *OPTIONS, *OF_CONTENTION, "num_predict"]) | st.text() | st.integers(), inner
        )
    ),
    max_leaves=5,
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(words=st.dictionaries(st.sampled_from([*WORDS]), ODD), base=st.sampled_from([HOMO, ALONE, HETERO, BASELINE]))
def test_no_value_breaks_the_check(item: pytest.Item, words: dict[str, Any], base: dict[str, Any]) -> None:
    item.own_markers = [pytest.mark.llmperf(**{**base, **words}).mark]
    found = markers.problems(item)
    assert all(len(line.splitlines()) == 1 and ".py:1: llmperf() " in line for line in found)
    if not found:
        assert len(markers.spec_of(item).agents) >= 1


def test_the_help_names_every_word_with_what_is_legal(pytester: pytest.Pytester, plugin: tuple[str, ...]) -> None:
    lines = pytester.runpytest_inprocess(*plugin, "--markers").outlines
    assert any(line.startswith(f"@pytest.mark.llmperf({', '.join(WORDS)}): ") for line in lines)
    assert set(lines) >= {f"    {word}: {legal.phrase}" for word, legal in WORDS.items()}


def test_defaults(spec: Callable[..., Spec]) -> None:
    assert spec(**HOMO, options={"num_ctx": 512}) == Spec(
        scenario="chimera_homo",
        agents=tuple(
            Workload(name=name, model="m", options={"num_ctx": 512}, prompts=(team.PROMPT,), tokens=128)
            for name in ("agent1", "agent2")
        ),
        topology="dedicated",
        max_runs=10,
        warmup_requests=3,
        solo_runs=1,
        gated=("total_throughput", "ttft", "overlap_efficiency"),
    )


def test_every_word_reaches_the_spec(spec: Callable[..., Spec]) -> None:
    agents = [
        Agent(name="left", model="a", options={"top_k": 3}, prompts=["x", "y"]),
        Agent(options={"num_ctx": 9}),
    ]
    words: dict[str, Any] = {
        **HETERO,
        "options": {"num_ctx": 512},
        "agents": agents,
        "topology": "dedicated",
        "slots": 2,
        "env": {"OLLAMA_FLASH_ATTENTION": "1"},
        "gpus": ["0", "1"],
        "prompts": ["z"],
        "tokens": 16,
        "max_runs": 7,
        "warmup_requests": 0,
        "solo_runs": 2,
        "metrics": ["ttft", "ttft"],
        "margins": {"ttft": 0.2},
        "session_sd": {"ttft": 0.02},
        "floors": {"speedup": 1.5},
        "policies": ["appendix-h2", "appendix-h2"],
        "contention": {"target": 1, "contended": "ttft +3 s"},
        "id": "mine",
    }
    assert words.keys() == WORDS.keys()
    assert spec(**words) == Spec(
        scenario="chimera_hetero",
        agents=(
            Workload(name="left", model="a", options={"num_ctx": 512, "top_k": 3}, prompts=("x", "y"), tokens=16),
            Workload(name="agent2", model="m", options={"num_ctx": 9}, prompts=("z",), tokens=16),
        ),
        slots=2,
        env={"OLLAMA_FLASH_ATTENTION": "1"},
        gpus=("0", "1"),
        max_runs=7,
        warmup_requests=0,
        solo_runs=2,
        gated=("ttft",),
        margins={"ttft": 0.2},
        session_sd={"ttft": 0.02},
        floors={"speedup": 1.5},
        policies=("appendix-h2",),
        contention=Contention(target=1, limit=5, contended="ttft +3 s"),
        id="mine",
    )


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (HOMO, None),
        ({**HOMO, "contention": {}}, Contention()),
        ({**HOMO, "policies": ["whitepaper", "appendix-h2"]}, POLICIES["whitepaper"].contention),
        ({**HOMO, "policies": ["whitepaper"], "contention": {"limit": 9}}, Contention(limit=9)),
        ({**HOMO, "policies": ["appendix-h2"], "agents": 3}, None),
        ({**ALONE, "policies": ["appendix-h2"]}, None),
    ],
)
def test_the_marks_own_contention_goes_before_that_of_a_policy(
    spec: Callable[..., Spec], words: dict[str, Any], expected: Contention | None
) -> None:
    assert spec(**words).contention == expected


def test_the_baseline_agent_runs_on_the_servers_defaults(spec: Callable[..., Spec]) -> None:
    agents = spec(**BASELINE, options={"num_gpu": 80}, agents=[Agent(), Agent(), HOT]).agents
    assert [agent.options for agent in agents] == [{}, {"num_gpu": 80}, {"num_gpu": 80, "temperature": 1.0}]


@pytest.mark.parametrize(
    ("words", "runs"),
    [(ALONE, 0), (HOMO, 1), ({**HOMO, "metrics": ["parallel_efficiency"]}, 3), ({**HOMO, "solo_runs": 0}, 0)],
)
def test_solo_runs_follow_what_needs_them(spec: Callable[..., Spec], words: dict[str, Any], runs: int) -> None:
    assert spec(**words).solo_runs == runs


def test_a_mark_added_after_collection_is_checked_when_it_is_used(item: pytest.Item) -> None:
    item.add_marker(pytest.mark.llmperf(**HOMO, tokens=0))
    with pytest.raises(LlmperfError, match=r"\.py:1: llmperf\(\) tokens must be a whole number"):
        markers.spec_of(item)


LAYERED = """
import pytest
pytestmark = pytest.mark.llmperf(scenario="chimera_homo", model="module", tokens=2, max_runs=2, solo_runs=2, id="m")

@pytest.mark.llmperf(model="class", tokens=3, max_runs=3, solo_runs=3)
class TestLayers:
    @pytest.mark.parametrize("n", [pytest.param(1, marks=pytest.mark.llmperf(solo_runs=6))])
    @pytest.mark.llmperf(tokens=4, max_runs=4, solo_runs=4)
    @pytest.mark.llmperf(max_runs=5, solo_runs=5)
    def test_it(self, n): pass
"""


def test_the_closest_mark_wins_keyword_by_keyword(collected: Callable[[str], list[pytest.Item]]) -> None:
    spec = markers.spec_of(collected(LAYERED)[0])
    assert (spec.id, spec.agents[0].model, spec.agents[0].tokens) == ("m", "class", 4)
    assert (spec.max_runs, spec.solo_runs) == (5, 6)


def test_only_tests_with_a_mark_are_marked(collected: Callable[[str], list[pytest.Item]]) -> None:
    mark = "@pytest.mark.llmperf(scenario='single_agent', model='m')"
    plain, measured = collected(f"import pytest\ndef test_a(): pass\n{mark}\ndef test_b(): pass")
    assert (markers.marked(plain), markers.problems(plain)) == (False, [])
    assert markers.marked(measured)


FUNCTIONS = """\
import functools

import pytest
from pytest_llmperf.model import Agent

pytestmark = pytest.mark.llmperf(model="m", tolerence=0.1)

def wrapped(function):
    @functools.wraps(function)
    def inner(*args, **kwargs):
        return function(*args, **kwargs)
    return inner

@pytest.mark.parametrize("prompt", ["short", "long"])
@pytest.mark.llmperf(scenario="chimera_homo", options={"num_gpus": 80}, margins={"ttft": 30})
def test_copies(prompt): pass

@pytest.mark.llmperf(scenario="single_agent", agents=3, tokens={1, 2})
@wrapped
def test_wrapped(): pass

def test_without_a_mark_of_its_own(): pass
"""
CLASSES = """
@pytest.mark.llmperf(scenario="chimera_hetero")
class TestClass:
    @pytest.mark.llmperf(max_runs=0)
    def test_method(self): pass

    class TestInner:
        @pytest.mark.llmperf(agents=[Agent(options={"temperature": "hot"}), Agent()])
        def test_deep(self): pass
"""
LINES = [
    "6: llmperf() has no argument 'tolerence'; it takes scenario, model, ",
    "14: llmperf() options has no 'num_gpus' (did you mean num_gpu?); Ollama takes ",
    "14: llmperf() margins['ttft'] must be a fraction between 0 and 1 (0.3 means 30 %), not 30",
    "18: llmperf() tokens must be a whole number of at least 2 (num_predict of every request), not {1, 2}",
    "18: llmperf() agents must be exactly 1 for scenario='single_agent', not 3",
    "22: llmperf() needs scenario=, which must be 'single_agent', ",
]
LINES_OF_CLASSES = [
    "26: llmperf() max_runs must be a whole number of at least 2 (runs at most; one run decides nothing), not 0",
    "26: llmperf() scenario='chimera_hetero' needs agents=[Agent(...), Agent(...)] that differ in model or options",
    "30: llmperf() agents[0].options['temperature'] must be a number, not 'hot'",
]


def assert_begin(lines: list[str], path: str, expected: list[str]) -> None:
    """The lines that name the path begin like the expected ones, and there are no others."""
    found = [line.removeprefix(f"{path}:") for line in lines if line.startswith(f"{path}:")]
    assert [line[: len(start)] for line, start in zip(found, expected, strict=True)] == expected


def test_the_mistakes_of_a_file_come_with_those_of_its_classes(
    pytester: pytest.Pytester, plugin: tuple[str, ...]
) -> None:
    pytester.plugins = list(plugin[1:])
    module = pytester.getmodulecol(FUNCTIONS + CLASSES)
    assert isinstance(module, pytest.Module)
    lines = markers.problems_in(module.collect())
    assert_begin(lines, module.path.name, LINES + LINES_OF_CLASSES)


@pytest.mark.parametrize("mode", [("--junitxml=junit.xml",), ("-n2",), ("--collect-only",)], ids=lambda mode: mode[0])
def test_all_mistakes_are_said_at_once_in_every_mode(
    pytester: pytest.Pytester, plugin: tuple[str, ...], mode: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CI", raising=False)  # with it pytest prints every line once more, in its short summary
    folder = pytester.mkdir("chat")
    (folder / "test_chat.py").write_text(FUNCTIONS + CLASSES, "utf-8")
    result = pytester.runpytest_subprocess(*plugin, *mode)
    assert result.ret != pytest.ExitCode.OK
    assert_begin(result.outlines, "chat/test_chat.py", LINES + LINES_OF_CLASSES)
    result.stdout.no_fnmatch_line("*INTERNALERROR*")
    result.stdout.no_fnmatch_line("*Traceback*")
    if (junit := Path(pytester.path, "junit.xml")).exists():
        error = ET.parse(junit).find(".//error")
        assert error is not None
        assert_begin((error.text or "").splitlines(), "chat/test_chat.py", LINES + LINES_OF_CLASSES)
