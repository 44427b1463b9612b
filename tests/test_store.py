"""The model store and an instance's own view of it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from pytest_llmperf.model import LlmperfError
from pytest_llmperf.store import model_store, view

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Windows lets only some users make links")


BLOB, NEW = f"sha256-{'ab' * 32}", f"sha256-{'cd' * 32}"


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """A store with one model of one blob."""
    manifest = tmp_path / "store/manifests/registry.ollama.ai/library/tiny/latest"
    manifest.parent.mkdir(parents=True)
    manifest.write_text('{"layers": []}')
    (tmp_path / "store/blobs").mkdir()
    (tmp_path / "store/blobs" / BLOB).write_bytes(b"weights")
    return tmp_path / "store"


def test_the_callers_own_store_comes_before_the_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert model_store({"OLLAMA_MODELS": "/data/models"}) == Path("/data/models")
    (tmp_path / ".ollama/models").mkdir(parents=True)
    assert model_store({}) == tmp_path / ".ollama/models"


def test_a_view_has_the_models_and_what_is_done_to_it_leaves_the_store_alone(store: Path, tmp_path: Path) -> None:
    before = {path: path.read_bytes() for path in store.rglob("*") if path.is_file()}
    own = view(store, tmp_path / "own")
    assert own == tmp_path / "own"
    assert {path.relative_to(own): path.read_bytes() for path in own.rglob("*") if path.is_file()} == {
        path.relative_to(store): data for path, data in before.items()
    }
    (own / "blobs" / NEW).write_bytes(b"created")
    (own / "blobs" / BLOB).unlink()
    next(own.rglob("latest")).write_text("{}")
    assert {path: path.read_bytes() for path in store.rglob("*") if path.is_file()} == before


def test_a_view_outlives_a_session(store: Path, tmp_path: Path) -> None:
    own = view(store, tmp_path / "own")
    (own / "blobs" / NEW).write_bytes(b"created")
    assert (view(store, own) / "blobs" / NEW).read_bytes() == b"created"


def test_a_store_that_is_not_there_is_not_made_either(tmp_path: Path) -> None:
    assert view(tmp_path / "none", tmp_path / "own") == tmp_path / "own"
    assert (tmp_path / "own/blobs").is_dir()
    assert not (tmp_path / "none").exists()


def test_an_unfinished_download_is_left_to_its_owner(store: Path, tmp_path: Path) -> None:
    (store / "blobs" / f"{BLOB}-partial").write_bytes(b"half")
    assert [path.name for path in (view(store, tmp_path / "own") / "blobs").iterdir()] == [BLOB]


def test_a_store_that_cannot_be_read_is_named_with_a_remedy(store: Path, tmp_path: Path) -> None:
    (tmp_path / "own").with_suffix(".file").write_text("")
    with pytest.raises(LlmperfError) as caught:
        view(store, tmp_path / "own.file" / "below")
    assert str(caught.value).startswith(f"the model store {store} can't be read or linked to (")
    assert str(caught.value).endswith("; make it readable, or set OLLAMA_MODELS to another one")
