"""What a genuine server says is in force for a model it loaded, on a machine where it sees no GPU."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import nullcontext

import pytest

from pytest_llmperf.instances import Fleet
from pytest_llmperf.model import OptionValue, Workload
from pytest_llmperf.readback import InForce, differences, facts, read, unverified
from pytest_llmperf.versions import absent, parse

from .genuine import Genuine
from .tiny_model import SIZES

SANE: Mapping[str, OptionValue] = {"num_thread": 1, "num_ctx": 512}
Loaded = tuple[InForce, Workload]


@pytest.fixture
def fleet(genuine_ollama: Genuine, monkeypatch: pytest.MonkeyPatch) -> Iterator[Fleet]:
    monkeypatch.setenv("OLLAMA_MODELS", str(genuine_ollama.models))
    fleet = Fleet(str(genuine_ollama.binary), nullcontext(0.0))
    try:
        yield fleet
    finally:
        fleet.close()


def load(fleet: Fleet, model: str, options: Mapping[str, OptionValue], slots: int = 1) -> Loaded:
    """Load a model on a server of its own and read back what is in force."""
    instance = fleet.start(None, {"OLLAMA_NUM_PARALLEL": str(slots)})
    before = len(instance.log.read_text("utf-8"))
    with instance.control() as control:
        control.load(model, options)
        (entry,) = control.loaded() or []
    found = read(entry, instance.log.read_text("utf-8")[before:])
    return found, Workload(name="agent1", model=model, options=options, prompts=("hello",), tokens=16)


@pytest.mark.parametrize("model", SIZES)
@pytest.mark.parametrize("slots", [1, 2])
def test_a_sane_declaration_is_in_force_and_verified(fleet: Fleet, model: str, slots: int) -> None:
    found, agent = load(fleet, model, SANE, slots)

    assert differences(agent, slots, found, found.digest) == []
    assert unverified(agent, slots, found) == []
    assert (found.slots, found.size_vram) == (slots, 0)
    assert facts(found) == {"context": 512, "layers": 0, "batch": 512, "threads": 1}


def test_a_context_beyond_the_trained_length_is_in_force_in_0_5_4(fleet: Fleet) -> None:
    """The models are trained for 2048; servers from 0.9.3 on cut what is declared to that."""
    found, agent = load(fleet, "small", {**SANE, "num_ctx": 4096})

    assert found.context == 4096
    assert differences(agent, 1, found) == []


def test_a_batch_longer_than_the_context_is_no_difference(fleet: Fleet) -> None:
    found, agent = load(fleet, "small", {**SANE, "num_batch": 1024})

    assert differences(agent, 1, found) == []


@pytest.mark.parametrize(("layers", "differing"), [(-1, 0), (0, 0), (2, 1), (80, 1)])
def test_layers_that_no_gpu_holds_are_a_difference(fleet: Fleet, layers: int, differing: int) -> None:
    """This build asks its runner for 999 layers, whatever is declared, and has no GPU for them."""
    found, agent = load(fleet, "small", {**SANE, "num_gpu": layers})

    sentence = (
        f"agent1: num_gpu={layers} was declared; none is on the GPU: the server sees no GPU it could use; "
        "look into its log, or declare num_gpu=0"
    )
    assert differences(agent, 1, found) == [sentence] * differing


def test_slots_and_options_that_others_declared_are_differences(fleet: Fleet) -> None:
    found, agent = load(fleet, "small", SANE, slots=2)
    other = Workload(name="agent2", model="small", options={"num_ctx": 1024}, prompts=agent.prompts, tokens=16)

    assert [sentence.partition(" was declared")[0] for sentence in differences(other, 1, found)] == [
        "agent2: slots=1",
        "agent2: num_ctx=1024",
    ]


def test_of_a_model_that_was_loaded_already_only_api_ps_tells(fleet: Fleet) -> None:
    instance = fleet.start()
    with instance.control() as control:
        control.load("small", SANE)
        before = len(instance.log.read_text("utf-8"))
        control.load("small", SANE)
        (entry,) = control.loaded() or []
    agent = Workload(name="agent1", model="small", options=SANE, prompts=("hello",), tokens=16)
    found = read(entry, instance.log.read_text("utf-8")[before:])

    assert differences(agent, 1, found) == []
    assert unverified(agent, 1, found) == ["slots", "num_ctx", "num_thread"]


def test_its_version_is_known_and_gives_every_metric(genuine_ollama: Genuine) -> None:
    assert parse(genuine_ollama.version) == (0, 5, 4)
    assert absent(genuine_ollama.version) == frozenset()
