"""Names of timm's models, read from its source: importing timm takes seconds."""

from __future__ import annotations

import re
from functools import cache
from importlib.util import find_spec
from pathlib import Path

_MODEL = re.compile(r"^@register_model\s+def (\w+)\(", re.MULTILINE)


@cache
def timm_names() -> frozenset[str]:
    """Return the architectures that timm registers, without pretrained tags."""
    spec = find_spec("timm")
    folders = [Path(each) / "models" for each in (spec and spec.submodule_search_locations) or ()]
    files = [file for folder in folders for file in folder.glob("*.py")]
    return frozenset(
        name for file in files for name in _MODEL.findall(file.read_text(encoding="utf-8"))
    )


def defined_by_timm(name: str) -> bool:
    """Return whether timm has this model; a pretrained tag behind a dot is not looked at."""
    return name.partition(".")[0] in timm_names()
