"""One marked test as the gate sees it: its baseline file, the command that reruns it, the evidence it leaves."""

from __future__ import annotations

import os
import re
import shlex
import shutil
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pytest_llmperf import baseline, identity
from pytest_llmperf.measured import Measured
from pytest_llmperf.model import Baseline, LlmperfError, Spec
from pytest_llmperf.report.words import relative
from pytest_llmperf.settings import Settings


class NoBaselineError(LlmperfError):
    """Nothing usable is recorded for this test on this machine."""


@dataclass(frozen=True)
class Case:
    """`test` is the node id; `collected` are those of all marked tests, to tell a renamed test from a copied one."""

    test: str
    spec: Spec
    settings: Settings
    collected: Collection[str]

    @property
    def machine(self) -> str:
        """The folder of this machine's baselines."""
        return identity.machine_name(emulated=self.settings.emulated, servers=self.settings.servers)

    @property
    def key(self) -> str:
        """What the baseline file is named after: the mark's id= with the parameters, else the node id."""
        if self.spec.id is None:
            return self.test
        _, bracket, parameters = self.test.partition("::")[2].partition("[")
        return self.spec.id + bracket + parameters

    @property
    def path(self) -> Path:
        """The baseline file."""
        return baseline.path_for(self.settings.baselines, self.machine, self.key)

    @property
    def evidence(self) -> Path:
        """Where logs and numbers of a test that didn't hold are kept until it runs again."""
        return self.settings.rootdir / ".llmperf" / "last" / self.path.stem

    def load(self) -> Baseline:
        """The committed baseline; raises NoBaselineError when there is none, or none that can be read."""
        baseline.check_root(self.settings.baselines, writing=False)
        try:
            found = baseline.load(self.path)
        except LlmperfError as error:
            raise NoBaselineError(str(error)) from error
        if found is None:
            raise NoBaselineError("\n".join(self._absence()))
        return found

    def record(self, measured: Measured) -> Baseline:
        """What a rebaseline writes."""
        return Baseline(
            test=self.test,
            content=identity.content_key(self.spec),
            emulated=measured.emulated,
            conditions=dict(measured.conditions),
            sessions=measured.sessions,
        )

    def shown(self, path: Path) -> str:
        """A path as seen from where pytest was called."""
        return relative(path, self.settings.invoked_from)

    def command(self, *options: str) -> str:
        """The shell command that runs just this test from where pytest was called."""
        path, separator, rest = self.test.partition("::")
        argument = self.shown(self.settings.rootdir / path) + separator + rest
        return " ".join(["pytest", _quoted(argument), *self.settings.typed, *options])

    def keep_evidence(self, logs: Iterable[Path], numbers: Mapping[str, Measured]) -> None:
        """Replace the evidence of this test by today's."""
        self.drop_evidence()
        self.evidence.mkdir(parents=True, exist_ok=True)
        (self.evidence.parents[1] / ".gitignore").write_text("*\n", "utf-8")
        for log in logs:
            shutil.copy(log, self.evidence / log.name)
        for name, measured in numbers.items():
            baseline.replace(self.evidence / f"{name}.json", baseline.text(self.record(measured)))

    def drop_evidence(self) -> None:
        """A test that holds keeps none."""
        shutil.rmtree(self.evidence, ignore_errors=True)

    def _absence(self) -> Sequence[str]:
        root = self.settings.baselines
        said = [f"nothing is recorded for this test on {self.machine} ({self.shown(self.path)})"]
        if others := baseline.other_machines(root, self.key):
            said.append(f"other machines have a baseline for it: {', '.join(others)}")
        for path, test in baseline.same_content(root, self.machine, identity.content_key(self.spec)):
            if not self._alive(test):
                orphan = f"{self.shown(path)} was recorded for {test}, which is gone and declared the same; renamed?"
                said += [orphan, f"  {self._adoption(path)}"]
        return said

    def _adoption(self, orphan: Path) -> str:
        """The shell command that makes an orphan's file this test's; git mv needs the folder to be there."""
        old, new, folder = (_quoted(self.shown(path)) for path in (orphan, self.path, self.path.parent))
        move = f"git mv {old} {new}"
        return move if self.path.parent.is_dir() else f"mkdir -p {folder} && {move}"

    def _alive(self, test: str) -> bool:
        """Whether a recorded test still exists: collected now, or its function and classes still stand in its file."""
        module, _, rest = test.partition("::")
        source = self.settings.rootdir / module
        if test in self.collected or not source.is_file():
            return test in self.collected
        text = source.read_text("utf-8", "replace")
        return all(re.search(rf"\b(def|class) {re.escape(name)}\b", text) for name in _names(rest))


def _names(test: str) -> list[str]:
    """The classes and the function in a node id behind the file, without parameters."""
    return test.partition("[")[0].split("::")


def _quoted(argument: str) -> str:
    """Quoted for a POSIX shell, and with double quotes for Windows' shells."""
    return shlex.quote(argument) if os.name != "nt" else f'"{argument}"'
