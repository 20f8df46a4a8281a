"""Claims about the paper's networks, the input layer, and networks from elsewhere."""

import math
import re
import subprocess
import sys
from dataclasses import replace
from importlib import metadata

import pytest
import timm
import torch
import torch.nn.functional as F
from timm.layers import DropPath, StdConv2dSame
from timm.models.resnetv2 import ResNetV2
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from samovar import cli, plugins
from samovar.config import Config, ModelConfig
from samovar.curvature import blocks
from samovar.measure.attention import attention_maps
from samovar.models import networks, table
from samovar.models.factory import Classifier, create, describe, family
from samovar.models.open import open_model
from samovar.models.table import MODELS, Variant
from tests.unit.made_run import made_run


def digits(name, **settings):
    return create(ModelConfig(name=name, **settings), num_classes=10, image_size=8, channels=1)


def on_meta(name):
    with torch.device("meta"):
        return create(ModelConfig(name=name), num_classes=1000, image_size=224).body


# --- the input layer -------------------------------------------------------------------------------------------------


def test_normalization_is_the_first_layer_and_its_border_is_0_to_1():
    model = Classifier(nn.Identity(), mean=(0.5,), std=(0.5,))
    assert torch.equal(model(torch.tensor([0.0, 0.5, 1.0]).view(3, 1, 1, 1)).flatten(), torch.tensor([-1.0, 0.0, 1.0]))


def test_channels_can_have_their_own_mean_and_std():
    mean, std = (0.1, 0.2, 0.3), (0.5, 1.0, 2.0)
    images = torch.rand(2, 3, 4, 4)
    expected = torch.stack([(images[:, c] - mean[c]) / std[c] for c in range(3)], 1)
    assert torch.equal(Classifier(nn.Identity(), mean, std)(images), expected)


def test_integer_images_are_refused():
    with pytest.raises(TypeError, match="uint8"):
        Classifier(nn.Identity(), (0.5,), (0.5,))(torch.zeros(1, 3, 2, 2, dtype=torch.uint8))


def test_the_state_dict_holds_the_body_alone():
    assert all(key.startswith("body.") for key in digits("vit-digits").state_dict())


def test_a_mean_that_fits_no_channels_is_refused():
    with pytest.raises(ValueError, match=r"--model.mean has 3 values and images have 1 channels; give 1$"):
        digits("vit-digits", mean=(0.1, 0.2, 0.3))


# --- names of timm ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ("vit-b16", "vit_base_patch16_224"),
        ("vit-s32", "vit_small_patch32_224"),
        ("mixer-b16", "mixer_b16_224"),
        ("mixer-s32", "mixer_s32_224"),
        ("resnet50-bn", "resnet50"),
        ("resnet50", "resnet50_gn"),
    ],
)
def test_the_body_speaks_timms_state_dict(ours, theirs):
    with torch.device("meta"):
        model = timm.create_model(theirs, num_classes=1000)
    model.load_state_dict(on_meta(ours).state_dict(), strict=True, assign=True)


def test_our_vit_is_timms_with_tanh_gelu():
    body = create(ModelConfig(name="vit-s16", init="library"), num_classes=10, image_size=32).body.eval()
    theirs = timm.create_model("vit_small_patch16_224", num_classes=10, img_size=32, act_layer="gelu_tanh").eval()
    theirs.load_state_dict(body.state_dict())
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(body(images), theirs(images))


# --- ViT -------------------------------------------------------------------------------------------------------------


def test_vit_drops_in_four_places_and_never_attention_probabilities():
    body = digits("vit-digits", dropout=0.25).body
    rates = {name: layer.p for name, layer in body.named_modules() if isinstance(layer, nn.Dropout)}
    dropped = {name for name, rate in rates.items() if rate == 0.25}
    places = ("attn.proj_drop", "mlp.drop1", "mlp.drop2")
    assert dropped == {"pos_drop"} | {f"blocks.{i}.{place}" for i in range(4) for place in places}
    assert all(rate == 0 for name, rate in rates.items() if name not in dropped)


def test_vit_and_mixer_use_tanh_gelu_and_eps_1e_minus_6():
    x = torch.linspace(-3, 3, 50)
    for body in (digits("vit-digits").body, digits("mixer-digits").body):
        activations = [m for name, m in body.named_modules() if name.endswith(".act")]
        norms = [m for m in body.modules() if isinstance(m, nn.LayerNorm)]
        assert activations
        assert all(torch.equal(act(x), F.gelu(x, approximate="tanh")) for act in activations)
        assert {norm.eps for norm in norms} == {1e-6}


def test_vit_drop_path_is_a_rescaled_ramp():
    body = digits("vit-digits", drop_path=0.3).body
    paths = [block.drop_path2 for block in body.blocks]
    assert [getattr(p, "drop_prob", 0.0) for p in paths] == pytest.approx([0, 0.1, 0.2, 0.3])
    assert all(p.scale_by_keep for p in paths if isinstance(p, DropPath))


def test_vit_starts_as_in_the_flax_code():
    torch.manual_seed(0)
    body = create(ModelConfig(name="vit-cifar"), num_classes=10, image_size=32).body
    for block in body.blocks:
        bound = math.sqrt(6 / (192 + 192))  # xavier_uniform of query, key and value on their own
        for kernel in block.attn.qkv.weight.chunk(3):
            assert kernel.abs().max() <= bound
            assert kernel.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.02)
        assert block.mlp.fc1.weight.abs().max() <= math.sqrt(6 / (192 + 768))
        assert 0.5e-6 < block.mlp.fc1.bias.std() < 2e-6
        assert block.attn.qkv.bias.count_nonzero() == block.attn.proj.bias.count_nonzero() == 0
    assert body.pos_embed.std().item() == pytest.approx(0.02, rel=0.05)
    assert body.patch_embed.proj.weight.std().item() == pytest.approx((4 * 4 * 3) ** -0.5, rel=0.05)
    assert body.cls_token.count_nonzero() == body.head.weight.count_nonzero() == 0


def test_library_initialisation_is_timms():
    torch.manual_seed(0)
    body = digits("vit-digits", init="library", head_bias=-10).body
    assert body.head.weight.count_nonzero() > 0
    assert body.head.bias.count_nonzero() == 0


@pytest.mark.parametrize(("name", "params"), [("vit-s16-gap", 22_049_896), ("vit-b32-gap", 88_222_696)])
def test_a_vit_without_class_token_pools_after_the_last_norm(name, params):
    body = on_meta(name)
    assert body.cls_token is None
    assert isinstance(body.norm, nn.LayerNorm)
    assert isinstance(body.fc_norm, nn.Identity)
    row = MODELS[name]
    assert body.pos_embed.shape == (1, (224 // row.patch) ** 2, row.width)
    # less than with a class token by that token and its place
    twin = MODELS[name.removesuffix("-gap")]
    assert sum(p.numel() for p in body.parameters()) == row.params == params == twin.params - 2 * row.width


def test_a_vit_without_class_token_answers_to_the_mean_of_its_patches():
    row = replace(MODELS["vit-digits"], pool="mean")
    body = networks.build(row, ModelConfig(init="library"), networks.Sizes(10, 8, 1)).eval()
    images = torch.randn(2, 1, 8, 8)
    tokens = body.forward_features(images)
    assert tokens.shape == (2, 4, 64)
    torch.testing.assert_close(body(images), body.head(tokens.mean(1)))
    mixed = attention_maps(Classifier(body, (0.5,), (0.5,)), images)
    assert (mixed.query, mixed.num_prefix_tokens, mixed.grid) == ("mean", 0, (2, 2))
    named = blocks(Classifier(body, (0.5,), (0.5,)))
    assert set(named) == {"embedding", "msa", "mlp", "block1", "block2", "block4", "whole"}


# --- Mixer -----------------------------------------------------------------------------------------------------------


def test_mixer_drop_path_is_a_ramp_without_rescaling():
    body = digits("mixer-digits", drop_path=0.5).body
    assert [getattr(b.drop_path, "drop_prob", 0.0) for b in body.blocks] == pytest.approx([0, 0.1, 0.2, 0.3, 0.4, 0.5])
    path = body.blocks[-1].drop_path
    torch.manual_seed(0)
    rows = path(torch.ones(200, 3, 2))  # modules start in training mode
    assert set(rows.unique().tolist()) == {0.0, 1.0}  # 1 / (1 - p) would make 2 of 1
    assert torch.equal(rows.amin((1, 2)), rows.amax((1, 2)))  # one draw per sample
    assert torch.equal(path.eval()(rows), rows)


def test_mixer_draws_anew_for_each_residual_branch():
    block = digits("mixer-digits", drop_path=0.5).body.blocks[-1]
    draws = []
    block.drop_path.register_forward_hook(lambda module, args, out: draws.append(out.abs().sum((1, 2)) > 0))
    block(torch.randn(64, 4, 64))
    assert len(draws) == 2
    assert not torch.equal(*draws)


def test_mixer_starts_as_in_the_flax_code():
    torch.manual_seed(0)
    body = create(ModelConfig(name="mixer-cifar"), num_classes=10, image_size=32).body
    for layer in (m for m in body.blocks.modules() if isinstance(m, nn.Linear)):
        assert layer.weight.std().item() == pytest.approx(
            layer.in_features**-0.5, rel=0.03
        )  # lecun_normal, Flax's default
        assert layer.bias.count_nonzero() == 0


# --- ResNet ----------------------------------------------------------------------------------------------------------


def to_resnetv2(key):
    """Name in timm's ResNetV2 of a parameter of timm's ResNet."""
    key = re.sub(r"^conv1\.", "stem.conv.", re.sub(r"^bn1\.", "stem.norm.", key))
    key = re.sub(r"^layer(\d)\.", lambda m: f"stages.{int(m[1]) - 1}.blocks.", key)
    key = re.sub(r"\.bn(\d)\.", r".norm\1.", key)
    key = key.replace("downsample.0.", "downsample.conv.").replace("downsample.1.", "downsample.norm.")
    return key.replace("fc.", "head.fc.")


@pytest.mark.parametrize("size", [64, 65])  # SAME padding is uneven in other layers
def test_resnet_is_the_one_that_timm_ported_from_google(size):
    row = Variant("resnet", 0, width=64, depth=14, stages=(1, 1, 1, 1), groups=32)
    ours = networks.build(row, ModelConfig(init="library"), networks.Sizes(10, size, 3)).eval()
    theirs = ResNetV2((1, 1, 1, 1), num_classes=10, preact=False, stem_type="same", conv_layer=StdConv2dSame).eval()
    for parameter in ours.parameters():
        nn.init.normal_(parameter, std=0.5)  # else the residual branches are 0 and prove nothing
    shapes = {key: value.shape for key, value in theirs.state_dict().items()}
    state = {to_resnetv2(key): value for key, value in ours.state_dict().items()}
    theirs.load_state_dict({key: value.view(shapes[key]) for key, value in state.items()})
    images = torch.randn(2, 3, size, size)
    # theirs is 1e-5 in GroupNorm, 1e-6 in a kernel's variance, ours 1e-6, and 1e-5 in its deviation: far below 1
    torch.testing.assert_close(ours(images), theirs(images), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("std", [1.0, 1e-3, 1e-5])
@pytest.mark.parametrize(("size", "stride"), [(1, 1), (3, 1), (3, 2), (7, 2)])
def test_standardized_kernels_are_googles(std, size, stride):
    conv = networks.StandardizedConv2d(4, 6, size, stride).double()
    nn.init.normal_(conv.weight, mean=std, std=std)
    w = conv.weight
    google = (w - w.mean((1, 2, 3), keepdim=True)) / (w.std((1, 2, 3), correction=0, keepdim=True) + 1e-5)
    for side in (8, 9):
        x = torch.randn(2, 4, side, side, dtype=torch.float64)
        total = (-(-side // stride) - 1) * stride + size - side  # SAME: what is odd goes below and to the right
        padded = F.pad(x, [total // 2, total - total // 2] * 2) if total > 0 else x
        # a layer's own floor under deviations is 1e-10, or 5e-11 of 1e-5
        torch.testing.assert_close(conv(x), F.conv2d(padded, google, stride=stride), rtol=1e-9, atol=1e-9)


def test_standardized_kernels_have_all_derivatives_that_curvature_takes():
    weight = torch.randn(3, 2, 2, 2, dtype=torch.float64, requires_grad=True)

    def standardized(w):
        return networks._standardized(w, eps=0.3)  # so large that its part in the derivatives counts

    assert torch.autograd.gradcheck(standardized, (weight,), check_forward_ad=True)
    assert torch.autograd.gradgradcheck(standardized, (weight,), check_fwd_over_rev=True)
    assert torch.func.hessian(lambda w: standardized(w).pow(3).sum())(weight.detach()).abs().sum() > 0


def test_a_constant_kernel_is_0_and_has_a_gradient():
    for value in (0.0, 0.25):
        weight = torch.full((2, 3, 1, 1), value, requires_grad=True)
        standardized = networks._standardized(weight)
        assert standardized.abs().max() < 0.01
        (gradient,) = torch.autograd.grad(standardized.square().sum() + standardized[0, 0, 0, 0], weight)
        assert gradient.isfinite().all()


def test_group_norm_resnets_standardize_every_kernel_and_batch_norm_ones_none():
    ours = networks.StandardizedConv2d
    for name, kernel in (("resnet50", ours), ("resnet-digits", ours), ("resnet50-bn", nn.Conv2d)):
        convs = [m for m in on_meta(name).modules() if isinstance(m, nn.Conv2d)]
        assert {type(conv) for conv in convs} == {kernel}


@pytest.mark.parametrize("name", ["resnet-digits", "resnet-digits-bn"])
def test_the_last_scale_of_a_resnet_block_starts_at_zero(name):
    body = digits(name).body
    for stage in (body.layer1, body.layer2, body.layer3, body.layer4):
        assert all(block.bn2.weight.count_nonzero() == 0 for block in stage)
        assert all(block.bn1.weight.eq(1).all() for block in stage)


def test_resnet_kernels_start_as_flaxs_beside_group_norm_and_as_hes_beside_batch_norm():
    torch.manual_seed(0)
    kernel = digits("resnet-digits").body.layer4[0].conv2.weight
    assert kernel.std().item() == pytest.approx((9 * 128) ** -0.5, rel=0.02)
    kernel = digits("resnet-digits-bn").body.layer4[0].conv1.weight
    assert kernel.std().item() == pytest.approx((9 * 128 / 2) ** -0.5, rel=0.02)


def test_resnets_for_small_images_keep_their_resolution_in_the_stem():
    body = create(ModelConfig(name="resnet-cifar-s"), num_classes=10, image_size=32).body
    assert body.maxpool(body.conv1(torch.zeros(1, 3, 32, 32))).shape == (1, 32, 32, 32)


# --- sizes that do not fit -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["vit-s16", "mixer-b16", "vit_small_patch16_224"])
def test_an_image_the_patch_does_not_divide_is_refused_with_sizes_that_fit(name):
    with pytest.raises(ValueError, match=r"patch_size=16 does not divide image_size=100; pick 96 or 112"):
        create(ModelConfig(name=name), num_classes=10, image_size=100)


def test_a_timm_model_that_cannot_take_the_images_says_why():
    with pytest.raises(ValueError, match=r"xcit_nano_12_p16_224 does not take 3 x 100 x 100 images \(`patch_size`"):
        create(ModelConfig(name="xcit_nano_12_p16_224"), num_classes=10, image_size=100)


def test_an_unknown_name_is_met_with_the_nearest_of_ours_and_of_timms():
    for name, near in (("vit-s61", "vit-s16"), ("convnext_atoo", "convnext_atto")):
        with pytest.raises(ValueError, match=rf"unknown model '{name}'; did you mean .*{near}"):
            create(ModelConfig(name=name), num_classes=10, image_size=32)
        with pytest.raises(ValueError, match=near):
            describe(name)


# --- networks from elsewhere -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["test_vit", "test_resnet", "test_convnext", "test_nfnet", "levit_128", "resnetv2_50"])
def test_any_timm_model_starts_with_the_papers_head(name):
    config = ModelConfig(name=name, head_bias=-10.0)
    model = create(config, num_classes=7, image_size=32).eval()
    assert torch.equal(model(torch.rand(2, 3, 32, 32)), torch.full((2, 7), -10.0))


def test_a_timm_model_is_otherwise_as_timm_made_it():
    def first(make):
        torch.manual_seed(3)
        return make().state_dict()

    ours = first(lambda: create(ModelConfig(name="test_resnet", init="library"), num_classes=7, image_size=32).body)
    theirs = first(lambda: timm.create_model("test_resnet", num_classes=7))
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


def test_rates_reach_a_timm_model_and_are_refused_where_it_has_none():
    body = create(ModelConfig(name="test_vit", dropout=0.2, drop_path=0.1), num_classes=7, image_size=32).body
    assert body.head_drop.p == 0.2
    assert body.blocks[-1].drop_path1.drop_prob == pytest.approx(0.1)
    with pytest.raises(ValueError, match=r"vgg11 has no drop_path_rate; leave --model.drop-path at 0"):
        create(ModelConfig(name="vgg11", drop_path=0.1), num_classes=7, image_size=32)


def test_names_that_we_share_with_timm_are_ours_and_a_tag_gives_timms():
    ours = on_meta("resnet50")
    with torch.device("meta"):
        theirs = create(ModelConfig(name="resnet50.a1_in1k"), num_classes=10, image_size=32).body
    assert isinstance(ours.layer1[0].bn1, nn.GroupNorm)
    assert isinstance(theirs.layer1[0].bn1, nn.BatchNorm2d)


@pytest.mark.parametrize(
    ("name", "expected"),
    [("vit_small_patch16_224", "vit"), ("mixer_b16_224", "mixer"), ("resmlp_12_224", "other"), ("resnet18", "resnet")],
)
def test_timms_names_have_families_and_sizes(name, expected):
    assert family(name) == describe(name).family == expected
    assert describe(name).params > 0


def test_a_timm_model_is_described_by_its_own_numbers():
    row = describe("vit_small_patch16_224")
    ours = MODELS["vit-s16"]
    assert (row.params, row.width, row.depth, row.patch) == (ours.params, ours.width, ours.depth, ours.patch)
    assert (row.image_size, row.channels, row.classes) == (224, 3, 1000)


SOURCE = """
from torch import nn
import samovar.models.factory, samovar.config

def tiny(num_classes, channels):
    return nn.Sequential(nn.Flatten(), nn.Linear(channels * 64, num_classes))

def greedy(**settings):
    net = tiny(settings["num_classes"], settings["channels"])
    net.settings = settings
    return net

def ours(num_classes, image_size, channels):
    config = samovar.config.ModelConfig(name="vit-digits", mean=(0.0,), std=(1.0,))
    return samovar.models.factory.create(config, num_classes=num_classes, image_size=image_size, channels=channels)

def words():
    return "a net"

number = 3
"""


@pytest.fixture
def user_module(tmp_path, monkeypatch):
    (tmp_path / "mynets.py").write_text(SOURCE)
    (tmp_path / "brokennets.py").write_text("import no_such_dependency")
    monkeypatch.syspath_prepend(tmp_path)
    yield
    sys.modules.pop("mynets", None)


@pytest.mark.usefixtures("user_module")
def test_module_function_gives_a_network_of_ones_own():
    torch.manual_seed(0)
    model = digits("mynets:tiny")
    images = torch.rand(2, 1, 8, 8)
    torch.manual_seed(0)
    expected = nn.Linear(64, 10)(((images - 0.5) / 0.5).flatten(1))
    assert torch.equal(model(images), expected)
    assert family(model) == family("mynets:tiny") == "other"


@pytest.mark.usefixtures("user_module")
def test_module_function_gets_the_settings_it_has_names_for():
    settings = digits("mynets:greedy", dropout=0.1, head_bias=-10.0).body.settings
    assert settings["dropout"] == 0.1
    assert settings["head_bias"] == -10.0
    assert settings["image_size"] == 8
    with pytest.raises(ValueError, match=r"mynets:tiny takes no head_bias; leave --model.head-bias at 0"):
        digits("mynets:tiny", head_bias=-10.0)


@pytest.mark.usefixtures("user_module")
def test_a_classifier_of_ones_own_is_not_wrapped_again():
    model = digits("mynets:ours")
    assert not isinstance(model.body, Classifier)
    assert model.mean.item() == 0.0


@pytest.mark.usefixtures("user_module")
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no_such_module:net", "no module 'no_such_module' on the Python path"),
        ("mynets.inner:net", "no module 'mynets.inner'"),
        ("mynets:tinny", r"mynets has no function 'tinny'; it has .*'tiny'"),
        ("mynets:number", "no function 'number'"),
        ("mynets:words", "mynets:words returned str; return an nn.Module"),
        ("mynets:", "not of the form module:function"),
        (":tiny", "not of the form module:function"),
    ],
)
def test_module_function_that_does_not_work_says_why(name, message):
    with pytest.raises(ValueError, match=message):
        digits(name)


@pytest.mark.usefixtures("user_module")
def test_an_import_that_fails_inside_ones_own_module_is_shown_as_it_is():
    with pytest.raises(ModuleNotFoundError, match="no_such_dependency"):
        digits("brokennets:net")


@pytest.fixture
def added(user_module, monkeypatch):
    """Networks that an installed package adds: `tiny-added`, and two whose entry points are no use."""
    points = {"tiny-added": "mynets:greedy", "no-function": "mynets:number", "gone": "mynets:gone", "vit-digits": "x:y"}

    def entry_points(group, name=None):
        made = [metadata.EntryPoint(key, value, "samovar.models") for key, value in points.items()]
        return [point for point in made if group == point.group and name in (None, point.name)]

    monkeypatch.setattr(plugins, "entry_points", entry_points)
    plugins.names.cache_clear()
    yield
    plugins.names.cache_clear()


@pytest.mark.usefixtures("added")
def test_a_model_of_another_package_is_built_by_its_name():
    torch.manual_seed(0)
    model = digits("tiny-added", dropout=0.1)
    torch.manual_seed(0)
    same = digits("mynets:greedy", dropout=0.1)
    assert model.body.settings == same.body.settings
    images = torch.rand(2, 1, 8, 8)
    assert torch.equal(model(images), same(images))
    assert family("tiny-added") == "other"


@pytest.mark.usefixtures("added")
def test_names_of_other_packages_are_listed_and_suggested_and_hide_none_of_ours(capsys):
    cli.main(["list", "models"])
    assert re.search(r"^ +tiny-added +added by an installed package$", capsys.readouterr().out, re.MULTILINE)
    assert table.names().count("vit-digits") == 1
    assert isinstance(digits("vit-digits").body, VisionTransformer)
    with pytest.raises(ValueError, match=r"unknown model 'tinyadded'; did you mean tiny-added"):
        digits("tinyadded")


@pytest.mark.usefixtures("added")
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no-function", "no-function is added by a package as int; its entry point has to name a function"),
        ("gone", "'gone' of samovar.models does not import from mynets:gone"),
    ],
)
def test_a_model_of_another_package_that_cannot_be_built_says_why(name, message):
    with pytest.raises(ValueError, match=message):
        digits(name)


@pytest.mark.usefixtures("added")
def test_a_run_of_a_model_of_another_package_is_opened_again(tmp_path):
    config = Config(model=ModelConfig("tiny-added"))
    run = made_run(tmp_path, config, classes=10, channels=3)
    assert open_model(str(run.path)).num_classes == 10


def test_the_table_needs_no_torch():
    code = (
        "import sys; from samovar.models import table; table.names(); assert not {'torch', 'timm'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
