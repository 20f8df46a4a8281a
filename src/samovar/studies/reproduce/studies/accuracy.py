"""Studies of accuracy: Tables 2 (sizes), 4 (fewer images) and 6 (transfer)."""

from __future__ import annotations

import math

from samovar.recipes import paper_numbers
from samovar.recipes.regimes import FRACTIONS
from samovar.studies.claims import Claim, difference, larger_gain
from samovar.studies.reproduce.rows import Row, model_of
from samovar.studies.reproduce.scales import FAMILIES, Scale
from samovar.studies.reproduce.study import Study, columns_of, gain, named

# --- Table 2


def _table2_rows(scale: Scale) -> list[Row]:
    return [
        Row(family, sam, model="" if model == model_of(family, scale) else model)
        for family in FAMILIES
        for model in scale.sizes[family]
        for sam in (False, True)
    ]


def _table2_columns(scale: Scale) -> tuple[str, ...]:
    return ("top1", "real", "v2", "r", "corruption") if scale.testsets else ("top1", "corruption")


def _table2_claims(scale: Scale) -> list[Claim]:
    claims = []
    for row in _table2_rows(scale):
        if row.sam:
            sam, plain = row.key, Row(row.family, model=row.model).key
            name = row.model or FAMILIES[row.family]
            claims += [
                difference(f"SAM raises the accuracy of {name}", (sam, "top1"), (plain, "top1")),
                difference(
                    f"and on corrupted images, of {name}",
                    (sam, "corruption"),
                    (plain, "corruption"),
                ),
            ]
    return claims


TABLE_2 = Study(
    "Families and sizes",
    "Table 2",
    rows=_table2_rows,
    columns=_table2_columns,
    claims=_table2_claims,
)


# --- Table 4

_SHARES = ("", *FRACTIONS)
"""Words for shares of the training images; empty for all of them."""


def _table4_rows(scale: Scale) -> list[Row]:
    return [
        Row(family, sam, tuple(word for word in (share, aug) if word))
        for share in _SHARES
        for family in ("resnet", "vit", "mixer")
        # the paper trains no ResNet with strong augmentation
        for aug in (("",) if family == "resnet" else ("", "aug"))
        for sam in (False, True)
    ]


def _table4_claims(scale: Scale) -> list[Claim]:
    claims = []
    for family in ("vit", "mixer"):
        title = FAMILIES[family]
        for share in _SHARES:
            words, of = ((share,), f", a {share} of the images") if share else ((), "")
            claims.append(
                difference(f"SAM raises the accuracy of {title}{of}", *gain(family, words=words))
            )
        quarter = gain(family, words=("quarter",))
        claims += [
            larger_gain(
                f"SAM's gain for {title} is larger on a quarter than on all", quarter, gain(family)
            ),
            larger_gain(
                f"on a quarter, SAM's gain is larger for {title} than for ResNet",
                quarter,
                gain("resnet", words=("quarter",)),
            ),
            difference(
                f"on all images, SAM with augmentation beats SAM alone, {title}",
                (f"{family}-aug-sam", "top1"),
                (f"{family}-sam", "top1"),
            ),
            difference(
                f"on a tenth, SAM alone beats augmentation alone, {title}",
                (f"{family}-tenth-sam", "top1"),
                (f"{family}-tenth-aug", "top1"),
            ),
        ]
    return claims


def _table4_paper(row: Row, model: str) -> dict[str, float]:
    share = next((word for word in row.words if word in paper_numbers.TABLE_4), "all")
    variant = named(row, f"{model}-aug" if "aug" in row.words else model)
    return {"top1": paper_numbers.TABLE_4.get(share, {}).get(variant, math.nan)}


TABLE_4 = Study(
    "Fewer images, strong augmentation",
    "Table 4",
    rows=_table4_rows,
    columns=columns_of("top1"),
    claims=_table4_claims,
    paper=_table4_paper,
)


# --- Table 6


def _table6_rows(scale: Scale) -> list[Row]:
    return [
        Row(family, sam, transfer=source)
        for source in scale.transfer
        for family in FAMILIES
        for sam in (False, True)
    ]


def _table6_claims(scale: Scale) -> list[Claim]:
    return [
        difference(
            f"weights trained with SAM transfer better, {FAMILIES[row.family]} to {row.transfer}",
            (row.key, "top1"),
            (Row(row.family, transfer=row.transfer).key, "top1"),
        )
        # the paper fine-tunes ResNets with SAM only, so it claims nothing about their gain
        for row in _table6_rows(scale)
        if row.sam and row.family != "resnet"
    ]


def _table6_paper(row: Row, model: str) -> dict[str, float]:
    numbers = paper_numbers.TABLE_6.get(row.transfer, ())
    by_model = dict(zip(paper_numbers.TABLE_6_MODELS, numbers, strict=False))
    return {"top1": by_model.get(named(row, model), math.nan)}


TABLE_6 = Study(
    "Transfer",
    "Table 6",
    rows=_table6_rows,
    columns=columns_of("top1"),
    claims=_table6_claims,
    paper=_table6_paper,
)
