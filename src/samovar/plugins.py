"""Additions by other packages, found through Python's entry points.

A package names an object of its own in its `pyproject.toml`; nothing of it is imported before its
name is used:

    [project.entry-points."samovar.sources"]
    mine = "my_package.data:open_mine"
"""

from __future__ import annotations

from functools import cache
from importlib.metadata import entry_points
from typing import Any, Literal

Kind = Literal["loggers", "measurements", "models", "sources"]


@cache
def names(kind: Kind) -> tuple[str, ...]:
    """Return the names that installed packages add to one kind of thing, sorted."""
    return tuple(sorted({point.name for point in entry_points(group=f"samovar.{kind}")}))


def load(kind: Kind, name: str) -> Any:
    """Import and return the object that a package added under a name.

    Raises:
        ValueError: no package adds the name, two do, or the import fails."""
    points = list(entry_points(group=f"samovar.{kind}", name=name))
    if len(points) != 1:
        given_by = ", ".join(point.value for point in points) or "no installed package"
        raise ValueError(f"{name!r} of samovar.{kind} is added by {given_by}; install exactly one")
    try:
        return points[0].load()
    except (ImportError, AttributeError) as error:
        raise ValueError(
            f"{name!r} of samovar.{kind} does not import from {points[0].value}: {error}; "
            "mend or uninstall that package"
        ) from error
