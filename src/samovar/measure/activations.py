"""Active fraction of units, and norms of weights and of outputs, for each block of a network.

A unit is active where its activation is above 0. Members of the ReLU and GELU families have the
sign of their input, so counting before or after them is the same. The paper does not say which MLPs
of a Mixer it counts, nor the tensor and the axes of its activation norms. Here the token MLP and
the channel MLP are counted separately, and the tensor is the output of a block: the residual stream
of a ViT or Mixer, and that after the last ReLU in a ResNet.

Source: arXiv:2106.01548, section 4.4 and Table 3.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from samovar.anymodel.devices import to_float64_device
from samovar.config import MeasureConfig
from samovar.measure.activation_tally import ActiveFraction, BlockNorm, Per, layers_of, run_tally
from samovar.measure.capture import network
from samovar.measure.subject import Subject
from samovar.runs.records import Record


def active_fractions(model: nn.Module, batches: Iterable[Any]) -> list[ActiveFraction]:
    """Count the units above 0 in each layer of activations, block by block, exactly.

    Cost: one pass in eval mode. Activations are found by the class of their module, which must be
    of the ReLU or GELU families (or SiLU, Mish, ELU); functions like `F.gelu` are not seen. In a
    gated MLP the gate is counted. Activations outside of all blocks, as in the stem of a ResNet,
    and those in networks of positions are left out.

    Args:
        model: any; restored afterwards.
        batches: images [B, C, H, W], tuples that begin with them, or objects that have them as
            `images`.

    Raises:
        ValueError: no batches, no activations, logits that are not finite."""
    return run_tally(model, batches, "token").fractions()


def activation_norms(
    model: nn.Module, batches: Iterable[Any], *, per: Per = "token"
) -> list[BlockNorm]:
    """Compute the mean L2 norm of the output of each block that contains activations.

    Cost: one pass in eval mode.

    Args:
        model, batches: as in `active_fractions`.
        per: "token", the norm over channels of each token or pixel; "image", over all of an image's
            output.

    Raises:
        ValueError: as in `active_fractions`, or an unknown `per`."""
    if per not in ("token", "image"):
        raise ValueError(f"per={per!r} is unknown; pick 'token' or 'image'")
    return run_tally(model, batches, per).norms()


def weight_norms(model: nn.Module) -> list[BlockNorm]:
    """Compute the L2 norm of all parameters of each block that contains activations.

    Biases and scales count too; blocks without parameters are left out.

    Raises:
        ValueError: no activations."""
    body = network(model)
    blocks = dict.fromkeys(block for block, _ in layers_of(body))
    modules = [(i, block, body.get_submodule(block)) for i, block in enumerate(blocks)]
    return [
        BlockNorm(block, i, weight_norm(module))
        for i, block, module in modules
        if any(True for _ in module.parameters())
    ]


def weight_norm(model: nn.Module) -> float:
    """Return the L2 norm of all parameters together."""
    return math.hypot(
        *(
            float(torch.linalg.vector_norm(to_float64_device(p.detach()), dtype=torch.float64))
            for p in model.parameters()
        )
    )


# --- the measurement

_PAPER = "arXiv:2106.01548"


def activations(subject: Subject, config: MeasureConfig, _: Path) -> Iterator[Record]:
    """Measure the active fraction of each MLP, and norms of weights and outputs of each block."""
    tally = run_tally(subject.model, subject.batches, "token")
    fractions = tally.fractions()
    for found in fractions:
        yield Record(
            "inside/active_fraction",
            found.fraction,
            "1",
            found.stderr,
            found.images,
            where={"block": found.block, "layer": found.layer, "index": found.index},
            settings={
                "tensor": "output of each activation in the layer; its sign is that of its input",
                "threshold": 0.0,
                "average": "images, tokens and units",
            },
            cost={"forwards": len(subject.batches)},
            source=f"{_PAPER}, section 4.4",
        )
    for norm in tally.norms():
        yield Record(
            "inside/activation_norm",
            norm.value,
            "",
            norm.stderr,
            fractions[0].images,
            where={"block": norm.block, "index": norm.index},
            settings={
                "tensor": "output of the block",
                "norm": "L2 over channels",
                "average": "tokens or pixels, and images",
            },
            source=f"{_PAPER}, Table 3",
        )
    for norm in weight_norms(subject.model):
        yield Record(
            "inside/weight_norm",
            norm.value,
            where={"block": norm.block, "index": norm.index},
            settings={"tensor": "all parameters of the block", "norm": "L2"},
        )
    yield Record(
        "inside/total_weight_norm",
        weight_norm(subject.model),
        settings={"tensor": "all parameters", "norm": "L2"},
        source=f"{_PAPER}, Table 3",
    )
