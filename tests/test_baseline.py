"""Baseline files: where they lie, what is refused and in which words, what is written."""

from __future__ import annotations

import os
import re
import sys
from dataclasses import replace as changed
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pytest_llmperf import baseline
from pytest_llmperf.model import Baseline, LlmperfError, Sample, Session

KEY = "tests/test_chat.py::TestChat::test_two_agents[gemma3:4b-80]"
FILE = "base.json"
RESTORE = f"restore it with git checkout -- {FILE}, or record it anew with --llmperf-rebaseline"

TWO_SESSIONS = Baseline(
    test=KEY,
    content="5f1c",
    emulated=False,
    conditions={"model": "gemma3:4b", "agents": 2, "temperature": 0.123456, "gpu": None, "shared": True},
    sessions=(
        Session(
            (
                Sample({"ttft": 800.04, "total_throughput": 71.2}, kept=False),
                Sample({"ttft": 412.346, "total_throughput": 87.31499, "tokens": 160123}),
                Sample({"ttft": 420.0, "total_throughput": 88.1, "tokens": 160119}),
            ),
            load_s=10.23456,
        ),
        Session((Sample({"total_throughput": 12345.6}),), load_s=9.5),
    ),
)

CANONICAL = """\
{
  "schema": 1,
  "test": "tests/test_chat.py::TestChat::test_two_agents[gemma3:4b-80]",
  "emulated": false,
  "content": "5f1c",
  "summary": {
    "total_throughput": {"median": 88.1, "runs": 3, "sessions": 2},
    "ttft": {"median": 416.1, "runs": 2, "sessions": 1}
  },
  "conditions": {
    "agents": 2,
    "gpu": null,
    "model": "gemma3:4b",
    "shared": true,
    "temperature": 0.123456
  },
  "sessions": [
    {"load_s": 10.23, "runs": [
      {"kept": false, "total_throughput": 71.2, "ttft": 800},
      {"tokens": 160123, "total_throughput": 87.31, "ttft": 412.3},
      {"tokens": 160119, "total_throughput": 88.1, "ttft": 420}]},
    {"load_s": 9.5, "runs": [
      {"total_throughput": 12350}]}
  ]
}
"""


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path / FILE


def refusal(file: Path, content: str | bytes) -> str:
    file.write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(LlmperfError) as caught:
        baseline.load(file)
    return str(caught.value)


def edited(old: str, new: str) -> str:
    assert old in CANONICAL
    return CANONICAL.replace(old, new)


@pytest.mark.parametrize(
    ("machine", "key", "place"),
    [
        (
            "emulated-rtx4080",
            KEY,
            r"emulated-rtx4080/tests/test_chat/testchat-test_two_agents-gemma3-4b-80-\w{8}\.json",
        ),
        ("RTX 4080", "chat/Two Agents", r"rtx-4080/chat-two-agents-\w{8}\.json"),
        ("CON", "aux/com1.py::nul", r"con_/aux_/com1_/nul_-\w{8}\.json"),
        ("..", "../../etc/a.b.py::x", r"_/_/_/etc/a-b/x-\w{8}\.json"),
        ("m.", "t" * 300 + ".py::" + "u" * 300, r"m/t{60}/u{60}-\w{8}\.json"),
        ("m", "t" * 59 + "  two", r"m/t{59}-\w{8}\.json"),
        ("日本", "tests/日本.py::日本", r"_/tests/_/_-\w{8}\.json"),
    ],
)
def test_a_path_is_readable_and_legal_everywhere(machine: str, key: str, place: str) -> None:
    assert re.fullmatch(place, baseline.path_for(Path("root"), machine, key).relative_to("root").as_posix())


@given(machine=st.text(), key=st.text())
@example(machine="/", key="C:\\x\\..\\con.py::LPT1.")
def test_no_key_leaves_the_machines_folder(machine: str, key: str) -> None:
    *folders, name = baseline.path_for(Path("root"), machine, key).relative_to("root").parts
    assert folders
    assert all(re.fullmatch(r"[a-z0-9_][a-z0-9_-]{0,60}", folder) for folder in folders)
    assert not {"con", "prn", "aux", "nul", "com1", "lpt9"} & {*folders}
    assert re.fullmatch(r"[a-z0-9_][a-z0-9_-]{0,60}-[0-9a-f]{8}\.json", name)


@pytest.mark.parametrize("other", [KEY.upper(), KEY.replace(":4b", "/4b"), KEY.replace("test_chat", "Test_chat")])
def test_keys_that_look_alike_have_files_of_their_own(other: str) -> None:
    paths = {str(baseline.path_for(Path("root"), "m", key)).lower() for key in (KEY, other)}
    assert len(paths) == 2


def test_the_canonical_text() -> None:
    assert baseline.text(TWO_SESSIONS) == CANONICAL


def test_a_full_baseline_fits_on_a_screen() -> None:
    sample = Sample({f"metric_{n}": 1.5 for n in range(5)})
    full = changed(
        TWO_SESSIONS, conditions={f"field_{n}": n for n in range(15)}, sessions=(Session((sample,) * 6, 10.0),) * 4
    )
    assert baseline.text(full).count("\n") <= 60


def test_control_characters_stay_escaped() -> None:
    hostile = changed(TWO_SESSIONS, test="a\n\x1b[31m\x7f\x85\u2028\u202eb")
    assert r"\u001b[31m\u007f\u0085\u2028\u202eb" in baseline.text(hostile)


def test_whole_numbers_beyond_a_floats_precision_stay_short() -> None:
    assert '"load_s": 1.5e+17,' in baseline.text(changed(TWO_SESSIONS, sessions=(Session((), 1.5e17),)))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_is_not_written(value: float) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        baseline.text(changed(TWO_SESSIONS, sessions=(Session((Sample({"ttft": value}),)),)))


numbers = st.floats(-1e300, 1e300) | st.integers(-(2**53), 2**53)
names = st.text().filter(lambda name: name != "kept") | st.sampled_from(["model_config", "load_s", "__class__"])
samples = st.builds(Sample, st.dictionaries(names, numbers, max_size=4), st.booleans())
sessions = st.builds(Session, st.lists(samples, max_size=4).map(tuple), numbers)
scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
baselines = st.builds(
    Baseline,
    test=st.text(),
    content=st.text(),
    emulated=st.booleans(),
    conditions=st.dictionaries(st.text(), scalars, max_size=4),
    sessions=st.lists(sessions, max_size=3).map(lambda some: (*some, Session((Sample({"ttft": 412.0}),), 1.0))),
)


@given(baselines)
@settings(deadline=None)
def test_what_is_written_reads_back_up_to_rounding(tmp_path_factory: pytest.TempPathFactory, wanted: Baseline) -> None:
    file = tmp_path_factory.getbasetemp() / "round_trip.json"
    written = baseline.text(wanted)
    baseline.replace(file, written)
    found = baseline.load(file)
    assert found is not None
    assert baseline.text(found) == written
    assert changed(found, sessions=wanted.sessions) == wanted
    assert {k: type(v) for k, v in found.conditions.items()} == {k: type(v) for k, v in wanted.conditions.items()}
    for got, want in zip(found.sessions, wanted.sessions, strict=True):
        assert got.load_s == pytest.approx(want.load_s, rel=5.1e-4, abs=0)
        assert [sample.kept for sample in got.samples] == [sample.kept for sample in want.samples]
        for sample, original in zip(got.samples, want.samples, strict=True):
            assert sample.values == pytest.approx(original.values, rel=5.1e-4, abs=0)


def test_no_file_is_no_baseline(file: Path) -> None:
    assert baseline.load(file) is None


@pytest.mark.parametrize("content", [CANONICAL.replace("\n", "\r\n").encode(), b"\xef\xbb\xbf" + CANONICAL.encode()])
def test_what_windows_does_to_a_checkout_is_read_over(file: Path, content: bytes) -> None:
    file.write_bytes(content)
    found = baseline.load(file)
    assert found is not None
    assert baseline.text(found) == CANONICAL


def test_the_summary_is_never_trusted(file: Path) -> None:
    file.write_text(edited('"median": 88.1', '"median": 1'), "utf-8")
    found = baseline.load(file)
    assert found is not None
    assert baseline.text(found) == CANONICAL


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ("87.31", "NaN", "sessions.0.runs.1.total_throughput: must be a finite number, is NaN"),
        ("87.31", "-1e999", "sessions.0.runs.1.total_throughput: must be a finite number, is -Infinity"),
        ("87.31", "true", "sessions.0.runs.1.total_throughput: must be a valid number, is true"),
        ("87.31", '"87.31"', 'sessions.0.runs.1.total_throughput: must be a valid number, is "87.31"'),
        ("10.23", "Infinity", "sessions.0.load_s: must be a finite number, is Infinity"),
        ('"load_s": 9.5, ', "", "sessions.1.load_s: is missing"),
        ('"load_s": 9.5', '"load": 1, "load_s": 9.5', "sessions.1.load: is not a field of a baseline"),
        ('"content": "5f1c",', "", "content: is missing"),
        ('"content": "5f1c"', '"content": 5', "content: must be a valid string, is 5"),
        ('"schema": 1', '"schema": "1"', 'schema: must be a valid integer, is "1"'),
        ('"emulated": false', '"emulated": 0', "emulated: must be a valid boolean, is 0"),
        ('"median": 88.1', '"median": "fast"', 'summary.total_throughput.median: must be a valid number, is "fast"'),
        ('"kept": false', '"kept": 0', "sessions.0.runs.0.kept: must be a valid boolean, is 0"),
        (
            ": 0.123456",
            ": NaN",
            "conditions.temperature: must be a string, a finite number, true, false or null, is NaN",
        ),
        (
            ": 0.123456",
            ": [1]",
            "conditions.temperature: must be a string, a finite number, true, false or null, is [1]",
        ),
        (CANONICAL, "[]", "the whole file: must be an object, is []"),
        (CANONICAL[CANONICAL.index('"sessions": [') :], '"sessions": []}', "sessions: holds no session"),
        (CANONICAL[CANONICAL.index('"sessions": [') :], '"sessions": {}}', "sessions: must be a valid array, is {}"),
        (
            CANONICAL[CANONICAL.index('"sessions": [') :],
            '"sessions": [{"load_s": 1, "runs": [{"kept": false, "ttft": 1}]}]}',
            "sessions: holds no kept run",
        ),
    ],
)
def test_a_wrong_field_is_named_with_the_way_out(file: Path, old: str, new: str, problem: str) -> None:
    assert refusal(file, edited(old, new)) == f"{FILE}: {problem}; {RESTORE}"


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("", r"is truncated \(EOF .* at line 1 column 0\)"),
        (CANONICAL[:300], r"is truncated \(EOF .* at line 11 column 6\)"),
        (edited("87.31", ""), r"is not JSON \(expected value at line 20 column 46\)"),
        ("[" * 100_000, r"is not JSON \(recursion limit .* at line 1 column \d+\)"),
        (CANONICAL.encode("utf-16"), r"is not UTF-8 \(byte 1\)"),
    ],
)
def test_what_is_not_json_is_shown_by_its_place(file: Path, content: str | bytes, problem: str) -> None:
    assert re.fullmatch(f"{re.escape(FILE)}: {problem}; {re.escape(RESTORE)}", refusal(file, content))


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_a_merge_conflict_is_called_by_its_name(file: Path, newline: str) -> None:
    conflict = edited('  "content"', '<<<<<<< HEAD\n  "content": "1",\n=======\n>>>>>>> main\n  "content"')
    assert refusal(file, conflict.replace("\n", newline)) == (
        f"{FILE}: line 5 is a git conflict marker; "
        f"take one side with git checkout --ours -- {FILE}, or record it anew with --llmperf-rebaseline"
    )


def test_a_newer_schema_asks_for_an_upgrade(file: Path) -> None:
    newer = edited('"schema": 1', '"schema": 2, "colour": 1').replace('"content": "5f1c",', "")
    assert refusal(file, newer) == f"{FILE}: is of schema 2, this pytest-llmperf reads up to 1; upgrade it"


def test_a_directory_is_no_baseline(file: Path) -> None:
    file.mkdir()
    with pytest.raises(LlmperfError) as caught:
        baseline.load(file)
    assert str(caught.value) == f"{FILE}: is a directory, not a file; move it away, then {RESTORE}"


@pytest.mark.skipif(os.name == "nt", reason="links need a privilege on Windows")
def test_what_cannot_be_read_is_not_taken_for_absent(file: Path) -> None:
    file.symlink_to(file)
    with pytest.raises(LlmperfError) as caught:
        baseline.load(file)
    assert re.fullmatch(
        rf"{FILE}: can't be read \(.*symbolic links\); make it readable, then run again", str(caught.value)
    )


def test_a_file_elsewhere_is_shown_in_full(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (file.parent / "deeper").mkdir()
    monkeypatch.chdir("deeper")
    assert refusal(file, "[]").startswith(f"{file}: the whole file: must be an object")


def test_replace_creates_folders_and_swaps_the_whole_file(tmp_path: Path) -> None:
    path, old = tmp_path / "a" / "b" / FILE, tmp_path / "old.json"
    assert baseline.replace(path, "first\n")
    os.link(path, old)
    assert baseline.replace(path, "second\n")
    assert (old.read_bytes(), path.read_bytes()) == (b"first\n", b"second\n")
    assert [*path.parent.iterdir()] == [path]


@pytest.mark.parametrize("content", [b"same\n", b"same\r\n"])
def test_replace_leaves_the_same_content_alone(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / FILE
    path.write_bytes(content)
    before = path.stat()
    assert not baseline.replace(path, "same\n")
    assert path.read_bytes() == content
    assert (path.stat().st_ino, path.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_replace_overwrites_what_is_not_even_text(tmp_path: Path) -> None:
    path = tmp_path / FILE
    path.write_bytes(b"\xff\xfe")
    assert baseline.replace(path, "new\n")
    assert path.read_bytes() == b"new\n"


def test_a_failed_replace_leaves_nothing_behind(file: Path) -> None:
    (file / "inside").mkdir(parents=True)
    with pytest.raises(
        LlmperfError, match=rf"^{FILE}: can't be written \(.+\) and stays as it was; put that right and run"
    ):
        baseline.replace(file, "new\n")
    assert [*file.parent.iterdir()] == [file]


def test_replace_below_a_file_says_so(file: Path) -> None:
    file.write_bytes(b"")
    with pytest.raises(LlmperfError, match=r"x\.json: can't be written \(.+\).+--llmperf-rebaseline$"):
        baseline.replace(file / "x.json", "new\n")


@pytest.mark.parametrize("writing", [False, True])
@pytest.mark.parametrize("below", ["", "baselines"])
def test_a_root_that_is_a_file_is_refused(file: Path, below: str, writing: bool) -> None:
    file.write_bytes(b"")
    with pytest.raises(LlmperfError) as caught:
        baseline.check_root(file / below, writing=writing)
    assert re.fullmatch(
        rf"llmperf_baselines = {re.escape(str(Path(FILE, below)))}: can't be used \(.+\); "
        "make it a writable folder, or set llmperf_baselines to another one",
        str(caught.value),
    )


@pytest.mark.skipif(sys.platform != "linux", reason="needs a folder not even root can write to")
def test_a_root_that_cannot_be_written_is_refused_only_for_writing() -> None:
    root = Path("/proc/llmperf/baselines")
    baseline.check_root(root, writing=False)
    with pytest.raises(LlmperfError, match=rf"^llmperf_baselines = {root}: can't be used \(.+\); make it a writable"):
        baseline.check_root(root, writing=True)


@pytest.mark.parametrize("writing", [False, True])
def test_a_missing_root_is_fine_and_stays_missing(tmp_path: Path, writing: bool) -> None:
    baseline.check_root(tmp_path / "a" / "b", writing=writing)
    assert not [*tmp_path.iterdir()]


def test_a_renamed_test_is_found_by_what_it_declared(tmp_path: Path) -> None:
    before = baseline.path_for(tmp_path, "box", KEY)
    baseline.replace(before, CANONICAL)
    baseline.replace(baseline.path_for(tmp_path, "box", "other-id"), edited("5f1c", "aaaa"))
    baseline.replace(baseline.path_for(tmp_path, "box", "broken-id"), edited("5f1c", "5f1c\n"))
    baseline.replace(baseline.path_for(tmp_path, "far", KEY), CANONICAL)
    assert baseline.same_content(tmp_path, "box", "5f1c") == [(before, KEY)]
    assert baseline.same_content(tmp_path, "new", "5f1c") == []


def test_the_machines_that_know_a_test(tmp_path: Path) -> None:
    assert baseline.other_machines(tmp_path / "absent", KEY) == []
    for machine, key in [("b", KEY), ("a", KEY), ("c", "other-id")]:
        baseline.replace(baseline.path_for(tmp_path, machine, key), CANONICAL)
    (tmp_path / "README.md").write_bytes(b"")
    assert baseline.other_machines(tmp_path, KEY) == ["a", "b"]
