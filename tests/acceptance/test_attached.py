"""Servers that run already: used, not stopped, left as they were, and said to be what they are."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, nullcontext
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread

import psutil
import pytest

from pytest_llmperf.instance import Instance
from pytest_llmperf.instances import Fleet
from tests.emulator.instances import eventually

from .conftest import TEST, Run, left_behind

GEMMA = "gemma3:4b-it-q4_K_M"
LLAMA = "llama3.1:8b-instruct-q4_0"
GATE = TEST + "def test_two_agents(llmperf):\n    llmperf.check()\n"


@pytest.fixture
def servers(project: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Instance]]:
    """Two emulators that somebody else has started, outside the folder that is looked through afterwards."""
    theirs = project.path / "theirs"
    theirs.mkdir()
    with monkeypatch.context() as patch:
        patch.setattr("tempfile.tempdir", str(theirs))
        fleet = Fleet(None, nullcontext(0.0), {"LLMPERF_EMULATOR": "speed=4", "OLLAMA_KEEP_ALIVE": "5m"})
        with closing(fleet):
            yield [fleet.start(), fleet.start()]


def backend(*servers: Instance) -> str:
    return f"--llmperf-backend={','.join(server.url for server in servers)}"


def in_memory(server: Instance) -> list[str]:
    with server.control() as control:
        return [entry["name"] for entry in control.loaded() or ()]


def test_they_are_measured_and_left_as_they_were(project: pytest.Pytester, run: Run, servers: list[Instance]) -> None:
    project.makepyfile(test_stack=GATE)
    with servers[0].control() as control:
        control.load(GEMMA, {"num_ctx": 512}, keep_alive="2h")
    before = [server.pid for server in servers]
    recorded = run(backend(*servers), "--llmperf-rebaseline", "--llmperf-sessions=2")
    assert recorded.ret == 0
    recorded.stdout.fnmatch_lines(["baselines/*-attached/test_stack/*: new, 2 sessions of 5 runs"])
    text = next((project.path / "baselines").rglob("*.json")).read_text("utf-8")
    assert '"emulated": true' in text, "what the emulator gives is labelled, however it was reached"
    assert "127.0.0.1" not in text
    judged = run(backend(*servers))
    assert judged.ret == 0
    judged.stdout.fnmatch_lines(
        [
            "measured on *-attached (emulated)",
            f"{servers[0].url}, {servers[1].url} ran already: not restarted between sessions; their *",
            "test_stack.py::test_two_agents: not verified, for its servers do not report it: slots",
            "llmperf: 1 gated: 1 *",
        ]
    )
    assert [server.pid for server in servers] == before
    assert all(psutil.pid_exists(pid) for pid in before)
    assert [in_memory(server) for server in servers] == [[GEMMA], []]
    with servers[0].control() as control:
        (entry,) = control.loaded() or [{}]
    left = datetime.fromisoformat(entry["expires_at"]) - datetime.now(UTC)
    assert 6000 < left.total_seconds() < 7200, "it stays as long as it would have"


def test_what_an_emulator_that_ran_already_gives_is_labelled_in_a_comparison_too(
    project: pytest.Pytester, run: Run, servers: list[Instance]
) -> None:
    body = "llmperf.assert_no_slower(llmperf.compare(control={'topology': 'shared'}, treatment={'topology': 'shared'}))"
    project.makepyfile(test_stack=GATE.replace("llmperf.check()", body))
    result = run(backend(*servers))
    result.stdout.fnmatch_lines(
        ["measured on *-attached (emulated)", f"{servers[0].url}, {servers[1].url} ran already: *"]
    )


def test_a_killed_pytest_holds_nobodys_memory_for_ever(project: pytest.Pytester, servers: list[Instance]) -> None:
    project.makepyfile(test_stack=GATE.replace("llmperf.check()", "llmperf.measure(); import os; os._exit(9)"))
    killed = project.runpytest_subprocess("-p", "no:cacheprovider", backend(*servers), "--llmperf-rebaseline")
    assert killed.ret == 9
    eventually(lambda: left_behind(project) == [])
    with servers[0].control() as control:
        (entry,) = control.loaded() or [{}]
    left = datetime.fromisoformat(entry["expires_at"]) - datetime.now(UTC)
    assert left.total_seconds() < 1900


def test_one_server_under_two_names_is_one(project: pytest.Pytester, run: Run, servers: list[Instance]) -> None:
    project.makepyfile(test_stack=GATE)
    other = servers[0].url.replace("127.0.0.1", "localhost")
    result = run(f"{backend(servers[0])},{other}", "--llmperf-rebaseline")
    assert result.ret == 1
    words = f"--llmperf-backend: {servers[0].url} and {other} are one server; name different ones"
    result.stdout.fnmatch_lines([f"  {words}"])


def test_too_few_servers_are_one_sentence(project: pytest.Pytester, run: Run, servers: list[Instance]) -> None:
    project.makepyfile(test_stack=GATE)
    result = run(backend(servers[0]), "--llmperf-rebaseline")
    assert result.ret == 1
    words = "--llmperf-backend names 1 server, and this test needs one more, 'agent2'"
    result.stdout.fnmatch_lines([f"  {words}; name as many as it has instances"])


def test_what_can_only_be_set_at_a_start_is_refused(
    project: pytest.Pytester, run: Run, servers: list[Instance]
) -> None:
    project.makepyfile(test_stack="def test_it(ollama_factory):\n    ollama_factory(env={'OLLAMA_DEBUG': '1'})\n")
    result = run(backend(*servers))
    refusal = "llmperf: OLLAMA_DEBUG can't be set for a server that runs already; leave --llmperf-backend out"
    result.stdout.fnmatch_lines([refusal])
    project.makepyfile(test_stack="def test_it(ollama):\n    pass\n")
    project.makeconftest("import pytest\n@pytest.fixture\ndef ollama_env():\n    return {'OLLAMA_DEBUG': '1'}\n")
    run(backend(*servers)).stdout.fnmatch_lines([refusal])


def test_a_server_that_does_not_answer_is_named(project: pytest.Pytester, run: Run) -> None:
    project.makepyfile(test_stack="def test_it(ollama):\n    pass\n")
    result = run("--llmperf-backend=http://127.0.0.1:9")
    assert result.ret == 1
    result.stdout.fnmatch_lines(
        ["llmperf: --llmperf-backend: http://127.0.0.1:9 does not answer GET /api/version; is it an Ollama?"]
    )


class NoOllama(BaseHTTPRequestHandler):
    """Something else on the port."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "15")
        self.end_headers()
        self.wfile.write(b"<html>hi</html>")

    def log_message(self, *_: object) -> None:
        """Nothing."""


def test_what_is_no_ollama_is_said_to_be_none(project: pytest.Pytester, run: Run) -> None:
    project.makepyfile(test_stack="def test_it(ollama):\n    pass\n")
    with HTTPServer(("127.0.0.1", 0), NoOllama) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_address[1]}"
        result = run(f"--llmperf-backend={url}")
        server.shutdown()
    result.stdout.fnmatch_lines(
        [f"llmperf: --llmperf-backend: {url} does not answer GET /api/version; is it an Ollama?"]
    )


class Elsewhere(BaseHTTPRequestHandler):
    """Sends whoever asks on to another server."""

    asked: list[str]
    target: str

    def do_GET(self) -> None:
        self.asked.append(self.path)
        self.send_response(302)
        self.send_header("Location", f"{self.target}{self.path}")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Nothing."""


@pytest.fixture
def elsewhere() -> Iterator[tuple[str, str, list[str]]]:
    """Two servers, the first of which redirects to the second, and the requests that both got."""
    asked = list[str]()
    with HTTPServer(("127.0.0.1", 0), Elsewhere) as first, HTTPServer(("127.0.0.1", 0), Elsewhere) as second:
        urls = [f"http://127.0.0.1:{server.server_address[1]}" for server in (first, second)]
        Elsewhere.asked, Elsewhere.target = asked, f"{urls[1]}/stray"
        for server in (first, second):
            Thread(target=server.serve_forever, daemon=True).start()
        yield urls[0], urls[1], asked
        first.shutdown()
        second.shutdown()


def test_nothing_is_sent_anywhere_that_was_not_named(
    project: pytest.Pytester, run: Run, elsewhere: tuple[str, str, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    named, other, asked = elsewhere
    monkeypatch.setenv("HTTP_PROXY", other)
    monkeypatch.setenv("http_proxy", other)
    project.makepyfile(test_stack="def test_it(ollama):\n    pass\n")
    result = run(f"--llmperf-backend={named}")
    assert result.ret == 1
    assert asked == ["/api/version"], "neither a redirect nor a proxy is followed"
