"""What random kills leave behind: `python benchmarks/kills.py [kills] [seed]`.

A process, the owner, opens a fleet of two emulators, one of them with its model in a process of its own, and closes it.
At a moment drawn uniformly from its life, start and end included, SIGKILL hits what a kind names, as soon as that is
there. An owner that lives ends by itself; where its keeper was killed with it another fleet is opened, as the next run
does. What is left 20 s later counts: processes, scratch files, locks that are held. One line per kind (POSIX only).
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import closing, suppress
from pathlib import Path

import psutil
from filelock import FileLock, Timeout

from pytest_llmperf.instances import Fleet
from pytest_llmperf.lane import device_lane
from pytest_llmperf.scratch import MARK, PREFIX

KINDS = ("owner", "keeper, owner", "server", "keeper", "server, owner")
LIMIT_S = 20.0


def own() -> None:
    """The life of an owner."""
    with closing(Fleet(None, device_lane("kills", "a benchmark", print))) as fleet:
        fleet.start()
        with fleet.start(env={"LLMPERF_EMULATOR": "speed=20,fault=orphan"}).control() as control:
            control.load("gemma3:4b-it-q4_K_M", {})
        time.sleep(0.3)


class Scene:
    """A temporary folder with what happens in it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def owner(self) -> psutil.Popen:
        """One more owner; what it says of killed servers is not the point."""
        env = {**os.environ, "TMPDIR": str(self._folder), "LLMPERF_EMULATOR": "speed=20"}
        return psutil.Popen([sys.executable, __file__, "own"], env=env, stderr=subprocess.DEVNULL)

    def strike(self, owner: psutil.Popen, kind: str, draw: random.Random) -> bool:
        """Kill one of each that the kind names, the owner last; False if it ended before they were all there."""
        while owner.poll() is None:
            there: dict[str, Sequence[psutil.Process]] = {"owner": [owner], "server": self._marked()}
            there["keeper"] = self._keepers()
            if all(there[name] for name in kind.split(", ")):
                for victim in [draw.choice(there[name]) for name in kind.split(", ")]:
                    with suppress(psutil.Error):
                        victim.kill()
                return True
        return False

    def left(self) -> Counter[str]:
        """What is left after a while, nothing if that is so earlier."""
        give_up = time.monotonic() + LIMIT_S
        while (found := self._counted()).total() and time.monotonic() < give_up:
            time.sleep(0.05)
        for process in self._processes():
            process.kill()
        return found

    def _counted(self) -> Counter[str]:
        files = len(list(self._folder.glob(f"{PREFIX}*")))
        locks = sum(map(_held, self._folder.glob("*.lock")))
        return Counter(processes=len(self._processes()), files=files, locks=locks)

    def _processes(self) -> list[psutil.Process]:
        return self._marked() + self._keepers()

    def _marked(self) -> list[psutil.Process]:
        there = psutil.process_iter(["environ"])
        return [each for each in there if (each.info["environ"] or {}).get(MARK, "").startswith(str(self._folder))]

    def _keepers(self) -> list[psutil.Process]:
        lines = [(each, each.info["cmdline"] or [""]) for each in psutil.process_iter(["cmdline"])]
        return [each for each, words in lines if words[-1].startswith(str(self._folder))]


def _held(path: Path) -> bool:
    try:
        with FileLock(path, timeout=0):
            return False
    except Timeout:
        return True


def one(kind: str, life_s: float, draw: random.Random) -> Counter[str] | None:
    """What one kill leaves, None where it came too late."""
    with tempfile.TemporaryDirectory(prefix="kills-") as folder:
        scene = Scene(Path(folder).resolve())
        owner = scene.owner()
        time.sleep(draw.uniform(0, life_s))
        hit = scene.strike(owner, kind, draw)
        owner.wait(60)
        if kind == "keeper, owner":
            scene.owner().wait(60)
        left = scene.left()
        return left if hit else None


def main(kills: int, seed: int) -> None:
    """Kill, count and print."""
    draw, life_s, bad = random.Random(seed), _life_s(), 0  # noqa: S311 - not for secrets
    for number, kind in enumerate(KINDS):
        left, goal = list[Counter[str]](), len(range(number, kills, len(KINDS)))
        while len(left) < goal:
            if (found := one(kind, life_s, draw)) is not None:
                left.append(found)
        total = sum(left, Counter[str]())
        things = ", ".join(f"{total[what]} {what}" for what in ("processes", "files", "locks"))
        print(f"{kind}: {goal} kills left {things}", flush=True)
        bad += sum(each.total() > 0 for each in left)
    print(f"something was left after {bad} of {kills} kills (seed {seed}; an unharmed owner lives for {life_s:.2f} s)")


def _life_s() -> float:
    with tempfile.TemporaryDirectory(prefix="kills-") as folder:
        began = time.perf_counter()
        if code := Scene(Path(folder)).owner().wait(60):
            sys.exit(f"an owner that nobody kills ends with {code}")
        return time.perf_counter() - began


if __name__ == "__main__":
    if sys.argv[1:] == ["own"]:
        own()
    else:
        main(*[int(word) for word in (*sys.argv[1:], *("200", "1")[len(sys.argv) - 1 :])])
