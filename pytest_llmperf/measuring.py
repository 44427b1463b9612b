"""How one marked test is measured: which server, which lane, how many sessions. Composes the doors for the fixtures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import median

from pytest_llmperf import baseline as files
from pytest_llmperf import identity, ollama
from pytest_llmperf.case import Case
from pytest_llmperf.instances import Fleet, Instance
from pytest_llmperf.measured import Measured
from pytest_llmperf.model import Baseline
from pytest_llmperf.protocol import Bench
from pytest_llmperf.server import device_lane
from pytest_llmperf.settings import Settings


def open_fleet(settings: Settings, test: str) -> Fleet:
    """A fleet for one test: nothing is started yet. Raises LlmperfError where there is no server to start."""
    if settings.emulated:
        return Fleet(None, device_lane(identity.EMULATED_MACHINE, test))
    return Fleet(ollama.find(settings.ollama, settings.rootdir), device_lane("machine", test))


def take(case: Case, fleet: Fleet, instances: Callable[[], Sequence[Instance]], against: Baseline | None) -> Measured:
    """Measure one session, or under --llmperf-rebaseline as many as it asks for, servers restarted between them."""
    settings = case.settings
    if settings.rebaseline:
        files.check_root(settings.baselines, writing=True)
    bench = Bench(case.spec, instances(), _usual_ttft(against))
    conditions = bench.conditions()
    sessions = [bench.session()]
    while settings.rebaseline and len(sessions) < settings.sessions:
        fleet.new_session()
        sessions.append(bench.session())
    return Measured(
        test=case.test,
        machine=case.machine,
        emulated=settings.emulated,
        conditions=conditions,
        sessions=tuple(sessions),
    )


def _usual_ttft(against: Baseline | None) -> float | None:
    values = [value for session in against.sessions for value in session.series("ttft")] if against else []
    return median(values) if values else None
