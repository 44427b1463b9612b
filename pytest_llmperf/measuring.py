"""How one marked test is measured: which server, which lane, how many sessions. Composes the doors for the fixtures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from pytest_llmperf import baseline as files
from pytest_llmperf import identity, limits, ollama, plan, selfcheck, triggers, verdicts
from pytest_llmperf.case import Case
from pytest_llmperf.comparison import Comparison
from pytest_llmperf.instances import Fleet
from pytest_llmperf.lane import device_lane
from pytest_llmperf.measured import Measured
from pytest_llmperf.model import Baseline, Session, Spec
from pytest_llmperf.outcome import Check
from pytest_llmperf.protocol import Bench
from pytest_llmperf.settings import Settings


def open_fleet(settings: Settings, test: str, say: Callable[[str], None]) -> Fleet:
    """A fleet for one test: nothing is started yet. Raises LlmperfError where there is no server to start.

    `say` gets a sentence when the device lane is somebody else's for the time being.
    """
    if settings.emulated:
        return Fleet(None, device_lane(identity.EMULATED_MACHINE, test, say))
    return Fleet(ollama.find(settings.ollama, settings.rootdir), device_lane("machine", test, say))


class Measurement:
    """What happens between the mark and the numbers; `fixture` gets one of the plugin's fixtures for this test."""

    def __init__(self, case: Case, fixture: Callable[[str], Any]) -> None:
        self._case, self._fixture = case, fixture
        self._fleet: Fleet | None = None

    def find_server(self) -> Fleet:
        """Look for the server to start, before anything else can go wrong."""
        fleet: Fleet = self._fixture("_llmperf_fleet")
        self._fleet = fleet
        return fleet

    def take(self, against: Baseline | None) -> Measured:
        """Measure until decided, and what is doubtful in a second session; under --llmperf-rebaseline, that many.

        Servers are restarted between sessions.
        """
        settings, spec, fleet = self._case.settings, self._case.spec, self.find_server()
        if settings.rebaseline:
            files.check_root(settings.baselines, writing=True)
        bench = Bench(spec, self._fixture("ollama_instances"))
        conditions = bench.conditions()
        comparable = against if against and not triggers.fired(against.conditions, conditions) else None
        bench.usual_ttft = _usual_ttft(comparable)
        brief = (min(plan.SESSION_RUNS, spec.max_runs),)
        if settings.rebaseline or (spec.gated and not comparable):
            sessions = [bench.session(brief)]
        else:
            sessions = [bench.session(plan.looks(spec.max_runs), partial(self._decided, comparable))]
        while len(sessions) < self._sessions(sessions[0], comparable):
            fleet.new_session()
            sessions.append(bench.session(brief))
        return self._measured(conditions, sessions)

    def compare(self, control: Spec, treatment: Spec) -> Comparison:
        """Start and load both sides' servers, in one session."""
        fleet = self.find_server()
        benches = [self._side(fleet, name, spec) for name, spec in (("control", control), ("treatment", treatment))]
        return Comparison(self._case.test, self._case.machine, *benches)

    def selfcheck(self) -> tuple[Measured, list[Check]]:
        """Sessions as they are, each with as many runs through relays that slow it down by two margins."""
        spec, fleet = self._case.spec, self.find_server()
        instances = self._fixture("ollama_instances")
        bench = Bench(spec, instances)
        conditions = bench.conditions()
        factors = selfcheck.factors(spec)
        unchanged, slowed = list[Session](), list[Session]()
        while len(unchanged) < self._case.settings.sessions:
            if unchanged:
                fleet.new_session()
            unchanged.append(bench.session((spec.max_runs,)))
            if factors != selfcheck.NO_SLOWER:
                relayed = Bench(spec, instances, addresses=fleet.relayed(*factors))
                slowed.append(relayed.session((spec.max_runs,)))
        return self._measured(conditions, unchanged), selfcheck.check(spec, unchanged, slowed)

    def _side(self, fleet: Fleet, side: str, spec: Spec) -> Bench:
        servers = len(spec.agents) if spec.topology == "dedicated" else 1
        return Bench(spec, [fleet.start(f"{side}{number}") for number in range(1, servers + 1)])

    def _decided(self, comparable: Baseline | None, session: Session) -> bool:
        spec = self._case.spec
        return limits.decided(spec, session) and (not comparable or verdicts.enough(spec, session, comparable))

    def _sessions(self, first: Session, comparable: Baseline | None) -> int:
        if self._case.settings.rebaseline:
            return self._case.settings.sessions
        return 2 if comparable and verdicts.doubtful(self._case.spec, first, comparable) else 1

    def _measured(self, conditions: identity.Conditions, sessions: Sequence[Session]) -> Measured:
        return Measured(
            test=self._case.test,
            machine=self._case.machine,
            emulated=self._case.settings.emulated,
            conditions=conditions,
            sessions=tuple(sessions),
        )

    def logs(self) -> list[Path]:
        """The logs of the servers that were started."""
        return self._fleet.logs() if self._fleet else []


def _usual_ttft(against: Baseline | None) -> float | None:
    values = [value for session in against.sessions for value in session.series("ttft")] if against else []
    return median(values) if values else None
