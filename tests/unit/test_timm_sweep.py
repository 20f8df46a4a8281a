"""lambda_max of small timm networks: of each kind under 6 M parameters the smallest, none refused.

A kind is a module of timm and the letters that a name starts with, such as mixnet and mnasnet of efficientnet.py; the
66 kinds of timm 1.0.28 include each layer that timm's small networks have, so more sizes of one kind would add nothing.
"""

import re
import warnings

import pytest
import timm
import torch
from torch.nn import functional as F

from samovar.curvature import Hessian, top_eigenvalues

LARGEST, PIXELS = 6_000_000, 64


def kinds() -> list[str]:
    """The smallest network under 6 M parameters of each kind."""
    best: dict[tuple[str, str], tuple[int, str]] = {}
    for name in timm.list_models():
        module = timm.models.model_entrypoint(name).__module__.rpartition(".")[2]
        kind = module, re.match(r"(test_)?[a-z]+", name.removeprefix("tf_"))[0]
        if best.get(kind, (LARGEST, ""))[0] < 500_000:
            continue  # small enough
        try:
            with torch.device("meta"):
                model = timm.create_model(name, num_classes=3)
        except Exception:  # needs more than a name
            continue
        size = sum(param.numel() for param in model.parameters())
        if size < best.get(kind, (LARGEST, ""))[0]:
            best[kind] = size, name
    return [name for _, (_, name) in sorted(best.items())]


def made(name: str) -> tuple[torch.nn.Module, torch.Tensor]:
    """A network and two images, of 64 pixels or else of its own size."""
    torch.manual_seed(0)
    own = timm.get_pretrained_cfg(name).input_size if timm.get_pretrained_cfg(name) else (3, 224, 224)
    for options, pixels in (({}, PIXELS), ({"img_size": PIXELS}, PIXELS), ({}, own[-1])):
        try:
            model = timm.create_model(name, num_classes=3, **options).eval()
            images = torch.rand(2, own[0], pixels, pixels)
            with torch.no_grad():
                model(images)
        except Exception:  # another size is asked for
            continue
        return model, images
    pytest.skip("does not run on its own images")


def loss(model, batch):
    return F.cross_entropy(model(batch[0]), batch[1])


def single(model, batch):
    """The loss of a kernel that exists for float32 only."""
    if batch[0].dtype != torch.float32:
        raise RuntimeError("expected scalar type Float")
    return loss(model, batch)


@pytest.mark.slow
def test_no_small_network_is_refused():
    refused, hidden, done = {}, [], 0
    for name in kinds():
        model, images = made(name)
        data = [(images, torch.tensor([0, 1]))]
        op, op32 = Hessian(model, loss, data), Hessian(model, single, data)
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("error", message=".*not symmetric")
                top_eigenvalues(op, max_steps=3)
            op32 @ torch.ones(op32.size)
        except (ValueError, RuntimeError, UserWarning) as error:
            refused[name] = str(error)
        hidden += [] if op.checked else [name]
        done += 1
        print(name, refused.get(name, "measured"), op.checked, op32.checked, flush=True)
    assert done >= 63
    assert not refused, refused
    print("too noisy to check:", hidden)
