"""The flags of a run's settings in a help text: those that people use first, or all."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

from samovar import config as configs
from samovar.cli.flags import lines
from samovar.config import Config
from samovar.config.schema import field_docs

FIRST = (
    "data.source", "init", "model.name", "data.image_size", "epochs", "steps", "data.batch_size",
    "optim.lr", "sam.rho", "sam.m", "seed", "name", "output", "run.device", "run.precision",
)  # fmt: skip
"""Settings that people change first, in the order in which the help lists them."""


def first_flags(base: Config) -> str:
    """Return a line for each setting of `FIRST`, with its value in `base`."""
    values, docs = configs.flatten(base), _docs(base)
    return lines(dict(_row(name, values[name], docs[name]) for name in FIRST))


def all_flags(base: Config) -> str:
    """Return a line for each setting by sections, with its value in `base`.

    Sections that do nothing under the values of `base` are named in the last line alone."""
    values, docs = configs.flatten(base), _docs(base)
    sections: dict[str, dict[str, str]] = {}
    for name in sorted(values, key=lambda name: name != "sam.rho"):  # the others keep their order
        if name != "recipe":  # follows from the command
            key, text = _row(name, values[name], docs[name])
            sections.setdefault(name.partition(".")[0] if "." in name else "", {})[key] = text
    idle = _idle(base)
    order = dict.fromkeys(name.partition(".")[0] if "." in name else "" for name in values)
    blocks = [
        (f"{title}:\n" if title else "") + lines(sections[title])
        for title in order
        if title not in idle
    ]
    if idle:
        names = " and ".join(f"--{name}.*" for name in idle)
        blocks.append(f"Left out, as they need --loss supcon: {names}.")
    return "\n\n".join(blocks)


def _idle(base: Config) -> tuple[str, ...]:
    """Return the sections that the loss does not use."""
    return () if base.loss == "supcon" else ("contrastive", "head")


def _row(name: str, value: Any, doc: str) -> tuple[str, str]:
    dashed = name.replace("_", "-")
    if isinstance(value, bool):
        section, dot, last = dashed.rpartition(".")
        return f"--{dashed}, --{section}{dot}no-{last}", _described(doc, "on" if value else "off")
    shown = " ".join(map(str, value)) if isinstance(value, tuple) else str(value)
    return f"--{dashed}", _described(doc, shown)


def _described(doc: str, value: str) -> str:
    return " ".join(doc.split()) + (f" (default: {value})" if value else "")


def _docs(section: Any, prefix: str = "") -> dict[str, str]:
    """Return the docstring of each setting by dotted name."""
    return dict(_walk(section, prefix))


def _walk(section: Any, prefix: str) -> Iterator[tuple[str, str]]:
    docs = field_docs(type(section))
    for item in dataclasses.fields(section):
        value = getattr(section, item.name)
        if dataclasses.is_dataclass(value):
            yield from _walk(value, f"{prefix}{item.name}.")
        else:
            yield prefix + item.name, docs[item.name]
