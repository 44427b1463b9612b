"""Which metrics a version of Ollama can't give, or would give wrongly. Standard library only.

Numbers are of pull requests of https://github.com/ollama/ollama; docs/ollama-versions.md has the whole story.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

Version = tuple[int, int, int]

_FIRST = (0, 0, 1)
_WRONG: Mapping[str, tuple[tuple[Version, Version], ...]] = {
    "queue_wait": (
        (_FIRST, (0, 1, 33)),  # 3418: before the scheduler the timer started behind the lock
        ((0, 2, 2), (0, 2, 4)),  # 5676: total_duration and load_duration were forgotten
        ((0, 12, 5), (0, 30, 0)),  # 12525: eval_duration without sampling, which would then pass for waiting
    ),
    "load_time": (((0, 2, 2), (0, 2, 4)),),
}


def parse(version: str) -> Version | None:
    """`0.5.4-ipexllm-20250407` as (0, 5, 4); None for what is no version, and for a source build's 0.0.0."""
    found = re.match(r"v?(\d+)\.(\d+)\.(\d+)(?![\d.])", version)
    if found is None:
        return None
    major, minor, patch = map(int, found.groups())
    return (major, minor, patch) if any((major, minor, patch)) else None


def absent(version: str) -> frozenset[str]:
    """The names of the metrics that this version can't give, or would give wrongly; none where it is unknown.

    Everything by the client's clock every version gives. `decode_rate` too: eval_duration always begins after the
    first token, though 0.12.5 to 0.24 leave the sampling out of it.
    """
    known = parse(version)
    if known is None:
        return frozenset()
    return frozenset(name for name, ranges in _WRONG.items() if any(first <= known < end for first, end in ranges))
