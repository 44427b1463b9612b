"""Ollama's two kinds of log line: slog text on stderr, gin's request lines on stdout."""

from __future__ import annotations

import json
import sys
from datetime import UTC, datetime

_QUOTED = frozenset(' "=\\')


def info(source: str, message: str, **fields: object) -> None:
    """Write one slog line of level INFO to stderr; `source` is `file.go:line`."""
    _slog("INFO", source, message, fields)


def warn(source: str, message: str, **fields: object) -> None:
    """Write one slog line of level WARN to stderr."""
    _slog("WARN", source, message, fields)


def plain(line: str) -> None:
    """Write one bare line to stderr, as cobra's errors and llama.cpp's own output are."""
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()


def request(status: int, seconds: float, client: str, what: tuple[str, str]) -> None:
    """Write gin's line for a finished request to stdout; `what` is its method and path."""
    stamp = datetime.now(UTC).strftime("%Y/%m/%d - %H:%M:%S")
    took = f"{seconds:.6f}s" if seconds >= 1 else f"{seconds * 1e3:.6f}ms"
    method, path = what
    sys.stdout.write(f'[GIN] {stamp} | {status} | {took:>13} | {client:>15} | {method:<7}  "{path}"\n')
    sys.stdout.flush()


def _slog(level: str, source: str, message: str, fields: dict[str, object]) -> None:
    stamp = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    pairs = {"time": stamp, "level": level, "source": source, "msg": message, **fields}
    plain(" ".join(f"{key}={_text(value)}" for key, value in pairs.items()))


def _text(value: object) -> str:
    text = str(value)
    return json.dumps(text, ensure_ascii=False) if not text or _QUOTED & set(text) else text
