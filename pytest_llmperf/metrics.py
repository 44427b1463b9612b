"""The metrics, one table entry each: name, unit, direction, scale, default margin and how to read it off a run.

d_i is agent i's duration in the concurrent run from the common release (waiting included), s_i the same alone,
W the makespan, N the number of agents. Standard library only.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import fmean, median, stdev
from typing import Literal

from pytest_llmperf.model import Better, Contended, Sample, Scale
from pytest_llmperf.traffic import Exchange, Run, Track


@dataclass(frozen=True)
class Reference:
    """What a run is read against: the session's solo runs, and the baseline's usual ttft in ms where there is one.

    `contended` names what makes a run a contended one: see `model.Contention`.
    """

    solo: tuple[Run, ...] = ()
    usual_ttft: float | None = None
    contended: Contended = "ttft doubled"


@dataclass(frozen=True, kw_only=True)
class Metric:
    """One metric. `margin` and `session_sd` are fractions for scale "ratio", in the metric's unit for "diff".

    `interleaved_margin` is that of a comparison whose sides take turns, None for the same: no session offset widens it.
    `read` gives one run's value, or None where the run can't tell; `summary` reduces a session's runs to one number.
    `gate` says when it is judged: always and for several agents unless the mark lists metrics, else when listed there.
    `short_runs` is whether a run whose model stopped early still counts.
    """

    name: str
    unit: str
    better: Better
    read: Callable[[Run, Reference], float | None]
    scale: Scale = "ratio"
    margin: float = 0.05
    interleaved_margin: float | None = None
    session_sd: float = 0.01
    gate: Literal["always", "several agents", "listed"] = "listed"
    summary: Callable[[Sequence[float]], float] = median
    short_runs: bool = False


def total_throughput(run: Run, _: Reference) -> float:
    """Tokens of all agents over the makespan: sum(tokens_i) / W, tok/s."""
    return sum(track.tokens for track in run.tracks) / run.makespan


def ttft(run: Run, _: Reference) -> float:
    """Release of a request to its first non-empty token by the client's clock; median of the run's requests, ms."""
    return median(_ttfts(run))


def ttft_p95(run: Run, _: Reference) -> float:
    """The 95th percentile of the time to first token over the run's requests, ms (TR116 section 11.2)."""
    return percentile(_ttfts(run), 0.95)


def _ttfts(run: Run) -> list[float]:
    return [1e3 * (exchange.first_token - exchange.released) for exchange in run.exchanges]


def speedup(run: Run, _: Reference) -> float | None:
    """sum(d_i) / W: the mean number of agents in flight (the studies' concurrency speedup, TR114 section 2.2)."""
    if len(run.tracks) == 1:
        return None
    return sum(track.duration for track in run.tracks) / run.makespan


def overlap_efficiency(run: Run, reference: Reference) -> float | None:
    """100 sum(d_i) / (N W), %: the studies' "parallel efficiency" (TR116 section 2.5). Blind to a common slowdown."""
    in_flight = speedup(run, reference)
    return None if in_flight is None else 100 * in_flight / len(run.tracks)


def parallel_efficiency(run: Run, reference: Reference) -> float | None:
    """100 S / N, %, with S = total_throughput / (sum of solo tokens / sum of solo seconds); None without solo runs."""
    seconds = sum(solo.makespan for solo in reference.solo)
    tokens = sum(track.tokens for solo in reference.solo for track in solo.tracks)
    if not seconds or not tokens:
        return None
    return 100 * total_throughput(run, reference) / (tokens / seconds) / len(run.tracks)


def decode_rate(run: Run, _: Reference) -> float | None:
    """Mean over agents of sum(eval_count - 1) / sum(eval_duration), tok/s: the first token comes from the prefill."""
    if not _decoding_reported(run.exchanges):
        return None
    rates = [_agent_decode_rate(track) for track in run.tracks]
    return fmean(rate for rate in rates if rate) if all(rates) else None


def _agent_decode_rate(track: Track) -> float | None:
    seconds = sum(exchange.server.get("eval", 0.0) for exchange in track.exchanges)
    return sum(exchange.tokens - 1 for exchange in track.exchanges) / seconds if seconds else None


def _decoding_reported(exchanges: Sequence[Exchange]) -> bool:
    """Whether a duration that is missing means zero, as with Ollama: decoding two tokens or more never takes none."""
    return all("eval" in exchange.server for exchange in exchanges if exchange.tokens > 1)


def contended(run: Run, reference: Reference) -> float | None:
    """100 if the run is contended as the reference defines it, else 0; None without the baseline or team it takes."""
    if reference.contended == "speedup < 1.5":
        in_flight = speedup(run, reference)
        return None if in_flight is None else 100.0 * (in_flight < 1.5)
    if reference.usual_ttft is None:
        return None
    limit = 2 * reference.usual_ttft if reference.contended == "ttft doubled" else reference.usual_ttft + 3000
    return 100.0 * (max(ttft(Run(tracks=(track,)), reference) for track in run.tracks) > limit)


def queue_wait(run: Run, _: Reference) -> float | None:
    """total - load - prompt_eval - eval of the server's own durations, median of the run's requests, ms.

    A part the server leaves out was zero; a server that leaves out the rest doesn't tell.
    """
    if not _decoding_reported(run.exchanges) or not all("total" in exchange.server for exchange in run.exchanges):
        return None
    return 1e3 * median(_unaccounted(exchange.server) for exchange in run.exchanges)


def _unaccounted(server: Mapping[str, float]) -> float:
    return server["total"] - sum(server.get(part, 0.0) for part in ("load", "prompt_eval", "eval"))


def load_time(run: Run, _: Reference) -> float | None:
    """The longest load_duration a server reported for a request of the run, ms: warm it is a few ms, never 0."""
    loads = [exchange.server["load"] for exchange in run.exchanges if "load" in exchange.server]
    return 1e3 * max(loads) if loads else None


def _gap(share: float) -> Callable[[Run, Reference], float | None]:
    def read(run: Run, _: Reference) -> float | None:
        gaps = [gap for exchange in run.exchanges for gap in exchange.gaps]
        return 1e3 * percentile(gaps, share) if gaps else None

    return read


def percentile(values: Sequence[float], share: float) -> float:
    """The value below which `share` of the values lie, linear between neighbours (Hyndman & Fan 1996, type 7)."""
    ordered, at = sorted(values), share * (len(values) - 1)
    low, high = ordered[math.floor(at)], ordered[math.ceil(at)]
    return low + (at - math.floor(at)) * (high - low)


def cv(values: Sequence[float]) -> float:
    """Coefficient of variation of two values or more, %: 100 * sample standard deviation (n - 1) / mean."""
    return 100 * stdev(values) / fmean(values)


_latency = partial(Metric, unit="ms", better="lower", margin=0.30, session_sd=0.10)

METRICS: Mapping[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric(name="total_throughput", unit="tok/s", better="higher", read=total_throughput, gate="always"),
        _latency(name="ttft", read=ttft, interleaved_margin=0.10, gate="always", short_runs=True),
        Metric(
            name="overlap_efficiency",
            unit="%",
            better="higher",
            read=overlap_efficiency,
            scale="diff",
            margin=5.0,
            session_sd=1.0,
            gate="several agents",
        ),
        Metric(name="makespan", unit="s", better="lower", read=lambda run, _: run.makespan),
        Metric(
            name="requests",
            unit="",
            better="lower",
            read=lambda run, _: max(len(track.exchanges) for track in run.tracks),
        ),
        Metric(name="parallel_efficiency", unit="%", better="higher", read=parallel_efficiency, session_sd=0.005),
        Metric(name="speedup", unit="x", better="higher", read=speedup),
        Metric(name="decode_rate", unit="tok/s", better="higher", read=decode_rate),
        Metric(
            name="contention_rate",
            unit="%",
            better="lower",
            read=contended,
            scale="diff",
            margin=5.0,
            session_sd=1.0,
            summary=fmean,
        ),
        Metric(
            name="queue_wait", unit="ms", better="lower", read=queue_wait, scale="diff", margin=50.0, session_sd=10.0
        ),
        _latency(name="ttft_p95", read=ttft_p95, interleaved_margin=0.10, short_runs=True),
        Metric(name="itl_p50", unit="ms", better="lower", read=_gap(0.50)),
        _latency(name="itl_p99", read=_gap(0.99)),
        _latency(name="load_time", read=load_time),
        Metric(name="tokens", unit="", better="higher", read=lambda run, _: sum(track.tokens for track in run.tracks)),
        Metric(name="cv", unit="%", better="lower", read=total_throughput, summary=cv),
    )
}

UNGATEABLE = frozenset({"contention_rate", "cv", "requests", "tokens"})
"""Reported only: one value per session, or a count that a share of the baseline says nothing about."""


HEADLINES = ("total_throughput", "ttft", "overlap_efficiency", "parallel_efficiency", "makespan")
"""What a reviewer reads first: the summary of a baseline file, the lines of a rebaseline."""


def gateable() -> list[str]:
    """The metrics a mark may list in `metrics=`, `margins=`, `session_sd=` and `floors=`."""
    return [name for name in METRICS if name not in UNGATEABLE]


def default_gated(agents: int) -> tuple[str, ...]:
    """The metrics that are judged when the mark doesn't list any."""
    wanted = {"always", "several agents"} if agents > 1 else {"always"}
    return tuple(name for name, metric in METRICS.items() if metric.gate in wanted)


def sample(run: Run, reference: Reference, *, kept: bool = True) -> Sample:
    """One run reduced to its metrics' values; one with a request that ended early counts for ttft and ttft_p95 only."""
    short = any(exchange.short for exchange in run.exchanges)
    wanted = [m for m in METRICS.values() if m.name != "cv" and (m.short_runs or not short)]
    values = {metric.name: metric.read(run, reference) for metric in wanted}
    return Sample({name: value for name, value in values.items() if value is not None}, kept)


def summaries(samples: Iterable[Sample]) -> dict[str, float]:
    """Every metric's summary over the kept runs: the median, contention_rate's mean, cv's variation, own units."""
    kept = [s.values for s in samples if s.kept]
    series = {name: [values[name] for values in kept if name in values] for name in METRICS}
    if len(series["total_throughput"]) > 1:
        series["cv"] = series["total_throughput"]
    return {name: METRICS[name].summary(values) for name, values in series.items() if values}
