"""Tests on a genuine Ollama, which is downloaded when one of them runs."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from .genuine import Genuine, SetUpError, set_up


@pytest.fixture(scope="session")
def genuine_ollama() -> Iterator[Genuine]:
    """In a folder that is gone at the end, or in the one LLMPERF_GENUINE_OLLAMA names, which is kept.

    Where it can't be set up its tests are skipped, or fail when the environment variable CI is set: a gate that
    silently stops testing is worse than one that is red.
    """
    kept = os.environ.get("LLMPERF_GENUINE_OLLAMA")
    with nullcontext(kept) if kept else TemporaryDirectory(prefix="genuine-ollama-") as folder:
        try:
            genuine = set_up(Path(folder))
        except SetUpError as error:
            if os.environ.get("CI", "").lower() in {"", "false", "0"}:
                pytest.skip(str(error))
            pytest.fail(str(error), pytrace=False)
        yield genuine
