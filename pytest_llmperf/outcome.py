"""What became of one test: its judged rows, its self-check, and the entry that travels to the controller.

Standard library only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, Self

from pytest_llmperf.model import Baseline, Sharper, Verdict, worst

Against = Literal["baseline", "floor", "control"]

UNREPORTED = "no run gave a value; it may need several agents, or this server may not report it"


@dataclass(frozen=True, kw_only=True)
class Row:
    """One judged line of a test: a metric against its baseline, against a floor, or against a comparison's control.

    `change`, `low`, `high` and `catches80` are in the worsening direction: fractions of what it is judged `against` for
    ratio metrics, the metric's unit otherwise and for floors, whose bounds are the metric's own values. `margin` is the
    margin, the floor, or the gain if the row is a `claim`; `policy` names where a floor comes from. `catches80` is
    about the smallest worsening that would be called regressed 4 times in 5, `sharper` what would make it smaller.
    `never` is set where nothing but more sessions can ever decide. `again` is the same metric in a second session, with
    that session's own verdict; `worse_twice` says of an inconclusive one that both lie beyond the margin.
    """

    metric: str
    verdict: Verdict
    value: float | None = None
    baseline: float | None = None
    change: float | None = None
    low: float | None = None
    high: float | None = None
    margin: float | None = None
    against: Against = "baseline"
    policy: str = ""
    claim: bool = False
    runs: int = 0
    baseline_runs: int = 0
    catches80: float | None = None
    sharper: Sharper | None = None
    never: bool = False
    again: Row | None = None
    worse_twice: bool = False
    reason: str = ""

    @classmethod
    def from_payload(cls, payload: Mapping[str, Any]) -> Self:
        """From builtins, as they travel from a worker to the controller."""
        again = payload["again"]
        return cls(**{**payload, "again": cls.from_payload(again) if again else None})


def verdict_of(rows: Sequence[Row]) -> Verdict | None:
    """The verdict of a test: the worst of the rows that have a say, None without one."""
    return worst([row.verdict for row in weighing(rows)]) if rows else None


def weighing(rows: Sequence[Row]) -> Sequence[Row]:
    """The rows that have a say in their test's verdict.

    A share of contended runs that so few runs can't tell is shown beside others and does not count: 5 clean runs allow
    for 45 %.
    """
    return [row for row in rows if (row.metric, row.verdict) != ("contention_rate", "inconclusive")] or rows


@dataclass(frozen=True, kw_only=True)
class Check:
    """What a self-check found for one metric, or for the whole test (`metric` is "").

    In `trials` trials of unchanged code `alarms` were regressed; of those slowed down by `slowed` (a fraction)
    `noticed` were, None where a slowdown can't move the metric. `session_sd` is how much sessions differ, `declared`
    what the mark says: fractions for ratio metrics, else the metric's unit.
    """

    metric: str
    trials: int
    alarms: int
    noticed: int | None = None
    slowed: float | None = None
    session_sd: float | None = None
    declared: float | None = None


@dataclass(frozen=True, kw_only=True)
class Entry:
    """What one measured test tells the controller: travels as builtins on the test's own report.

    `servers` are the URLs of servers that ran already. `notes` say what was wrong, `remarks` what is worth knowing
    whatever the verdict; `checks` are a self-check's.
    """

    test: str
    verdict: Verdict | None
    machine: str = ""
    emulated: bool = False
    servers: tuple[str, ...] = ()
    rows: tuple[Row, ...] = ()
    gated: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()
    checks: tuple[Check, ...] = ()
    record: Baseline | None = None
    path: str = ""
    command: str = ""
    passed: bool = True

    def to_payload(self) -> dict[str, Any]:
        """Builtins only: execnet refuses dataclasses, enums and paths."""
        return asdict(self)

    @classmethod
    def from_payload(cls, payload: Mapping[str, Any]) -> Self:
        """The inverse of `to_payload`."""
        record = payload["record"]
        return cls(
            **{
                **payload,
                "servers": tuple(payload["servers"]),
                "rows": tuple(map(Row.from_payload, payload["rows"])),
                "notes": tuple(payload["notes"]),
                "remarks": tuple(payload["remarks"]),
                "checks": tuple(Check(**check) for check in payload["checks"]),
                "gated": tuple(payload["gated"]),
                "record": Baseline.from_payload(record) if record else None,
            }
        )
