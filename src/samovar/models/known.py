"""What a name stands for, and whether anything of that name is there, told without torch.

timm's own lists need torch. Here the source files of timm are searched for a name, which takes a
tenth of a second; a name that is nowhere in them is refused. What is found may still be refused
when it is opened."""

from __future__ import annotations

import re
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from samovar.config import ModelConfig
from samovar.models import hub, timm_folder
from samovar.models.table import has_constructor, names, unknown
from samovar.words import suggest

SUFFIXES = (".safetensors", ".pth", ".pt", ".npz", ".ckpt", ".bin", ".tar", ".th", ".pkl")
"""Suffixes of files of weights, in lower case; `.npz` is the format of Google's Flax code.

They say what a name without a file stands for. A file is read by its content, whatever its name."""
_HUB_WEIGHTS = ("model.safetensors", "pytorch_model.bin")
"""Files of weights that transformers writes beside a `config.json`."""
Kind = Literal["run", "folder", "file", "timm"]


def kind(what: str) -> Kind:
    """Return what a name stands for: a run, a folder in timm's layout, a file, else a timm model.

    Raises:
        ValueError: a folder that is neither a run nor in timm's layout."""
    # timm's folders have a config.json as well, so they are recognized before runs
    path = Path(what)
    if timm_folder.is_one(path):
        return "folder"
    weights = next((name for name in _HUB_WEIGHTS if (path / name).is_file()), "")
    if weights and (path / "config.json").is_file():
        raise ValueError(
            f"{what} is a folder of Hugging Face's transformers; give the file in it, "
            f"{path / weights}"
        )
    if (path / "config.json").is_file():
        return "run"
    if path.is_dir():
        raise ValueError(
            f"{what} is no run: it has no config.json; "
            "give a run folder, a timm name or a file of weights"
        )
    return "file" if path.is_file() or path.suffix.lower() in SUFFIXES else "timm"


def refuse_missing(what: str, *, download: bool = False) -> None:
    """Refuse a name of weights that stands for nothing.

    Args:
        what: a run folder, a folder in timm's layout, a file, or a timm model.
        download: also refuse weights of timm that are not here and cannot be downloaded; this asks
            the network.

    Raises:
        ValueError: as `kind`; a file that is not there; a name that timm does not know; as
            `hub.refuse_unreachable`."""
    found = kind(what)
    if found == "file" and not Path(what).is_file():
        raise ValueError(f"{what}: no such file; check the path")
    if found != "timm":
        return
    if not _in_timm(what):
        advice = suggest(what, [*timm_models()], instead="give one of these", count=3)
        raise ValueError(
            f"{what} is no run folder, no file and no timm model with pretrained weights; {advice}"
        )
    if download:
        hub.refuse_unreachable(what)


def refuse_silent(init: str, model: ModelConfig | None, own: ModelConfig) -> None:
    """Refuse a config that leaves its network to weights that do not say it.

    Args:
        init: the value of `--init`; empty without one.
        model: what the weights say of their network; None: nothing.
        own: the config's own settings of the network.

    Raises:
        ValueError: neither of the two names a network."""
    if not own.name and model is None:
        raise ValueError(f"--model.name is not given, {silent(init)}; give it")


def silent(init: str) -> str:
    """Return words for `--init` where it leaves something open."""
    return (
        f"and --init {init} does not say it" if init else "and there is no --init to take it from"
    )


def refuse_unknown_model(name: str) -> None:
    """Refuse a name of a network that neither samovar nor timm nor another package knows.

    Raises:
        ValueError: suggests the closest names."""
    if name in names() or has_constructor(name) or _in_timm(name):
        return
    raise unknown(name, [*names(), *timm_models()])


def refuse_unknown_optimizer(name: str) -> None:
    """Refuse a name of an optimizer that is nowhere in timm's own list.

    Raises:
        ValueError: suggests the closest names."""
    text = _source("optim", "_optim_factory.py")
    if text and not re.search(rf"['\"]{re.escape(name)}['\"]", text):
        known = sorted(set(re.findall(r"\bname=['\"](\w+)['\"]", text)))
        advice = suggest(name, known, instead="try adamw, sgd or lamb", count=3)
        raise ValueError(f"unknown optimizer {name!r}; {advice}")


def timm_models() -> tuple[str, ...]:
    """Return timm's names of networks, as far as its source files show them."""
    return tuple(re.findall(r"@register_model\n(?:@.*\n)*def (\w+)", _source("models", "*.py")))


def _in_timm(name: str) -> bool:
    """Return whether the part of a name before its tag may be a model of timm."""
    text = _source("models", "*.py")
    return not text or name.partition(".")[0] in _words()


@cache
def _words() -> frozenset[str]:
    # functions, and words in quotes: earlier names are keys of dictionaries
    return frozenset(re.findall(r"(?:\bdef |['\"])(\w+)", _source("models", "*.py")))


@cache
def _source(folder: str, pattern: str) -> str:
    """Return the text of some of timm's files; empty where timm is installed without them."""
    spec = find_spec("timm")
    if spec is None or spec.origin is None:
        return ""
    files = sorted((Path(spec.origin).parent / folder).glob(pattern))
    return "\n".join(file.read_text(encoding="utf-8") for file in files)
