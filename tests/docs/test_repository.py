"""Files around the code are well formed, and say what is so."""

import re
import tomllib
from importlib import import_module

import pytest

from tests.conftest import ROOT

yaml = pytest.importorskip("yaml")
YAML = sorted([*ROOT.glob("*.yml"), *ROOT.glob(".*.yaml"), *ROOT.glob(".github/**/*.yml")])


class _Loader(yaml.SafeLoader):
    """Refuses a key that stands twice, of which YAML keeps the last."""

    def construct_mapping(self, node, deep=False):
        keys = [self.construct_object(key, deep=deep) for key, _ in node.value]
        assert len(keys) == len(set(keys)), f"{keys} at {node.start_mark}"
        return super().construct_mapping(node, deep=deep)


def load(name: str) -> dict:
    return yaml.load((ROOT / name).read_text(encoding="utf-8"), Loader=_Loader)


@pytest.mark.parametrize("path", YAML, ids=lambda path: path.name)
def test_yaml_loads(path) -> None:
    assert load(str(path.relative_to(ROOT)))


def test_workflows_run_targets_that_exist_on_every_python_that_is_named() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    for path in ROOT.glob(".github/workflows/*.yml"):
        for job in load(str(path.relative_to(ROOT)))["jobs"].values():
            assert job["timeout-minutes"]
            commands = " ".join(step.get("run", "") for step in job["steps"])
            assert set(re.findall(r"\bmake (\w+)", commands)) <= targets
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    named = [line.split(" :: ")[-1] for line in project["classifiers"] if " :: Python :: 3." in line]
    assert load(".github/workflows/test.yml")["jobs"]["test"]["strategy"]["matrix"]["python"] == named


def test_upgrading_names_modules_that_exist() -> None:
    rows = re.findall(r"^\| .+ \| (.+) \|$", (ROOT / "UPGRADING.md").read_text(encoding="utf-8"), re.MULTILINE)
    for row in rows[1:]:
        for module in re.findall(r"`(samovar[\w.]+)`", row):
            assert import_module(module), module


def test_files_named_in_contributing_exist() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    for name in re.findall(r"`((?:src|tests|docs|benchmarks)/[\w./]+)`", text):
        assert (ROOT / name).exists(), name
    assert text.count("\n") <= 60, "people read it to the end"


def test_no_page_is_wider_than_120_columns() -> None:
    pages = [*ROOT.glob("*.md"), *ROOT.glob(".github/**/*.md"), *(ROOT / "docs").glob("*.md")]
    wide = []
    for page in pages:
        in_fence = False
        for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), 1):
            in_fence ^= line.lstrip().startswith("```")
            # tables, headings and commands cannot be broken
            if len(line) > 120 and not in_fence and not line.startswith(("|", "#")):
                wide.append(f"{page.name}:{number}")
    assert wide == []
