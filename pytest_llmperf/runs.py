"""One run: agents with built-in prompts released together over their connections, recorded, then read."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass

from pytest_llmperf import chat, ollama, stream
from pytest_llmperf.agents import run_together
from pytest_llmperf.model import InvalidRunError, Workload
from pytest_llmperf.stamps import at_arrival
from pytest_llmperf.traffic import Recording, Run, Track

LOAD_ALLOWED_S, LOAD_ALLOWED_SHARE = 1.0, 0.1
"""A run in which a server reports a longer load, in seconds and as a share of the makespan, measured a reload."""

Work = Sequence[tuple[Workload, str]]
"""Each agent with the URL it talks to."""


@dataclass(frozen=True)
class Attempt:
    """One run that was tried: None where an answer could not be read; `cause` is why it can't count, "" if it does.

    It is `disturbed` if something else used the machine.
    """

    run: Run | None
    cause: str = ""
    disturbed: bool = False

    @property
    def short(self) -> bool:
        """Whether all that is wrong is that a model stopped before its token budget."""
        if self.run is None or self.disturbed or _reload(self.run) or _cached(self.run):
            return False
        return any(each.short for each in self.run.exchanges)


def attempt(work: Work, nonces: Iterator[str]) -> Attempt:
    """Try a run. Causes are declared beforehand and blind to how fast it was.

    Raises InvalidRunError for a broken connection: its server is dead or frozen, and another run would fare no better.
    """
    release, recordings = _recorded(work, nonces)
    try:
        run = _read(work, recordings, release)
    except InvalidRunError as error:
        return Attempt(None, str(error))
    return Attempt(run, cause_of(run))


def run(work: Work, nonces: Iterator[str]) -> Run:
    """A run that only has to be readable; raises InvalidRunError."""
    release, recordings = _recorded(work, nonces)
    return _read(work, recordings, release)


def cause_of(run: Run) -> str:
    """Why a run can't count, "" if it does: a load, a prompt from a cache, or a model that stopped early."""
    stopped = [exchange for exchange in run.exchanges if exchange.short]
    early = f"the model stopped early ({stopped[0].tokens} of {stopped[0].budget} tokens)" if stopped else ""
    return _reload(run) or _cached(run) or early


def _recorded(work: Work, nonces: Iterator[str]) -> tuple[float, list[list[Recording]]]:
    done = run_together([_PromptAgent(agent, url, nonces) for agent, url in work])
    return done.release, [at_arrival(recordings, done.offsets) for recordings in done.results]


class _PromptAgent:
    """An agent with built-in prompts: sends them one after the other over one connection."""

    def __init__(self, workload: Workload, url: str, nonces: Iterator[str]) -> None:
        self._connection = stream.Connection(url, alive=lambda: ollama.ready(url) is not None)
        self._requests = [chat.request(workload, f"{next(nonces)} {prompt}", url) for prompt in workload.prompts]

    def prepare(self) -> None:
        self._connection.connect()

    def work(self, released: float) -> list[Recording]:
        due: float | None = released
        recordings = []
        with closing(self._connection):
            for request in self._requests:
                recordings.append(self._connection.exchange(request, due))
                due = None
        return recordings

    def close(self) -> None:
        self._connection.close()

    def abort(self) -> None:
        self._connection.abort()


def _track(agent: Workload, recordings: Sequence[Recording], release: float) -> Track:
    answers = [(recording, *stream.lines(recording)) for recording in recordings]
    return Track(
        agent=agent.name,
        exchanges=tuple(
            chat.exchange(recording, status, lines, budget=agent.tokens, release=release)
            for recording, status, lines in answers
        ),
    )


def _read(work: Work, recordings: Sequence[Sequence[Recording]], release: float) -> Run:
    tracks = [_track(agent, each, release) for (agent, _), each in zip(work, recordings, strict=True)]
    late = [read.late for each in recordings for one in each for read in one.reads if read.kernel_ns]
    return Run(tracks=tuple(tracks), skew=max(each[0].sent for each in recordings) - release, late=tuple(late))


def _reload(run: Run) -> str:
    longest = max((exchange.server.get("load", 0.0) for exchange in run.exchanges), default=0.0)
    allowed = max(LOAD_ALLOWED_S, LOAD_ALLOWED_SHARE * run.makespan)
    return f"the server loaded the model during the run ({longest:.1f} s)" if longest > allowed else ""


def _cached(run: Run) -> str:
    known = [exchange for exchange in run.exchanges if exchange.from_cache]
    return f"the server had the prompt in its cache ({known[0].cached} of {known[0].prompt} tokens)" if known else ""
