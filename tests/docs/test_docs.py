"""README and docs are true: Python fences run, commands parse, files they name exist."""

import re
import shlex
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch.distributed as dist

from samovar import config as configs
from samovar import recipes
from samovar.cli.verbs import VERBS, load
from tests.docs.fences import EXECUTED, PAGES, fences, run_python

PARSED = [page for page in PAGES if page not in EXECUTED]


@pytest.fixture
def _one_rank(monkeypatch) -> Iterator[None]:
    """What torchrun tells the only process it starts; a group that a trainer leaves behind is ended."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    for name, value in (("RANK", 0), ("LOCAL_RANK", 0), ("WORLD_SIZE", 1), ("MASTER_PORT", port)):
        monkeypatch.setenv(name, str(value))
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    yield
    if dist.is_initialized():
        dist.destroy_process_group()


@pytest.mark.usefixtures("_one_rank")
@pytest.mark.filterwarnings("ignore")  # of other people's packages
@pytest.mark.parametrize("page", PARSED, ids=lambda page: page.name)
def test_python_fences_run_in_order(page, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    found = fences(page, "python")
    missing = {package for fence in found for package in fence.missing}
    if found and all(fence.missing for fence in found):
        pytest.skip(f"needs {', '.join(sorted(missing))}")
    namespace: dict = {"__name__": page.stem}  # classes of a fence belong to a module
    for fence in found:
        run_python(fence, page, namespace)


def commands() -> list[str]:
    pages = [(page, ("bash", "console") if page in PARSED else ("console",)) for page in PAGES]
    lines = [line for page, languages in pages for fence in fences(page, *languages) for line in fence.lines]
    return list(dict.fromkeys(line for line in lines if "samovar " in line and not line.startswith("pip ")))


@pytest.mark.parametrize("line", commands())
def test_commands_parse(line: str, tmp_path, monkeypatch) -> None:
    words = shlex.split(line, comments=True)
    verb, args = words[words.index("samovar") + 1], words[words.index("samovar") + 2 :]
    monkeypatch.chdir(tmp_path)
    for run in re.findall(r"runs/[\w-]+", line):
        Path(run).mkdir(parents=True, exist_ok=True)
        configs.save(recipes.get("vit-digits").config(), Path(run) / "config.json")
    # `samovar train my/photos` names a folder too
    for folder in re.findall(r"(?:folder:|samovar train (?=\w+/))([\w/]+)", line):
        for label in ("a", "b"):
            (Path(folder) / label).mkdir(parents=True)
            for index in range(20):
                (Path(folder) / label / f"{index}.jpg").touch()
    assert verb in VERBS
    found = load(verb).parse(args)
    if verb == "train":
        assert found.config.recipe
    elif verb == "measure":
        assert found.names
    elif verb == "reproduce":
        assert found[0].names
    elif verb == "compare":
        assert found[0].relatives
    elif verb == "export":
        assert found.kind
    elif verb == "predict":
        assert found.images


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files_and_headings(page) -> None:
    for name, anchor in re.findall(r"\]\(([^)#:]+)(?:#([^)]+))?\)", page.read_text(encoding="utf-8")):
        target = page.parent / name
        assert target.exists(), name
        assert not anchor or anchor in headings(target), f"{name}#{anchor}"


def headings(page: Path) -> list[str]:
    """The anchors of a page, as GitHub makes them."""
    found = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return [re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in found]
