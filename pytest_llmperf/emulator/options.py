"""Ollama's request options: their types, and which of them are load-time options."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from pytest_llmperf.emulator import log

_LOAD_TIME = {
    "num_ctx": "integer",
    "num_batch": "integer",
    "num_gpu": "integer",
    "main_gpu": "integer",
    "use_mmap": "boolean",
    "num_thread": "integer",
    "draft_num_predict": "integer",
}
_PER_REQUEST = {
    **dict.fromkeys(("num_keep", "seed", "num_predict", "top_k", "repeat_last_n"), "integer"),
    **dict.fromkeys(("top_p", "min_p", "typical_p", "temperature"), "float32"),
    **dict.fromkeys(("repeat_penalty", "presence_penalty", "frequency_penalty"), "float32"),
    "stop": "array",
}
_TYPES = _LOAD_TIME | _PER_REQUEST


class OptionTypeError(Exception):
    """An option has the wrong JSON type; the text is Ollama's."""


class LoadOptions(NamedTuple):
    """What a model is loaded with; a change means a reload. `num_gpu` -1 leaves the layers to the server."""

    num_ctx: int
    num_batch: int = 512
    num_gpu: int = -1
    main_gpu: int = 0
    use_mmap: bool | None = None
    num_thread: int = 0
    draft_num_predict: int = 0

    def serve(self, asked: LoadOptions) -> bool:
        """Whether a model loaded with these can answer a request for `asked`; `num_gpu` -1 fits whatever is loaded."""
        return asked == self or (asked.num_gpu < 0 and asked._replace(num_gpu=self.num_gpu) == self)


class Options(NamedTuple):
    """A request's options, as far as they matter here."""

    load: LoadOptions
    num_predict: int = -1
    seed: int = -1


def read(given: Mapping[str, object], default_context: int, trained_context: int) -> Options:
    """Check `given` as Ollama does: an unknown name is logged and ignored, a wrong type is an OptionTypeError."""
    known: dict[str, Any] = {}
    for name, value in given.items():
        if name not in _TYPES:
            log.warn("types.go:1", "invalid option provided", option=name)
        elif value is not None:
            known[name] = _checked(name, value)
    load = LoadOptions(**{"num_ctx": default_context, **{k: v for k, v in known.items() if k in _LOAD_TIME}})
    load = load._replace(num_ctx=min(max(load.num_ctx, 4), trained_context), num_gpu=max(load.num_gpu, -1))
    return Options(load, **{k: v for k, v in known.items() if k in ("num_predict", "seed")})


def _checked(name: str, value: object) -> object:
    match _TYPES[name], value:
        case "boolean", bool():
            return value
        case (("integer" | "float32"), bool()):
            pass
        case "integer", int() | float():
            return int(value)
        case "float32", int() | float():
            return float(value)
        case "array", list():
            if not all(isinstance(item, str) for item in value):
                raise OptionTypeError(f'option "{name}" must be of an array of strings')
            return value
    raise OptionTypeError(f'option "{name}" must be of type {_TYPES[name]}')
