"""The fixtures: where servers, agents, metrics and the gate meet inside a test.

Everything heavy is imported in a fixture's body: an idle run pays for none of it.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import TYPE_CHECKING, Protocol

import pytest

from pytest_llmperf import keys

if TYPE_CHECKING:
    from pytest_llmperf.assertions import Gate
    from pytest_llmperf.instance import Instance
    from pytest_llmperf.instances import Fleet
    from pytest_llmperf.model import Spec


class InstanceFactory(Protocol):
    """What the `ollama_factory` fixture gives."""

    def __call__(
        self,
        name: str | None = None,
        env: Mapping[str, str] | None = None,
        *,
        slots: int = 1,
        gpu: str | None = None,
    ) -> Instance:
        """Start one more instance for this test; `env` goes over the plugin's own environment variables.

        It works on `slots` requests at once and sees only `gpu`, an index or a UUID, or all GPUs.
        """


@pytest.fixture
def ollama_env() -> Mapping[str, str]:
    """Environment variables that every instance gets: none, until you override this fixture in a conftest.py."""
    return {}


@pytest.fixture
def _llmperf_fleet(request: pytest.FixtureRequest, ollama_env: Mapping[str, str]) -> Iterator[Fleet]:
    """All instances of this test; they are stopped, and the device lane given back, whatever happens."""
    from pytest_llmperf import markers
    from pytest_llmperf.measuring import open_fleet

    node, say = request.node, partial(_say, request.config)
    with _plainly():
        gpus = markers.spec_of(node).gpus if markers.marked(node) else ()
        fleet = open_fleet(request.config.stash[keys.SETTINGS], node.nodeid, say, ollama_env, gpus)
    try:
        yield fleet
    finally:
        fleet.close()


@pytest.fixture
def ollama_factory(_llmperf_fleet: Fleet) -> InstanceFactory:
    """Start any number of isolated instances for this test, each with any environment."""

    def start(
        name: str | None = None, env: Mapping[str, str] | None = None, *, slots: int = 1, gpu: str | None = None
    ) -> Instance:
        with _plainly():
            return _llmperf_fleet.start(name, env, slots=slots, gpu=gpu)

    return start


@pytest.fixture
def ollama(ollama_factory: InstanceFactory) -> Instance:
    """One isolated instance: url, port, version, log, env."""
    return ollama_factory()


@pytest.fixture
def ollama_instances(request: pytest.FixtureRequest, _llmperf_fleet: Fleet) -> list[Instance]:
    """The instances of the mark's topology: one per agent (dedicated) or one for all (shared)."""
    spec = _declared(request.node)
    with _plainly():
        return _llmperf_fleet.deploy(spec)


@pytest.fixture
def llmperf(request: pytest.FixtureRequest) -> Gate:
    """The measurement of this test: `check()`, or `measure()` and the `assert_*` helpers. It starts servers then."""
    from pytest_llmperf import markers
    from pytest_llmperf.assertions import Gate
    from pytest_llmperf.case import Case
    from pytest_llmperf.measuring import Measurement
    from pytest_llmperf.spending import Purse

    node, stash = request.node, request.config.stash
    settings, marked = stash[keys.SETTINGS], stash[keys.MARKED]
    case = Case(node.nodeid, _declared(node), settings, marked)
    measurement = Measurement(case, request.getfixturevalue, partial(_say, request.config))
    gate = node.stash[keys.GATE] = Gate(case, measurement, partial(markers.side_of, node), Purse.of(request))
    return gate


def _say(config: pytest.Config, sentence: str) -> None:
    """Print now, past pytest's capture: whoever waits for a device should know for whom."""
    capture = config.pluginmanager.getplugin("capturemanager")
    with capture.global_and_fixture_disabled() if capture else nullcontext():
        print(f"\n{sentence}", file=sys.stderr, flush=True)  # noqa: T201


def _declared(node: pytest.Item) -> Spec:
    from pytest_llmperf import markers

    if markers.marked(node):
        return markers.spec_of(node)
    needs = "@pytest.mark.llmperf(scenario=..., model=...)"
    pytest.fail(f"llmperf: {node.nodeid} declares nothing to measure; write {needs} over it", pytrace=False)


@contextmanager
def _plainly() -> Iterator[None]:
    """Show what the user can put right as text alone: no line of ours in a traceback."""
    from pytest_llmperf.model import LlmperfError

    try:
        yield
    except (LlmperfError, OSError) as error:  # such as a full disk's
        raise pytest.fail.Exception(f"llmperf: {error}", pytrace=False) from None
