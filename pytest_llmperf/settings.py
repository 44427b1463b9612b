"""Options and ini keys, declared and resolved once into a frozen `Settings`; the only place that raises UsageError."""

from __future__ import annotations

import os
from argparse import Namespace
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

BACKENDS = ("ollama", "emulator")
INCONCLUSIVE = ("pass", "fail-if-worse", "fail")


@dataclass(frozen=True)
class Settings:
    """What the command line and the ini file say, with the command line first.

    `require` is how many tests must be judged: a number, "all", or None. `sessions` applies to a rebaseline and to a
    self-check. `inconclusive` is when a test that the runs can't decide fails.
    """

    backend: str
    ollama: str | None
    baselines: Path
    rebaseline: bool
    selfcheck: bool
    sessions: int
    inconclusive: str
    require: int | str | None
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
        return cls(
            backend=_backend(option.llmperf_backend, config.getini("llmperf_backend")),
            ollama=config.getini("llmperf_ollama") or None,
            baselines=Path(os.path.normpath(baselines[0] if baselines else config.rootpath / "baselines")),
            rebaseline=option.llmperf_rebaseline,
            selfcheck=option.llmperf_selfcheck,
            sessions=_sessions(option.llmperf_sessions, selfcheck=option.llmperf_selfcheck),
            inconclusive=_inconclusive(config.getini("llmperf_inconclusive")),
            require=_require(option.llmperf_require),
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
        metavar="NAME",
        help="the server to measure: ollama (default) or emulator; ini llmperf_backend",
    )
    group.addoption(
        "--llmperf-require", metavar="N|all", help="exit 1 if fewer than N (or not all) marked tests were judged"
    )
    parser.addini("llmperf_backend", "the server to measure: ollama (default) or emulator", default="ollama")
    parser.addini(
        "llmperf_inconclusive",
        "when a test that its runs can't decide fails: pass (never), fail-if-worse (estimated beyond the margin in two "
        "sessions) or fail (always)",
        default=INCONCLUSIVE[0],
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


def _backend(option: str | None, ini: str) -> str:
    chosen, where = (option, "--llmperf-backend") if option is not None else (ini, "ini llmperf_backend")
    if chosen not in BACKENDS:
        raise pytest.UsageError(f"{where} takes {' or '.join(BACKENDS)}, not {chosen!r}")
    return chosen


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
