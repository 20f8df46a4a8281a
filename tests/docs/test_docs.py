"""README and docs are true: Python fences run, commands parse, files they name exist."""

import re
import shlex

import pytest

from samovar import cli, recipes
from tests.conftest import ROOT

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
FENCE = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def fences(page, language: str) -> list[str]:
    return [body for found, body in FENCE.findall(page.read_text()) if found == language]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_fences_run_in_order(page) -> None:
    namespace: dict = {}
    for body in fences(page, "python"):
        exec(compile(body, str(page), "exec"), namespace)
    assert PAGES


def commands() -> list[str]:
    lines = [line for page in PAGES for body in fences(page, "bash") for line in body.splitlines()]
    return [line for line in lines if "samovar " in line and not line.startswith("pip ")]


@pytest.mark.parametrize("line", commands())
def test_commands_parse(line: str, tmp_path, monkeypatch) -> None:
    words = shlex.split(line, comments=True)
    verb, args = words[words.index("samovar") + 1], words[words.index("samovar") + 2 :]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "NAME").mkdir(parents=True)
    cli.configs.save(recipes.get("vit-digits").config(), tmp_path / "runs" / "NAME" / "config.json")
    for label in ("a", "b"):
        (tmp_path / "my" / "photos" / label).mkdir(parents=True)
        for index in range(20):
            (tmp_path / "my" / "photos" / label / f"{index}.jpg").touch()
    if verb == "train":
        config, _ = cli.parse_train(args)
        assert config.recipe
    elif verb == "measure":
        assert cli.parse_measure(args)[1]
    else:
        assert verb in cli._VERBS


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files(page) -> None:
    links = re.findall(r"\]\(([^)#:]+)\)", page.read_text())
    missing = [link for link in links if not (page.parent / link).exists()]
    assert not missing
