"""Flax weights under timm's names: logits as those of a network written from the Flax layout alone."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from samovar.config import ModelConfig
from samovar.flax import from_flax, read_npz
from samovar.variants import Sizes, build
from samovar.zoo import MODELS

Arrays = dict[str, np.ndarray]


def drawn(shapes: dict[str, tuple[int, ...]]) -> Arrays:
    generator = np.random.default_rng(0)
    return {name: generator.normal(0, 0.3, shape).astype(np.float32) for name, shape in shapes.items()}


# --- networks as the Flax code computes them, images [B, H, W, C] -----------------------------------------------------


def dense(x: Tensor, arrays: dict[str, Tensor], name: str) -> Tensor:
    return x @ arrays[f"{name}/kernel"] + arrays[f"{name}/bias"]


def norm(x: Tensor, arrays: dict[str, Tensor], name: str) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], arrays[f"{name}/scale"], arrays[f"{name}/bias"], 1e-6)


def gelu(x: Tensor) -> Tensor:
    return F.gelu(x, approximate="tanh")


def patches(images: Tensor, arrays: dict[str, Tensor], name: str, patch: int) -> Tensor:
    x = images.unfold(1, patch, patch).unfold(2, patch, patch)  # [B, h, w, C, p, p]
    kernel = arrays[f"{name}/kernel"].permute(2, 0, 1, 3)  # [C, p, p, D]
    return torch.einsum("bhwcij,cijd->bhwd", x, kernel).flatten(1, 2) + arrays[f"{name}/bias"]


def vit(images: Tensor, p: dict[str, Tensor], children: tuple[str, str, str], pos: str) -> Tensor:
    attention, second, mlp = children
    x = patches(images, p, "embedding", 8)
    if "cls" in p:
        x = torch.cat([p["cls"].expand(len(x), -1, -1), x], 1)
    x = x + p[pos]
    for i in range(2):
        b = f"Transformer/encoderblock_{i}"
        y = norm(x, p, f"{b}/LayerNorm_0")
        q, k, v = (
            torch.einsum("bnd,dhe->bhne", y, p[f"{b}/{attention}/{n}/kernel"]) + p[f"{b}/{attention}/{n}/bias"][:, None]
            for n in ("query", "key", "value")
        )
        weights = torch.softmax(q @ k.transpose(2, 3) / q.shape[-1] ** 0.5, -1)
        out = torch.einsum("bhne,hed->bnd", weights @ v, p[f"{b}/{attention}/out/kernel"])
        x = x + out + p[f"{b}/{attention}/out/bias"]
        y = norm(x, p, f"{b}/{second}")
        x = x + dense(gelu(dense(y, p, f"{b}/{mlp}/Dense_0")), p, f"{b}/{mlp}/Dense_1")
    x = norm(x, p, "Transformer/encoder_norm")
    return dense(x[:, 0] if "cls" in p else x.mean(1), p, "head")


VIT = replace(MODELS["vit-digits"], width=8, depth=2, heads=2, patch=8)
OLD = ("MultiHeadDotProductAttention_1", "LayerNorm_2", "MlpBlock_3")
NEW = ("MultiHeadDotProductAttention_0", "LayerNorm_1", "MlpBlock_0")


def vit_shapes(children: tuple[str, str, str], pos: str, *, cls: bool) -> dict[str, tuple[int, ...]]:
    attention, second, mlp = children
    shapes: dict[str, tuple[int, ...]] = {
        "embedding/kernel": (8, 8, 3, 8), "embedding/bias": (8,), pos: (1, 4 + cls, 8),
        "Transformer/encoder_norm/scale": (8,), "Transformer/encoder_norm/bias": (8,),
        "head/kernel": (8, 5), "head/bias": (5,),
    }  # fmt: skip
    if cls:
        shapes["cls"] = (1, 1, 8)
    for i in range(2):
        b = f"Transformer/encoderblock_{i}"
        for layer in ("LayerNorm_0", second):
            shapes |= {f"{b}/{layer}/scale": (8,), f"{b}/{layer}/bias": (8,)}
        for n in ("query", "key", "value"):
            shapes |= {f"{b}/{attention}/{n}/kernel": (8, 2, 4), f"{b}/{attention}/{n}/bias": (2, 4)}
        shapes |= {f"{b}/{attention}/out/kernel": (2, 4, 8), f"{b}/{attention}/out/bias": (8,)}
        shapes |= {f"{b}/{mlp}/Dense_0/kernel": (8, 32), f"{b}/{mlp}/Dense_0/bias": (32,)}
        shapes |= {f"{b}/{mlp}/Dense_1/kernel": (32, 8), f"{b}/{mlp}/Dense_1/bias": (8,)}
    return shapes


OLD_POS = "Transformer/posembed_input/pos_embedding"


@pytest.mark.parametrize(
    ("children", "pos", "prefix"),
    [(OLD, OLD_POS, ""), (OLD, OLD_POS, "opt/target/"), (NEW, "pos_embedding", "params/")],
)
def test_a_vit_gives_the_logits_of_the_flax_code(children: tuple[str, str, str], pos: str, prefix: str) -> None:
    arrays = drawn(vit_shapes(children, pos, cls=True))
    body = build(VIT, ModelConfig(), Sizes(5, 16, 3)).eval()
    body.load_state_dict(from_flax({prefix + name: value for name, value in arrays.items()}))
    agree(body, arrays, lambda images, p: vit(images, p, children, pos))


def agree(body: torch.nn.Module, arrays: Arrays, network: Callable[[Tensor, dict[str, Tensor]], Tensor]) -> None:
    images = torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    expected = network(images.permute(0, 2, 3, 1), {name: torch.from_numpy(value) for name, value in arrays.items()})
    with torch.no_grad():
        torch.testing.assert_close(body(images), expected, atol=1e-5, rtol=1e-5)  # the bar, in float32


# --- Mixer -----------------------------------------------------------------------------------------------------------

MIXER = replace(MODELS["mixer-digits"], width=8, depth=2, patch=8)


def mixer_shapes() -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {
        "stem/kernel": (8, 8, 3, 8), "stem/bias": (8,), "head/kernel": (8, 5), "head/bias": (5,),
        "pre_head_layer_norm/scale": (8,), "pre_head_layer_norm/bias": (8,),
    }  # fmt: skip
    for i in range(2):
        b = f"MixerBlock_{i}"
        for layer in ("LayerNorm_0", "LayerNorm_1"):
            shapes |= {f"{b}/{layer}/scale": (8,), f"{b}/{layer}/bias": (8,)}
        for axis, tokens, hidden in (("token", 4, 4), ("channel", 8, 32)):
            name = f"{b}/{axis}_mixing"
            shapes |= {f"{name}/Dense_0/kernel": (tokens, hidden), f"{name}/Dense_0/bias": (hidden,)}
            shapes |= {f"{name}/Dense_1/kernel": (hidden, tokens), f"{name}/Dense_1/bias": (tokens,)}
    return shapes


def mixer(images: Tensor, p: dict[str, Tensor]) -> Tensor:
    x = patches(images, p, "stem", 8)
    for i in range(2):
        b = f"MixerBlock_{i}"
        y = norm(x, p, f"{b}/LayerNorm_0").transpose(1, 2)
        x = x + dense(gelu(dense(y, p, f"{b}/token_mixing/Dense_0")), p, f"{b}/token_mixing/Dense_1").transpose(1, 2)
        y = norm(x, p, f"{b}/LayerNorm_1")
        x = x + dense(gelu(dense(y, p, f"{b}/channel_mixing/Dense_0")), p, f"{b}/channel_mixing/Dense_1")
    return dense(norm(x, p, "pre_head_layer_norm").mean(1), p, "head")


def older_mixer(arrays: Arrays) -> Arrays:
    """The same under the names from before Flax's linen."""
    renamed = {}
    for name, value in arrays.items():
        name = name.replace("stem/", "embedding/").replace("MixerBlock", "Mixer/encoderblock")
        name = name.replace("pre_head_layer_norm", "Mixer/encoder_norm")
        for first, second in (("Dense_0", "1"), ("Dense_1", "2")):
            for kind in ("kernel", "bias"):
                name = name.replace(f"_mixing/{first}/{kind}", f"_mixing_phase_0/{kind}{second}")
        renamed[name] = value
    return renamed


@pytest.mark.parametrize("rename", [dict, older_mixer])
def test_a_mixer_gives_the_logits_of_the_flax_code(rename: Callable[[Arrays], Arrays]) -> None:
    arrays = drawn(mixer_shapes())
    body = build(MIXER, ModelConfig(), Sizes(5, 16, 3)).eval()
    body.load_state_dict(from_flax(rename(arrays)))
    agree(body, arrays, mixer)


# --- BiT ResNet ------------------------------------------------------------------------------------------------------

BIT = replace(MODELS["resnet50"], width=8, depth=50, stages=(1, 2, 1, 1), groups=4)


def bit_shapes() -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {"conv_root/kernel": (7, 7, 3, 8), "head/kernel": (256, 5), "head/bias": (5,)}
    norms = {"gn_root": 8}
    before = 8
    for block, units in enumerate(BIT.stages, start=1):
        width = 8 * 2 ** (block - 1)
        for unit in range(1, units + 1):
            b = f"block{block}/unit{unit}"
            shapes |= {f"{b}/conv1/kernel": (1, 1, before, width), f"{b}/conv2/kernel": (3, 3, width, width)}
            shapes[f"{b}/conv3/kernel"] = (1, 1, width, 4 * width)
            norms |= {f"{b}/gn1": width, f"{b}/gn2": width, f"{b}/gn3": 4 * width}
            if unit == 1:
                shapes[f"{b}/conv_proj/kernel"] = (1, 1, before, 4 * width)
                norms[f"{b}/gn_proj"] = 4 * width
            before = 4 * width
    return shapes | {f"{name}/{kind}": (width,) for name, width in norms.items() for kind in ("scale", "bias")}


def same_padded(x: Tensor, size: int, stride: int, value: float = 0.0) -> Tensor:
    for axis in (3, 2):
        total = max(0, (-(-x.shape[axis] // stride) - 1) * stride + size - x.shape[axis])
        sides = [total // 2, total - total // 2]
        x = F.pad(x, sides if axis == 3 else [0, 0, *sides], value=value)
    return x


def bit(images: Tensor, p: dict[str, Tensor]) -> Tensor:
    def conv(x: Tensor, name: str, stride: int = 1) -> Tensor:
        kernel = p[f"{name}/kernel"]
        kernel = (kernel - kernel.mean((0, 1, 2))) / (kernel.std((0, 1, 2), correction=0) + 1e-5)
        return F.conv2d(same_padded(x, kernel.shape[0], stride), kernel.permute(3, 2, 0, 1), stride=stride)

    def group_norm(x: Tensor, name: str) -> Tensor:
        return F.group_norm(x, 4, p[f"{name}/scale"], p[f"{name}/bias"], 1e-6)

    x = F.relu(group_norm(conv(images.permute(0, 3, 1, 2), "conv_root", 2), "gn_root"))
    x = F.max_pool2d(same_padded(x, 3, 2, -torch.inf), 3, 2)
    for block, units in enumerate(BIT.stages, start=1):
        for unit in range(1, units + 1):
            b, stride = f"block{block}/unit{unit}", 2 if unit == 1 and block > 1 else 1
            skip = group_norm(conv(x, f"{b}/conv_proj", stride), f"{b}/gn_proj") if unit == 1 else x
            y = F.relu(group_norm(conv(x, f"{b}/conv1"), f"{b}/gn1"))
            y = F.relu(group_norm(conv(y, f"{b}/conv2", stride), f"{b}/gn2"))
            x = F.relu(group_norm(conv(y, f"{b}/conv3"), f"{b}/gn3") + skip)
    return dense(x.mean((2, 3)), p, "head")


@pytest.mark.parametrize("older", [False, True])
def test_a_resnet_gives_the_logits_of_the_flax_code(older: bool) -> None:
    arrays = drawn(bit_shapes())
    given = arrays
    if older:  # units are written with two digits, norms with axes of one
        given = {
            name.replace("/unit", "/unit0"): v.reshape(1, 1, 1, -1) if "/gn" in name else v
            for name, v in arrays.items()
        }
    body = build(BIT, ModelConfig(), Sizes(5, 32, 3)).eval()
    body.load_state_dict(from_flax(given))
    images = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    exact = {name: torch.from_numpy(value).double() for name, value in arrays.items()}
    with torch.no_grad():
        # in float64; Flax adds 1e-5 to the standard deviation of a kernel, our layer as good as nothing, and these
        # kernels of 8 numbers have small deviations
        torch.testing.assert_close(body.double()(images), bit(images.permute(0, 2, 3, 1), exact), atol=1e-4, rtol=1e-3)


# --- files -----------------------------------------------------------------------------------------------------------


def test_a_file_is_read_without_the_optimizers_moments(tmp_path) -> None:
    arrays = drawn(mixer_shapes())
    beside = {f"opt/target/{name}": value for name, value in arrays.items()}
    beside |= {f"opt/state/param_states/{name}/grad_ema": value for name, value in arrays.items()}
    np.savez(tmp_path / "mixer.npz", **beside)
    assert read_npz(tmp_path / "mixer.npz").keys() == from_flax(arrays).keys()


def test_what_is_no_such_file_is_refused_in_one_line(tmp_path) -> None:
    np.savez(tmp_path / "other.npz", weight=np.zeros(3))
    with pytest.raises(ValueError, match=r"other.npz: its names, such as weight, are of no ViT, Mixer or BiT ResNet"):
        read_npz(tmp_path / "other.npz")
    arrays = drawn(vit_shapes(OLD, "pos_embedding", cls=True)) | {"pre_logits/kernel": np.zeros((8, 8))}
    with pytest.raises(ValueError, match=r"pre_logits/kernel \[8, 8\] has no place in timm's ViT"):
        from_flax(arrays)
    np.savez(tmp_path / "pickled.npz", cls=np.array([{}], dtype=object))
    with pytest.raises(ValueError, match=r"pickled.npz cannot be read as .npz"):
        read_npz(tmp_path / "pickled.npz")
    (tmp_path / "text.npz").write_text("no")
    with pytest.raises(ValueError, match=r"text.npz cannot be read as .npz"):
        read_npz(tmp_path / "text.npz")
