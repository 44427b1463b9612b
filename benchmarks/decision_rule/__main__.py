"""What the decision rule does to clean and to slower code: `python -m benchmarks.decision_rule` in the project's root.

`--scale 0.1` takes a tenth of the repeats, `--only whole_job noise` some of the tables. Seeded: the same figures every
time, whatever the number of cores. Shares are in % and have their standard error beside them.
"""

from __future__ import annotations

import argparse
import os
import platform
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain, product
from multiprocessing import Pool
from random import Random
from statistics import median

from benchmarks.decision_rule.simulation import (
    NOISES,
    POLICIES,
    Case,
    Job,
    Outcome,
    Shared,
    block,
    mean,
    session,
    share,
)
from pytest_llmperf import plan
from pytest_llmperf.gate import judge
from pytest_llmperf.judgement import Judgement

TESTS, JOBS, BLOCKS = 10_000, 3_000, 50
FOUR = (0.25, 0.5, 0.8, 1.2)
"""Run-to-run deviations of a test's four metrics, in margins."""
WHOLE = Case(sigmas=FOUR, tests=20)
WORLDS: Sequence[tuple[float, float, Shared, int]] = [
    (0, 0, "job", 4),
    (0.5, 0.5, "job", 4),
    (0.5, 0.25, "job", 4),
    (0.5, 0, "job", 4),
    (1, 1, "job", 4),
    (1, 0.5, "job", 4),
    (1, 0, "job", 4),
    (0.5, 0.5, "metric", 4),
    (0.5, 0.5, "nobody", 4),
    (0.5, 0.5, "nobody", 8),
]
"""A session offset's sd and what is declared, both in sigmas; who shares an offset; sessions of the baseline."""
ONE_SESSION = "alarms", "held", "runs", "caught 1.5", "caught 2", "runs at 2"

Run = Callable[[Case], list[Job]]
Cells = Sequence[object]


def tests(run: Run, case: Case) -> list[Outcome]:
    return list(chain.from_iterable(run(case)))


def one_session(run: Run, case: Case) -> Cells:
    """What ONE_SESSION names, without a second session."""
    clean, some, slow = (tests(run, replace(case, worse=worse)) for worse in (0, 1.5, 2))
    alarms, *caught = (share(one.once == "regressed" for one in found) for found in (clean, some, slow))
    cost = mean(one.runs for one in clean), mean(one.runs for one in slow)
    return alarms, share(one.held for one in clean), cost[0], *caught, cost[1]


def sampling(run: Run) -> Iterator[Cells]:
    """One metric: fixed n = 10 at one look against looks at 5, 7, 10; without and with a second session"""
    yield "sigma", "worse", "session term", "looks", "regressed", "held", "runs", "regressed twice", "runs of both"
    for sigma, worse, pooled, looks in product((0.65, 1.2), (0, 1, 1.5, 2), (False, True), ((10,), plan.looks(10))):
        found = tests(run, Case(sigmas=(sigma,), worse=worse, looks=looks, pooled=pooled))
        seen = share(one.once == "regressed" for one in found), share(one.held for one in found)
        cost = mean(one.runs for one in found), share(one.red() for one in found)
        at = ", ".join(map(str, looks))
        yield sigma, worse, "off" if pooled else "on", at, *seen, *cost, mean(one.runs + one.again for one in found)


def whole_job(run: Run) -> Iterator[Cells]:
    """A clean job of 20 tests of 4 metrics: red jobs by llmperf_inconclusive, and its tests"""
    yield (
        *("offset sd", "declared", "offset shared by", "baseline sessions", *POLICIES, "pass, one session only"),
        *("red tests: pass", POLICIES[1], "held tests", "runs", "runs of second sessions"),
    )
    for offset, declared, shared, sessions in WORLDS:
        case = replace(WHOLE, offset=offset, declared=declared, shared=shared, sessions=sessions)
        jobs = run(case)
        flat = list(chain.from_iterable(jobs))
        red = [share(any(one.red(policy) for one in job) for job in jobs) for policy in POLICIES]
        once = share(any(one.once == "regressed" for one in job) for job in jobs)
        each = [share(one.red(policy) for one in flat) for policy in POLICIES[:2]]
        cost = mean(one.runs for one in flat), mean(one.again for one in flat)
        yield offset, declared, shared, sessions, *red, once, *each, share(one.held for one in flat), *cost


def two_margins(run: Run) -> Iterator[Cells]:
    """A worsening of two margins, no session offset: caught"""
    yield "metrics of the test", "sigma of the worse one", "by one session", *POLICIES
    for sigmas, hit in ((FOUR[2:3], 0), *((FOUR, metric) for metric in range(4))):
        found = tests(run, Case(sigmas=sigmas, hit=hit, worse=2))
        caught = [share(one.red(policy) for one in found) for policy in POLICIES]
        yield len(sigmas), sigmas[hit], share(one.once == "regressed" for one in found), *caught


def noise(run: Run) -> Iterator[Cells]:
    """One metric under other noise: false alarms and power, without and with the second session"""
    yield "noise", "sigma", "alarms, one session", "alarms", "held", "caught 1.5", "caught 2, one session", "caught 2"
    for kind, sigma in product(NOISES, (0.65, 1.2)):
        clean, some, slow = (tests(run, Case(sigmas=(sigma,), noise=kind, worse=worse)) for worse in (0, 1.5, 2))
        alarms = share(one.once == "regressed" for one in clean), share(one.red() for one in clean)
        caught = share(one.once == "regressed" for one in slow), share(one.red() for one in slow)
        yield kind, sigma, *alarms, share(one.held for one in clean), share(one.red() for one in some), *caught


def policies(run: Run) -> Iterator[Cells]:
    """One metric: what llmperf_inconclusive costs, offset declared right"""
    yield "offset sd", "sigma", "llmperf_inconclusive", "false alarms", "missed at 1.5", "missed at 2"
    for offset, sigma in product((0, 0.5), (0.65, 0.8, 1.2)):
        case = Case(sigmas=(sigma,), offset=offset, declared=offset)
        clean, some, slow = (tests(run, replace(case, worse=worse)) for worse in (0, 1.5, 2))
        for policy in POLICIES:
            missed = [share(not one.red(policy) for one in found) for found in (some, slow)]
            yield offset, sigma, policy, share(one.red(policy) for one in clean), *missed


def interleaved(run: Run) -> Iterator[Cells]:
    """One metric, sigma 0.8, one session: interleaved ABBA against a stored baseline with its offset declared"""
    yield "offset sd", "noise", "against", *ONE_SESSION
    worlds = [(offset, "normal") for offset in (0, 0.5, 1, 2)]
    for (offset, kind), turns in product([*worlds, (0.5, "drift -0.3 a run")], (False, True)):
        case = Case(offset=offset, declared=offset, noise=kind, interleaved=turns)
        yield offset, kind, "interleaved" if turns else "stored", *one_session(run, case)


def below_half_margin(found: Sequence[Judgement], most: int) -> bool:
    """`plan.enough` if hopeless took an estimate below half of the margin, not of the wider projected half-width."""
    return _enough(found, lambda one: plan.hopeless(one, most) and one.change < one.margin / 2)


def never_hopeless(found: Sequence[Judgement], most: int) -> bool:  # noqa: ARG001  # as plan.enough is called
    return _enough(found, lambda _: False)


def _enough(found: Sequence[Judgement], hopeless: Callable[[Judgement], bool]) -> bool:
    decided = all(one.verdict != "inconclusive" or hopeless(one) for one in found)
    return decided or any(one.verdict == "regressed" for one in found)


READINGS = {"plan.hopeless": plan.enough, "below half the margin": below_half_margin, "never": never_hopeless}


def stopping(run: Run) -> Iterator[Cells]:
    """One metric: when to call it hopeless; one session"""
    yield "sigma", "hopeless", *ONE_SESSION
    for sigma, (name, enough) in product((0.65, 1.2, 2.5), READINGS.items()):
        yield sigma, name, *one_session(run, Case(sigmas=(sigma,), enough=enough))


def timing(_: Run) -> Iterator[Cells]:
    """One verdict of one metric, 20 runs against 10"""
    yield "calls", "median ms"
    random, taken = Random(1), []  # noqa: S311  # repeatable
    for _call in range(2_000):
        base = [session(random, Case(), [0.0], 5)[0] for _session in range(4)]
        candidate = session(random, Case(), [0.0], 10)[0]
        began = time.perf_counter()
        judge(base, candidate, scale="diff", margin=1.0, looks=3)
        taken.append(time.perf_counter() - began)
    yield len(taken), f"{1e3 * median(taken):.3f}"


TABLES: Mapping[str, Callable[[Run], Iterator[Cells]]] = {
    table.__name__: table
    for table in (whole_job, two_margins, policies, sampling, noise, interleaved, stopping, timing)
}


def show(name: str, run: Run) -> None:
    head, *rows = TABLES[name](run)
    print(f"\n### {name}: {TABLES[name].__doc__}\n")
    for cells in (head, ["---"] * len(head), *rows):
        print("| " + " | ".join(map(str, cells)) + " |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.decision_rule", description=__doc__)
    parser.add_argument("--scale", type=float, default=1.0, help="share of the repeats (default: all)")
    parser.add_argument("--only", nargs="+", choices=TABLES, default=TABLES, help="the tables to print")
    parser.add_argument("--cores", type=int, default=os.cpu_count())
    options = parser.parse_args()
    began = time.perf_counter()
    with Pool(options.cores) as pool:

        def run(case: Case) -> list[Job]:
            jobs = max(1, round((TESTS if case.tests == 1 else JOBS) * options.scale / BLOCKS))
            return list(chain.from_iterable(pool.starmap(block, [(case, jobs, seed) for seed in range(BLOCKS)], 1)))

        for name in options.only:
            show(name, run)
    print(f"\nPython {platform.python_version()}, {options.cores} cores, {time.perf_counter() - began:.0f} s")


if __name__ == "__main__":
    main()
