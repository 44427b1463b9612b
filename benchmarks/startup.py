"""What isolation costs at the start: `python benchmarks/startup.py [rounds] [instances] [folder]`.

Instances are started one after the other, each until its first HTTP 200: through a fleet, as the fixtures do it, and by
the bare command with a HOME of its own and a port that is known beforehand. By turns; prints the medians of the wall
seconds and the median of the rounds' ratios. Of the emulator, and of the genuine Ollama that the tests keep in `folder`
or LLMPERF_GENUINE_OLLAMA.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import closing, suppress
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).parents[1]))

from pytest_llmperf import ollama
from pytest_llmperf.instances import Fleet
from pytest_llmperf.lane import device_lane
from tests.real_ollama.genuine import set_up

POLL_S = 0.001


def through_a_fleet(binary: str | None, instances: int) -> float:
    """Seconds until the last one is ready; stopping them is not timed."""
    began = time.perf_counter()
    with closing(Fleet(binary, device_lane("startup", "a benchmark", print))) as fleet:
        for _ in range(instances):
            fleet.start()
        return time.perf_counter() - began


def bare(binary: str | None, instances: int) -> float:
    """The same with nothing around it."""
    started: list[subprocess.Popen[bytes]] = []
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        try:
            for number in range(instances):
                home, port = Path(folder, str(number)), _free_port()
                home.mkdir()
                env = {**os.environ, "HOME": str(home), "TMPDIR": folder, "OLLAMA_HOST": f"127.0.0.1:{port}"}
                with Path(home, "log").open("wb") as log:
                    started.append(subprocess.Popen(ollama.argv(binary), env=env, cwd=home, stdout=log, stderr=log))
                _await(port)
            return time.perf_counter() - began
        finally:
            for process in started:
                process.terminate()
                process.wait()


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as door:
        return int(door.getsockname()[1])


def _await(port: int) -> None:
    while True:
        with closing(HTTPConnection("127.0.0.1", port, timeout=2)) as client, suppress(OSError, HTTPException):
            client.request("GET", "/api/version")
            if client.getresponse().status == 200:
                return
        time.sleep(POLL_S)


def compare(name: str, binary: str | None, rounds: int, instances: int) -> None:
    """Print one line; the first round warms caches and does not count."""
    sides: tuple[Callable[[str | None, int], float], ...] = (bare, through_a_fleet)
    pairs = [tuple(side(binary, instances) for side in sides) for _ in range(rounds + 1)][1:]
    plain, fleet = (median(side) for side in zip(*pairs, strict=True))
    ratio = median(b / a for a, b in pairs)
    times = f"bare {1e3 * plain:.0f} ms, through a fleet {1e3 * fleet:.0f} ms, ratio {ratio:.3f}"
    print(f"{name}: {instances} instances: {times} ({rounds} rounds)", flush=True)


def main(rounds: str = "15", instances: str = "4", folder: str = "") -> None:
    """Compare for each server there is."""
    compare("emulator", None, int(rounds), int(instances))
    if kept := folder or os.environ.get("LLMPERF_GENUINE_OLLAMA"):
        genuine = set_up(Path(kept))
        os.environ["OLLAMA_MODELS"] = str(genuine.models)
        compare(f"ollama {genuine.version}", str(genuine.binary), int(rounds), int(instances))


if __name__ == "__main__":
    main(*sys.argv[1:])
