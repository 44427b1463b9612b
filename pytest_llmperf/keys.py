"""The stash keys under which the plugin keeps its state: nothing is global, nothing hangs on `config` by name."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from pytest_llmperf.settings import Settings

if TYPE_CHECKING:
    from pytest_llmperf.assertions import Gate

SETTINGS = pytest.StashKey[Settings]()
"""On the config: options and ini keys, resolved."""

MARKED = pytest.StashKey[set[str]]()
"""On the config: the node ids of all marked tests that were collected, before -m and -k take some away."""

IDS = pytest.StashKey[dict[str, str]]()
"""On the config: each id= of a mark, with the test that claims it."""

POSTPONED = pytest.StashKey[list[pytest.Item]]()
"""On the config: the tests of this process that were disturbed and have to be tried again."""

GATE: pytest.StashKey[Gate] = pytest.StashKey()
"""On an item: the `llmperf` fixture's object."""

AGAIN = pytest.StashKey[bool]()
"""On an item: there once it is tried again, whatever becomes of it."""
