"""Durations as Go writes them."""

from __future__ import annotations

import math
import re

_UNITS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_PART = re.compile(r"(\d+\.?\d*|\.\d+)([a-zµ]*)")


def parse(text: str) -> float:
    """Seconds of a Go duration such as `5m` or `1h30m`; ValueError has Go's own words (time.ParseDuration)."""
    body = text.lstrip("+-")
    if body == "0":
        return 0.0
    parts = _PART.findall(body)
    if not parts or "".join(number + unit for number, unit in parts) != body:
        raise ValueError(f'time: invalid duration "{text}"')
    for _, unit in parts:
        if not unit:
            raise ValueError(f'time: missing unit in duration "{text}"')
        if unit not in _UNITS:
            raise ValueError(f'time: unknown unit "{unit}" in duration "{text}"')
    seconds = sum(float(number) * _UNITS[unit] for number, unit in parts)
    return -seconds if text.startswith("-") else seconds


def keep_alive(value: object) -> float:
    """Seconds a model stays loaded: a number, or a Go duration; a negative one is for ever. ValueError otherwise."""
    if isinstance(value, str):
        seconds = parse(value)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        seconds = float(value)
    else:
        raise ValueError(f"Unsupported type: '{type(value).__name__}'")
    return math.inf if seconds < 0 else seconds
