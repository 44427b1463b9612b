"""The session's books, kept by the controller or a plain run: gathers entries, writes baselines once, prints."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from pytest_llmperf import keys

if TYPE_CHECKING:
    from pytest_llmperf.outcome import Entry


_UNAFFORDABLE = re.compile(r"llmperf: (not measured: [^'\"]+)")


class Ledger:
    """Registered once per run, never in an xdist worker; imports and prints nothing where nothing was measured."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._settings, self._collecting = config.stash[keys.SETTINGS], config.option.collectonly
        self._marked = config.stash[keys.MARKED]
        self._entries: list[Entry] = []
        self._lines: list[str] = []
        self._planned: list[pytest.Item] = []
        self._postponed: dict[str, str] = {}
        self._first_tries: dict[str, pytest.TestReport] = {}
        self._finished: set[str] = set()

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        """Under --collect-only: keep the tests, to say how long they would take."""
        self._planned = session.items if self._collecting else []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Take a test's entry off its report; a test whose teardown fails has not passed."""
        if why := getattr(report, "llmperf_postponed", ""):
            self._postponed[report.nodeid], self._first_tries[report.nodeid] = why, report
        if report.when == "teardown":
            self._finished.add(report.nodeid)
        if report.skipped and (found := _UNAFFORDABLE.search(str(report.longrepr))):
            self._lines.append(f"{report.nodeid}: {found[1]}")
        if payload := getattr(report, "llmperf", None):
            from pytest_llmperf.outcome import Entry

            self._entries.append(Entry.from_payload(payload))
        elif report.failed and report.when == "teardown":
            own = [n for n, entry in enumerate(self._entries) if entry.test == report.nodeid]
            for n in own:
                self._entries[n] = replace(self._entries[n], passed=False)

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any) -> None:  # noqa: ANN401 - xdist's WorkerController has no public type
        """An xdist worker has ended: learn which marked tests there are (nothing, if it crashed)."""
        output = getattr(node, "workeroutput", None)
        self._marked.update((output or {}).get("llmperf_marked", ()))
        if output is None:
            self._fail_unfinished(node)

    def _fail_unfinished(self, node: Any) -> None:  # noqa: ANN401
        """A worker that crashed never finished its second tries: each is a failed test, for all who keep reports."""
        from pytest_llmperf import again

        for test in sorted(self._first_tries.keys() - self._finished):
            first = self._first_tries[test]
            for report in again.crashed(first, self._postponed[test]) if first.node is node else ():
                self._config.hook.pytest_runtest_logreport(report=report)

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """Write baselines under --llmperf-rebaseline, and hold --llmperf-require."""
        if self._settings.rebaseline and self._entries:
            from pytest_llmperf import rebaseline

            written, complete = rebaseline.write(self._sorted(), self._settings.invoked_from)
            self._lines += written
            if not complete:
                _fail(session)
        if missing := self._missing():
            self._lines.append(missing)
            _fail(session)
        if self._postponed.keys() - self._finished:
            _fail(session)

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """One row per gated metric, worst first, then the count line; nothing where no test is marked.

        Under --collect-only about how long the marked tests would take.
        """
        if not (self._marked or self._lines or self._postponed):
            return
        lines = self._forecast() if self._collecting else self._summary()
        if lines:
            terminalreporter.section("llmperf")
        for line in lines:
            terminalreporter.line(line)

    def _summary(self) -> list[str]:
        from pytest_llmperf.report import terminal

        count = [terminal.count(self._entries, len(self._marked))] if self._marked else []
        disturbed = terminal.disturbed(self._postponed, {entry.test for entry in self._entries})
        return [*terminal.body(self._sorted()), *self._unwatched(), *disturbed, *self._lines, *count]

    def _unwatched(self) -> list[str]:
        real = any(entry.rows or entry.record for entry in self._entries if not entry.emulated)
        off = self._settings.quiet_wait_s is None
        return ["llmperf_quiet_wait = off: nobody looked what else ran"] if real and off else []

    def _forecast(self) -> list[str]:
        from pytest_llmperf import spending
        from pytest_llmperf.report import terminal

        return terminal.forecast(spending.forecast(self._planned))

    def _sorted(self) -> list[Entry]:
        """By node id: workers report in any order."""
        return sorted(self._entries, key=lambda entry: entry.test)

    def _missing(self) -> str | None:
        require = self._settings.require
        if require is None or self._collecting or self._settings.rebaseline or self._settings.selfcheck:
            return None
        from pytest_llmperf.model import JUDGED

        judged = {entry.test for entry in self._entries if entry.verdict in JUDGED}
        wanted = max(1, len(self._marked) if require == "all" else int(require))
        if len(judged) >= wanted:
            return None
        tests = "1 test was" if len(judged) == 1 else f"{len(judged)} tests were"
        others = f"; not judged: {', '.join(sorted(self._marked - judged))}" if self._marked - judged else ""
        return f"llmperf: --llmperf-require={require}: {tests} judged, {wanted} required{others}"


def _fail(session: pytest.Session) -> None:
    if session.exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
