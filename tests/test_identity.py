"""Conditions: what is among them, what is not, and the names that are made of them."""

from __future__ import annotations

import math
import platform
import re
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from pytest_llmperf import baseline, identity
from pytest_llmperf.model import OptionValue, Spec, Workload
from tests.builders import spec, workload

MODELS = {
    "gemma3:4b": {"digest": "a2af6cc3eb7fa8be8504abaf9b04e88f", "details": {"quantization_level": "Q4_K_M"}},
    "llama3.1:8b": {"digest": "46e0c10c039e019119339687c3c1757c", "details": {"quantization_level": "Q4_0"}},
}


def conditions(of: Spec, backend: str = "emulator") -> identity.Conditions:
    entries = [MODELS[agent.model] for agent in of.agents]
    found: list[dict[str, str | int]] = [{"context": 2048, "layers": "35/35"}] * len(entries)
    return identity.conditions(
        of, backend=backend, version="0.12.3", gpu="CUDA RTX 4080 12.0 GiB", models=entries, in_force=found
    )


def with_agents(*agents: Workload) -> Spec:
    return replace(spec(), agents=agents)


def with_options(**options: OptionValue) -> Spec:
    return with_agents(*(replace(agent, options=options) for agent in spec().agents))


def test_an_emulated_measurement_has_these_conditions_and_nothing_of_its_host() -> None:
    assert conditions(spec()) == {
        "harness": identity.HARNESS,
        "server": "ollama 0.12.3",
        "gpu": "CUDA RTX 4080 12.0 GiB",
        "backend": "emulator",
        "physics": identity.EMULATOR_PHYSICS,
        "scenario": "chimera_homo",
        "topology": "dedicated",
        "slots": 1,
        "agents": 2,
        "agent.model": "gemma3:4b",
        "agent.options.num_ctx": 512,
        "agent.prompts": "e554f91c2648",
        "agent.tokens": 48,
        "agent.digest": "a2af6cc3eb7fa8be",
        "agent.quantization": "Q4_K_M",
        "agent.context": 2048,
        "agent.layers": "35/35",
    }


def test_of_a_real_measurement_the_hardware_is_among_the_conditions() -> None:
    found = conditions(spec(), "ollama")
    assert found["backend"] == "ollama"
    assert "physics" not in found
    assert identity.hardware().items() <= found.items()
    assert found["cpu"] == identity.processor() != ""
    assert found["cores"] == psutil.cpu_count()
    assert found["os"] == f"{platform.system()} {platform.release().partition('.')[0]}"


def test_memory_is_a_tier_that_a_machine_stays_in() -> None:
    memory = identity.hardware()["memory"]
    assert isinstance(memory, str)
    tier = float(memory.removesuffix(" GiB"))
    assert math.log2(tier).is_integer()
    assert 2**-0.5 <= tier / (psutil.virtual_memory().total / 2**30) <= 2**0.5


def test_agents_that_differ_have_their_own_fields_each() -> None:
    second = replace(workload("agent2"), model="llama3.1:8b", options={"num_ctx": 1024, "stop": ["\n", "."]})
    found = conditions(with_agents(workload(), second))
    assert {name: value for name, value in found.items() if name.startswith("agent")} == {
        "agents": 2,
        "agent1.model": "gemma3:4b",
        "agent1.options.num_ctx": 512,
        "agent1.prompts": "e554f91c2648",
        "agent1.tokens": 48,
        "agent1.digest": "a2af6cc3eb7fa8be",
        "agent1.quantization": "Q4_K_M",
        "agent1.context": 2048,
        "agent1.layers": "35/35",
        "agent2.model": "llama3.1:8b",
        "agent2.options.num_ctx": 1024,
        "agent2.options.stop": '["\\n", "."]',
        "agent2.prompts": "e554f91c2648",
        "agent2.tokens": 48,
        "agent2.digest": "46e0c10c039e0191",
        "agent2.quantization": "Q4_0",
        "agent2.context": 2048,
        "agent2.layers": "35/35",
    }


def test_an_agent_alone_is_like_itself() -> None:
    found = conditions(spec(agents=1))
    assert found == {**conditions(spec()), "agents": 1}


def test_a_store_that_says_little_of_a_model_leaves_the_field_unset() -> None:
    entry = {"digest": "a2af", "details": None}
    found = identity.conditions(
        spec(), backend="ollama", version="0.1.17", gpu=None, models=[entry] * 2, in_force=[{}, {}]
    )
    assert (found["agent.digest"], found["agent.quantization"], found["gpu"]) == ("a2af", None, None)


def test_the_emulated_machine_is_named_after_its_device() -> None:
    assert identity.machine_name(emulated=True) == "emulated-rtx4080"


def test_this_machine_has_one_name_and_it_is_a_folder_anywhere() -> None:
    name = identity.machine_name(emulated=False)
    assert name == identity.machine_name(emulated=False)
    assert re.fullmatch(rf"[a-z0-9][a-z0-9-]{{0,39}}-{psutil.cpu_count()}c-{platform.system().lower()}", name)
    folder = baseline.path_for(Path("root"), name, "a.py::test").relative_to("root").parts[0]
    assert folder == name


@pytest.mark.parametrize(
    ("said", "name"),
    [
        ("AMD Ryzen 9 7945HX with Radeon Graphics", "amd-ryzen-9-7945hx-radeon"),
        ("Intel(R) Core(TM) i7-8750H CPU @ 2.20GHz", "intel-core-i7-8750h"),
        ("Intel(R) Xeon(R) Platinum 8480+ Processor", "intel-xeon-platinum-8480"),
        ("Apple M3 Max", "apple-m3-max"),
        ("A" * 39 + " B", "a" * 39),
        ("龙芯", platform.machine().lower()),
    ],
)
def test_a_processors_name_becomes_a_short_one(monkeypatch: pytest.MonkeyPatch, said: str, name: str) -> None:
    monkeypatch.setattr(identity, "processor", lambda: said)
    found = identity.machine_name(emulated=False)
    assert found == f"{name}-{psutil.cpu_count()}c-{platform.system().lower()}"


def test_a_content_key_knows_no_names_and_no_protocol() -> None:
    renamed = tuple(replace(agent, name=f"other-{agent.name}") for agent in spec().agents)
    same = [
        replace(spec(), id="pair"),
        replace(spec(), agents=renamed),
        replace(spec(), max_runs=10, solo_runs=0, warmup_requests=0),
        replace(spec(), gated=("ttft",), margins={"ttft": 0.1}, floors={"ttft": 500}),
    ]
    assert {identity.content_key(one) for one in same} == {identity.content_key(spec())}
    assert re.fullmatch(r"[0-9a-f]{12}", identity.content_key(spec()))


def test_the_order_of_options_is_nothing_to_a_content_key() -> None:
    keys = {
        identity.content_key(with_options(num_ctx=512, seed=7)),
        identity.content_key(with_options(seed=7, num_ctx=512)),
    }
    assert len(keys) == 1


@pytest.mark.parametrize(
    "other",
    [
        with_options(num_ctx=1024),
        with_options(num_ctx=512, seed=7),
        with_options(),
        spec(agents=3),
        replace(spec(), scenario="agent_workflow"),
        replace(spec(), topology="shared"),
        with_agents(workload(), replace(workload("agent2"), tokens=64)),
        with_agents(*[replace(workload(), prompts=("Why not?",))] * 2),
        with_agents(*[replace(workload(), prompts=("Why?", "Why?"))] * 2),
        with_agents(*[replace(workload(), model="llama3.1:8b")] * 2),
    ],
)
def test_whatever_a_mark_declares_otherwise_has_another_content_key(other: Spec) -> None:
    assert identity.content_key(other) != identity.content_key(spec())


@pytest.mark.parametrize("url", ["http://127.0.0.1:11434", "http://localhost:1", "http://[::1]:11434"])
def test_servers_of_this_machine_that_ran_already_are_kept_apart(url: str) -> None:
    own = identity.machine_name(emulated=False)
    assert identity.machine_name(emulated=False, servers=[url]) == f"{own}-attached"


def test_of_servers_on_another_machine_nothing_is_known_but_where_they_are() -> None:
    name = identity.machine_name(emulated=False, servers=["http://gpu.example.org:11434"])
    assert re.fullmatch("remote-[0-9a-f]{8}", name)
    assert name != identity.machine_name(emulated=False, servers=["http://other.example.org:11434"])
    found = conditions(spec(), "ollama on another machine")
    assert not identity.hardware().keys() & found.keys()


@pytest.mark.parametrize(
    ("gpus", "pattern"), [(("0",), "0,0"), (("0", "1"), "0,1"), (("1", "0"), "0,1"), (("GPU-a", "GPU-a"), "0,0")]
)
def test_which_instances_share_a_gpu_is_declared_and_not_which_gpu_it_is(gpus: tuple[str, ...], pattern: str) -> None:
    assert identity.declared(replace(spec(), gpus=gpus))["gpus"] == pattern
    assert "gpus" not in identity.declared(spec())
