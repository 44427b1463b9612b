"""The environment, read once: Ollama's own variables, and `LLMPERF_EMULATOR` for what is emulated."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from pytest_llmperf.emulator import durations, faults, log
from pytest_llmperf.emulator.faults import Fault

VARIABLE = "LLMPERF_EMULATOR"
LOAD_S = {"default": 0.5, "tr114": 10.0}  # a reload took 10 s in TR114
_DEFAULT_CONTEXT = 4096  # Ollama's own for less than 23 GiB of video memory, here whatever `vram_gb` says

T = TypeVar("T")


class ConfigError(Exception):
    """`LLMPERF_EMULATOR` can't be read; the text says which word is wrong and which are legal."""


@dataclass(frozen=True, kw_only=True)
class Physics:
    """What `LLMPERF_EMULATOR` sets. Noises are standard deviations on the log scale; `speed` divides every duration.

    `vram_gb` counts 2 ** 30 bytes each, as a card's data sheet does.
    """

    seed: int = 0
    noise: float = 0.005
    session_noise: float = 0.0
    slowdown: float = 1.0
    ttft_ms: float = 60.0
    serial: bool = False
    speed: float = 1.0
    vram_gb: float = 12.0  # the RTX 4080 Laptop GPU of TR114 to TR116
    profile: str = "default"
    fault: Fault = field(default_factory=Fault)

    @property
    def load_s(self) -> float:
        """Wall seconds that loading a model takes."""
        return LOAD_S[self.profile] / self.speed

    @property
    def vram(self) -> int:
        """Bytes of the whole device's memory."""
        return int(self.vram_gb * 2**30)


@dataclass(frozen=True, kw_only=True)
class Config:
    """One instance. `instance` and `session` key the noise: the names of the HOME folder and of its parent."""

    host: str = "127.0.0.1"
    port: int = 11434
    parallel: int = 1
    keep_alive: float = 300.0
    context_length: int = _DEFAULT_CONTEXT
    instance: str = ""
    session: str = ""
    physics: Physics = field(default_factory=Physics)


def read(env: Mapping[str, str]) -> Config:
    """The configuration that `env` asks for; ConfigError for `LLMPERF_EMULATOR`, a logged default for Ollama's own."""
    host, port = _host(env.get("OLLAMA_HOST", ""))
    home = Path(env.get("HOME") or env.get("USERPROFILE") or "")
    physics = _physics(env.get(VARIABLE, ""))
    return Config(
        host=host,
        port=port,
        parallel=physics.fault.slots(_ollama(env, "OLLAMA_NUM_PARALLEL", _positive_int, 1)),
        keep_alive=_ollama(env, "OLLAMA_KEEP_ALIVE", _keep_alive, 300.0),
        context_length=_ollama(env, "OLLAMA_CONTEXT_LENGTH", int, 0) or _DEFAULT_CONTEXT,
        instance=home.name,
        session=home.parent.name,
        physics=physics,
    )


def _physics(text: str) -> Physics:
    values: dict[str, Any] = {}
    for pair in filter(None, (part.strip() for part in text.split(","))):
        key, _, value = (part.strip() for part in pair.partition("="))
        if key not in _KEYS:
            raise ConfigError(f"{VARIABLE}: unknown key {key!r}; legal are {', '.join(_KEYS)}; {_EXAMPLE}")
        convert, legal = _KEYS[key]
        try:
            values[key] = convert(value)
        except (ValueError, KeyError):
            raise ConfigError(f"{VARIABLE}: {key}={value!r} is not {legal}; {_EXAMPLE}") from None
    return Physics(**values)


def _host(text: str) -> tuple[str, int]:
    address = text.strip(" \"'").removeprefix("http://").rstrip("/")
    host, _, port = address.rpartition(":") if ":" in address else (address, "", "")
    return host.strip("[]") or "127.0.0.1", int(port) if port.isdigit() else 11434


def _ollama(env: Mapping[str, str], name: str, convert: Callable[[str], T], default: T) -> T:
    text = env.get(name, "").strip(" \"'")
    if not text:
        return default
    try:
        return convert(text)
    except ValueError:
        log.warn("config.go:1", "invalid environment variable, using default", key=name, value=text, default=default)
        return default


def _keep_alive(text: str) -> float:
    return durations.keep_alive(int(text) if text.lstrip("-").isdigit() else text)


def _positive_int(text: str) -> int:
    if (number := int(text)) < 1:
        raise ValueError(text)
    return number


def _number(text: str, *, above: float) -> float:
    number = float(text)
    if not (math.isfinite(number) and number > above):
        raise ValueError(text)
    return number


def _positive(text: str) -> float:
    return _number(text, above=0.0)


def _not_negative(text: str) -> float:
    return _number(text, above=-math.ulp(0.0))


def _one_of(table: Mapping[str, object]) -> tuple[Callable[[str], str], str]:
    def convert(text: str) -> str:
        table[text]
        return text

    return convert, f"one of {', '.join(table)}"


_KEYS: dict[str, tuple[Callable[[str], object], str]] = {
    "seed": (int, "an integer"),
    "noise": (_not_negative, "a number of 0 or more"),
    "session_noise": (_not_negative, "a number of 0 or more"),
    "slowdown": (_positive, "a number above 0"),
    "ttft_ms": (_not_negative, "a number of 0 or more"),
    "serial": ({"0": False, "1": True}.__getitem__, "0 or 1"),
    "speed": (_positive, "a number above 0"),
    "vram_gb": (_positive, "a number above 0"),
    "profile": _one_of(LOAD_S),
    "fault": (faults.read, faults.legal()),
}
_EXAMPLE = f'write for example {VARIABLE}="speed=20,seed=7"'
