"""The fences of README and docs: what is Python, what is typed into a shell, what a fence needs.

A `bash` fence is what a reader types; a `console` fence shows typed lines, behind `$ `, and what they printed. A Python
fence whose first line is `# needs: PACKAGE ...` is skipped where one of them is missing, and one whose first line is
`# file: NAME` is written to that file instead of being run."""

import re
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from tests.conftest import ROOT

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
EXECUTED = [ROOT / "docs" / name for name in ("tutorial.md", "howto-measure.md")]
"""Pages whose commands are run, not only parsed."""
FENCE = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Fence:
    language: str
    body: str

    def first_line(self, key: str) -> str:
        """What follows `# KEY:` on the first line; empty if something else is there."""
        found = re.match(rf"# {key}: (.+)", self.body)
        return found[1] if found else ""

    @property
    def missing(self) -> list[str]:
        return [package for package in self.first_line("needs").split() if find_spec(package) is None]

    @property
    def lines(self) -> list[str]:
        """Commands of a shell, continued lines joined."""
        lines = self.body.replace("\\\n", " ").splitlines()
        if self.language == "console":
            lines = [line.removeprefix("$ ") for line in lines if line.startswith("$ ")]
        return [line for line in lines if line.strip() and not line.startswith("#")]


def fences(page: Path, *languages: str) -> list[Fence]:
    found = [Fence(language, body) for language, body in FENCE.findall(page.read_text(encoding="utf-8"))]
    return [fence for fence in found if fence.language in languages]


def run_python(fence: Fence, page: Path, namespace: dict) -> None:
    """Run a Python fence in a namespace, or write the file it is; leave it out if something is missing."""
    if fence.missing:
        return
    if name := fence.first_line("file"):
        Path(name).write_text(fence.body, encoding="utf-8")
    else:
        exec(compile(fence.body, str(page), "exec"), namespace)
