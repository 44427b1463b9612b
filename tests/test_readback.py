"""What servers of all eras say of a load, from lines their users posted; and how it is held against what was declared.

Beside each excerpt is the issue of https://github.com/ollama/ollama that it was posted in, where no other source is
named. Paths, time stamps and identifiers are shortened, nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import pytest

from pytest_llmperf.instances import Fleet
from pytest_llmperf.model import OptionValue
from pytest_llmperf.readback import InForce, differences, facts, read, unverified
from tests.builders import workload

V0_1_17 = (  # llama.cpp of late 2023, which is all that is logged of a load
    "llm_load_tensors: offloaded 35/35 layers to GPU\nllm_load_tensors: VRAM used: 12603.02 MB\n"
    "llama_new_context_with_model: n_ctx      = 2048\nllama_new_context_with_model: freq_base  = 10000.0\n"
)
V0_1_41 = (  # 3940, with OLLAMA_DEBUG
    'ollama[2436]: time=2024-06-06 level=DEBUG source=cpu_common.go:11 msg="CPU has AVX2"\n'
    'ollama[2436]: time=2024-06-06 level=INFO source=server.go:341 msg="starting llama server" '
    'cmd="/tmp/ollama1403/runners/cuda_v11/ollama_llama_server --model /data/ollama-models/blobs/sha256-0bd5 '
    "--ctx-size 2048 --batch-size 512 --embedding --log-disable --n-gpu-layers 81 --verbose --parallel 1 --port 39905"
    '"\nollama[2436]: time=2024-06-06 level=DEBUG source=server.go:356 msg=subprocess '
    'environment="[PATH=/home/p/.local/bin:/usr/local/sbin"\n'
)
V0_3 = (  # 1495, Intel's build: 999 layers are asked for whatever there is
    'time=2024-09-20 level=INFO source=server.go:395 msg="starting llama server" '
    'cmd="/tmp/ollama4991/runners/cpu_avx2/ollama_llama_server --model /home/me/.ollama/models/blobs/sha256-ff1d '
    "--ctx-size 8192 --batch-size 512 --embedding --log-disable --n-gpu-layers 999 --no-mmap --parallel 4 "
    '--port 36611"\n'
)
V0_4_1 = (  # 7622: 33 layers were meant for the GPU, and a runner was started that knows of none
    'time=2024-11-11 level=INFO source=memory.go:343 msg="offload to cuda" layers.requested=-1 layers.model=33 '
    'layers.offload=33 layers.split=""\n'
    'time=2024-11-11 level=INFO source=server.go:383 msg="starting llama server" '
    'cmd="/tmp/ollama3024/runners/cpu_avx2/ollama_llama_server --model /home/m/.ollama/models/blobs/sha256-8704 '
    '--ctx-size 8192 --batch-size 512 --n-gpu-layers 33 --threads 12 --parallel 4 --port 38059"\n'
)
V0_5_4 = (  # 8310
    "llm_load_tensors: offloading 28 repeating layers to GPU\nllm_load_tensors: offloading output layer to GPU\n"
    "llm_load_tensors: offloaded 29/29 layers to GPU\n"
)
V0_5_11 = (  # 9311, on Windows
    'time=2025-02-24 level=INFO source=server.go:380 msg="starting llama server" '
    r'cmd="C:\\Users\\l\\Ollama\\ollama.exe runner --model C:\\Users\\l\\.ollama\\models\\blobs\\sha256-11f2 '
    r"--ctx-size 2048 --batch-size 512 --n-gpu-layers 41 --mmproj C:\\Users\\l\\.ollama\\models\\blobs\\sha256-ece5 "
    '--threads 16 --no-mmap --parallel 1 --port 59625"\n'
)
V0_9_0 = (  # atineiatte/deep-research-at-home 14
    "> Jun 05 12:36:11 <ollama server> ollama[2597]: time=2025-06-05 level=INFO source=server.go:431 "
    'msg="starting llama server" cmd="/mnt/data/ollama/bin/ollama runner --ollama-engine --model /mnt/sha256-e8ad '
    '--ctx-size 8192 --batch-size 512 --threads 42 --no-mmap --parallel 2 --port 35253"\n'
)
V0_11_5 = (  # 12027
    'time=2025-08-24 level=INFO source=runner.go:925 msg=load request="{Operation:alloc LoraPath:[] Parallel:1 '
    "BatchSize:512 FlashAttention:true KvSize:9200 KvCacheType:q4_0 NumThreads:32 GPULayers:49[ID:GPU-620f "
    'Layers:49(0..48)] MultiUserCache:false ProjectorPath: MainGPU:0 UseMmap:false}"\n'
    'time=2025-08-24 level=INFO source=runner.go:925 msg=load request="{Operation:commit LoraPath:[] Parallel:1 '
    "BatchSize:512 FlashAttention:true KvSize:9200 KvCacheType:q4_0 NumThreads:32 GPULayers:49[ID:GPU-620f "
    'Layers:49(0..48)] MultiUserCache:false ProjectorPath: MainGPU:0 UseMmap:false}"\n'
    'time=2025-08-24 level=INFO source=ggml.go:486 msg="offloading 48 repeating layers to GPU"\n'
    'time=2025-08-24 level=INFO source=ggml.go:492 msg="offloading output layer to GPU"\n'
    'time=2025-08-24 level=INFO source=ggml.go:497 msg="offloaded 49/49 layers to GPU"\n'
)
V0_13_5 = (  # 13552
    "load_tensors: offloading 40 repeating layers to GPU\nload_tensors: offloading output layer to GPU\n"
    "load_tensors: offloaded 41/41 layers to GPU\n"
)
V0_17_4 = (  # 14510: a layout is tried
    'time=2026-02-28 level=INFO source=server.go:431 msg="starting runner" cmd="/usr/bin/ollama runner '
    '--ollama-engine --model /home/me/.ollama/models/blobs/sha256-5857 --port 36467"\n'
    'time=2026-02-28 level=INFO source=runner.go:1284 msg=load request="{Operation:fit LoraPath:[] Parallel:8 '
    "BatchSize:512 FlashAttention:Enabled KvSize:262144 KvCacheType:q8_0 NumThreads:12 GPULayers:49[ID:GPU-55d6 "
    'Layers:49(0..48)] MultiUserCache:false ProjectorPath: MainGPU:0 UseMmap:false}"\n'
)
V0_32 = (  # 17080
    "ollama[1814]: time=2026-07-21 level=INFO source=llama_server.go:433 "
    'msg="starting llama-server" cmd="/usr/local/lib/ollama/llama-server --model /usr/share/ollama/blobs/sha256-6540 '
    "--port 40031 --host 127.0.0.1 --no-webui --offline -c 262144 -np 1 --log-verbosity 4 --no-log-prefix "
    "--no-log-timestamps --no-jinja --chat-template chatml --flash-attn auto -b 512 -ub 512 --context-shift --keep 4"
    '"\n'
)
V0_33 = (  # Ollama's llm/llama_server_test.go
    "llm_load_tensors: offloaded 0/33 layers to GPU\nllm_load_tensors: offloaded 33/33 layers to GPU\n"
)
EMULATOR = (  # this package's own
    "time=2026-11-21T15:53:09.721Z level=INFO source=sched.go:1 "
    'msg="starting llama-server" cmd="llama-server --model gemma3:latest -c 4096 -np 2 -b 512 -ngl 80 -t 4"\n'
    "load_tensors: offloaded 35/35 layers to GPU\n"
)

POSTED = [
    pytest.param(V0_1_17, InForce(context=2048, layers=35, layers_total=35), id="0.1.17"),
    pytest.param(V0_1_41, InForce(context=2048, slots=1, batch=512), id="0.1.41"),
    pytest.param(V0_3, InForce(context=2048, slots=4, batch=512), id="0.3"),
    pytest.param(V0_4_1, InForce(context=2048, slots=4, batch=512, threads=12), id="0.4.1"),
    pytest.param(V0_5_4, InForce(layers=29, layers_total=29), id="0.5.4"),
    pytest.param(V0_5_11, InForce(context=2048, slots=1, batch=512, threads=16), id="0.5.11"),
    pytest.param(V0_9_0, InForce(context=4096, slots=2, batch=512, threads=42), id="0.9.0"),
    pytest.param(
        V0_11_5, InForce(context=9200, slots=1, batch=512, threads=32, layers=49, layers_total=49), id="0.11.5"
    ),
    pytest.param(V0_13_5, InForce(layers=41, layers_total=41), id="0.13.5"),
    pytest.param(V0_17_4, InForce(), id="0.17.4"),
    pytest.param(
        V0_17_4.replace(":fit", ":commit"),
        InForce(context=32768, slots=8, batch=512, threads=12),
        id="0.17.4 had it fitted",
    ),
    pytest.param(V0_32, InForce(context=262144, slots=1, batch=512), id="0.32"),
    pytest.param(V0_33, InForce(layers=33, layers_total=33), id="0.33"),
    pytest.param(
        EMULATOR, InForce(context=2048, slots=2, batch=512, threads=4, layers=35, layers_total=35), id="emulator"
    ),
    pytest.param("", InForce(), id="loaded already"),
]
ENTRY = {"name": "gemma3:4b", "size": 4_000, "size_vram": 3_000, "digest": "a2af6cc3eb7fa8be", "context_length": 4096}
GPU = InForce(context=2048, slots=1, layers=20, layers_total=35, batch=512, threads=4)


def declaring(found: InForce, slots: int = 1, digest: str | None = None, **options: OptionValue) -> list[str]:
    return differences(replace(workload(), options=options), slots, found, digest)


@pytest.mark.parametrize(("log", "found"), POSTED)
def test_a_log_of_any_era_is_read(log: str, found: InForce) -> None:
    assert read(None, log) == found


def test_the_emulator_says_what_is_in_force() -> None:
    fleet = Fleet(None, nullcontext(0.0))
    try:
        instance = fleet.start(None, {"OLLAMA_NUM_PARALLEL": "2"})
        with instance.control() as control:
            control.load("gemma3:latest", {"num_ctx": 2048, "num_gpu": 80, "num_thread": 4})
            (entry,) = control.loaded() or []
        found = read(entry, instance.log.read_text("utf-8"))
    finally:
        fleet.close()
    assert replace(found, size=None, size_vram=None, digest=None) == read(None, EMULATOR)
    assert found.size == found.size_vram
    assert found.digest == entry["digest"]


def test_of_several_loads_in_a_log_the_last_counts() -> None:
    assert read(None, V0_9_0 + EMULATOR) == read(None, EMULATOR)
    assert read(None, V0_17_4.replace(":fit", ":commit") + V0_11_5) == read(None, V0_11_5)
    assert read(None, V0_32 + V0_32.replace("-c 262144", "-c 32768")).context == 32768


def test_of_the_requests_of_a_load_only_the_one_committed_counts() -> None:
    """A load tries layouts, which may be others; the end of a runner is a request too, of nothing."""
    tried = V0_11_5.replace("KvSize:9200", "KvSize:18400", 1)
    closed = 'msg=load request="{Operation:close LoraPath:[] Parallel:0 BatchSize:0 KvSize:0 NumThreads:0}"\n'
    assert read(None, tried + closed) == read(None, V0_11_5)


def test_a_runner_that_only_looks_for_gpus_is_no_load() -> None:
    looking = 'level=DEBUG msg="starting runner" cmd="/usr/bin/ollama runner --ollama-engine --port 43217"\n'
    assert read(None, EMULATOR + looking) == read(None, EMULATOR)


def test_a_draft_models_layers_are_not_the_models() -> None:
    assert read(None, V0_33 + "load_tensors: offloaded 5/5 layers to GPU\n").layers_total == 33


def test_what_api_ps_shows_is_read() -> None:
    assert read(ENTRY, "") == InForce(context=4096, size=4_000, size_vram=3_000, digest="a2af6cc3eb7fa8be")


def test_where_both_know_the_context_the_log_counts() -> None:
    """Up to 0.15.4 /api/ps shows what was asked for, and the log what the model's training left of it."""
    assert read(ENTRY, EMULATOR).context == 2048


@pytest.mark.parametrize("entry", [{}, {"context_length": 0}, {"name": "gemma3:4b", "size": 4_000}])
def test_what_an_older_api_ps_leaves_out_is_not_known(entry: Mapping[str, Any]) -> None:
    found = read(entry, "")
    assert (found.context, found.layers, found.size_vram) == (None, None, None)


def test_nothing_in_vram_is_no_layer_on_the_gpu() -> None:
    assert read({**ENTRY, "size_vram": 0}, V0_3).layers == 0
    assert read({**ENTRY, "size_vram": 0}, V0_5_4).layers == 29  # a build that mistakes its own GPU logs its layers


def test_a_runner_without_gpu_support_leaves_layers_unknown() -> None:
    """0.4.1 counted on 33 layers in VRAM: its size_vram says nothing of the runner that was started."""
    found = read(ENTRY, V0_4_1)
    assert found.layers is None
    assert declaring(found, slots=4, num_gpu=33) == []
    assert unverified(replace(workload(), options={"num_gpu": 33}), 4, found) == ["num_gpu"]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"num_ctx": 2048, "num_gpu": 20, "num_batch": 512, "num_thread": 4},
        {"num_ctx": 2048.0, "temperature": 0.5, "stop": ["\n"]},
        {"num_gpu": -1, "num_thread": 0},
    ],
)
def test_what_is_in_force_as_declared_is_no_difference(options: Mapping[str, OptionValue]) -> None:
    assert differences(replace(workload(), options=options), 1, GPU) == []


@pytest.mark.parametrize("layers", [35, 80, 999])
def test_all_layers_and_more_are_all_layers(layers: int) -> None:
    assert declaring(replace(GPU, layers=35), num_gpu=layers) == []


@pytest.mark.parametrize("batch", [512, 256])
def test_a_batch_is_never_longer_than_the_context(batch: int) -> None:
    assert declaring(replace(GPU, context=256, batch=batch), num_ctx=256, num_batch=512) == []
    assert declaring(replace(GPU, context=2048, batch=128), num_batch=512) == [
        "agent1: num_batch=512 was declared, 128 is in force; declare num_batch=128"
    ]


def test_a_smaller_context_was_cut_to_the_trained_length() -> None:
    assert declaring(GPU, num_ctx=4096) == [
        (
            "agent1: num_ctx=4096 was declared, 2048 is in force: the server lowers it to what the model was trained "
            "for; declare num_ctx=2048"
        )
    ]


def test_a_larger_context_is_what_a_vision_model_needs() -> None:
    assert declaring(GPU, num_ctx=512) == [
        (
            "agent1: num_ctx=512 was declared, 2048 is in force: the server raises it to what a vision model needs at "
            "least; declare num_ctx=2048"
        )
    ]


@pytest.mark.parametrize(
    ("declared", "actual", "sentence"),
    [
        (
            80,
            20,
            (
                "num_gpu=80 was declared, which is all 35 layers; 20 are on the GPU: that is what its free memory "
                "held; free some, or declare num_gpu=20"
            ),
        ),
        (
            30,
            1,
            (
                "num_gpu=30 was declared; 1 is on the GPU: that is what its free memory held; free some, "
                "or declare num_gpu=1"
            ),
        ),
        (
            80,
            0,
            (
                "num_gpu=80 was declared, which is all 35 layers; none is on the GPU: the server sees no GPU it could "
                "use; look into its log, or declare num_gpu=0"
            ),
        ),
        (
            0,
            35,
            "num_gpu=0 was declared; 35 are on the GPU: the server decided otherwise; declare num_gpu=35",
        ),
    ],
)
def test_other_layers_than_declared_are_named(declared: int, actual: int, sentence: str) -> None:
    assert declaring(replace(GPU, layers=actual), num_gpu=declared) == [f"agent1: {sentence}"]


def test_a_cpu_server_whose_total_is_not_known_is_told_apart_too() -> None:
    found = read({**ENTRY, "size_vram": 0}, V0_3)
    assert declaring(found, slots=4, num_gpu=0) == []
    assert declaring(found, slots=4, num_gpu=1) == [
        (
            "agent1: num_gpu=1 was declared; none is on the GPU: the server sees no GPU it could use; "
            "look into its log, or declare num_gpu=0"
        )
    ]


def test_threads_and_slots_that_are_not_in_force_are_named() -> None:
    assert declaring(GPU, slots=2, num_thread=1) == [
        (
            "agent1: slots=2 was declared, 1 is in force: this server takes one request at a time for this model; "
            "declare slots=1"
        ),
        "agent1: num_thread=1 was declared, 4 is in force; declare num_thread=4",
    ]
    assert declaring(replace(GPU, slots=4)) == [
        (
            "agent1: slots=1 was declared, 4 is in force: this server takes 4 requests at a time for this model; "
            "declare slots=4"
        )
    ]


def test_other_weights_than_the_stores_are_named() -> None:
    found = read(ENTRY, "")
    assert declaring(found, digest="a2af6cc3eb7fa8be") == []
    assert declaring(found, digest="46e0c10c039e019119339687c3c1757c") == [
        (
            "agent1: the loaded gemma3:4b has digest a2af6cc3eb7f, the one in the store 46e0c10c039e: it was pulled or "
            "created anew since it was loaded; restart the server"
        )
    ]
    assert declaring(GPU, digest="46e0c10c039e") == []  # nothing is known of what is loaded


def test_what_was_declared_and_not_reported_is_unverified() -> None:
    agent = replace(workload(), options={"num_ctx": 512, "num_gpu": 0, "num_thread": 0, "temperature": 0})
    assert unverified(agent, 1, InForce()) == ["slots", "num_ctx", "num_gpu"]
    assert unverified(agent, 1, read({**ENTRY, "size_vram": 0}, "")) == ["slots"]
    assert unverified(agent, 1, GPU) == []


def test_the_facts_of_a_load_are_conditions() -> None:
    assert facts(GPU) == {"context": 2048, "layers": "20/35", "batch": 512, "threads": 4}
    assert facts(InForce(layers=0, size=4_000, digest="a2af")) == {"layers": 0}
    assert facts(InForce()) == {}
