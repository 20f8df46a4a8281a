"""The tables and figures of arXiv:2106.01548 as grids of numbers to find, with what the paper
claims of them.

Nothing in this file needs torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from samovar.recipes import paper_numbers
from samovar.studies.reproduce.claims import Claim, difference, larger_gain, ratio
from samovar.studies.reproduce.columns import COLUMNS
from samovar.studies.reproduce.rows import Row, config_of, model_of
from samovar.studies.reproduce.scales import Scale

FAMILIES = {"vit": "ViT", "mixer": "MLP-Mixer", "resnet": "ResNet"}
SHARES = ("", "half", "quarter", "tenth")
RHO_FACTORS = (0.25, 0.5, 1.0, 2.0, 4.0)
ADVERSARIAL = ("adversarial",)
SGD = ("sgd",)


@dataclass(frozen=True)
class Study:
    """A table or figure: trainings, what to find of each, what is claimed."""

    title: str
    rows: Callable[[Scale], list[Row]]
    columns: Callable[[Scale], tuple[str, ...]]
    claims: Callable[[Scale], list[Claim]]
    pictures: tuple[str, ...] = ()
    """Measurements that are drawn, of the first seed."""
    where: str = ""
    """What it is in the paper."""


def columns_of(*names: str) -> Callable[[Scale], tuple[str, ...]]:
    """The same columns at every scale."""
    return lambda scale: names


def twins(*families: str, words: tuple[str, ...] = ()) -> list[Row]:
    """Each family without SAM, then with."""
    return [Row(family, sam, words) for family in families for sam in (False, True)]


def title_of(row: Row) -> str:
    """What a row is called in a table."""
    parts = [
        "contrastive" if row.contrastive else "",
        row.model or FAMILIES[row.family],
        *row.words,
    ]
    parts += ["SAM" if row.sam else "", f"rho x{row.rho_factor:g}" if row.rho_factor != 1 else ""]
    return ", ".join(
        part for part in [*parts, f"to {row.transfer}" if row.transfer else ""] if part
    )


def _gain(
    family: str, column: str = "top1", words: tuple[str, ...] = ()
) -> tuple[tuple[str, str], tuple[str, str]]:
    plain, sam = twins(family, words=words)
    return (sam.key, column), (plain.key, column)


# --- Table 1
# ---------------------------------------------------------------------------------------------------------


def _table1_claims(scale: Scale) -> list[Claim]:
    sharp = "lambda_max"
    claims = [
        ratio("vanilla ViT is sharper than ResNet", ("vit", sharp), ("resnet", sharp)),
        ratio("vanilla Mixer is sharper than ResNet", ("mixer", sharp), ("resnet", sharp)),
        ratio("vanilla Mixer is sharper than vanilla ViT", ("mixer", sharp), ("vit", sharp)),
        ratio("SAM lowers λ_max of ViT", ("vit", sharp), ("vit-sam", sharp)),
        ratio(
            "SAM lowers λ_max of ViT at least threefold",
            ("vit", sharp),
            ("vit-sam", sharp),
            above=3,
            ours=True,
        ),
        ratio("SAM lowers λ_max of Mixer", ("mixer", sharp), ("mixer-sam", sharp)),
        ratio(
            "SAM lowers λ_max of Mixer at least threefold",
            ("mixer", sharp),
            ("mixer-sam", sharp),
            above=3,
            ours=True,
        ),
        ratio("SAM lowers λ_max of ResNet", ("resnet", sharp), ("resnet-sam", sharp)),
        ratio("NTK κ of ViT is above ResNet's", ("vit", "kappa"), ("resnet", "kappa")),
        ratio("NTK κ of Mixer is above ViT's", ("mixer", "kappa"), ("vit", "kappa")),
    ]
    for family in ("vit", "mixer"):
        title = FAMILIES[family]
        claims += [
            difference(f"SAM raises the accuracy of {title}", *_gain(family)),
            larger_gain(
                f"SAM's gain is larger for {title} than for ResNet", _gain(family), _gain("resnet")
            ),
            difference(
                f"SAM raises the accuracy of {title} on corrupted images",
                *_gain(family, "corruption"),
            ),
            larger_gain(
                f"of {title}, corrupted images gain more than clean ones",
                _gain(family, "corruption"),
                _gain(family),
            ),
            ratio(
                f"SAM lowers {title}'s loss under weight noise",
                (family, "flatness"),
                (f"{family}-sam", "flatness"),
            ),
        ]
    return claims


# --- Table 2
# ---------------------------------------------------------------------------------------------------------


def _table2_rows(scale: Scale) -> list[Row]:
    return [
        Row(family, sam, model="" if model == model_of(family, scale) else model)
        for family in FAMILIES
        for model in scale.sizes[family]
        for sam in (False, True)
    ]


def _table2_claims(scale: Scale) -> list[Claim]:
    claims = []
    for row in _table2_rows(scale):
        if row.sam:
            plain = Row(row.family, False, model=row.model)
            name = row.model or FAMILIES[row.family]
            claims += [
                difference(
                    f"SAM raises the accuracy of {name}", (row.key, "top1"), (plain.key, "top1")
                ),
                difference(
                    f"and on corrupted images, of {name}",
                    (row.key, "corruption"),
                    (plain.key, "corruption"),
                ),
            ]
    return claims


# --- Table 3
# ---------------------------------------------------------------------------------------------------------


def _table3_claims(scale: Scale) -> list[Claim]:
    claims = []
    for family in ("vit", "mixer"):
        title, sam = FAMILIES[family], f"{family}-sam"
        claims += [
            ratio(
                f"of {title}, the first block is sharper than the last",
                (family, "block1"),
                (family, "block12"),
            ),
            ratio(
                f"of {title}, the embedding is sharper than the first block",
                (family, "embedding"),
                (family, "block1"),
            ),
            ratio(
                f"of {title}, what mixes tokens is flatter than what mixes channels",
                (family, "channel_mixing"),
                (family, "token_mixing"),
            ),
        ]
        claims += [
            ratio(
                f"SAM flattens {COLUMNS[part].title.removeprefix('λ_max, ')} of {title}",
                (family, part),
                (sam, part),
            )
            for part in paper_numbers.PARTS[:7]
        ]
        claims += [
            ratio(
                f"SAM raises the weight norm of {title}",
                (sam, "weight_norm"),
                (family, "weight_norm"),
            ),
            ratio(
                f"SAM raises the first block's activation norm of {title}",
                (sam, "activation1"),
                (family, "activation1"),
            ),
        ]
    return claims


# --- Table 4
# ---------------------------------------------------------------------------------------------------------


def _table4_rows(scale: Scale) -> list[Row]:
    return [
        Row(family, sam, tuple(word for word in (share, aug) if word))
        for share in SHARES
        for family in ("resnet", "vit", "mixer")
        for aug in (("",) if family == "resnet" else ("", "aug"))
        for sam in (False, True)
    ]


def _table4_claims(scale: Scale) -> list[Claim]:
    claims = []
    for family in ("vit", "mixer"):
        title = FAMILIES[family]
        for share in SHARES:
            words, of = ((share,), f", a {share} of the images") if share else ((), "")
            claims.append(
                difference(f"SAM raises the accuracy of {title}{of}", *_gain(family, words=words))
            )
        quarter = _gain(family, words=("quarter",))
        claims += [
            larger_gain(
                f"SAM's gain for {title} is larger on a quarter than on all", quarter, _gain(family)
            ),
            larger_gain(
                f"on a quarter, SAM's gain is larger for {title} than for ResNet",
                quarter,
                _gain("resnet", words=("quarter",)),
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


# --- Tables 5, 6, 10; sections 4.4, 5.3
# ------------------------------------------------------------------------------


def _table5_claims(scale: Scale) -> list[Claim]:
    claims = []
    for family in ("vit", "mixer"):
        title = FAMILIES[family]
        clean, pgd = (_gain(family, column, ADVERSARIAL) for column in ("top1", "pgd"))
        claims += [
            difference(f"SAM raises the clean accuracy of adversarially trained {title}", *clean),
            difference(f"SAM raises its accuracy under PGD-10, {title}", *pgd),
            larger_gain(
                f"under PGD-10 the gain is larger for {title} than for ResNet",
                pgd,
                _gain("resnet", "pgd", ADVERSARIAL),
            ),
        ]
    return claims


def _table6_rows(scale: Scale) -> list[Row]:
    return [
        Row(family, sam, transfer=source)
        for source in scale.transfer
        for family in FAMILIES
        for sam in (False, True)
    ]


def _table6_claims(scale: Scale) -> list[Claim]:
    rows = [row for row in _table6_rows(scale) if row.sam and row.family != "resnet"]
    return [
        difference(
            f"weights trained with SAM transfer better, {FAMILIES[row.family]} to {row.transfer}",
            (row.key, "top1"),
            (Row(row.family, transfer=row.transfer).key, "top1"),
        )
        for row in rows
    ]


def _figure1_claims(scale: Scale) -> list[Claim]:
    claims = []
    for family in ("vit", "mixer"):
        title, sam = FAMILIES[family], f"{family}-sam"
        claims += [
            ratio(
                f"{title} trained with SAM lies on a flatter plane",
                (family, "height"),
                (sam, "height"),
            ),
            ratio(
                f"SAM leaves {title} a higher training loss",
                (sam, "training_loss"),
                (family, "training_loss"),
            ),
            difference(f"and a higher accuracy, {title}", *_gain(family)),
        ]
    return claims


def _figure2_claims(scale: Scale) -> list[Claim]:
    vit, mixer, resnet = ((key, "active1") for key in ("vit", "mixer", "resnet"))
    return [
        difference(
            "SAM lowers the share of active units in Mixer's first block",
            mixer,
            ("mixer-sam", "active1"),
        ),
        difference(
            "SAM lowers the share of active units in ViT's first block", vit, ("vit-sam", "active1")
        ),
        difference("in the first block, more units of ResNet are active than of ViT", resnet, vit),
    ]


def rho_factors(family: str, scale: Scale) -> list[float]:
    """Multiples of the recipe's rho in the sweep; at the paper's scale those of Table 10."""
    if not scale.testsets:
        return list(RHO_FACTORS)
    own = config_of(Row(family, True), scale).sam.rho
    return [rho / own for rho in paper_numbers.TABLE_10[scale.stands_for[family]] if rho]


def _rho_rows(scale: Scale) -> list[Row]:
    return [
        row
        for family in ("vit", "mixer")
        for row in [
            Row(family),
            *(Row(family, True, rho_factor=factor) for factor in rho_factors(family, scale)),
        ]
    ]


def _rho_claims(scale: Scale) -> list[Claim]:
    claims = []
    for family in ("vit", "mixer"):
        title, own = FAMILIES[family], (f"{family}-sam", "top1")
        least, *_, most = (
            Row(family, True, rho_factor=factor).key for factor in rho_factors(family, scale)
        )
        claims += [
            difference(f"the recipe's rho beats none, {title}", own, (family, "top1")),
            difference(
                f"the recipe's rho beats the least that was tried, {title}", own, (least, "top1")
            ),
            difference(
                f"the recipe's rho beats the most that was tried, {title}", own, (most, "top1")
            ),
            ratio(
                f"a larger rho leaves {title} flatter",
                (least, "lambda_max"),
                (f"{family}-sam", "lambda_max"),
            ),
        ]
    return claims


def _sgd_claims(scale: Scale) -> list[Claim]:
    adam, sgd = _gain("vit"), _gain("vit", words=SGD)
    return [
        difference("SAM raises the accuracy of a ViT trained by SGD", *sgd),
        larger_gain("with SAM, SGD comes closer to AdamW", sgd, adam),
    ]


def _contrastive_rows(scale: Scale) -> list[Row]:
    return [Row("vit", sam, contrastive=True) for sam in (False, True)] if scale.contrastive else []


STUDIES: dict[str, Study] = {
    "table1": Study(
        "Geometry, accuracy and robustness of the three families",
        lambda scale: twins("vit", "mixer", "resnet"),
        columns_of("kappa", "lambda_max", "training_loss", "flatness", "top1", "corruption"),
        _table1_claims,
        where="Table 1",
    ),
    "table2": Study(
        "Families and sizes",
        _table2_rows,
        lambda scale: ("top1", *(("real", "v2", "r") if scale.testsets else ()), "corruption"),
        _table2_claims,
        where="Table 2",
    ),
    "table3": Study(
        "Curvature of parts of the network, norms",
        lambda scale: twins("vit", "mixer"),
        columns_of(*paper_numbers.PARTS),
        _table3_claims,
        where="Table 3",
    ),
    "table4": Study(
        "Fewer images, strong augmentation", _table4_rows, columns_of("top1"), _table4_claims, where="Table 4"
    ),
    "table5": Study(
        "Adversarial training",
        lambda scale: twins("vit", "mixer", "resnet", words=ADVERSARIAL),
        lambda scale: ("top1", *(("real", "v2") if scale.testsets else ()), "pgd",
                       *(("r",) if scale.testsets else ()), "corruption"),
        _table5_claims,
        where="Table 5",
    ),
    "table6": Study("Transfer", _table6_rows, columns_of("top1"), _table6_claims, where="Table 6"),
    "figure1": Study(
        "Loss landscapes and training curves",
        lambda scale: twins("vit", "mixer", "resnet"),
        columns_of("height", "training_loss", "top1"),
        _figure1_claims,
        where="Figure 1",
    ),
    "figure2": Study(
        "Training curves and active units",
        lambda scale: twins("vit", "mixer", "resnet"),
        columns_of("active1", "active6", "active12", "training_loss", "top1"),
        _figure2_claims,
        where="Figure 2",
    ),
    "figure3": Study(
        "Attention maps",
        lambda scale: twins("vit"),
        columns_of("distance", "top1"),
        lambda scale: [],
        pictures=("attention",),
        where="Figure 3",
    ),
    "rho": Study("Sweep of rho", _rho_rows, columns_of("top1", "lambda_max"), _rho_claims, where="Table 10"),
    "contrastive": Study(
        "Supervised contrastive training",
        _contrastive_rows,
        columns_of("top1"),
        lambda scale: [difference("SAM raises the accuracy", ("supcon-vit-sam", "top1"), ("supcon-vit", "top1"))],
        where="section 5.3",
    ),
    "sgd": Study(
        "SGD with momentum in place of AdamW",
        lambda scale: [*twins("vit"), *twins("vit", words=SGD)],
        columns_of("top1", "lambda_max"),
        _sgd_claims,
        where="remark of later versions; no numbers",
    ),
}  # fmt: skip
"""By the word that `samovar reproduce` takes."""
