"""Studies of training regimes: adversarial (Table 5), rho (Table 10), contrastive, SGD."""

from __future__ import annotations

import math

from samovar.recipes import PAPER_RHO, paper_numbers
from samovar.studies.claims import Claim, difference, larger_gain, ratio
from samovar.studies.reproduce.rows import Row, config_of
from samovar.studies.reproduce.scales import FAMILIES, Scale
from samovar.studies.reproduce.study import Study, accuracies, columns_of, gain, reported, twins

# --- Table 5

_ADVERSARIAL = ("adversarial",)


def _table5_columns(scale: Scale) -> tuple[str, ...]:
    if scale.testsets:
        return ("top1", "real", "v2", "pgd", "r", "corruption")
    return ("top1", "pgd", "corruption")


def _table5_claims(scale: Scale) -> list[Claim]:
    claims = []
    for family in ("vit", "mixer"):
        title = FAMILIES[family]
        clean, pgd = (gain(family, column, _ADVERSARIAL) for column in ("top1", "pgd"))
        claims += [
            difference(f"SAM raises the clean accuracy of adversarially trained {title}", *clean),
            difference(f"SAM raises its accuracy under PGD-10, {title}", *pgd),
            larger_gain(
                f"under PGD-10 the gain is larger for {title} than for ResNet",
                pgd,
                gain("resnet", "pgd", _ADVERSARIAL),
            ),
        ]
    return claims


TABLE_5 = Study(
    "Adversarial training",
    "Table 5",
    rows=lambda scale: twins(*FAMILIES, words=_ADVERSARIAL),
    columns=_table5_columns,
    claims=_table5_claims,
    paper=lambda row, model: accuracies(
        paper_numbers.TABLE_5, paper_numbers.ADVERSARIAL_BENCHMARKS, row, model
    ),
)


# --- Table 10: the sweep of rho

_FACTORS = (0.25, 0.5, 1.0, 2.0, 4.0)
"""Multiples of the recipe's rho at the small scales."""


def _factors(family: str, scale: Scale) -> list[float]:
    """Return multiples of the recipe's rho; at the paper's scale they give the rho of Table 10."""
    if not scale.testsets:
        return list(_FACTORS)
    # rows are named by multiples of the recipe's own rho, tables by rho itself
    own = config_of(Row(family, True), scale).sam.rho
    return [rho / own for rho in paper_numbers.TABLE_10[scale.stands_for[family]] if rho]


def _rho_rows(scale: Scale) -> list[Row]:
    return [
        row
        for family in ("vit", "mixer")
        for row in [
            Row(family),
            *(Row(family, True, rho_factor=factor) for factor in _factors(family, scale)),
        ]
    ]


def _rho_claims(scale: Scale) -> list[Claim]:
    claims = []
    for family in ("vit", "mixer"):
        title, own = FAMILIES[family], f"{family}-sam"
        least, *_, most = (
            Row(family, True, rho_factor=factor).key for factor in _factors(family, scale)
        )
        for said, other in (
            ("none", family),
            ("the least that was tried", least),
            ("the most that was tried", most),
        ):
            text = f"the recipe's rho beats {said}, {title}"
            claims.append(difference(text, (own, "top1"), (other, "top1")))
        sharp, flat = (least, "lambda_max"), (own, "lambda_max")
        claims.append(ratio(f"a larger rho leaves {title} flatter", sharp, flat))
    return claims


def _rho_paper(row: Row, model: str) -> dict[str, float]:
    # rounded, to find the product of factor and rho among the keys of Table 10
    rho = round(PAPER_RHO[model] * row.rho_factor, 4) if row.sam else 0.0
    return {"top1": paper_numbers.TABLE_10.get(model, {}).get(rho, math.nan)}


RHO = Study(
    "Sweep of rho",
    "Table 10",
    rows=_rho_rows,
    columns=columns_of("top1", "lambda_max"),
    claims=_rho_claims,
    paper=_rho_paper,
)


# --- section 5.3 and a remark


def _contrastive_claims(scale: Scale) -> list[Claim]:
    plain, sam = (Row("vit", sam, contrastive=True).key for sam in (False, True))
    return [difference("SAM raises the accuracy", (sam, "top1"), (plain, "top1"))]


CONTRASTIVE = Study(
    "Supervised contrastive training",
    "section 5.3",
    rows=lambda scale: (
        [Row("vit", sam, contrastive=True) for sam in (False, True)] if scale.contrastive else []
    ),
    columns=columns_of("top1"),
    claims=_contrastive_claims,
    paper=lambda row, model: {"top1": paper_numbers.CONTRASTIVE[model][row.sam]},
)

_SGD = ("sgd",)


def _sgd_claims(scale: Scale) -> list[Claim]:
    adam, sgd = gain("vit"), gain("vit", words=_SGD)
    return [
        difference("SAM raises the accuracy of a ViT trained by SGD", *sgd),
        larger_gain("with SAM, SGD comes closer to AdamW", sgd, adam),
    ]


SGD = Study(
    "SGD with momentum in place of AdamW",
    "remark of later versions; no numbers",
    rows=lambda scale: [*twins("vit"), *twins("vit", words=_SGD)],
    columns=columns_of("top1", "lambda_max"),
    claims=_sgd_claims,
    paper=lambda row, model: {} if row.words else reported(row, model),
)
