"""A pytest plugin that fails a merge when a multi-agent LLM stack got slower.

Public names are resolved when they are first used, so that an idle pytest run loads next to nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pytest_llmperf.assertions import Gate
    from pytest_llmperf.comparison import Comparison
    from pytest_llmperf.gate import judge, judge_gain
    from pytest_llmperf.instance import Instance
    from pytest_llmperf.judgement import Judgement
    from pytest_llmperf.measured import Measured
    from pytest_llmperf.model import Agent, LlmperfError

__all__ = ["Agent", "Comparison", "Gate", "Instance", "Judgement", "LlmperfError", "Measured", "judge", "judge_gain"]

_HOME = {
    "Agent": "model",
    "Comparison": "comparison",
    "Gate": "assertions",
    "Instance": "instances",
    "Judgement": "judgement",
    "LlmperfError": "model",
    "Measured": "measured",
    "judge": "gate",
    "judge_gain": "gate",
}


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has {', '.join(__all__)}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
