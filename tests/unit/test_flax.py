"""Flax weights under timm's names: logits as those of a network written in NumPy from the Flax layout alone."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch

from samovar.config import Config, ModelConfig
from samovar.models.factory import create
from samovar.models.flax import from_flax, num_heads, read_npz
from samovar.models.load import load_init
from samovar.models.networks import Sizes, build
from samovar.models.open import open_model
from samovar.models.table import MODELS, Variant

Arrays = dict[str, np.ndarray]


def drawn(shapes: dict[str, tuple[int, ...]]) -> Arrays:
    generator = np.random.default_rng(0)
    return {name: generator.normal(0, 0.3, shape).astype(np.float32) for name, shape in shapes.items()}


# --- networks as the Flax code computes them, images [B, H, W, C] -----------------------------------------------------


def dense(x: np.ndarray, p: Arrays, name: str) -> np.ndarray:
    return x @ p[f"{name}/kernel"] + p[f"{name}/bias"]


def norm(x: np.ndarray, p: Arrays, name: str) -> np.ndarray:
    x = x - x.mean(-1, keepdims=True)
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * p[f"{name}/scale"] + p[f"{name}/bias"]


def gelu(x: np.ndarray) -> np.ndarray:
    return x / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def patches(images: np.ndarray, p: Arrays, name: str) -> np.ndarray:
    kernel = p[f"{name}/kernel"]
    size, side = len(kernel), images.shape[1] // len(kernel)
    cut = images.reshape(len(images), side, size, side, size, -1)
    return np.einsum("bhiwjc,ijcd->bhwd", cut, kernel).reshape(len(images), side * side, -1) + p[f"{name}/bias"]


def vit(images: np.ndarray, p: Arrays, children: tuple[str, str, str], pos: str) -> np.ndarray:
    attention, second, mlp = children
    x = patches(images, p, "embedding")
    if "cls" in p:
        x = np.concatenate([np.repeat(p["cls"], len(x), 0), x], 1)
    x = x + p[pos]
    for i in range(sum(name.endswith("/out/bias") for name in p)):
        b = f"Transformer/encoderblock_{i}"
        y = norm(x, p, f"{b}/LayerNorm_0")
        q, k, v = (
            np.einsum("bnd,dhe->bhne", y, p[f"{b}/{attention}/{n}/kernel"]) + p[f"{b}/{attention}/{n}/bias"][:, None]
            for n in ("query", "key", "value")
        )
        weights = np.exp(q @ k.swapaxes(2, 3) / np.sqrt(q.shape[-1]))
        seen = weights / weights.sum(-1, keepdims=True) @ v
        out = np.einsum("bhne,hed->bnd", seen, p[f"{b}/{attention}/out/kernel"])
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
GAP = replace(VIT, pool="mean")


@pytest.mark.parametrize("row", [VIT, GAP], ids=["class token", "gap"])
@pytest.mark.parametrize(
    ("children", "pos", "prefix"),
    [(OLD, OLD_POS, ""), (OLD, OLD_POS, "opt/target/"), (NEW, "pos_embedding", "params/"), (NEW, OLD_POS, "target/")],
)
def test_a_vit_gives_the_logits_of_the_flax_code(
    row: Variant, children: tuple[str, str, str], pos: str, prefix: str
) -> None:
    arrays = drawn(vit_shapes(children, pos, cls=row.pool == "token"))
    body = build(row, ModelConfig(), Sizes(5, 16, 3)).eval()
    body.load_state_dict(from_flax({prefix + name: value for name, value in arrays.items()}))
    agree(body, arrays, lambda images, p: vit(images, p, children, pos))


def test_blocks_that_were_scanned_over_are_taken_apart() -> None:
    arrays = drawn(vit_shapes(NEW, "pos_embedding", cls=True))
    stacked = {name: value for name, value in arrays.items() if "encoderblock" not in name}
    for name in (name for name in arrays if "encoderblock_0" in name):
        both = [arrays[name.replace("_0/", f"_{i}/", 1)] for i in range(2)]
        stacked[name.replace("encoderblock_0", "encoderblock")] = np.stack(both)
    found, expected = from_flax({f"params/{name}": value for name, value in stacked.items()}), from_flax(arrays)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def agree(
    body: torch.nn.Module, arrays: Arrays, network: Callable[[np.ndarray, Arrays], np.ndarray], size: int = 16
) -> None:
    images = torch.rand(3, 3, size, size, generator=torch.Generator().manual_seed(0))
    exact = {name: value.astype(np.float64) for name, value in arrays.items()}
    expected = network(images.permute(0, 2, 3, 1).double().numpy(), exact)
    with torch.no_grad():
        found = body(images).double()
    # the bar, of logits near 1; ours are in float32
    torch.testing.assert_close(found, torch.from_numpy(expected), atol=1e-5, rtol=1e-5)


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


def mixer(images: np.ndarray, p: Arrays) -> np.ndarray:
    x = patches(images, p, "stem")
    for i in range(2):
        b = f"MixerBlock_{i}"
        y = norm(x, p, f"{b}/LayerNorm_0").swapaxes(1, 2)
        x = x + dense(gelu(dense(y, p, f"{b}/token_mixing/Dense_0")), p, f"{b}/token_mixing/Dense_1").swapaxes(1, 2)
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


def windows(x: np.ndarray, size: int, stride: int, value: float = 0.0) -> np.ndarray:
    """SAME-padded windows [B, h, w, C, size, size] of [B, H, W, C]."""
    for axis in (1, 2):
        total = max(0, (-(-x.shape[axis] // stride) - 1) * stride + size - x.shape[axis])
        sides = [(0, 0)] * 4
        sides[axis] = (total // 2, total - total // 2)
        x = np.pad(x, sides, constant_values=value)
    return np.lib.stride_tricks.sliding_window_view(x, (size, size), (1, 2))[:, ::stride, ::stride]


def bit(images: np.ndarray, p: Arrays) -> np.ndarray:
    def conv(x: np.ndarray, name: str, stride: int = 1) -> np.ndarray:
        kernel = p[f"{name}/kernel"]
        kernel = (kernel - kernel.mean((0, 1, 2))) / (kernel.std((0, 1, 2)) + 1e-5)
        return np.einsum("bhwcij,ijcd->bhwd", windows(x, len(kernel), stride), kernel, optimize=True)

    def group_norm(x: np.ndarray, name: str) -> np.ndarray:
        groups = x.reshape(*x.shape[:3], 4, -1)
        groups = groups - groups.mean((1, 2, 4), keepdims=True)
        groups = groups / np.sqrt((groups**2).mean((1, 2, 4), keepdims=True) + 1e-6)
        return groups.reshape(x.shape) * p[f"{name}/scale"] + p[f"{name}/bias"]

    def relu(x: np.ndarray) -> np.ndarray:
        return np.maximum(x, 0)

    x = relu(group_norm(conv(images, "conv_root", 2), "gn_root"))
    x = windows(x, 3, 2, -np.inf).max((4, 5))
    for block, units in enumerate(BIT.stages, start=1):
        for unit in range(1, units + 1):
            b, stride = f"block{block}/unit{unit}", 2 if unit == 1 and block > 1 else 1
            skip = group_norm(conv(x, f"{b}/conv_proj", stride), f"{b}/gn_proj") if unit == 1 else x
            y = relu(group_norm(conv(x, f"{b}/conv1"), f"{b}/gn1"))
            y = relu(group_norm(conv(y, f"{b}/conv2", stride), f"{b}/gn2"))
            x = relu(group_norm(conv(y, f"{b}/conv3"), f"{b}/gn3") + skip)
    return dense(x.mean((1, 2)), p, "head")


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
    agree(body, arrays, bit, size=32)


# --- files -----------------------------------------------------------------------------------------------------------


def test_a_file_is_read_without_the_optimizers_moments(tmp_path) -> None:
    arrays = drawn(mixer_shapes())
    beside = {f"opt/target/{name}": value for name, value in arrays.items()}
    beside |= {f"opt/state/param_states/{name}/grad_ema": value for name, value in arrays.items()}
    np.savez(tmp_path / "mixer.npz", **beside)
    assert read_npz(tmp_path / "mixer.npz").keys() == from_flax(arrays).keys()


def test_what_is_no_such_file_is_refused_in_one_line(tmp_path) -> None:
    np.savez(tmp_path / "other.npz", weight=np.zeros(3))
    with pytest.raises(
        ValueError, match=r"other.npz: its 1 names \(weight\) fit no ViT, .+ which have Transformer/enc"
    ):
        read_npz(tmp_path / "other.npz")
    arrays = drawn(vit_shapes(OLD, "pos_embedding", cls=True)) | {"pre_logits/kernel": np.zeros((8, 8))}
    with pytest.raises(ValueError, match=r"it has pre_logits, a layer between encoder and head"):
        from_flax(arrays)
    arrays = drawn(vit_shapes(OLD, "pos_embedding", cls=True)) | {"MAPHead_0/probe": np.zeros((1, 1, 8))}
    with pytest.raises(ValueError, match=r"MAPHead_0/probe \[1, 1, 8\] has no place in timm's ViT"):
        from_flax(arrays)
    with pytest.raises(ValueError, match=r"gone.npz: no such file"):
        read_npz(tmp_path / "gone.npz")
    np.savez(tmp_path / "pickled.npz", cls=np.array([{}], dtype=object))
    with pytest.raises(ValueError, match=r"pickled.npz cannot be read as .npz"):
        read_npz(tmp_path / "pickled.npz")
    (tmp_path / "text.npz").write_text("no")
    with pytest.raises(ValueError, match=r"text.npz cannot be read as .npz"):
        read_npz(tmp_path / "text.npz")


# --- opened as they are ----------------------------------------------------------------------------------------------


def in_flax_names(shapes: dict[str, tuple[int, ...]], width: int, depth: int, heads: int) -> Arrays:
    """Arrays of a larger ViT after the shapes of a small one: widths 8 and 32, 2 blocks, 2 heads of 4."""
    sizes = {8: width, 32: 4 * width, 2: heads, 4: width // heads}
    block = {name: shape for name, shape in shapes.items() if "block_0" in name}
    blocks = {name.replace("_0/", f"_{i}/", 1): shape for i in range(depth) for name, shape in block.items()}
    larger = {name: tuple(sizes.get(n, n) for n in shape) for name, shape in blocks.items()}
    outside = {name: shape for name, shape in shapes.items() if "block_" not in name and shape[-1] == 8}
    outside = {name: (*shape[:-1], width) for name, shape in outside.items()}
    return drawn(larger | outside | {"head/kernel": (width, 5), "head/bias": (5,)})


@pytest.mark.parametrize("pool", ["token", "gap"])
def test_a_vit_of_the_table_is_recognized_and_gives_its_logits(pool: str, tmp_path, monkeypatch) -> None:
    row = replace(MODELS["vit-digits"], patch=8, depth=2, pool="token" if pool == "token" else "mean")
    monkeypatch.setitem(MODELS, "vit-test", row)
    arrays = in_flax_names(vit_shapes(OLD, OLD_POS, cls=pool == "token"), row.width, row.depth, row.heads)
    np.savez(tmp_path / "vit.npz", **arrays)
    opened = open_model(str(tmp_path / "vit.npz"))
    assert opened.config == ModelConfig("vit-test", init="library")
    assert "vit-test by its names and shapes" in opened.notes
    assert (opened.image_size, opened.channels, opened.num_classes) == (16, 3, 5)
    agree(opened.model, arrays, lambda images, p: vit(images * 2 - 1, p, OLD, OLD_POS))


def test_a_file_with_another_number_of_heads_is_refused_where_its_network_is_named(tmp_path, monkeypatch) -> None:
    row = replace(MODELS["vit-digits"], patch=8, depth=2)
    monkeypatch.setitem(MODELS, "vit-test", row)
    path = tmp_path / "vit.npz"
    # the tensors under timm's names have the same shapes for any number of heads
    np.savez(path, **in_flax_names(vit_shapes(OLD, OLD_POS, cls=True), row.width, row.depth, 2 * row.heads))
    told = rf"vit.npz: its attention has {2 * row.heads} heads, this network's {row.heads}; name the network"
    with pytest.raises(ValueError, match=told):
        open_model(str(path), name="vit-test")
    model = create(ModelConfig("vit-test"), num_classes=5, image_size=16, channels=3)
    with pytest.raises(ValueError, match=told):
        load_init(model, Config(init=str(path), model=ModelConfig("vit-test")))


def test_a_mixer_and_a_resnet_of_the_table_are_recognized(tmp_path, monkeypatch) -> None:
    monkeypatch.setitem(MODELS, "mixer-test", MIXER)
    monkeypatch.setitem(MODELS, "bit-test", BIT)
    nets = ("mixer", mixer_shapes(), mixer, 16, 16), ("bit", bit_shapes(), bit, 224, 32)  # convolutions take any size
    for name, shapes, network, size, side in nets:
        arrays = drawn(shapes)
        np.savez(tmp_path / f"{name}.npz", **arrays)
        opened = open_model(str(tmp_path / f"{name}.npz"))
        assert (opened.config.name, opened.image_size) == (f"{name}-test", size)
        agree(opened.model, arrays, lambda images, p, of=network: of(images * 2 - 1, p), side)


def test_a_network_that_the_table_lacks_is_told_by_its_sizes(tmp_path) -> None:
    np.savez(tmp_path / "vit.npz", **drawn(vit_shapes(OLD, OLD_POS, cls=False)))
    assert num_heads(tmp_path / "vit.npz") == 2
    line = r"vit.npz: a ViT of width 8, depth 2, patch 8, 2 heads, without a class token is not in the table"
    with pytest.raises(ValueError, match=line):
        open_model(str(tmp_path / "vit.npz"))
    arrays = in_flax_names(vit_shapes(OLD, OLD_POS, cls=True), 384, 12, 12)  # ViT-S has 6 heads
    arrays["embedding/kernel"] = np.zeros((16, 16, 3, 384), np.float32)
    np.savez(tmp_path / "vit.npz", **arrays)
    with pytest.raises(
        ValueError, match=r"width 384, depth 12, patch 16, 12 heads, with a class token is not in the table"
    ):
        open_model(str(tmp_path / "vit.npz"))
