"""Which differences void a baseline, and who is told to answer for them."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from pytest_llmperf.triggers import Value, fired
from tests.builders import CONDITIONS

RUNNER = "the runner changed, not this change"
STORE = "the model in the store changed, not this change"
TOOL = "pytest-llmperf measures differently now, not this change"
CHANGE = "this change declares another workload"

Conditions = Mapping[str, Value]

HOMO: Conditions = {"agents": 2, "agent.model": "gemma", "agent.options.num_ctx": 512, "agent.digest": "a2af"}
HETERO: Conditions = {
    "agents": 2,
    "agent.digest": "a2af",
    "agent1.model": "gemma",
    "agent1.options.num_ctx": 512,
    "agent2.model": "gemma",
    "agent2.options.num_ctx": 1024,
}


def said(old: Conditions, new: Conditions) -> list[str]:
    return [str(trigger) for trigger in fired(old, new)]


def test_equal_conditions_fire_nothing() -> None:
    assert fired(CONDITIONS, dict(reversed([*CONDITIONS.items()]))) == ()
    assert fired({}, {"gpu": None}) == ()


@pytest.mark.parametrize(
    ("field", "old", "new", "words"),
    [
        ("cpu", "Ryzen 7", "Ryzen 9", f"cpu: Ryzen 7 -> Ryzen 9 ({RUNNER})"),
        ("cores", 8, 16, f"cores: 8 -> 16 ({RUNNER})"),
        ("memory", "32 GiB", "64 GiB", f"memory: 32 GiB -> 64 GiB ({RUNNER})"),
        ("os", "Linux 5", "Linux 6", f"os: Linux 5 -> Linux 6 ({RUNNER})"),
        ("gpu", None, "CUDA RTX 4080", f"gpu: not set -> CUDA RTX 4080 ({RUNNER})"),
        ("server", "ollama 0.12.3", "ollama 0.13.0", f"server: ollama 0.12.3 -> ollama 0.13.0 ({RUNNER})"),
        ("backend", "ollama", "emulator", f"backend: ollama -> emulator ({RUNNER})"),
        ("harness", 1, 2, f"harness: 1 -> 2 ({TOOL})"),
        ("physics", 1, 2, f"physics: 1 -> 2 ({TOOL})"),
        ("agent.digest", "a2af", "77ab", f"agent.digest: a2af -> 77ab ({STORE})"),
        ("agent.quantization", "Q4_0", "Q4_K_M", f"agent.quantization: Q4_0 -> Q4_K_M ({STORE})"),
        ("scenario", "chimera_homo", "chimera_hetero", f"scenario: chimera_homo -> chimera_hetero ({CHANGE})"),
        ("topology", "dedicated", "shared", f"topology: dedicated -> shared ({CHANGE})"),
        ("agent.tokens", 128, 64, f"agent.tokens: 128 -> 64 ({CHANGE})"),
        (
            "agent.options.use_mmap",
            True,
            None,
            f"agent.options.use_mmap: True -> not set ({CHANGE})",
        ),
    ],
)
def test_a_field_is_shown_old_to_new_with_whose_change_it_is(field: str, old: Value, new: Value, words: str) -> None:
    assert said({**CONDITIONS, field: old}, {**CONDITIONS, field: new}) == [words]


def test_every_field_fires_in_the_order_of_the_names() -> None:
    old: Conditions = {"os": "Linux 5", "cpu": "a", "agent.tokens": 1}
    new: Conditions = {"agent.tokens": 2, "os": "Linux 6", "cpu": "b"}
    assert [trigger.field for trigger in fired(old, new)] == ["agent.tokens", "cpu", "os"]


def test_the_digest_of_another_model_is_not_blamed_on_the_store() -> None:
    assert said(HOMO, {**HOMO, "agent.model": "llama", "agent.digest": "77ab"}) == [
        f"agent.digest: a2af -> 77ab ({CHANGE})",
        f"agent.model: gemma -> llama ({CHANGE})",
    ]


def test_agents_that_are_no_longer_alike_are_compared_each_on_its_own() -> None:
    assert said(HOMO, HETERO) == [f"agent2.options.num_ctx: 512 -> 1024 ({CHANGE})"]
    assert said(HETERO, HOMO) == [f"agent2.options.num_ctx: 1024 -> 512 ({CHANGE})"]


def test_one_more_agent_is_one_difference_as_long_as_all_are_alike() -> None:
    assert said(HOMO, {**HOMO, "agents": 3}) == [f"agents: 2 -> 3 ({CHANGE})"]


def test_an_agent_that_was_not_there_is_declared_by_this_change() -> None:
    three = {**HETERO, "agents": 3, "agent3.model": "llama", "agent3.options.num_ctx": 512}
    assert said(HETERO, three) == [
        f"agent3.digest: not set -> a2af ({CHANGE})",
        f"agent3.model: not set -> llama ({CHANGE})",
        f"agent3.options.num_ctx: not set -> 512 ({CHANGE})",
        f"agents: 2 -> 3 ({CHANGE})",
    ]


def test_a_model_that_was_exchanged_in_the_store_is_named_for_each_agent() -> None:
    assert said(HETERO, {**HETERO, "agent.digest": "77ab"}) == [
        f"agent1.digest: a2af -> 77ab ({STORE})",
        f"agent2.digest: a2af -> 77ab ({STORE})",
    ]


def test_a_file_whose_number_of_agents_is_no_number_is_still_compared() -> None:
    assert said({**HETERO, "agents": "two"}, HETERO)[-1] == f"agents: two -> 2 ({CHANGE})"


PLACED = "the server placed the model otherwise, not this change"


def test_what_the_server_decided_is_not_blamed_on_this_change() -> None:
    old, new = {**HOMO, "agent.layers": "35/35"}, {**HOMO, "agent.layers": "20/35"}
    assert said(old, new) == [f"agent.layers: 35/35 -> 20/35 ({PLACED})"]
    declared = {**new, "agent.options.num_gpu": 20}
    assert said(old, declared) == [
        f"agent.layers: 35/35 -> 20/35 ({CHANGE})",
        f"agent.options.num_gpu: not set -> 20 ({CHANGE})",
    ]


def test_what_one_side_does_not_tell_is_no_difference() -> None:
    assert said({**HOMO, "agent.layers": "35/35", "agent.batch": 512}, HOMO) == []
    assert said(HOMO, {**HOMO, "agent.context": 2048}) == []
