"""The words every floor speaks, frozen: what a test declares, what was measured, what was judged.

Standard library only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Self

Better = Literal["higher", "lower"]
Scale = Literal["ratio", "diff"]
Topology = Literal["dedicated", "shared"]
Sharper = Literal["runs", "sessions"]
Verdict = Literal["held", "improved", "inconclusive", "regressed", "not comparable", "no baseline", "invalid"]
OptionValue = bool | int | float | str | Sequence[str]

WORST_FIRST: tuple[Verdict, ...] = (
    "invalid",
    "regressed",
    "not comparable",
    "no baseline",
    "inconclusive",
    "held",
    "improved",
)
FAILING: frozenset[Verdict] = frozenset({"invalid", "regressed", "not comparable", "no baseline"})
JUDGED: frozenset[Verdict] = frozenset({"held", "improved", "inconclusive", "regressed"})


def worst(verdicts: Sequence[Verdict]) -> Verdict:
    """The verdict of a test: the worst of its metrics' verdicts; improved needs all of them not worse than held."""
    found = min(verdicts, key=WORST_FIRST.index)
    return "improved" if found == "held" and "improved" in verdicts else found


class LlmperfError(Exception):
    """Something the user can put right; its text is the whole message."""


class InvalidRunError(LlmperfError):
    """The measurement itself is broken: a crash, a cut stream, missing tokens. Verdict `invalid`."""


class DisturbedError(InvalidRunError):
    """The measurement is broken because something else used the machine: worth another try when that has ended."""


@dataclass(frozen=True, kw_only=True)
class Agent:
    """One client of an instance, with built-in prompts; what is left out comes from the mark.

    `options` are Ollama's request options (`num_ctx`, `temperature`, ...), `prompts` the requests of one run in order.
    """

    name: str | None = None
    model: str | None = None
    options: Mapping[str, OptionValue] | None = None
    prompts: Sequence[str] | None = None
    unknown: Mapping[str, object] = field(default_factory=dict, init=False, repr=False)

    if not TYPE_CHECKING:  # a misspelt keyword is reported with the mark's other mistakes, not as a crash on import

        def __init__(self, **words: object) -> None:
            for name in ("name", "model", "options", "prompts"):
                object.__setattr__(self, name, words.pop(name, None))
            object.__setattr__(self, "unknown", words)


@dataclass(frozen=True, kw_only=True)
class Workload:
    """One agent with nothing left to look up: what is sent to its instance in every run."""

    name: str
    model: str
    options: Mapping[str, OptionValue]
    prompts: tuple[str, ...]
    tokens: int


Contended = Literal["ttft doubled", "ttft +3 s", "speedup < 1.5"]


@dataclass(frozen=True, kw_only=True)
class Contention:
    """How many runs may be contended, in %: regressed if the rate is over `target` for sure, held if under `limit`.

    `contended` names when a run is: an agent's ttft is over twice the baseline's median concurrent ttft, or more than
    3 s over it (TR116 section 2.5), or the run's speedup is under 1.5 (what the studies' harness flagged).
    """

    target: float = 2.0
    limit: float = 5.0
    contended: Contended = "ttft doubled"


@dataclass(frozen=True, kw_only=True)
class Spec:
    """What a test's marks declare, checked and complete. `margins`, `session_sd` and `floors` are by metric name.

    `slots` is how many requests an instance works on at once (OLLAMA_NUM_PARALLEL), `env` what is set for every
    instance on purpose, `gpus` the device of each instance by turns (an index or a UUID); without any they see all.
    """

    scenario: str
    agents: tuple[Workload, ...]
    topology: Topology = "dedicated"
    slots: int = 1
    env: Mapping[str, str] = field(default_factory=dict)
    gpus: tuple[str, ...] = ()
    max_runs: int = 10
    warmup_requests: int = 3
    solo_runs: int = 1
    gated: tuple[str, ...] = ()
    margins: Mapping[str, float] = field(default_factory=dict)
    session_sd: Mapping[str, float] = field(default_factory=dict)
    floors: Mapping[str, float] = field(default_factory=dict)
    policies: tuple[str, ...] = ()
    contention: Contention | None = None
    id: str | None = None

    @property
    def instances(self) -> int:
        """How many servers the topology takes."""
        return len(self.agents) if self.topology == "dedicated" else 1


@dataclass(frozen=True)
class Sample:
    """One run reduced to its metrics' values. Runs with `kept=False` stay on record and are never judged.

    `cause` says why such a run was replaced, in words; the discarded first run has none. No run is ever dropped for
    its value.
    """

    values: Mapping[str, float]
    kept: bool = True
    cause: str = ""


@dataclass(frozen=True)
class Session:
    """Runs that shared started servers; `load_s` is the longest cold load of a model in it, by the client's clock."""

    samples: tuple[Sample, ...]
    load_s: float = 0.0

    def series(self, metric: str) -> list[float]:
        """The metric's values over the kept runs that have it, in run order."""
        return [s.values[metric] for s in self.samples if s.kept and metric in s.values]


@dataclass(frozen=True, kw_only=True)
class Baseline:
    """Committed samples of earlier sessions with their conditions: the content of one baseline file.

    `test` is the full node id at the time of recording, `content` a hash of what the mark declared: it finds the file
    again after a rename.
    """

    test: str
    content: str
    emulated: bool
    conditions: Mapping[str, str | int | float | bool | None]
    sessions: tuple[Session, ...]

    @classmethod
    def from_payload(cls, payload: Mapping[str, Any]) -> Self:
        """From builtins, as they travel from a worker to the controller."""
        sessions = [
            Session(tuple(Sample(**sample) for sample in session["samples"]), session["load_s"])
            for session in payload["sessions"]
        ]
        return cls(**{**payload, "sessions": tuple(sessions)})
