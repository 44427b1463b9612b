"""The model store: where the caller's is, and an instance's own view of it, through which nothing can be changed there.

No server locks a store; a start may prune it, a pull, a create or a delete writes to it (Ollama #15628, #2536).
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path

from pytest_llmperf.model import LlmperfError

_BLOB = re.compile("sha256[:-][0-9a-f]{64}")


def model_store(caller: Mapping[str, str] = os.environ) -> Path:
    """The caller's model store: OLLAMA_MODELS, else ~/.ollama/models, else the one of Linux's ollama service."""
    if named := caller.get("OLLAMA_MODELS"):
        return Path(named)
    own, service = Path.home() / ".ollama/models", Path("/usr/share/ollama/.ollama/models")
    # os.path: Path.is_dir raises where a service account's home may not be looked into (before Python 3.14)
    return service if not os.path.isdir(own) and os.path.isdir(service) else own  # noqa: PTH112


def view(store: Path, folder: Path) -> Path:
    """A store in `folder` with the models that `store` has now: manifests are copied, blobs are links to its own.

    What a server creates or deletes there stays there, and unfinished downloads are left out. Made once; where the
    system allows no links (Windows without the right to make them), it is `store` itself. Raises LlmperfError where
    `store` can't be read.
    """
    if folder.exists():
        return folder
    try:
        _link(store, folder)
    except (OSError, shutil.Error) as error:
        shutil.rmtree(folder, ignore_errors=True)
        if getattr(error, "winerror", None) == 1314:  # ERROR_PRIVILEGE_NOT_HELD
            return store
        problem = f"the model store {store} can't be read or linked to ({error})"
        raise LlmperfError(f"{problem}; make it readable, or set OLLAMA_MODELS to another one") from error
    return folder


def _link(store: Path, folder: Path) -> None:
    own, blobs = folder / "blobs", (store / "blobs").resolve()
    own.mkdir(parents=True)
    for blob in blobs.iterdir() if blobs.is_dir() else ():
        if _BLOB.fullmatch(blob.name):
            (own / blob.name).symlink_to(blob)
    if (store / "manifests").is_dir():
        shutil.copytree(store / "manifests", folder / "manifests", copy_function=shutil.copyfile)
