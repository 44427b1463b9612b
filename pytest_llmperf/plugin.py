"""pytest's entry: hooks only, each delegates at once. An idle run imports nothing heavy, starts and prints nothing."""

from __future__ import annotations

from collections.abc import Generator

import pytest

from pytest_llmperf import keys, settings
from pytest_llmperf.fixtures import _llmperf_fleet, llmperf, ollama, ollama_env, ollama_factory, ollama_instances
from pytest_llmperf.ledger import Ledger

__all__ = ["_llmperf_fleet", "llmperf", "ollama", "ollama_env", "ollama_factory", "ollama_instances"]


def pytest_addoption(parser: pytest.Parser) -> None:
    """Declare options and ini keys."""
    settings.add_options(parser)


def pytest_configure(config: pytest.Config) -> None:
    """Resolve the settings, in every process; the ledger is kept by a plain run or by xdist's controller only."""
    config.addinivalue_line("markers", _help() if config.option.markers else "llmperf")
    config.stash[keys.SETTINGS] = settings.Settings.from_config(config)
    config.stash[keys.MARKED], config.stash[keys.IDS], config.stash[keys.POSTPONED] = set(), {}, []
    if not hasattr(config, "workerinput"):
        config.pluginmanager.register(Ledger(config), "llmperf-ledger")


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """Check the marks of a file's tests once they are collected, in every process: all mistakes at once.

    UsageError here would end an xdist run without its message (pytest-xdist #674), so the collect report fails instead.
    """
    report = yield
    nodes = report.result if report.passed and report.result else []
    if any(_marked(node) for node in nodes):
        _check(report, nodes, collector.config)
    return report


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> Generator[None, None, None]:
    """Note all marked tests before -m and -k deselect some; put them last, where no other test of their worker runs.

    In a worker and in a plain run; each worker of pytest-xdist must come to the same order.
    """
    config.stash[keys.MARKED].update(item.nodeid for item in items if _marked(item))
    yield
    items.sort(key=_marked)


@pytest.hookimpl(wrapper=True, trylast=True)
def pytest_runtestloop(session: pytest.Session) -> Generator[None, object, object]:
    """After all tests of this process: once more those that something else disturbed."""
    result = yield
    if session.config.stash[keys.POSTPONED]:
        from pytest_llmperf import again

        again.run(session)
    return result


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, None, None]:
    """After the test's body, still in its call phase: what was measured must have been judged; evidence is kept."""
    gate = item.stash.get(keys.GATE, None)
    try:
        yield
        if gate:
            gate.finish()
    except (pytest.skip.Exception, pytest.xfail.Exception):
        if gate:
            gate.finish()  # skipping is no way past what was measured
        raise
    finally:
        if gate:
            gate.settle()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Send what was measured and judged along with the test's own report; in a worker and in a plain run."""
    report = yield
    if gate := item.stash.get(keys.GATE, None):
        from pytest_llmperf import again

        if again.postponed(item, call, report, gate.disturbed):
            return report
        if call.when == "call" and (entry := gate.entry(passed=report.passed)):
            report.llmperf = entry.to_payload()  # type: ignore[attr-defined]
    return report


def pytest_report_teststatus(report: pytest.CollectReport | pytest.TestReport) -> tuple[str, str, str] | None:
    """A try that something else disturbed is counted as postponed, once."""
    why = getattr(report, "llmperf_postponed", None)
    if why is None:
        return None
    return ("postponed", "p", "POSTPONED") if why else ("", "", "")


def pytest_sessionfinish(session: pytest.Session) -> None:
    """In a worker: tell the controller which marked tests there are."""
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["llmperf_marked"] = [*session.config.stash[keys.MARKED]]


def _marked(node: pytest.Item | pytest.Collector) -> bool:
    return isinstance(node, pytest.Item) and node.get_closest_marker("llmperf") is not None


def _check(report: pytest.CollectReport, nodes: list[pytest.Item | pytest.Collector], config: pytest.Config) -> None:
    from pytest_llmperf import markers

    if errors := markers.problems_in(nodes) or markers.claimed_twice(nodes, config.stash[keys.IDS]):
        report.outcome, report.longrepr = "failed", "\n".join(errors)


def _help() -> str:
    from pytest_llmperf import markers

    return markers.HELP
