"""lambda_max of small timm networks: one of each family under 6 M parameters, none refused."""

import pytest
import timm
import torch
from torch.nn import functional as F

from samovar.curvature import Hessian, top_eigenvalues

LARGEST, PIXELS = 6_000_000, 64
BATCH_STATISTICS = "couples the examples"  # nets that normalize by the batch even in eval mode


def families() -> dict[str, str]:
    """The smallest network under 6 M parameters of each of timm's modules, by module."""
    best: dict[str, tuple[int, str]] = {}
    for name in timm.list_models():
        family = timm.models.model_entrypoint(name).__module__.rpartition(".")[2]
        if best.get(family, (LARGEST, ""))[0] < 500_000:
            continue  # small enough
        try:
            with torch.device("meta"):
                model = timm.create_model(name, num_classes=3)
        except Exception:  # needs more than a name
            continue
        size = sum(param.numel() for param in model.parameters())
        if size < best.get(family, (LARGEST, ""))[0]:
            best[family] = size, name
    return {family: name for family, (_, name) in sorted(best.items())}


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


@pytest.mark.slow
def test_no_small_network_is_refused():
    refused, hidden, done = {}, [], 0
    for name in families().values():
        model, images = made(name)
        op = Hessian(model, lambda m, b: F.cross_entropy(m(b[0]), b[1]), [(images, torch.tensor([0, 1]))])
        try:
            top_eigenvalues(op, max_steps=3)
        except (ValueError, RuntimeError) as error:
            refused[name] = str(error)
        hidden += [] if op.checked else [name]
        done += 1
        print(name, refused.get(name, "measured"), "checked" if op.checked else "not checked", flush=True)
    assert done > 30
    assert not refused, refused
    print("too noisy to check:", hidden)
