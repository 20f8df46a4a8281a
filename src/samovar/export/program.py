"""Write a program of `torch.export`: a graph of torch's own operations, with the weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from samovar.export.original import Original, compare
from samovar.export.preprocessing import to_dict

PROGRAM, FACTS = "model.pt2", "model.json"


class _Nested(nn.Module):
    """A network one level down, so that its buffers are called `classifier.mean` and not `mean`.

    Results of operations are called `mean` as well, and onnxscript's optimizer mistakes one for
    the other."""

    def __init__(self, classifier: nn.Module) -> None:
        super().__init__()
        self.classifier = classifier

    def forward(self, images: Tensor) -> Tensor:
        """Return logits [B, K] of images [B, C, S, S]."""
        logits: Tensor = self.classifier(images)
        return logits


def traced(original: Original) -> Any:
    """Trace the network as a graph from images [B, C, S, S] in [0, 1] to logits [B, K], for any B.

    Raises:
        ValueError: a network that cannot be traced."""
    size = original.interface.image_size
    images = torch.rand(
        2, original.interface.channels, size, size, generator=torch.Generator().manual_seed(0)
    )
    try:
        batch = {"images": {0: torch.export.Dim("batch")}}
        program = torch.export.export(
            _Nested(original.opened.model), (images,), dynamic_shapes=batch
        )
    except Exception as error:  # the tracer lets errors of every kind through
        reason = str(error).strip().partition("\n")[0]
        raise ValueError(
            f"{original.opened.name} cannot be traced for batches of any size ({reason}); "
            "give --format timm"
        ) from error
    for module in program.graph_module.modules():
        for node in module.graph.nodes if isinstance(module, GraphModule) else ():
            node.meta.pop("stack_trace", None)  # it contains paths of this machine
    return program


def write_program(original: Original, folder: Path) -> float:
    """Write the program, and its interface as JSON; return the largest difference of a logit.

    Raises:
        ValueError: a network that cannot be traced, or logits that differ."""
    torch.export.save(traced(original), folder / PROGRAM)
    (folder / FACTS).write_text(
        json.dumps(to_dict(original.interface), indent=2) + "\n", encoding="utf-8"
    )
    module = torch.export.load(folder / PROGRAM).module()

    def run(images: Tensor) -> Tensor:
        logits: Tensor = module(images)
        return logits

    try:
        return compare(original, run)
    except ValueError as error:
        raise ValueError(f"the program of {original.opened.name} is discarded: {error}") from error
