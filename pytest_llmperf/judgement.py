"""One metric judged: what the decision rule found, and how to show it. Standard library only."""

from __future__ import annotations

import math
from dataclasses import dataclass

from pytest_llmperf.model import Better, Scale, Sharper, Verdict


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """One metric judged. Everything is in the worsening direction on the gate's scale: `shown` is for display.

    `change` is the estimated worsening, `low` and `high` its one-sided bounds at level `alpha` (-inf and inf for too
    few runs), `catches80` about the smallest true worsening that would be called regressed 4 times in 5. `half_within`
    is the half-width due to run-to-run noise, `half_session` that due to session offsets. `m` and `n` count baseline
    and candidate runs. A floor has neither baseline nor margin: its change is how far the location lies beyond it.
    """

    verdict: Verdict
    change: float
    low: float
    high: float
    catches80: float
    half_within: float
    half_session: float = 0.0
    m: int = 0
    n: int
    sessions: int = 0
    margin: float = 0.0
    better: Better = "higher"
    scale: Scale = "diff"
    alpha: float = 0.05
    interleaved: bool = False
    reason: str = ""

    @property
    def sharper(self) -> Sharper:
        """What would make the bounds closer: more runs, or more sessions."""
        return "sessions" if self.half_session > self.half_within else "runs"

    @property
    def never(self) -> bool:
        """Whether these baseline sessions can never hold an unchanged candidate, however many runs it takes."""
        return self.verdict == "inconclusive" and (math.isinf(self.high) or 0 < self.margin <= self.half_session)

    def shown(self, shift: float) -> float:
        """A shift as shown to people: `back_transform` with this judgement's direction and scale."""
        return back_transform(shift, better=self.better, scale=self.scale)


def back_transform(shift: float, *, better: Better, scale: Scale) -> float:
    """A shift on the gate's scale as shown to people, still positive for worse.

    "ratio": a fraction of the baseline, 1 - exp(-shift) if higher is better, else exp(shift) - 1. "diff": unchanged.
    """
    if scale == "diff":
        return shift
    return -math.expm1(-shift) if better == "higher" else math.expm1(shift)
