"""Studies of loss geometry: Tables 1 and 3, Figures 1, 2 and 3."""

from __future__ import annotations

from samovar.recipes import paper_numbers
from samovar.studies.claims import Claim, difference, larger_gain, ratio
from samovar.studies.columns import COLUMNS
from samovar.studies.reproduce.rows import Row
from samovar.studies.reproduce.scales import FAMILIES, Scale
from samovar.studies.reproduce.study import Study, columns_of, gain, named, reported, twins

# --- Table 1


def _table1_claims(scale: Scale) -> list[Claim]:
    sharp = "lambda_max"
    vit, mixer, resnet = ((family, sharp) for family in FAMILIES)
    vit_sam, mixer_sam, resnet_sam = ((f"{family}-sam", sharp) for family in FAMILIES)
    # the paper gives numbers and no bound, so the threshold of three is ours
    threefold = "SAM lowers λ_max of {} at least threefold"
    claims = [
        ratio("vanilla ViT is sharper than ResNet", vit, resnet),
        ratio("vanilla Mixer is sharper than ResNet", mixer, resnet),
        ratio("vanilla Mixer is sharper than vanilla ViT", mixer, vit),
        ratio("SAM lowers λ_max of ViT", vit, vit_sam),
        ratio(threefold.format("ViT"), vit, vit_sam, above=3, ours=True),
        ratio("SAM lowers λ_max of Mixer", mixer, mixer_sam),
        ratio(threefold.format("Mixer"), mixer, mixer_sam, above=3, ours=True),
        ratio("SAM lowers λ_max of ResNet", resnet, resnet_sam),
        ratio("NTK κ of ViT is above ResNet's", ("vit", "kappa"), ("resnet", "kappa")),
        ratio("NTK κ of Mixer is above ViT's", ("mixer", "kappa"), ("vit", "kappa")),
    ]
    for family in ("vit", "mixer"):
        title = FAMILIES[family]
        clean, corrupted = gain(family), gain(family, "corruption")
        noisy_sam, noisy = gain(family, "flatness")
        claims += [
            difference(f"SAM raises the accuracy of {title}", *clean),
            larger_gain(f"SAM's gain is larger for {title} than for ResNet", clean, gain("resnet")),
            difference(f"SAM raises the accuracy of {title} on corrupted images", *corrupted),
            larger_gain(
                f"of {title}, corrupted images gain more than clean ones", corrupted, clean
            ),
            ratio(f"SAM lowers {title}'s loss under weight noise", noisy, noisy_sam),
        ]
    return claims


TABLE_1 = Study(
    "Geometry, accuracy and robustness of the three families",
    "Table 1",
    rows=lambda scale: twins(*FAMILIES),
    columns=columns_of("kappa", "lambda_max", "training_loss", "flatness", "top1", "corruption"),
    claims=_table1_claims,
    paper=lambda row, model: paper_numbers.TABLE_1.get(named(row, model)) or reported(row, model),
    later=lambda row, model: paper_numbers.UNVERIFIED.get(named(row, model), {}),
)


# --- Table 3


def _table3_claims(scale: Scale) -> list[Claim]:
    claims = []
    for family in ("vit", "mixer"):
        title, sam = FAMILIES[family], f"{family}-sam"
        first, last = (family, "block1"), (family, "block12")
        tokens, channels = (family, "token_mixing"), (family, "channel_mixing")
        mixing = f"of {title}, what mixes tokens is flatter than what mixes channels"
        claims += [
            ratio(f"of {title}, the first block is sharper than the last", first, last),
            ratio(
                f"of {title}, the embedding is sharper than the first block",
                (family, "embedding"),
                first,
            ),
            ratio(mixing, channels, tokens),
        ]
        # the columns after the first seven are norms, not curvatures
        for part in paper_numbers.PARTS[:7]:
            place = COLUMNS[part].title.removeprefix("λ_max, ")
            claims.append(ratio(f"SAM flattens {place} of {title}", (family, part), (sam, part)))
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


TABLE_3 = Study(
    "Curvature of parts of the network, norms",
    "Table 3",
    rows=lambda scale: twins("vit", "mixer"),
    columns=columns_of(*paper_numbers.PARTS),
    claims=_table3_claims,
    paper=lambda row, model: dict(
        zip(
            paper_numbers.PARTS,
            paper_numbers.TABLE_3.get(named(row, model), ()),
            strict=False,
        )
    ),
)


# --- Figures


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
            difference(f"and a higher accuracy, {title}", *gain(family)),
        ]
    return claims


FIGURE_1 = Study(
    "Loss landscapes and training curves",
    "Figure 1",
    rows=lambda scale: twins(*FAMILIES),
    columns=columns_of("height", "training_loss", "top1"),
    claims=_figure1_claims,
)


def _figure2_claims(scale: Scale) -> list[Claim]:
    vit, mixer, resnet = ((family, "active1") for family in FAMILIES)
    lowers = "SAM lowers the share of active units in {}'s first block"
    return [
        difference(lowers.format("Mixer"), mixer, ("mixer-sam", "active1")),
        difference(lowers.format("ViT"), vit, ("vit-sam", "active1")),
        difference("in the first block, more units of ResNet are active than of ViT", resnet, vit),
    ]


def _active(row: Row, model: str) -> dict[str, float]:
    # columns are named by the blocks of B/16; smaller networks have fewer
    shares = paper_numbers.FIGURE_2.get(named(row, model), ())
    return {f"active{k}": shares[k - 1] for k in (1, 6, 12) if len(shares) >= k}


FIGURE_2 = Study(
    "Training curves and active units",
    "Figure 2",
    rows=lambda scale: twins(*FAMILIES),
    columns=columns_of("active1", "active6", "active12", "training_loss", "top1"),
    claims=_figure2_claims,
    paper=lambda row, model: reported(row, model) | _active(row, model),
)

FIGURE_3 = Study(
    "Attention maps",
    "Figure 3",
    rows=lambda scale: twins("vit"),
    columns=columns_of("distance", "top1"),
    pictures=("attention",),
)
