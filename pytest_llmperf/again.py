"""A test that something else disturbed is tried once more, when its worker has nothing else left to run."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from pytest_llmperf import keys


def postponed(item: pytest.Item, call: pytest.CallInfo[None], report: pytest.TestReport, why: str) -> bool:
    """Whether this report is of a first try that was disturbed (`why`, "" if it was not); turns it into one if so.

    Its outcome is "postponed", neither passed nor failed: no -x, --lf or junitxml counts it. A failing teardown stays.
    """
    if not why or keys.AGAIN in item.stash:
        return False
    if report.when == "call" or (report.failed and report.when == "setup"):  # a fixture of the user's may measure
        item.config.stash[keys.POSTPONED].append(item)
        call.excinfo = None  # nothing for --pdb to stop at
        _recast(report, why)
    elif report.passed:
        _recast(report, "")
        report.when = "postponed"  # type: ignore[assignment]  # junitxml would end the test's only case at "teardown"
    return True


def run(session: pytest.Session) -> None:
    """Try this process's postponed tests again. Fixtures of a wider scope are set up anew: the last test ended them."""
    waiting = session.config.stash[keys.POSTPONED]
    while waiting and not (session.shouldfail or session.shouldstop):
        item = waiting.pop(0)
        item.stash[keys.AGAIN] = True
        del item.stash[keys.GATE]
        _tell_xdist(session, item)
        following = waiting[0] if waiting else None
        item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)


def crashed(first: pytest.TestReport, why: str) -> Iterator[pytest.TestReport]:
    """What to report of a second try that its worker's crash cut short; `first` is the report of the first."""
    words = f"llmperf: disturbed, and its worker crashed before it was measured again: {why}"
    for outcome, said, when in (("failed", words, "call"), ("passed", None, "teardown")):
        report = pytest.TestReport(first.nodeid, first.location, {}, outcome, said, when)  # type: ignore[arg-type]
        report.node = first.node  # type: ignore[attr-defined]  # xdist's reporters ask for it
        yield report


def _recast(report: pytest.TestReport, why: str) -> None:
    report.outcome = "postponed"  # type: ignore[assignment]
    report.llmperf_postponed = why  # type: ignore[attr-defined]


def _tell_xdist(session: pytest.Session, item: pytest.Item) -> None:
    """A worker of pytest-xdist asserts that each report is of the test its loop is at (`xdist/remote.py`)."""
    for plugin in session.config.pluginmanager.get_plugins():
        if hasattr(plugin, "item_index"):
            plugin.item_index = session.items.index(item)
