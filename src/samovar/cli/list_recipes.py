"""The table of `samovar list recipes`: first those to begin with, then a line a family."""

from __future__ import annotations

from collections.abc import Iterator

from samovar import recipes

FIRST = ("photos", "transfer", "vit-digits", "vit-digits-sam")
"""Recipes for one's own images, then those of the demo."""
COLUMNS = ("sam", "aug", "adversarial", "half", "quarter", "tenth", "sgd")
"""Endings of names that many families have; the others are spelled out."""


def families() -> dict[str, list[str]]:
    """Return the endings of each family's recipes by the name of its first recipe.

    A recipe belongs to the shortest recipe that its name begins with, up to a dash."""
    found: dict[str, list[str]] = {}
    for name in recipes.RECIPES:
        parts = name.split("-")
        heads = ("-".join(parts[:count]) for count in range(1, len(parts) + 1))
        head = next((each for each in heads if each in recipes.RECIPES), name)
        endings = found.setdefault(head, [])
        if name != head:
            endings.append(name.removeprefix(f"{head}-"))
    return found


def lines() -> Iterator[str]:
    """Yield the lines of the table."""
    width = max(map(len, FIRST))
    for name in FIRST:
        yield f"  {name:<{width}}  {recipes.RECIPES[name].summary}"
    rows = {head: endings for head, endings in families().items() if endings}
    width = max(map(len, rows))
    yield ""
    yield f"  {'family':<{width}}  {'  '.join(f'-{column}' for column in COLUMNS)}  also"
    for head, endings in rows.items():
        cells = [_cell(column, endings).ljust(len(column) + 1) for column in COLUMNS]
        shown = {ending for column in COLUMNS for ending in (column, f"{column}-sam")}
        rest = _joined([ending for ending in endings if ending not in shown])
        yield f"  {head:<{width}}  {'  '.join(cells)}  {rest}".rstrip()
    yield ""
    yield "  +    a recipe FAMILY-COLUMN, such as vit-cifar10-sam"
    yield "  + S  also with SAM, such as vit-cifar10-aug-sam"
    yield f"  `samovar list recipes --all` describes all {len(recipes.RECIPES)}"


def _cell(column: str, endings: list[str]) -> str:
    if column not in endings:
        return ""
    return "+ S" if f"{column}-sam" in endings else "+"


def _joined(endings: list[str]) -> str:
    """Return endings with a twin of SAM as one word, such as `-half-aug[-sam]`."""
    return " ".join(
        f"-{ending}[-sam]" if f"{ending}-sam" in endings else f"-{ending}"
        for ending in endings
        if ending.removesuffix("-sam") == ending or ending.removesuffix("-sam") not in endings
    )
