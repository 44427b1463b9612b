"""GPUs: the true NVML binding on a stand-in for the driver, the sentence about memory, a machine without a driver."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from textwrap import dedent

import psutil
import pytest

from pytest_llmperf import gpu
from pytest_llmperf.gpu import Gpu, Holder, crowded
from tests.nvml import FakeNvml, missing

NOWHERE = 2**22 + 1  # above Linux's highest process id
SOON = time.time_ns() // 1000 + 3600 * 10**6
"""A driver's time of a sample, in microseconds: after whatever these tests begin."""


def card(free: float = 7.1, *holders: Holder, name: str = "NVIDIA RTX 4080", total: float = 12.0) -> Gpu:
    return Gpu(0, "GPU-0", name, int(total * 1e9), int(free * 1e9), holders)


OLLAMA = Holder(812, 3_900_000_000, "ollama.service")
PYTHON = Holder(NOWHERE, 900_000_000, "python")


@pytest.fixture(scope="module")
def nvml(tmp_path_factory: pytest.TempPathFactory) -> FakeNvml:
    if reason := missing():
        pytest.skip(reason)
    pytest.importorskip("pynvml", reason="nvidia-ml-py is not installed")
    fake = FakeNvml(tmp_path_factory.mktemp("nvml"))
    fake.build()
    return fake


@pytest.fixture
def other() -> Iterator[psutil.Process]:
    """A process that is not a child of the one that asks."""
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) as process:
        yield psutil.Process(process.pid)
        process.kill()


def test_gpus_are_read_with_their_memory_and_its_holders(nvml: FakeNvml, other: psutil.Process) -> None:
    text = f"""\
        gpu GPU-aa 12884901888 7100000000 NVIDIA GeForce RTX 4080 Laptop GPU
        gpu GPU-bb 25769803776 25000000000 NVIDIA RTX 4000
        process 0 compute {other.pid} 3900000000
        process 0 compute {NOWHERE} 1000
        process 0 graphics {other.pid} 3900000000
        process 0 graphics {os.getpid()} -1
    """
    nvml.answers.write_text(dedent(text))
    found = nvml.run("answer([asdict(one) for one in gpu.gpus()])")
    assert found == [
        {
            "index": 0,
            "uuid": "GPU-aa",
            "name": "NVIDIA GeForce RTX 4080 Laptop GPU",
            "total": 12884901888,
            "free": 7100000000,
            "holders": [
                {"pid": other.pid, "used": 3900000000, "name": gpu._name(other.pid)},
                {"pid": NOWHERE, "used": 1000, "name": "an unseen process"},
                {"pid": os.getpid(), "used": None, "name": gpu._name(os.getpid())},
            ],
        },
        {
            "index": 1,
            "uuid": "GPU-bb",
            "name": "NVIDIA RTX 4000",
            "total": 25769803776,
            "free": 25000000000,
            "holders": [],
        },
    ]


@pytest.mark.parametrize("function", ["nvmlInitWithFlags", "nvmlDeviceGetHandleByIndex_v2", "nvmlDeviceGetMemoryInfo"])
def test_a_driver_that_refuses_is_no_gpu(nvml: FakeNvml, function: str) -> None:
    nvml.answers.write_text(f"gpu GPU-aa 12 7 NVIDIA\nerror {function} 4\n")
    assert nvml.run("answer(gpu.gpus())") == []
    nvml.answers.write_text("gpu GPU-aa 12 7 NVIDIA\n")
    assert len(nvml.run("answer([asdict(one) for one in gpu.gpus()])")) == 1


def test_a_driver_that_does_not_list_processes_still_tells_the_memory(nvml: FakeNvml) -> None:
    nvml.answers.write_text("gpu GPU-aa 12 7 NVIDIA\nerror nvmlDeviceGetComputeRunningProcesses_v3 3\n")
    assert nvml.run("answer([[one.free, one.holders] for one in gpu.gpus()])") == [[7, []]]


def foreign(nvml: FakeNvml, samples: list[str], ours: list[int]) -> list[str]:
    nvml.answers.write_text("\n".join(["gpu GPU-aa 12 7 A", "gpu GPU-bb 12 7 B", *samples, ""]))
    found: list[str] = nvml.run(f"answer(gpu.Activity().foreign({ours}))")
    return found


def test_who_uses_a_gpu_and_is_not_ours_is_named_with_its_share(nvml: FakeNvml, other: psutil.Process) -> None:
    samples = [f"sample 0 {other.pid} {SOON} 40", f"sample 1 {other.pid} {SOON} 3"]
    assert foreign(nvml, samples, []) == [f"{gpu._name(other.pid)} 43 %"]
    assert foreign(nvml, samples, [other.pid]) == []
    assert foreign(nvml, samples, [os.getpid()]) == [], "a child of ours is foreign"


def test_who_hardly_uses_a_gpu_or_only_did_before_is_not_named(nvml: FakeNvml, other: psutil.Process) -> None:
    assert foreign(nvml, [f"sample 0 {other.pid} {SOON} 3"], []) == []
    assert foreign(nvml, [f"sample 0 {other.pid} {SOON} 4"], []) == [f"{gpu._name(other.pid)} 4 %"]
    assert foreign(nvml, [f"sample 0 {other.pid} 1700000000000000 90"], []) == []
    assert foreign(nvml, [f"process 0 compute {other.pid} 11"], []) == []


def test_a_process_of_another_world_and_an_impossible_share_name_nobody(nvml: FakeNvml, other: psutil.Process) -> None:
    assert foreign(nvml, [f"sample 0 {NOWHERE} {SOON} 90", f"sample 0 {other.pid} {SOON} 1600"], []) == []
    assert foreign(nvml, [f"sample 0 {other.pid} 0 90"], []) == []


@pytest.mark.parametrize("code", [3, 6])
def test_a_gpu_that_cannot_tell_its_users_names_nobody(nvml: FakeNvml, other: psutil.Process, code: int) -> None:
    broken = f"error nvmlDeviceGetProcessUtilization {code}"
    assert foreign(nvml, [broken, f"sample 0 {other.pid} {SOON} 90"], []) == []


def test_each_call_asks_for_what_came_since_the_last(nvml: FakeNvml, other: psutil.Process) -> None:
    found = nvml.run(
        f"""
        tell("gpu GPU-aa 12 7 A\\n")
        activity = gpu.Activity()
        calls = [activity.foreign([])]
        for at, share in ({SOON}, 40), ({SOON}, 40), ({SOON} + 1, 20):
            tell(f"gpu GPU-aa 12 7 A\\nsample 0 {other.pid} {{at}} {{share}}\\n")
            calls.append(activity.foreign([]))
        answer(calls)
        """
    )
    name = gpu._name(other.pid)
    assert found == [[], [f"{name} 40 %"], [], [f"{name} 20 %"]]


@pytest.mark.skipif(Path("/proc/driver/nvidia").exists(), reason="there is a driver here")
def test_without_a_driver_there_are_no_gpus_and_nobody_uses_them() -> None:
    assert gpu.gpus() == []
    assert gpu.Activity().foreign([]) == []


def test_without_the_library_it_is_the_same(tmp_path: Path) -> None:
    (tmp_path / "pynvml.py").write_text("raise ImportError")
    code = "from pytest_llmperf import gpu; print(gpu.pynvml, gpu.gpus(), gpu.Activity().foreign([]))"
    env = os.environ | {"PYTHONPATH": str(tmp_path)}
    assert subprocess.check_output([sys.executable, "-c", code], env=env, text=True) == "None [] []\n"


@pytest.mark.parametrize(
    ("cgroups", "service"),
    [
        ("0::/system.slice/ollama.service\n", "ollama.service"),
        ("12:pids:/system.slice/a.service\n1:name=systemd:/system.slice/b.service\n0::/\n", "b.service"),
        ("0::/user.slice/user-1000.slice/user@1000.service/app.slice/ollama.service\n", "ollama.service"),
        ("0::/user.slice/user-1000.slice/user@1000.service/app.slice/app-gnome-firefox-4242.scope\n", ""),
        ("9:pids:/user.slice/user@1000.service\n1:name=systemd:/user.slice/session-2.scope\n", ""),
        ("0::/system.slice/docker-0123456789ab.scope\n", ""),
        ("0::/\n", ""),
    ],
)
def test_a_process_is_called_by_its_systemd_service(cgroups: str, service: str) -> None:
    assert gpu._service(cgroups) == service


def test_models_that_fit_into_the_free_memory_crowd_nobody() -> None:
    assert crowded(7_100_000_000, [card(7.1, OLLAMA)], []) == ""
    assert crowded(14_000_000_000, [card(7.1), card(7.1)], []) == ""
    assert crowded(10**15, [], []) == ""


def test_the_sentence_says_who_holds_the_memory_that_is_missing() -> None:
    assert crowded(8_600_000_000, [card(7.1, PYTHON, OLLAMA)], []) == (
        "the models need about 8.6 GB and 7.1 of 12.0 GB are free on NVIDIA RTX 4080: ollama.service holds 3.9 GB, "
        f"python (pid {NOWHERE}) holds 0.9 GB; stop what holds the memory, or declare smaller num_ctx or num_gpu"
    )


def test_our_own_processes_are_not_blamed() -> None:
    said = crowded(8_600_000_000, [card(7.1, PYTHON, Holder(os.getpid(), 10**9, "ollama"))], [os.getpid(), NOWHERE])
    assert said.startswith("the models need about 8.6 GB and 7.1 of 12.0 GB are free on NVIDIA RTX 4080; stop what")


def test_a_service_on_two_gpus_is_named_once() -> None:
    said = crowded(20_000_000_000, [card(8.1, OLLAMA), card(8.1, OLLAMA, name="NVIDIA RTX 3060")], [])
    assert "16.2 of 24.0 GB are free on NVIDIA RTX 4080 and NVIDIA RTX 3060: ollama.service holds 7.8 GB; stop" in said


def test_only_the_five_largest_holders_are_named_and_an_unknown_amount_is_called_so() -> None:
    holders = [Holder(NOWHERE + n, n * 10**9 or None, "dwm.exe") for n in range(7)]
    said = crowded(8_600_000_000, [card(7.1, *holders)], [])
    assert f"dwm.exe (pid {NOWHERE + 2}) holds 2.0 GB, 2 more hold less; stop" in said
    said = crowded(8_600_000_000, [card(7.1, holders[0])], [])
    assert f"on NVIDIA RTX 4080: dwm.exe (pid {NOWHERE}) holds an unknown part; stop" in said


def test_models_larger_than_the_gpu_are_told_so() -> None:
    assert crowded(18_600_000_000, [card(7.1, OLLAMA)], []) == (
        "the models need about 18.6 GB and the GPU has 12.0 GB in all (NVIDIA RTX 4080); "
        "declare smaller models, num_ctx or num_gpu"
    )
    assert "and the GPUs have 24.0 GB in all (NVIDIA RTX 4080 and A2);" in crowded(
        30_000_000_000, [card(), card(name="A2")], []
    )
