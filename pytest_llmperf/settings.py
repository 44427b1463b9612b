"""Options and ini keys, declared and resolved once into a frozen `Settings`; the only place that raises UsageError."""

from __future__ import annotations

import os
import re
from argparse import Namespace
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

BACKENDS = ("ollama", "emulator")
_URL = re.compile(r"http://(\[[0-9a-fA-F:.]+\]|[A-Za-z0-9._-]+):\d{1,5}")
_DURATION = re.compile(r"(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)?")
INCONCLUSIVE = ("pass", "fail-if-worse", "fail")


@dataclass(frozen=True)
class Settings:
    """What the command line and the ini file say, with the command line first.

    `servers` are URLs of servers that run already; with any, `backend` is the text that names them. `budget_s` is how
    long measuring may take in all; `quiet_wait_s` how long to wait for a quiet machine, None: what else runs there is
    not looked at. `require` is how many tests must be judged: a number, "all", or None. `sessions` applies to a
    rebaseline and to a self-check. `inconclusive` is when a test that the runs can't decide fails.
    """

    backend: str
    servers: tuple[str, ...]
    ollama: str | None
    baselines: Path
    rebaseline: bool
    selfcheck: bool
    sessions: int
    inconclusive: str
    require: int | str | None
    budget_s: float | None
    quiet_wait_s: float | None
    rootdir: Path
    invoked_from: Path
    typed: tuple[str, ...]

    @property
    def emulated(self) -> bool:
        """Whether the emulator is measured."""
        return self.backend == "emulator"

    @classmethod
    def from_config(cls, config: pytest.Config) -> Settings:
        """Read and check everything once; called in `pytest_configure`, in the controller and in every worker."""
        option = config.option
        if option.llmperf_rebaseline and option.llmperf_selfcheck:
            raise pytest.UsageError(
                "--llmperf-rebaseline and --llmperf-selfcheck exclude each other; run one, then the other"
            )
        baselines = config.getini("llmperf_baselines")
        backend, servers = _backend(option.llmperf_backend, config.getini("llmperf_backend"))
        return cls(
            backend=backend,
            servers=servers,
            ollama=config.getini("llmperf_ollama") or None,
            baselines=Path(os.path.normpath(baselines[0] if baselines else config.rootpath / "baselines")),
            rebaseline=option.llmperf_rebaseline,
            selfcheck=option.llmperf_selfcheck,
            sessions=_sessions(option.llmperf_sessions, selfcheck=option.llmperf_selfcheck),
            inconclusive=_inconclusive(config.getini("llmperf_inconclusive")),
            require=_require(option.llmperf_require),
            budget_s=_budget(option.llmperf_budget),
            quiet_wait_s=_quiet_wait(config.getini("llmperf_quiet_wait")),
            rootdir=config.rootpath,
            invoked_from=config.invocation_params.dir,
            typed=tuple(_typed(option)),
        )


def add_options(parser: pytest.Parser) -> None:
    """Declare the command-line options and their ini twins."""
    group = parser.getgroup("llmperf", "performance gates for LLM stacks")
    group.addoption(
        "--llmperf-rebaseline",
        action="store_true",
        help="measure the selected tests and write their baselines instead of judging",
    )
    group.addoption(
        "--llmperf-sessions",
        type=int,
        metavar="N",
        help="sessions a rebaseline (default: 4) or a self-check (default: 6) measures, servers restarted between them",
    )
    group.addoption(
        "--llmperf-selfcheck",
        action="store_true",
        help="measure each selected test against itself: how often would it cry wolf, would it notice two margins?",
    )
    group.addoption(
        "--llmperf-backend",
        metavar="NAME|URLS",
        help="the server to measure: ollama (default), emulator, or URLs of servers that run already, with commas "
        "between them; ini llmperf_backend",
    )
    group.addoption(
        "--llmperf-require", metavar="N|all", help="exit 1 if fewer than N (or not all) marked tests were judged"
    )
    group.addoption(
        "--llmperf-budget",
        metavar="TIME",
        help="how long measuring may take in all, such as 15m: tests that would not fit are not measured",
    )
    _add_ini(parser)


def _add_ini(parser: pytest.Parser) -> None:
    parser.addini("llmperf_backend", "the server to measure: ollama (default), emulator or URLs", default="ollama")
    parser.addini(
        "llmperf_inconclusive",
        "when a test that its runs can't decide fails: pass (never), fail-if-worse (estimated beyond the margin in two "
        "sessions) or fail (always)",
        default=INCONCLUSIVE[0],
    )
    parser.addini(
        "llmperf_quiet_wait",
        "seconds to wait for a quiet machine before a real server is measured, or off: don't look what else runs",
        default="60",
    )
    parser.addini("llmperf_ollama", "path of the ollama binary (default: the one on PATH)", default="")
    parser.addini(
        "llmperf_baselines", "folder of the committed baselines (default: baselines in rootdir)", type="paths"
    )


def _typed(option: Namespace) -> Iterator[str]:
    """What else was typed that decides which server is measured and where its baselines are."""
    if option.inifilename:
        yield f"--config-file={option.inifilename}"
    if option.rootdir:
        yield f"--rootdir={option.rootdir}"
    yield from (f"--override-ini={pair}" for pair in option.override_ini or () if pair.startswith("llmperf_"))
    if option.llmperf_backend:
        yield f"--llmperf-backend={option.llmperf_backend}"


def _backend(option: str | None, ini: str) -> tuple[str, tuple[str, ...]]:
    chosen, where = (option, "--llmperf-backend") if option is not None else (ini, "ini llmperf_backend")
    if chosen in BACKENDS:
        return chosen, ()
    urls = tuple(url.strip().rstrip("/") for url in chosen.split(","))
    if len({*urls}) == len(urls) and all(map(_URL.fullmatch, urls)):
        return chosen, urls
    legal = f"{', '.join(BACKENDS)} or different URLs such as http://127.0.0.1:11434,http://127.0.0.1:11435"
    raise pytest.UsageError(f"{where} takes {legal}, not {chosen!r}")


def _sessions(count: int | None, *, selfcheck: bool) -> int:
    default, least = (6, 3) if selfcheck else (4, 1)
    if count is not None and count < least:
        raise pytest.UsageError(f"--llmperf-sessions takes a number from {least} up, not {count}")
    return count or default


def _inconclusive(ini: str) -> str:
    if ini not in INCONCLUSIVE:
        raise pytest.UsageError(f"ini llmperf_inconclusive takes {', '.join(INCONCLUSIVE)}, not {ini!r}")
    return ini


def _require(text: str | None) -> int | str | None:
    if text is None or text == "all":
        return text
    if text.isdecimal() and int(text) > 0:
        return int(text)
    raise pytest.UsageError(f"--llmperf-require takes a number of tests or the word all, not {text!r}")


def _budget(text: str | None) -> float | None:
    if text is None:
        return None
    found = _DURATION.fullmatch(text)
    seconds = sum(int(n or 0) * unit for n, unit in zip(found.groups(), (3600, 60, 1), strict=True)) if found else 0
    if seconds <= 0:
        raise pytest.UsageError(f"--llmperf-budget takes a time such as 15m, 90s or 1h30m, not {text!r}")
    return float(seconds)


def _quiet_wait(ini: str) -> float | None:
    if ini == "off":
        return None
    if ini.isdecimal():
        return float(ini)
    raise pytest.UsageError(f"ini llmperf_quiet_wait takes a number of seconds or the word off, not {ini!r}")
