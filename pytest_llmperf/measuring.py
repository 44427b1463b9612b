"""How one marked test is measured: which server, which lane, how many sessions. Composes the doors for the fixtures."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from pytest_llmperf import baseline as files
from pytest_llmperf import gpu, identity, limits, ollama, plan, selfcheck, triggers, verdicts
from pytest_llmperf.attached import AttachedFleet
from pytest_llmperf.case import Case
from pytest_llmperf.comparison import Comparison
from pytest_llmperf.instance import Instance
from pytest_llmperf.instances import Fleet
from pytest_llmperf.lane import device_lane, machine_lanes
from pytest_llmperf.measured import Measured
from pytest_llmperf.model import Baseline, InvalidRunError, LlmperfError, Session, Spec
from pytest_llmperf.outcome import Check
from pytest_llmperf.protocol import Bench
from pytest_llmperf.settings import Settings
from pytest_llmperf.surroundings import Surroundings

Say = Callable[[str], None]


def open_fleet(
    settings: Settings, test: str, say: Say, env: Mapping[str, str] | None = None, gpus: Sequence[str] = ()
) -> Fleet:
    """A fleet for one test: nothing is started yet. Raises LlmperfError where there is no server to start.

    Every instance gets `env`; the test keeps to `gpus`, or to none in particular. `say` gets a sentence when the device
    lane is somebody else's for the time being.
    """
    if settings.emulated:
        return Fleet(None, device_lane(identity.EMULATED_MACHINE, test, say), env or {})
    if settings.servers:
        lanes = [f"remote-{identity.text_hash(url)}" for url in settings.servers if not identity.is_local(url)]
        lanes += _devices(()) if any(map(identity.is_local, settings.servers)) else []
        return AttachedFleet(settings.servers, machine_lanes(lanes, test, say), env or {})
    binary = ollama.find(settings.ollama, settings.rootdir)
    return Fleet(binary, machine_lanes(_devices(gpus), test, say), env or {}, gpus)


def _devices(pinned: Sequence[str]) -> list[str]:
    """The lanes of a test that keeps to these GPUs: theirs; of one that does not, all and the machine's."""
    known = gpu.gpus()
    if not (pinned and known):
        return ["machine", *(each.uuid for each in known)]
    return [*{_device(name, known) for name in pinned}]


def _device(name: str, known: Sequence[gpu.Gpu]) -> str:
    if found := gpu.named(name, known):
        return found.uuid
    have = ", ".join(f"{each.index} ({each.uuid})" for each in known)
    raise LlmperfError(f"gpus names {name!r}; this machine has {have}")


class Measurement:
    """What happens between the mark and the numbers; `fixture` gets one of the plugin's fixtures for this test.

    `say` gets a sentence when the machine is not quiet enough to measure.
    """

    def __init__(self, case: Case, fixture: Callable[[str], Any], say: Say) -> None:
        self._case, self._fixture, self._say = case, fixture, say
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
        bench = self._bench(spec, self._fixture("ollama_instances"))
        bench.load()
        conditions = bench.conditions()
        comparable = against if against and not triggers.fired(against.conditions, conditions) else None
        bench.usual_ttft = _usual_ttft(comparable)
        brief = (min(plan.SESSION_RUNS, spec.max_runs),)
        if settings.rebaseline or (spec.gated and not comparable):
            sessions = [bench.session(brief)]
        else:
            sessions = [bench.session(plan.looks(spec.max_runs), partial(self._decided, comparable))]
        while len(sessions) < self._sessions(sessions[0], comparable):
            self._start_anew(fleet, bench, conditions)
            sessions.append(bench.session(brief))
        return self._measured(conditions, sessions, bench)

    def compare(self, control: Spec, treatment: Spec) -> Comparison:
        """Start and load both sides' servers, in one session."""
        fleet = self.find_server()
        benches = [self._side(fleet, name, spec) for name, spec in (("control", control), ("treatment", treatment))]
        return Comparison(self._case.test, self._case.machine, *benches)

    def selfcheck(self) -> tuple[Measured, list[Check]]:
        """Sessions as they are, each with as many runs through relays that slow it down by two margins."""
        spec, fleet = self._case.spec, self.find_server()
        instances = self._fixture("ollama_instances")
        bench = self._bench(spec, instances)
        bench.load()
        conditions, factors = bench.conditions(), selfcheck.factors(spec)
        unchanged, slowed = list[Session](), list[Session]()
        while len(unchanged) < self._case.settings.sessions:
            if unchanged:
                self._start_anew(fleet, bench, conditions)
            unchanged.append(bench.session((spec.max_runs,)))
            if factors != selfcheck.NO_SLOWER:
                relayed = self._bench(spec, instances, fleet.relayed(*factors))
                relayed.load()
                slowed.append(relayed.session((spec.max_runs,)))
        return self._measured(conditions, unchanged, bench), selfcheck.check(spec, unchanged, slowed)

    def _start_anew(self, fleet: Fleet, bench: Bench, conditions: identity.Conditions) -> None:
        """A new session under the same conditions: what is left to the server it may decide otherwise this time."""
        fleet.new_session()
        bench.load()
        if changed := triggers.fired(conditions, bench.conditions()):
            differ = ", ".join(str(each).removesuffix(f" ({each.whose})") for each in changed)
            problem = f"the servers of the next session are not what those of the first were: {differ}"
            raise InvalidRunError(f"{problem}; free the memory that others took, or declare it (num_gpu=, num_batch=)")

    def _side(self, fleet: Fleet, side: str, spec: Spec) -> Bench:
        return self._bench(spec, fleet.deploy(spec, side))

    def _bench(self, spec: Spec, instances: Sequence[Instance], addresses: Sequence[str] = ()) -> Bench:
        around = Surroundings(instances, self._case.settings.quiet_wait_s, self._say)
        return Bench(spec, instances, addresses=addresses, around=around)

    def _decided(self, comparable: Baseline | None, session: Session) -> bool:
        spec = self._case.spec
        return limits.decided(spec, session) and (not comparable or verdicts.enough(spec, session, comparable))

    def _sessions(self, first: Session, comparable: Baseline | None) -> int:
        if self._case.settings.rebaseline:
            return self._case.settings.sessions
        return 2 if comparable and verdicts.doubtful(self._case.spec, first, comparable) else 1

    def _measured(self, conditions: identity.Conditions, sessions: Sequence[Session], bench: Bench) -> Measured:
        return Measured(
            test=self._case.test,
            machine=self._case.machine,
            emulated=conditions["backend"] == "emulator",
            conditions=conditions,
            sessions=tuple(sessions),
            unverified=tuple(bench.unverified()),
            accuracy=bench.accuracy,
        )

    def logs(self) -> list[Path]:
        """The logs of the servers that were started."""
        return self._fleet.logs() if self._fleet else []


def _usual_ttft(against: Baseline | None) -> float | None:
    values = [value for session in against.sessions for value in session.series("ttft")] if against else []
    return median(values) if values else None
