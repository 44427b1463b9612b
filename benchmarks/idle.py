"""What the plugin costs a pytest run that does not use it: `python benchmarks/idle.py [rounds]`.

A suite of one test is run with the plugin blocked and with it, by turns; CPU seconds of the whole process, because wall
time on a shared machine says little (POSIX only). Prints the medians and the median of the rounds' ratios.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path
from resource import RUSAGE_CHILDREN, getrusage
from statistics import median

COMMAND = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]


def cpu_seconds(folder: str, *options: str) -> float:
    before = getrusage(RUSAGE_CHILDREN)
    subprocess.run([*COMMAND, *options], cwd=folder, stdout=subprocess.DEVNULL, check=True)
    after = getrusage(RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main(rounds: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "test_one.py").write_text("def test_one(): pass\n", "utf-8")
        pairs = [(cpu_seconds(folder, "-p", "no:llmperf"), cpu_seconds(folder)) for _ in range(rounds + 1)][1:]
    bare, idle = (median(side) for side in zip(*pairs, strict=True))
    ratio = median(b / a for a, b in pairs)
    print(f"bare {1e3 * bare:.0f} ms, with the plugin {1e3 * idle:.0f} ms, ratio {ratio:.3f} ({rounds} rounds)")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 25)
