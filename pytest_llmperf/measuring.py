"""How one marked test is measured: which server, which lane, how many sessions. Composes the doors for the fixtures."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

from pytest_llmperf import baseline as files
from pytest_llmperf import identity, ollama
from pytest_llmperf.case import Case
from pytest_llmperf.instances import Fleet
from pytest_llmperf.measured import Measured
from pytest_llmperf.model import Baseline
from pytest_llmperf.protocol import Bench
from pytest_llmperf.server import device_lane
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
        """Measure one session, or as many as --llmperf-rebaseline asks for, with servers restarted between them."""
        settings, fleet = self._case.settings, self.find_server()
        if settings.rebaseline:
            files.check_root(settings.baselines, writing=True)
        bench = Bench(self._case.spec, self._fixture("ollama_instances"), _usual_ttft(against))
        conditions = bench.conditions()
        sessions = [bench.session()]
        while settings.rebaseline and len(sessions) < settings.sessions:
            fleet.new_session()
            sessions.append(bench.session())
        return Measured(
            test=self._case.test,
            machine=self._case.machine,
            emulated=settings.emulated,
            conditions=conditions,
            sessions=tuple(sessions),
        )

    def logs(self) -> list[Path]:
        """The logs of the servers that were started."""
        return self._fleet.logs() if self._fleet else []


def _usual_ttft(against: Baseline | None) -> float | None:
    values = [value for session in against.sessions for value in session.series("ttft")] if against else []
    return median(values) if values else None
