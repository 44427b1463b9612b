"""What one value may be, and the sentence on one that is not; Ollama's options. Standard library only."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from math import isfinite
from reprlib import Repr
from typing import Any

Inside = Callable[[str, Any], Iterator[str]]

_REPR = Repr()
_REPR.maxstring = _REPR.maxother = 80


@dataclass(frozen=True)
class Legal:
    """What a value may be: `phrase` reads after "must be", `fits` takes the whole value, `inside` checks its parts."""

    phrase: str
    fits: Callable[[Any], bool]
    inside: Inside | None = None

    def mistakes(self, where: str, value: object) -> Iterator[str]:
        """One sentence per mistake in the value of the argument that `where` names."""
        if self.fits(value):
            yield from self.inside(where, value) if self.inside else ()
        else:
            hint = f"; write [{shown(value)}]" if isinstance(value, str) and self.phrase.startswith("a list") else ""
            yield f"{where} must be {self.phrase}, not {shown(value)}{hint}"


def shown(value: object) -> str:
    """The value's repr on one line, shortened, and alike in every process: sets sorted, without addresses."""
    return " ".join(re.sub(r" at 0x[0-9a-fA-F]+", "", _REPR.repr(value)).split())


def closest(name: object, legal: Iterable[str]) -> str | None:
    """The legal name that was probably meant."""
    return next(iter(get_close_matches(str(name), legal, n=1)), None)


def unknown(name: object, legal: Iterable[str], takes: str) -> str:
    """The second half of a sentence on a name that isn't legal: the name, a guess, and what is legal."""
    names = list(legal)
    hint = f" (did you mean {guess}?)" if (guess := closest(name, names)) else ""
    return f"{shown(name)}{hint}; {takes} {', '.join(names)}"


def is_whole(value: object) -> bool:
    """An int that isn't a bool."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_number(value: object) -> bool:
    """An int or a finite float; JSON has no word for the others."""
    return is_whole(value) or (isinstance(value, float) and isfinite(value))


def is_text(value: object) -> bool:
    """A str with something in it."""
    return isinstance(value, str) and bool(value.strip())


def is_name(value: object) -> bool:
    """A str that is a file name on every system."""
    return isinstance(value, str) and re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]{0,39}", value) is not None


def is_texts(value: object) -> bool:
    """A list or tuple of such texts."""
    return isinstance(value, list | tuple) and all(is_text(text) for text in value)


_WHOLE = Legal("a whole number", is_whole)
_NUMBER = Legal("a number", is_number)
_FLAG = Legal("True or False", lambda value: isinstance(value, bool))
# White space is a usual stop sequence.
_STOP = Legal(
    "a list of texts",
    lambda value: isinstance(value, list | tuple) and all(isinstance(text, str) and text for text in value),
)

_BY_TYPE = {
    _WHOLE: "num_ctx num_batch num_gpu main_gpu num_thread draft_num_predict num_keep seed top_k "
    "repeat_last_n mirostat",
    _NUMBER: "temperature top_p min_p typical_p tfs_z repeat_penalty presence_penalty frequency_penalty "
    "mirostat_eta mirostat_tau",
    _FLAG: "use_mmap use_mlock numa low_vram vocab_only f16_kv logits_all penalize_newline",
    _STOP: "stop",
}

OPTIONS: Mapping[str, Legal] = {name: legal for legal, names in _BY_TYPE.items() for name in names.split()}
"""The fields of Ollama's `api.Options`, those that only servers from 0.1.17 to 0.5 take included; `tokens=` of the mark
stands for `num_predict`. A server ignores an option it does not know and only notes it in its own log, so a misspelt
name would measure another workload than the mark declares."""


def in_options(where: str, options: Mapping[str, Any]) -> Iterator[str]:
    """One sentence per option that Ollama would ignore or refuse."""
    for name, value in options.items():
        if name in OPTIONS:
            yield from OPTIONS[name].mistakes(f"{where}[{name!r}]", value)
        elif name == "num_predict":
            yield f"{where} has 'num_predict', which the mark declares once for all agents: use tokens={shown(value)}"
        else:
            yield f"{where} has no {unknown(name, sorted(OPTIONS), 'Ollama takes')}"


LOAD_TIME = ("num_ctx", "num_batch", "num_gpu", "main_gpu", "use_mmap", "num_thread", "draft_num_predict")
"""The options a model is loaded with: a request with others makes the server load it anew."""
