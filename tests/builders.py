"""Hand-made runs, sessions, specs and baselines for the tests of what is computed from them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Required, TypedDict

from pytest_llmperf.measured import Measured
from pytest_llmperf.model import Baseline, Better, Sample, Scale, Session, Spec, Workload
from pytest_llmperf.settings import Settings
from pytest_llmperf.traffic import Exchange, Run, Track

TEST = "tests/test_chat.py::test_two_agents"
MACHINE = "emulated-rtx4080"
CONDITIONS: Mapping[str, str | int | float | bool | None] = {
    "harness": 1,
    "server": "ollama 0.12.3",
    "agents": 2,
    "agent.model": "gemma3:4b",
    "agent.options.num_ctx": 512,
    "agent.digest": "a2af6cc3eb7fa8be",
    "agent.quantization": "Q4_K_M",
}


class Options(TypedDict, total=False):
    """The keywords of `judge`."""

    better: Better
    scale: Scale
    margin: Required[float]
    session_sd: float
    looks: int
    interleaved: bool


def exchange(
    ended: float,
    *,
    released: float = 0.0,
    first_token: float | None = None,
    tokens: int = 10,
    budget: int | None = None,
    gaps: Sequence[float] = (),
    **server: float,
) -> Exchange:
    """A request that ended at its budget and whose first token is its last, unless told otherwise; seconds."""
    return Exchange(
        released=released,
        first_token=ended if first_token is None else first_token,
        ended=ended,
        gaps=tuple(gaps),
        tokens=tokens,
        budget=tokens if budget is None else budget,
        server=server,
    )


def run(*agents: Exchange | Sequence[Exchange]) -> Run:
    """A run of agents with one request or several each."""
    requests = [(agent,) if isinstance(agent, Exchange) else tuple(agent) for agent in agents]
    return Run(tracks=tuple(Track(agent=f"agent{n}", exchanges=each) for n, each in enumerate(requests, 1)))


def ending(*seconds: float, tokens: int = 10) -> Run:
    """A run of agents with one request each that ended then."""
    return run(*(exchange(end, tokens=tokens) for end in seconds))


def session(**series: Iterable[float]) -> Session:
    """A session by its metrics' values in run order, after half a second of loading."""
    runs = zip(*series.values(), strict=True)
    return Session(tuple(Sample(dict(zip(series, values, strict=True))) for values in runs), 0.5)


def measured(*sessions: Session) -> Measured:
    """What a test on the emulator measured."""
    return Measured(test=TEST, machine=MACHINE, emulated=True, conditions=CONDITIONS, sessions=sessions)


def baseline(*sessions: Session) -> Baseline:
    """What was recorded for the same test under the same conditions."""
    return Baseline(test=TEST, content="5f1c", emulated=True, conditions=CONDITIONS, sessions=sessions)


def workload(name: str = "agent1") -> Workload:
    return Workload(name=name, model="gemma3:4b", options={"num_ctx": 512}, prompts=("Why?",), tokens=48)


def spec(agents: int = 2) -> Spec:
    """So many agents alike."""
    return Spec(scenario="chimera_homo", agents=tuple(workload(f"agent{n}") for n in range(1, agents + 1)))


def settings(rootdir: Path) -> Settings:
    """Those of `pytest` typed in rootdir, with the emulator."""
    return Settings(
        backend="emulator",
        servers=(),
        ollama=None,
        baselines=rootdir / "baselines",
        rebaseline=False,
        selfcheck=False,
        sessions=4,
        inconclusive="pass",
        require=None,
        budget_s=None,
        quiet_wait_s=60,
        rootdir=rootdir,
        invoked_from=rootdir,
        typed=(),
    )
