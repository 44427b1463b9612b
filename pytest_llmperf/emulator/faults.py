"""What one request will emit, and the faults that bend it: one entry of `FAULTS` each."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import count
from typing import Literal

from pytest_llmperf.emulator import log


@dataclass(frozen=True)
class Plan:
    """One request's answer: how many tokens, why it ends, and whether a final record follows."""

    tokens: int
    reason: Literal["stop", "length"]
    ending: Literal["done", "cut", "error"] = "done"


@dataclass(frozen=True)
class Fault:
    """Something that goes wrong: `at_start` runs before the socket is bound, `bend` changes every request's plan.

    `refuse` gives the words of a 503 for a chat that gets no other answer.
    """

    at_start: Callable[[], None] = lambda: None
    bend: Callable[[Plan], Plan] = lambda plan: plan
    refuse: Callable[[], str] = lambda: ""


def _exit() -> None:
    log.plain("Error: llama-server binary not found (fault=exit)")
    sys.exit(1)


def _never_listen() -> None:
    while True:
        time.sleep(3600)


def _ignore_sigterm() -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def _half(plan: Plan) -> int:
    return max(1, plan.tokens // 2)


_HIT = 9
"""The request that `hiccup` and `reload` hit: after three warm-ups, a discarded run and up to three solo runs it is in
one of the first five runs of an agent with one prompt."""

_RELOAD_S = 1.5
_BUSY = "server busy, please try again.  maximum pending requests exceeded"
_chats, _plans = count(1), count(1)


def _hiccup() -> str:
    return _BUSY if next(_chats) == _HIT else ""


def _reload(plan: Plan) -> Plan:
    if next(_plans) == _HIT:
        time.sleep(_RELOAD_S)  # what passes before a runner is ready is the answer's load_duration
    return plan


FAULTS: dict[str, Fault] = {
    "none": Fault(),
    "exit": Fault(at_start=_exit),
    "silent": Fault(at_start=_never_listen),
    "deaf": Fault(at_start=_ignore_sigterm),
    "short": Fault(bend=lambda plan: replace(plan, tokens=_half(plan), reason="stop")),
    "no-done": Fault(bend=lambda plan: replace(plan, tokens=_half(plan), ending="cut")),
    "error": Fault(bend=lambda plan: replace(plan, tokens=min(3, plan.tokens), ending="error")),
    "hiccup": Fault(refuse=_hiccup),
    "reload": Fault(bend=_reload),
}
