"""`python -m pytest_llmperf.emulator serve`: what `ollama serve` is for the real thing."""

from __future__ import annotations

import errno
import os
import signal
import sys
from types import FrameType

from pytest_llmperf.emulator import config, log
from pytest_llmperf.emulator.device import Device
from pytest_llmperf.emulator.engine import Engine
from pytest_llmperf.emulator.process import Child
from pytest_llmperf.emulator.server import VERSION, Server

USAGE = "Usage: python -m pytest_llmperf.emulator serve | --version"
_TAKEN = {errno.EADDRINUSE, 10013}  # 10013: how Windows refuses a port that is exclusively another's


def main(argv: list[str]) -> int:
    """Run one command; the exit code is Ollama's, and 2 where the command or `LLMPERF_EMULATOR` can't be read."""
    match argv:
        case ["serve"]:
            return serve()
        case ["--version"]:
            sys.stdout.write(f"ollama version is {VERSION} (emulated by pytest-llmperf)\n")
            return 0
        case _:
            log.plain(USAGE)
            return 2


def serve() -> int:
    """Serve until a signal ends the process; returns only when that could not begin."""
    try:
        settings = config.read(os.environ)
    except config.ConfigError as error:
        log.plain(f"Error: {error}")
        return 2
    _end_on_signals()
    settings.physics.fault.at_start()
    device = Device("rtx4080", settings.physics.vram, serial=settings.physics.serial)
    try:
        server = Server((settings.host, settings.port), Engine(settings, device))
    except OSError as error:
        log.plain(f"Error: listen tcp {settings.host}:{settings.port}: bind: {_words(error)}")
        return 1
    _announce(server, settings, device.free())
    settings.physics.fault.at_listening()
    server.serve_forever()
    return 0


def _end_on_signals() -> None:
    for name in ("SIGTERM", "SIGINT", "SIGBREAK"):
        if number := getattr(signal, name, None):
            signal.signal(number, _end)


def _end(_number: int, _frame: FrameType | None) -> None:
    Child.end_all()
    os._exit(0)  # streams are cut at once, as Ollama cuts them


def _words(error: OSError) -> str:
    return "address already in use" if error.errno in _TAKEN else str(error.strerror or error).lower()


def _announce(server: Server, settings: config.Config, free: int) -> None:
    names = sorted(name for name in os.environ if name.startswith("OLLAMA_") or name == config.VARIABLE)
    log.info("routes.go:1", "server config", env=f"map[{' '.join(f'{n}:{os.environ[n]}' for n in names)}]")
    host, port = server.server_address[:2]
    address = f"[{host!s}]" if ":" in str(host) else host
    log.info("routes.go:1", f"Listening on {address!s}:{port} (version {VERSION})")
    log.info("runner.go:1", "discovering available GPUs...")
    log.info(
        "types.go:1",
        "inference compute",
        id="GPU-e4080000-0000-4000-8000-000000000000",
        library="CUDA",
        compute="8.9",
        name="CUDA0",
        description="Emulated RTX 4080 Laptop GPU",
        libdirs="ollama,cuda_v13",
        driver="13.0",
        pci_id="0000:01:00.0",
        type="discrete",
        total="12.0 GiB",  # the card's: part of a baseline's conditions, which `vram_gb` is not
        available=f"{free / 2**30:.1f} GiB",
    )
    context = settings.context_length
    log.info("routes.go:1", "vram-based default context", total_vram="12.0 GiB", default_num_ctx=context)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
