"""Gates on a multi-agent stack: copy one, change the model and the prompts, record a baseline, commit it.

The last two tests compare configurations with each other and need no baseline.
"""

import pytest

from pytest_llmperf import Agent, Gate

pytestmark = pytest.mark.llmperf(model="gemma3:4b-it-q4_K_M", tokens=48)

CHIMERA = {"num_gpu": 80, "num_ctx": 2048, "temperature": 1.0}


@pytest.mark.llmperf(scenario="single_agent", options=CHIMERA)
def test_one_agent_alone(llmperf: Gate) -> None:
    llmperf.check()


@pytest.mark.llmperf(scenario="chimera_homo", options=CHIMERA)
def test_two_equal_agents(llmperf: Gate) -> None:
    llmperf.check()


@pytest.mark.llmperf(scenario="baseline_vs_chimera", options=CHIMERA, policies=["appendix-h2"])
def test_a_tuned_agent_beside_a_default_one(llmperf: Gate) -> None:
    measured = llmperf.measure()
    llmperf.assert_throughput(measured)
    llmperf.assert_ttft(measured, at_most=500)
    llmperf.assert_policies(measured)
    llmperf.assert_contention(measured)


@pytest.mark.llmperf(
    scenario="chimera_hetero",
    agents=[
        Agent(name="collector", options={"num_gpu": 80, "num_ctx": 2048}),
        Agent(name="analyst", options={"num_gpu": 80, "num_ctx": 4096}),
    ],
    floors={"overlap_efficiency": 80},
)
def test_two_different_agents(llmperf: Gate) -> None:
    llmperf.check()


@pytest.mark.llmperf(scenario="chimera_homo", options=CHIMERA)
def test_two_instances_answer_sooner_than_one(llmperf: Gate) -> None:
    comparison = llmperf.compare(control={"topology": "shared"}, treatment={"topology": "dedicated"})
    llmperf.assert_faster(comparison, metric="ttft", by=0.4)


@pytest.mark.llmperf(scenario="chimera_homo", options=CHIMERA)
def test_one_instance_with_two_slots_does_more_than_two_instances(llmperf: Gate) -> None:
    comparison = llmperf.compare(control={"topology": "dedicated"}, treatment={"topology": "shared", "slots": 2})
    llmperf.assert_faster(comparison, by=0.3)
