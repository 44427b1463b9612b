"""Made-up runs through the plugin's own decision rule.

Only the values are invented: noise around a session's offset, less the worsening, larger is better, all in margins.
Every verdict comes from `judge` and `plan`, called as the plugin calls them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from random import Random
from statistics import fmean, stdev
from typing import Literal

from pytest_llmperf import plan
from pytest_llmperf.gate import judge
from pytest_llmperf.judgement import Judgement
from pytest_llmperf.model import Verdict, worst

Series = list[list[float]]
"""By metric, the values of one session in run order; or by session, the offsets of the metrics."""
Policy = Literal["pass", "fail-if-worse", "fail"]
"""The values of llmperf_inconclusive."""
Shared = Literal["job", "metric", "nobody"]
POLICIES: Sequence[Policy] = ("pass", "fail-if-worse", "fail")

NOISES: Mapping[str, Callable[[Random, int], float]] = {
    "normal": lambda random, _: random.gauss(0, 1),
    "first run -8": lambda random, run: random.gauss(0, 1) - 8 * (run == 0),
    "6 % of runs -10": lambda random, _: random.gauss(0, 1) - 10 * (random.random() < 0.06),
    "Student's t3": lambda random, _: random.gauss(0, 1) / math.sqrt(random.gammavariate(1.5, 2)),
    "drift -0.3 a run": lambda random, run: random.gauss(0, 1) - 0.3 * run,
}
"""A run's noise by its place in the session, in run-to-run deviations; t3 is scaled to a deviation of 1."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """A job's world and how it is judged: `worse` margins on the metric number `hit`, `sigmas` per metric in margins.

    `sessions` are the baseline's, of 5 runs each; `offset` is the sd of a session's offset and `declared` what the mark
    says of it, both in sigmas. `shared` says who gets the same offset in a session: all metrics of all tests of the
    job, each metric over all tests, or nobody. `pooled` hides the baseline's sessions from the rule, which then has no
    session term.
    """

    sigmas: tuple[float, ...] = (0.8,)
    worse: float = 0.0
    hit: int = 0
    tests: int = 1
    sessions: int = 4
    offset: float = 0.0
    declared: float = 0.0
    shared: Shared = "job"
    noise: str = "normal"
    looks: tuple[int, ...] = plan.looks(10)
    pooled: bool = False
    interleaved: bool = False
    enough: Callable[[Sequence[Judgement], int], bool] = plan.enough


@dataclass(frozen=True)
class Outcome:
    """A test's verdict by its first session, and by both, and the runs taken.

    Of an inconclusive test `worse_twice` says that a metric was estimated beyond the margin in both sessions.
    """

    once: Verdict
    verdict: Verdict
    runs: int
    again: int = 0
    worse_twice: bool = False

    @property
    def held(self) -> bool:
        """Whether every metric is held or improved."""
        return self.verdict in ("held", "improved")

    def red(self, policy: Policy = "pass") -> bool:
        """Whether the test fails under a value of llmperf_inconclusive."""
        loud = {"pass": False, "fail-if-worse": self.worse_twice, "fail": True}
        return self.verdict == "regressed" or (self.verdict == "inconclusive" and loud[policy])


Job = list[Outcome]


def offsets(random: Random, case: Case) -> Series:
    """Offsets by session (the baseline's, the first, the second) and metric, in sigmas."""
    draws = [[random.gauss(0, case.offset) for _ in case.sigmas] for _ in range(case.sessions + 2)]
    return [[each[0]] * len(each) for each in draws] if case.shared == "job" else draws


def session(random: Random, case: Case, offset: Sequence[float], runs: int, worse: float = 0.0) -> Series:
    """The values of each metric over the runs of a session."""
    noise = NOISES[case.noise]
    return [
        [sigma * (own + noise(random, run)) - worse * (metric == case.hit) for run in range(runs)]
        for metric, (sigma, own) in enumerate(zip(case.sigmas, offset, strict=True))
    ]


def in_turns(random: Random, case: Case, offset: Sequence[float], runs: int) -> tuple[Series, Series]:
    """So many runs each of the old and of the new code, in one session in ABBA order."""
    both = session(random, case, offset, 2 * runs)
    old = [[value for run, value in enumerate(each) if run % 4 in (0, 3)] for each in both]
    new = [
        [value - case.worse * (metric == case.hit) for run, value in enumerate(each) if run % 4 in (1, 2)]
        for metric, each in enumerate(both)
    ]
    return old, new


def judged(case: Case, base: Sequence[Series], candidate: Series, looks: int) -> list[Judgement]:
    """Each metric of a session so far."""
    found = []
    for metric, sigma in enumerate(case.sigmas):
        sessions = [each[metric] for each in base]
        found.append(
            judge(
                [list(chain.from_iterable(sessions))] if case.pooled else sessions,
                candidate[metric],
                scale="diff",
                margin=1.0,
                session_sd=case.declared * sigma,
                looks=looks,
                interleaved=case.interleaved,
            )
        )
    return found


def compared(random: Random, case: Case, offset: Series) -> Outcome:
    """A comparison as the plugin runs it: both sides grow, and there is no second session."""
    old, new = in_turns(random, case, offset[-1], case.looks[-1])
    for runs in case.looks:
        control, treatment = ([each[:runs] for each in side] for side in (old, new))
        found = judged(case, [control], treatment, len(case.looks))
        if case.enough(found, case.looks[-1]):
            break
    verdict = worst([one.verdict for one in found])
    return Outcome(verdict, verdict, 2 * runs)


def gated(random: Random, case: Case, offset: Series) -> Outcome:
    """A test as the plugin runs it: looks at a first session, and a second one where the first is doubtful."""
    *stored, own, other = offset
    base = [session(random, case, each, plan.SESSION_RUNS) for each in stored]
    first = session(random, case, own, case.looks[-1], case.worse)
    for runs in case.looks:
        found = judged(case, base, [each[:runs] for each in first], len(case.looks))
        if case.enough(found, case.looks[-1]):
            break
    once = worst([one.verdict for one in found])
    if not plan.doubtful(found):
        return Outcome(once, once, runs)
    again = judged(case, base, session(random, case, other, plan.SESSION_RUNS, case.worse), looks=1)
    final = [plan.confirmed(one, two) for one, two in zip(found, again, strict=True)]
    return Outcome(
        once,
        worst([one.verdict for one in final]),
        runs,
        plan.SESSION_RUNS,
        worse_twice=any(map(plan.worse_twice, found, again)),
    )


def job(random: Random, case: Case) -> Job:
    """All tests of one job."""
    one_test, common = (compared if case.interleaved else gated), offsets(random, case)
    return [
        one_test(random, case, offsets(random, case) if case.shared == "nobody" else common) for _ in range(case.tests)
    ]


def block(case: Case, jobs: int, seed: int) -> list[Job]:
    """So many jobs from one seed, the same for all cases: these then differ by the rule more than by luck."""
    random = Random(seed)  # noqa: S311  # a simulation wants to be repeatable, not unpredictable
    return [job(random, case) for _ in range(jobs)]


def share(flags: Iterable[bool]) -> str:
    """A share in % with its standard error, by (k + 1)/(n + 2), which is not 0 for none or all."""
    seen = list(flags)
    p = (sum(seen) + 1) / (len(seen) + 2)
    return f"{100 * fmean(seen):.2f} ±{100 * math.sqrt(p * (1 - p) / len(seen)):.2f}"


def mean(values: Iterable[float]) -> str:
    """A mean with its standard error."""
    seen = list(values)
    return f"{fmean(seen):.2f} ±{stdev(seen) / math.sqrt(len(seen)):.2f}"
