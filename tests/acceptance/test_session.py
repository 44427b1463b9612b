"""What the whole run says and does: counting, requiring, the lane, idleness, servers that can't be found."""

from __future__ import annotations

import json
from itertools import pairwise

import pytest

from tests.acceptance.conftest import TEST, Run

THREE = """
def test_measured(llmperf):
    llmperf.check()

@pytest.mark.skip(reason="today")
def test_skipped(llmperf):
    llmperf.check()

def test_without_the_fixture():
    pass
"""


def test_the_last_line_counts_marked_tests_that_did_not_measure(project: pytest.Pytester, run: Run) -> None:
    project.makepyfile(test_stack=TEST + THREE)
    run("--llmperf-rebaseline", "--llmperf-sessions=1")
    for options in ((), ("-n2",)):
        run(*options).stdout.fnmatch_lines(["llmperf: 1 gated: 1 held; 2 marked tests not measured"])


def test_a_run_in_which_nothing_measured_says_so_too(project: pytest.Pytester, run: Run) -> None:
    project.makepyfile(test_stack=TEST + THREE)
    for options in ((), ("-n2",)):
        run("-k", "not measured", *options).stdout.fnmatch_lines(["llmperf: 3 marked tests not measured"])
    assert "--llmperf-require" not in run("--collect-only", "--llmperf-require=all").stdout.str().partition("===")[2]


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (("--llmperf-require=1",), 0, "llmperf: 1 gated: 1 held; 2 marked tests not measured"),
        (("--llmperf-require=2",), 1, "llmperf: --llmperf-require=2: 1 test was judged, 2 required; not judged: *"),
        (
            ("--llmperf-require=all",),
            1,
            "llmperf: --llmperf-require=all: 1 test was judged, 3 required; not judged: *skipped, *",
        ),
        (
            ("--llmperf-require=all", "-n2"),
            1,
            "llmperf: --llmperf-require=all: 1 test was judged, 3 required; not judged: *skipped, *",
        ),
        (("--llmperf-require=1", "-k", "nothing"), 1, "llmperf: --llmperf-require=1: 0 tests were judged, 1 *"),
        (("--llmperf-require=0",), 4, "*--llmperf-require takes a number of tests or the word all, not '0'"),
        (
            ("--llmperf-backend=vllm",),
            4,
            "*--llmperf-backend takes ollama, emulator or different URLs such as *, not 'vllm'",
        ),
        (
            ("-o", "llmperf_backend=vllm"),
            4,
            "*ini llmperf_backend takes ollama, emulator or different URLs such as *, not 'vllm'",
        ),
        (("--llmperf-backend=http://one:1,http://one:1/",), 4, "*or different URLs such as *, not 'http://one:1,*'"),
        (("--llmperf-backend=https://one:443",), 4, "*--llmperf-backend takes *, not 'https://one:443'"),
        (("--llmperf-budget=15",), 4, "*--llmperf-budget takes a time such as 15m, 90s or 1h30m, not '15'"),
        (("-o", "llmperf_quiet_wait=1m"), 4, "*llmperf_quiet_wait takes a number of seconds or the word off, not '1m'"),
        (("--llmperf-sessions=0",), 4, "*--llmperf-sessions takes a number from 1 up, not 0"),
    ],
)
def test_options_do_what_they_say(
    project: pytest.Pytester, run: Run, options: tuple[str, ...], code: int, words: str
) -> None:
    project.makepyfile(test_stack=TEST + THREE)
    if "judged" in words or code == 0:
        run("--llmperf-rebaseline", "--llmperf-sessions=1")
    result = run(*options)
    assert result.ret == code
    lines = result.stdout if code != 4 else result.stderr
    lines.fnmatch_lines([words])


def test_two_measurements_never_overlap_on_one_device(project: pytest.Pytester, run: Run) -> None:
    project.makepyfile(
        test_lane="""
        import json, pathlib, time, pytest

        @pytest.mark.parametrize("number", range(4))
        def test_alone(ollama, number):
            began = time.monotonic()
            time.sleep(0.3)
            pathlib.Path(f"span{number}.json").write_text(json.dumps([began, time.monotonic()]))
        """
    )
    run("-n2").assert_outcomes(passed=4)
    spans = sorted(json.loads(path.read_text("utf-8")) for path in project.path.glob("span*.json"))
    assert all(first[1] <= second[0] for first, second in pairwise(spans))


def test_instances_are_isolated_and_gone_afterwards_also_when_the_test_fails(
    project: pytest.Pytester, run: Run
) -> None:
    project.makepyfile(
        test_fixtures=TEST
        + """
import httpx

def test_per_topology(ollama_instances):
    one, two = ollama_instances
    assert one.port != two.port and one.env["HOME"] != two.env["HOME"]
    assert one.url.startswith("http://127.0.0.1:")
    for instance in ollama_instances:
        assert httpx.get(instance.url + "/api/version").json() == {"version": instance.version}
        assert "Listening on" in instance.log.read_text()

def test_any_number_with_any_environment(ollama_factory):
    servers = [ollama_factory(env={"OLLAMA_NUM_PARALLEL": "2"}) for _ in range(3)]
    assert len({server.port for server in servers}) == 3
    assert servers[0].env["OLLAMA_NUM_PARALLEL"] == "2"

def test_failing(ollama):
    raise RuntimeError("of the user")

def test_open_to_the_network(ollama_factory):
    ollama_factory(env={"OLLAMA_HOST": "0.0.0.0:0"})

def test_fixed_port_in_use(ollama, ollama_factory):
    ollama_factory(env={"OLLAMA_HOST": f"127.0.0.1:{ollama.port}"})
"""
    )
    result = run()
    result.assert_outcomes(passed=2, failed=3)
    result.stdout.fnmatch_lines(
        [
            "E*RuntimeError: of the user",
            "llmperf: OLLAMA_HOST=0.0.0.0:0 would open the server to the network; use 127.0.0.1:0 *",
            "llmperf: OLLAMA_HOST=127.0.0.1:*: the port is in use; leave OLLAMA_HOST out *",
        ]
    )


def test_a_missing_server_is_an_error_that_names_both_ways_out_and_never_a_skip(
    project: pytest.Pytester, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    project.makepyfile(test_stack=TEST + "def test_two_agents(llmperf):\n    llmperf.check()\n")
    monkeypatch.setenv("PATH", str(project.path))
    for options in (("--llmperf-backend=ollama",), ("-o", "llmperf_backend=ollama", "-n2")):
        result = run(*options)
        assert result.ret == 1
        result.assert_outcomes(failed=1)
        result.stdout.fnmatch_lines(
            [
                "llmperf: invalid: test_stack.py::test_two_agents",
                "  no server to measure: there is no ollama on PATH; install it or set llmperf_ollama=*",
                "llmperf: 1 gated: 1 invalid",
            ]
        )
        assert "or measure the emulator: --llmperf-backend=emulator" in result.stdout.str()


def test_the_llmperf_fixture_without_a_mark_says_what_to_write(project: pytest.Pytester, run: Run) -> None:
    project.makepyfile(test_stack="def test_it(llmperf):\n    llmperf.check()\n")
    run().stdout.fnmatch_lines(
        ["llmperf: test_stack.py::test_it declares nothing to measure; write @pytest.mark.llmperf(*) over it"]
    )


def test_an_id_belongs_to_one_test(project: pytest.Pytester, run: Run) -> None:
    source = TEST.replace("scenario=", 'id="pair", scenario=') + "def test_it(llmperf):\n    llmperf.check()\n"
    project.makepyfile(test_a=source, test_b=source)
    for options in ((), ("-n2",)):
        result = run(*options)
        assert result.ret != 0
        result.stdout.fnmatch_lines(
            ["test_b.py:*: llmperf() id='pair' is already that of test_a.py::test_it; every test needs its own"]
        )


def test_an_idle_run_loads_none_of_our_dependencies_starts_nothing_and_says_nothing(
    project: pytest.Pytester, run: Run
) -> None:
    project.makeconftest(
        """
        import psutil, sys

        def pytest_unconfigure():
            print("CHILDREN", psutil.Process().children())
            ours = {"httpx", "h11", "pydantic", "filelock", "tabulate", "pytest_llmperf.server"}
            print("LOADED", sorted(ours & sys.modules.keys()))
            print("MODULES", len([name for name in sys.modules if name.startswith("pytest_llmperf")]))
        """
    )
    project.makepyfile("def test_ok():\n    pass\n")
    result = run("-s")
    result.stdout.fnmatch_lines(["CHILDREN [[]]", "LOADED [[]]", "MODULES 6"])
    assert "llmperf: " not in result.stdout.str()
    assert not (project.path / ".llmperf").exists()


def test_a_cancelled_job_leaves_nothing(project: pytest.Pytester, run: Run) -> None:
    project.makepyfile(
        test_long="""
        import os, signal, threading, time

        def test_cancelled(ollama):
            threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGTERM)).start()
            time.sleep(60)
        """
    )
    assert run().ret == pytest.ExitCode.INTERRUPTED
