"""What one request will emit, and the faults that bend it or the server: one entry of `FAULTS` each."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from itertools import count
from typing import Literal

from pytest_llmperf.emulator import log
from pytest_llmperf.emulator.options import LoadOptions
from pytest_llmperf.emulator.placement import Placement
from pytest_llmperf.emulator.process import UNEXPECTED_EOF, Child, Process, RunnerError


@dataclass(frozen=True)
class Plan:
    """One request's answer: how many tokens, the first `thoughts` of them thinking, and why it ends.

    The line of token `garbled`, counted from 0, is no JSON. `ending` is called after the last token: it says whether
    a final record follows, and need not return.
    """

    tokens: int
    reason: Literal["stop", "length"]
    thoughts: int = 0
    garbled: int | None = None
    ending: Callable[[], bool] = lambda: True


Bend = Callable[[Plan], Plan]
Metrics = dict[str, int]


@dataclass(frozen=True, kw_only=True)
class Fault:
    """Something that goes wrong, as hooks that by default change nothing.

    `at_start` runs before the socket is bound, `at_listening` between that and the first answer. `bend` changes every
    request's plan; `refuse` gives the words of a 503 for a chat that gets no other answer. `slots`, `load` and `place`
    change what a model is loaded with and where it lies, `process` starts what it runs in. `metrics` changes what an
    answer says of itself, `capabilities` are every model's beside its own.
    """

    at_start: Callable[[], None] = lambda: None
    at_listening: Callable[[], None] = lambda: None
    bend: Bend = lambda plan: plan
    refuse: Callable[[], str] = lambda: ""
    slots: Callable[[int], int] = lambda slots: slots
    load: Callable[[LoadOptions], LoadOptions] = lambda load: load
    place: Callable[[Placement], Placement] = lambda placement: placement
    process: Callable[[], Process] = Process
    metrics: Callable[[Metrics], Metrics] = lambda metrics: metrics
    capabilities: tuple[str, ...] = ()


@dataclass(frozen=True)
class Numbered:
    """A fault that takes a number: `name:number`, or `name` alone for the default."""

    default: int
    make: Callable[[int], Fault]


def read(text: str) -> Fault:
    """The fault that `name` or `name:number` stands for; KeyError or ValueError where it stands for none."""
    name, colon, number = text.partition(":")
    match FAULTS[name]:
        case Numbered(default, make):
            if (value := int(number) if colon else default) > 0:
                return make(value)
        case fault if not colon:
            return fault
    raise ValueError(text)


def legal() -> str:
    """What `read` takes, in words."""
    names = (name if isinstance(fault, Fault) else f"{name}[:{fault.default}]" for name, fault in FAULTS.items())
    return f"one of {', '.join(names)}, where [:number] is a whole one above 0 and may be left out"


_HIT = 9
"""The request that the faults of one request hit: after three warm-ups, a discarded run and up to three solo runs it
is in one of the first five runs of an agent with one prompt."""

_RELOAD_S = 1.5
_BUSY = "server busy, please try again.  maximum pending requests exceeded"
_LINE = f"{'llama-server has a lot to say ' * 40:.1023}\n"


def _exit() -> None:
    log.plain("Error: llama-server binary not found (fault=exit)")
    sys.exit(1)


def _never_listen() -> None:
    while True:
        time.sleep(3600)


def _ignore_sigterm() -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def _flood(megabytes: int) -> None:
    burst = (_LINE * 10 * megabytes).rstrip("\n")

    def write() -> None:
        while True:
            log.plain(burst)
            time.sleep(0.01)

    threading.Thread(target=write, daemon=True).start()


def _half(plan: Plan) -> int:
    return max(1, plan.tokens // 2)


def _once(bend: Bend) -> Bend:
    plans = count(1)
    return lambda plan: bend(plan) if next(plans) == _HIT else plan


def _hiccup() -> Callable[[], str]:
    chats = count(1)
    return lambda: _BUSY if next(chats) == _HIT else ""


def _reload(plan: Plan) -> Plan:
    time.sleep(_RELOAD_S)  # what passes before a runner is ready is the answer's load_duration
    return plan


def _break() -> bool:
    raise RunnerError(UNEXPECTED_EOF)


def _die() -> bool:
    if sys.platform == "win32":
        os._exit(1)
    os.kill(os.getpid(), signal.SIGKILL)
    return False


def _hang() -> bool:
    threading.Event().wait()
    return False


def _freeze() -> bool:
    if sys.platform != "win32":  # which has no SIGSTOP: there the answer alone hangs
        os.kill(os.getpid(), signal.SIGSTOP)
    return _hang()


def _fewer(layers: int, placed: Placement) -> Placement:
    return replace(placed, layers=max(0, placed.layers - layers))


def _crash(token: int) -> Fault:
    return Fault(bend=_once(lambda plan: replace(plan, tokens=min(token, plan.tokens), ending=_die)))


FAULTS: dict[str, Fault | Numbered] = {
    "none": Fault(),
    "exit": Fault(at_start=_exit),
    "silent": Fault(at_start=_never_listen),
    "deaf": Fault(at_start=_ignore_sigterm),
    "short": Fault(bend=lambda plan: replace(plan, tokens=_half(plan), reason="stop")),
    "no-done": Fault(bend=lambda plan: replace(plan, tokens=_half(plan), ending=lambda: False)),
    "error": Fault(bend=lambda plan: replace(plan, tokens=min(3, plan.tokens), ending=_break)),
    "hiccup": Fault(refuse=_hiccup()),
    "reload": Fault(bend=_once(_reload)),
    "crash": Numbered(5, _crash),
    "hang": Fault(bend=_once(lambda plan: replace(plan, tokens=_half(plan), ending=_hang))),
    "freeze": Fault(bend=_once(lambda plan: replace(plan, tokens=_half(plan), ending=_freeze))),
    "malformed": Fault(bend=_once(lambda plan: replace(plan, garbled=plan.tokens // 2))),
    "busy": Fault(refuse=lambda: _BUSY),
    "orphan": Fault(process=Child),
    "context": Numbered(2048, lambda size: Fault(load=lambda load: load._replace(num_ctx=size))),
    "layers": Numbered(10, lambda layers: Fault(place=partial(_fewer, layers))),
    "slots": Fault(slots=lambda _: 1),
    "slow-start": Numbered(2, lambda seconds: Fault(at_listening=partial(time.sleep, seconds))),
    "flood": Numbered(20, lambda megabytes: Fault(at_listening=partial(_flood, megabytes))),
    "cached": Fault(metrics=lambda found: {**found, "prompt_eval_cached_count": found["prompt_eval_count"]}),
    "thinking": Fault(capabilities=("thinking",)),
}
