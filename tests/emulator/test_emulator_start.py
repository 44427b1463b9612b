"""Starting, stopping and failing like `ollama serve`; faults on demand; settings that explain themselves."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from pytest_llmperf.emulator import config, durations

from .instances import ARGV, GEMMA, Emulate, environment

posix = pytest.mark.skipif(sys.platform == "win32", reason="signals that a process can catch")


def run_to_its_end(folder: Path, emulator: str = "", **env: str) -> subprocess.CompletedProcess[str]:
    settings = environment(folder, "agent1", emulator, env)
    return subprocess.run(ARGV, env=settings, capture_output=True, text=True, timeout=30, check=False)


def test_the_log_says_where_it_listens_and_on_what(emulate: Emulate) -> None:
    log = emulate().stderr.read_text()
    stamp = r"time=\d{4}-\d\d-\d\dT[\d:]{8}\.\d{3}Z level=INFO source=\w+\.go:\d+ "
    assert re.search(stamp + r'msg="server config" env="map\[', log)
    assert re.search(stamp + r'msg="Listening on 127\.0\.0\.1:\d+ \(version 0\.33\.0\)"', log)
    gpu = r'msg="inference compute" id=GPU-\S+ library=CUDA compute=8\.9 name=CUDA0 '
    assert re.search(stamp + gpu + r'description="Emulated RTX 4080 Laptop GPU" .*total="12\.0 GiB" available=', log)


def test_a_taken_port(emulate: Emulate, tmp_path: Path) -> None:
    address = emulate().address
    second = run_to_its_end(tmp_path, OLLAMA_HOST=address)
    assert second.stderr == f"Error: listen tcp {address}: bind: address already in use\n"
    assert second.returncode == 1


@posix
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_even_while_it_streams(emulate: Emulate, number: signal.Signals) -> None:
    server = emulate()
    stream = server.client.generate(GEMMA, "go on", stream=True, options={"num_predict": 30_000})
    next(iter(stream))
    server.process.send_signal(number)
    assert server.process.wait(10) == 0


@pytest.mark.parametrize(
    ("emulator", "error"),
    [
        ("sped=20", "unknown key 'sped'; legal are seed, noise, session_noise, slowdown, ttft_ms, serial, speed, "),
        (
            "vram=6",
            "unknown key 'vram'; legal are seed, noise, session_noise, slowdown, ttft_ms, serial, speed, vram_gb",
        ),
        ("speed=0", "speed='0' is not a number above 0"),
        ("vram_gb=12GB", "vram_gb='12GB' is not a number above 0"),
        ("vram_gb=0", "vram_gb='0' is not a number above 0"),
        ("noise=-1", "noise='-1' is not a number of 0 or more"),
        ("slowdown=nan", "slowdown='nan' is not a number above 0"),
        ("seed=x", "seed='x' is not an integer"),
        ("serial=yes", "serial='yes' is not 0 or 1"),
        ("profile=tr1", "profile='tr1' is not one of default, tr114"),
        ("fault=boom", "fault='boom' is not one of none, exit, silent, deaf, short, no-done, error, hiccup, reload"),
    ],
)
def test_settings_that_cannot_be_read(emulator: str, error: str) -> None:
    with pytest.raises(config.ConfigError) as caught:
        config.read({"LLMPERF_EMULATOR": emulator})
    assert str(caught.value).startswith(f"LLMPERF_EMULATOR: {error}")
    assert str(caught.value).endswith('write for example LLMPERF_EMULATOR="speed=20,seed=7"')


def test_bad_settings_end_the_process_with_2(tmp_path: Path) -> None:
    ended = run_to_its_end(tmp_path, "speed=fast")
    assert ended.returncode == 2
    assert ended.stderr.startswith("Error: LLMPERF_EMULATOR: speed='fast' is not a number above 0; write for example")


def test_the_environment_is_read_as_ollama_reads_it(capsys: pytest.CaptureFixture[str]) -> None:
    settings = config.read(
        {
            "OLLAMA_HOST": "http://127.0.0.1:8080/",
            "OLLAMA_NUM_PARALLEL": "many",
            "OLLAMA_KEEP_ALIVE": "90",
            "OLLAMA_CONTEXT_LENGTH": "2048",
            "HOME": "/homes/session-1/agent-2",
            "LLMPERF_EMULATOR": " seed=4, profile=tr114 ,speed=2 ",
        }
    )
    assert (settings.host, settings.port) == ("127.0.0.1", 8080)
    assert (settings.parallel, settings.keep_alive, settings.context_length) == (1, 90.0, 2048)
    assert (settings.session, settings.instance) == ("session-1", "agent-2")
    assert (settings.physics.seed, settings.physics.load_s) == (4, 5.0)
    assert 'msg="invalid environment variable, using default" key=OLLAMA_NUM_PARALLEL' in capsys.readouterr().err
    assert (config.read({}).host, config.read({}).port) == ("127.0.0.1", 11434)


@pytest.mark.parametrize(
    ("text", "seconds"), [("5m", 300), ("1h30m", 5400), ("1.5s", 1.5), ("-1m", -60), ("0", 0), ("20ms", 0.02)]
)
def test_go_durations(text: str, seconds: float) -> None:
    assert durations.parse(text) == pytest.approx(seconds)


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("300", 'time: missing unit in duration "300"'),
        ("5 m", 'time: invalid duration "5 m"'),
        ("", 'time: invalid duration ""'),
        ("5d", 'time: unknown unit "d" in duration "5d"'),
    ],
)
def test_what_is_no_go_duration(text: str, error: str) -> None:
    with pytest.raises(ValueError, match=re.escape(error)):
        durations.parse(text)


def test_fault_exit(tmp_path: Path) -> None:
    ended = run_to_its_end(tmp_path, "fault=exit")
    assert (ended.returncode, ended.stderr) == (1, "Error: llama-server binary not found (fault=exit)\n")


def test_fault_silent(emulate: Emulate) -> None:
    server = emulate("fault=silent", ready=False)
    with pytest.raises(subprocess.TimeoutExpired):
        server.process.wait(0.7)
    assert "Listening" not in server.stderr.read_text()


@posix
def test_fault_deaf(emulate: Emulate) -> None:
    server = emulate("fault=deaf")
    server.process.terminate()
    with pytest.raises(subprocess.TimeoutExpired):
        server.process.wait(0.3)
    assert server.get("/").status_code == 200


def test_fault_no_done(emulate: Emulate) -> None:
    server = emulate("speed=50,fault=no-done")
    body = {"model": GEMMA, "prompt": "Hi", "options": {"num_predict": 10}}
    answer = server.post("/api/generate", body)
    assert answer.status_code == 200
    assert [json.loads(line)["done"] for line in answer.text.splitlines()] == [False] * 5
    assert server.post("/api/generate", {**body, "stream": False}).json()["done"] is False


def test_fault_error(emulate: Emulate) -> None:
    server = emulate("speed=50,fault=error")
    body = {"model": GEMMA, "messages": [{"role": "user", "content": "Hi"}]}
    answer = server.post("/api/chat", body)
    *chunks, last = [json.loads(line) for line in answer.text.splitlines()]
    words = {"error": "an error was encountered while running the model: unexpected EOF"}
    assert (answer.status_code, len(chunks), last) == (200, 3, words)
    whole = server.post("/api/chat", {**body, "stream": False})
    assert (whole.status_code, whole.json()) == (500, words)


def test_fault_short(emulate: Emulate) -> None:
    final = emulate("speed=50,fault=short").ask(20)
    assert (final["eval_count"], final["done_reason"]) == (10, "stop")


def test_fault_hiccup_refuses_the_ninth_chat(emulate: Emulate) -> None:
    server = emulate("speed=50,fault=hiccup")
    body = {"model": GEMMA, "messages": [{"role": "user", "content": "Hi"}], "options": {"num_predict": 1}}
    server.ask(1)
    answers = [server.post("/api/chat", body) for _ in range(20)]
    assert [answer.status_code for answer in answers] == [200] * 8 + [503] + [200] * 11
    assert answers[8].json() == {"error": "server busy, please try again.  maximum pending requests exceeded"}


def test_fault_reload_makes_the_ninth_answer_wait_as_for_a_load(emulate: Emulate) -> None:
    server = emulate("speed=50,fault=reload")
    server.post("/api/generate", {"model": GEMMA})
    finals = [server.ask(1) for _ in range(12)]
    slow = [number for number, final in enumerate(finals, 1) if final["load_duration"] > 1.5e9]
    assert slow == [9]
    assert finals[8]["total_duration"] > finals[8]["load_duration"]
    assert server.stderr.read_text().count("starting llama-server") == 1


def test_the_command_line() -> None:
    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([*ARGV[:-1], *arguments], capture_output=True, text=True, timeout=30, check=False)

    assert run("--version").stdout == "ollama version is 0.33.0 (emulated by pytest-llmperf)\n"
    assert (run("pull", "x").returncode, run("pull", "x").stderr) == (
        2,
        "Usage: python -m pytest_llmperf.emulator serve | --version\n",
    )
