"""Baseline files: where one lies, what it may hold, how it is written so that its diff can be reviewed.

One file per test and machine. Metrics' values are in the metric's unit, `load_s` in seconds.
"""

import json
import os
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import partial
from hashlib import sha256
from math import isfinite
from pathlib import Path
from statistics import median
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import ErrorDetails, PydanticCustomError

from pytest_llmperf.metrics import HEADLINES
from pytest_llmperf.model import Baseline, LlmperfError, Sample, Session

SCHEMA = 1

_WINDOWS_DEVICES = {"con", "prn", "aux", "nul", *(f"{port}{n}" for port in ("com", "lpt") for n in range(10))}
_CONFLICT = re.compile(r"^(<{7}|\|{7}|={7}|>{7})( |$)", re.MULTILINE)
_RESTORE = "restore it with git checkout -- {file}, or record it anew with --llmperf-rebaseline"
_PICK = "take one side with git checkout --ours -- {file}, or record it anew with --llmperf-rebaseline"
_WORDS = {"missing": "is missing", "extra_forbidden": "is not a field of a baseline"}

_json = partial(json.dumps, allow_nan=False)


def _scalar(value: object) -> object:
    if value is None or isinstance(value, str | int) or (isinstance(value, float) and isfinite(value)):
        return value
    raise PydanticCustomError("scalar", "Input should be a string, a finite number, true, false or null")


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)


class _Run(_Strict):
    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, float]
    kept: bool = True
    cause: str = ""


class _Session(_Strict):
    load_s: float
    runs: list[_Run]

    def session(self) -> Session:
        return Session(tuple(Sample(run.__pydantic_extra__, run.kept, run.cause) for run in self.runs), self.load_s)


class _Summary(_Strict):
    median: float
    runs: int
    sessions: int


class _File(_Strict):
    schema_: int = Field(alias="schema", ge=1, le=SCHEMA)
    test: str
    emulated: bool
    content: str
    summary: dict[str, _Summary]
    conditions: dict[str, Annotated[Any, AfterValidator(_scalar)]]
    sessions: list[_Session]


def path_for(root: Path, machine: str, key: str) -> Path:
    """The file of a test: `key` is its node id, or its mark's `id=`, which has no `::`.

    Every part is lower-case ASCII, at most 60 characters and legal on Windows; the hash of `key` keeps apart what
    that makes equal.
    """
    return root / _slug(machine) / _place(key)


def load(path: Path) -> Baseline | None:
    """The baseline in a file, None where there is no file; the file's summary is checked but not used.

    Raises LlmperfError with the file, the line or field that is wrong, and what to type next.
    """
    source = _read(path)
    if source is None:
        return None
    if marker := _CONFLICT.search(source):
        line = source.count("\n", 0, marker.start()) + 1
        raise _refusal(path, f"line {line} is a git conflict marker", _PICK)
    try:
        file = _File.model_validate_json(source)
    except ValidationError as error:
        raise _invalid(path, error.errors()[0]) from error
    if not any(run.kept for session in file.sessions for run in session.runs):
        raise _refusal(path, f"sessions: holds no {'kept run' if file.sessions else 'session'}")
    known = file.model_dump(include={"test", "content", "emulated", "conditions"})
    return Baseline(**known, sessions=tuple(session.session() for session in file.sessions))


def text(baseline: Baseline) -> str:
    """The canonical content of a file: a summary (median over the kept runs) first, one line per run last.

    Samples and load times are rounded to 4 significant digits, finer than what runs repeat to; whole numbers stay
    exact, and so do conditions, which are compared for equality. Raises ValueError for NaN and infinity.
    """
    metrics = [name for name in HEADLINES if any(session.series(name) for session in baseline.sessions)]
    top = {
        "schema": _json(SCHEMA),
        "test": _json(baseline.test),
        "emulated": _json(baseline.emulated),
        "content": _json(baseline.content),
        "summary": _block({metric: _summary(baseline.sessions, metric) for metric in metrics}),
        "conditions": _block(baseline.conditions),
        "sessions": "[\n    " + ",\n    ".join(map(_session, baseline.sessions)) + "\n  ]",
    }
    return "{\n" + ",\n".join(f'  "{name}": {value}' for name, value in top.items()) + "\n}\n"


def replace(path: Path, content: str) -> bool:
    """Give a file this content in one step: readers see the old file or the new one, never half of it.

    Returns False, with nothing touched, where the file has it already (CRLF counts as LF). Raises LlmperfError.
    """
    data, scratch = content.encode(), path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        if path.is_file() and path.read_bytes().replace(b"\r\n", b"\n") == data:
            return False
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            scratch.write_bytes(data)
            scratch.replace(path)
        finally:
            scratch.unlink(missing_ok=True)
    except OSError as error:
        problem = f"can't be written ({error.strerror}) and stays as it was"
        raise _refusal(path, problem, "put that right and run again with --llmperf-rebaseline") from error
    return True


def check_root(root: Path, *, writing: bool) -> None:
    """Raise LlmperfError where ini `llmperf_baselines` is no folder, for `writing` no writable one; absent is fine."""
    try:
        nearest = next((folder for folder in (root, *root.absolute().parents) if folder.exists()), root)
        next(nearest.iterdir(), None)
        if writing:  # tried, because os.access knows neither Windows' ACLs nor what a superuser may not do
            scratch = nearest / f".llmperf.{os.getpid()}.tmp"
            scratch.touch()
            scratch.unlink()
    except OSError as error:
        problem = f"llmperf_baselines = {_shown(root)}: can't be used ({error.strerror})"
        raise LlmperfError(f"{problem}; make it a writable folder, or set llmperf_baselines to another one") from error


def same_content(root: Path, machine: str, content: str) -> list[tuple[Path, str]]:
    """This machine's files whose mark declared the same, with the test they were recorded for: what a rename leaves.

    Files that can't be read are passed over.
    """
    found = []
    for path in sorted((root / _slug(machine)).rglob("*.json")):
        with suppress(LlmperfError):
            if (baseline := load(path)) and baseline.content == content:
                found.append((path, baseline.test))
    return found


def other_machines(root: Path, key: str) -> list[str]:
    """The machines, by folder name, that have a baseline for this key."""
    folders = root.iterdir() if root.is_dir() else ()
    return sorted(folder.name for folder in folders if (folder / _place(key)).is_file())


def _place(key: str) -> Path:
    module, _, test = key.partition("::")
    folders = [_slug(part) for part in module.removesuffix(".py").split("/")] if test else []
    return Path(*folders, f"{_slug(test or module)}-{sha256(key.encode()).hexdigest()[:8]}.json")


def _slug(name: str) -> str:
    slug = re.sub(r"[^a-z0-9_]+", "-", name.lower()).strip("-")[:60].rstrip("-")
    return f"{slug}_" if slug in _WINDOWS_DEVICES else slug or "_"


def _shown(path: Path) -> str:
    absolute, here = path.absolute(), Path.cwd()
    return str(absolute.relative_to(here) if absolute.is_relative_to(here) else path)


def _refusal(path: Path, problem: str, remedy: str = _RESTORE) -> LlmperfError:
    file = _shown(path)
    return LlmperfError(f"{file}: {problem}; {remedy.format(file=file)}")


def _read(path: Path) -> str | None:
    try:
        if path.is_dir():
            raise _refusal(path, "is a directory, not a file", f"move it away, then {_RESTORE}")
        return path.read_text("utf-8-sig")
    except FileNotFoundError:
        return None
    except UnicodeDecodeError as error:
        raise _refusal(path, f"is not UTF-8 (byte {error.start + 1})") from error
    except OSError as error:
        raise _refusal(path, f"can't be read ({error.strerror})", "make it readable, then run again") from error


def _invalid(path: Path, error: ErrorDetails) -> LlmperfError:
    kind, legal = error["type"], error["msg"].removeprefix("Input should be ")
    field, value = ".".join(map(str, error["loc"])) or "the whole file", f"{json.dumps(error['input']):.40}"
    if kind == "json_invalid":
        place = legal.removeprefix("Invalid JSON: ")
        return _refusal(path, f"is {'truncated' if 'EOF' in place else 'not JSON'} ({place})")
    if kind == "less_than_equal":
        return _refusal(path, f"is of schema {value}, this pytest-llmperf reads up to {SCHEMA}", "upgrade it")
    if kind in _WORDS:
        return _refusal(path, f"{field}: {_WORDS[kind]}")
    return _refusal(path, f"{field}: must be {legal}, is {value}")


def _summary(sessions: Sequence[Session], metric: str) -> dict[str, float]:
    series = [values for session in sessions if (values := session.series(metric))]
    pooled = [_round(value) for values in series for value in values]
    return {"median": _round(median(pooled)), "runs": len(pooled), "sessions": len(series)}


def _session(session: Session) -> str:
    runs = ",\n      ".join(map(_run, session.samples))
    return f'{{"load_s": {_json(_round(session.load_s))}, "runs": [\n      {runs}]}}'


def _run(sample: Sample) -> str:
    values = {name: _round(value) for name, value in sorted(sample.values.items())}
    why = {"cause": sample.cause} if sample.cause else {}
    return _json(values if sample.kept else {"kept": False, **why, **values})


def _round(value: float) -> float:
    near = float(value) if float(value).is_integer() else float(f"{value:.4g}")
    return int(near) if near.is_integer() and abs(near) < 2**53 else near


def _block(values: Mapping[str, object]) -> str:
    lines = ",\n".join(f"    {_json(name)}: {_json(value)}" for name, value in sorted(values.items()))
    return f"{{\n{lines}\n  }}" if lines else "{}"
