"""A table or figure of the paper as a grid of numbers to find. Nothing in this file needs torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from samovar.recipes import paper_numbers
from samovar.studies.claims import Cell, Claim
from samovar.studies.reproduce.rows import Row
from samovar.studies.reproduce.scales import FAMILIES, Scale

Paper = Callable[[Row, str], Mapping[str, float]]
"""Looks up the paper's numbers of a row by column, given the paper's network it stands for."""


def reported(row: Row, model: str) -> dict[str, float]:
    """Return the accuracies of Table 2."""
    return accuracies(paper_numbers.TABLE_2, paper_numbers.BENCHMARKS, row, model)


def accuracies(
    table: Mapping[str, Sequence[tuple[float, float]]], names: Sequence[str], row: Row, model: str
) -> dict[str, float]:
    """Return a network's accuracies without or with SAM, from a table of pairs (with SAM, gain)."""
    pairs = zip(names, table.get(model, ()), strict=False)
    return {name: paper_numbers.plain_and_sam(pair)[row.sam] for name, pair in pairs}


def named(row: Row, model: str) -> str:
    """Return the name of a network in the paper's tables: `vit-b16-sam` with SAM."""
    return f"{model}-sam" if row.sam else model


def _nothing(row: Row, model: str) -> Mapping[str, float]:
    return {}


@dataclass(frozen=True)
class Study:
    """A table or figure: its trainings, the numbers to find for each, and the claims."""

    title: str
    where: str
    """Place in the paper."""
    rows: Callable[[Scale], list[Row]]
    columns: Callable[[Scale], tuple[str, ...]]
    claims: Callable[[Scale], list[Claim]] = lambda scale: []
    paper: Paper = reported
    later: Paper = _nothing
    """Numbers that only later versions of the paper have, not checked against them."""
    pictures: tuple[str, ...] = ()
    """Measurements that are drawn for the first seed."""


def columns_of(*names: str) -> Callable[[Scale], tuple[str, ...]]:
    """Return a function that gives the same columns at every scale."""
    return lambda scale: names


def twins(*families: str, words: tuple[str, ...] = ()) -> list[Row]:
    """Return rows of each family, first without SAM, then with."""
    return [Row(family, sam, words) for family in families for sam in (False, True)]


def gain(family: str, column: str = "top1", words: tuple[str, ...] = ()) -> tuple[Cell, Cell]:
    """Return the cells with and without SAM whose difference is SAM's gain."""
    plain, sam = twins(family, words=words)
    return (sam.key, column), (plain.key, column)


def title_of(row: Row) -> str:
    """Return the name of a row in a table."""
    parts = [
        "contrastive" if row.contrastive else "",
        row.model or FAMILIES[row.family],
        *row.words,
        "SAM" if row.sam else "",
        f"rho x{row.rho_factor:g}" if row.rho_factor != 1 else "",
        f"to {row.transfer}" if row.transfer else "",
    ]
    return ", ".join(filter(None, parts))
