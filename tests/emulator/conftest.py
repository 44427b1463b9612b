"""Emulators that are gone when their test is."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from .instances import Emulate, Instance, environment


@pytest.fixture
def emulate(tmp_path: Path) -> Iterator[Emulate]:
    """Starts emulators that share one device of this test's own; `ready=False` doesn't wait until they answer."""
    with ExitStack() as running:

        def start(emulator: str = "speed=20", name: str = "agent1", *, ready: bool = True, **env: str) -> Instance:
            instance = Instance.start(environment(tmp_path, name, emulator, env))
            running.callback(instance.stop)
            if ready:
                instance.wait_until_ready()
            return instance

        yield start
