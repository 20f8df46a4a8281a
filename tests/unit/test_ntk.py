"""The empirical NTK against a Jacobian written out, and the paper's protocol around it."""

import math
from copy import deepcopy
from functools import partial

import pytest
import torch
from timm.layers import GELUTanh, GroupNorm, QuickGELU
from timm.models.mlp_mixer import MlpMixer
from timm.models.resnet import BasicBlock, ResNet
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn import functional as F

from samovar.measure.ntk import condition_number, ntk_condition_number
from samovar.measure.ntk_kernel import ntk
from samovar.measure.ntk_protocol import gelu_as_relu, random_head

MIB = 2**20


def vit(**options) -> nn.Module:
    return VisionTransformer(img_size=8, patch_size=4, embed_dim=8, depth=2, num_heads=2, num_classes=3, **options)


def mixer() -> nn.Module:
    return MlpMixer(img_size=8, patch_size=4, embed_dim=8, num_blocks=2, num_classes=3)


def resnet(norm=nn.BatchNorm2d) -> nn.Module:
    model = ResNet(BasicBlock, (1, 1, 1, 1), num_classes=3, channels=(8, 8, 8, 8), norm_layer=norm)
    model.maxpool = nn.Identity()  # 8 pixels are too few to halve five times
    return model


MODELS = {
    "vit": vit,
    "mixer": mixer,
    "resnet-bn": resnet,
    "resnet-gn": partial(resnet, partial(GroupNorm, num_groups=2)),
}


def build(name: str) -> nn.Module:
    """A small network with no parameter or statistic at its special initial value of 0 or 1."""
    torch.manual_seed(0)
    model = MODELS[name]()
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            if tensor.is_floating_point():
                tensor += 0.1 * torch.rand_like(tensor)
    return model


def pictures(n: int = 5) -> Tensor:
    return torch.rand(n, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def explicit_jacobian(model: nn.Module, images: Tensor) -> Tensor:
    """[n, K, P] in float64, one backward pass per sample and logit."""
    model = deepcopy(model).double().eval()
    params = list(model.parameters())
    rows = []
    for image in images.double():
        logits = model(image[None])[0]
        for logit in logits:
            grads = torch.autograd.grad(logit, params, retain_graph=True, materialize_grads=True, allow_unused=True)
            rows.append(torch.cat([g.flatten() for g in grads]))
    return torch.stack(rows).unflatten(0, (len(images), -1))


def explicit_kernel(model: nn.Module, images: Tensor, output) -> Tensor:
    jacobian = explicit_jacobian(model, images)
    rows = {"sum": jacobian.sum(1), "full": jacobian.flatten(0, 1)}.get(output)
    rows = jacobian[:, output] if rows is None else rows
    return rows @ rows.T


def relative(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max() / b.abs().max())


@pytest.mark.parametrize("output", ["sum", 1, "full"])
@pytest.mark.parametrize("name", MODELS)
def test_the_kernel_and_its_condition_are_those_of_an_explicit_jacobian(name, output):
    model, images = build(name), pictures()
    theta, exact = ntk(model, images, output=output), explicit_kernel(model, images, output)
    assert relative(theta, exact) < 1e-8  # the target of issue 3; float64 gives about 1e-15
    eigenvalues = torch.linalg.eigvalsh(exact)
    assert condition_number(theta).value == pytest.approx(float(eigenvalues[-1] / eigenvalues[0]), rel=1e-8)


@pytest.mark.costly
@pytest.mark.parametrize("name", MODELS)
def test_chunks_do_not_change_the_kernel(name):
    model, images = build(name), pictures(3)
    whole, sizes = ntk(model, images, output="full"), [p.numel() for p in model.parameters()]
    assert max(sizes) > sum(sizes) / 23  # so that a chunk holds many parameters, or a part of one
    for num_chunks in (3, 23):
        chunked = ntk(model, images, output="full", chunk_bytes=9 * 8 * sum(sizes) // num_chunks)
        assert relative(chunked, whole) < 1e-12  # the order of float64 sums


def test_a_single_column_at_a_time_is_enough():
    torch.manual_seed(0)
    model, images = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)), torch.rand(3, 3)
    assert relative(ntk(model, images, output="full", chunk_bytes=1), explicit_kernel(model, images, "full")) < 1e-12


def test_the_attention_of_the_vit_under_test_is_the_fused_one_of_stock_timm():
    assert build("vit").blocks[0].attn.fused_attn


@pytest.mark.parametrize("name", MODELS)
def test_rows_are_made_together_in_one_pass_after_a_look_at_the_output(name):
    model, calls = build(name), []
    model.register_forward_hook(lambda *_: calls.append(1))
    ntk(model, pictures())
    assert len(calls) == 2


def test_the_two_resnets_differ_in_what_normalizes():
    assert isinstance(build("resnet-bn").bn1, nn.BatchNorm2d)
    assert isinstance(build("resnet-gn").bn1, GroupNorm)


def test_float32_agrees_with_float64_to_its_precision():
    model, images = build("mixer"), pictures()
    single = ntk(model, images, dtype=torch.float32)
    assert single.dtype == torch.float32
    assert relative(single.double(), ntk(model, images)) < 1e-5  # some 100 roundings of 6e-8


def test_params_picks_parameters_by_pattern():
    model, images = build("mixer"), pictures()
    jacobian = explicit_jacobian(model, images).sum(1)
    is_weight = torch.cat([torch.full((p.numel(),), "weight" in name) for name, p in model.named_parameters()])
    rows = jacobian[:, is_weight]
    assert relative(ntk(model, images, params=["*weight*"]), rows @ rows.T) < 1e-8
    split = ntk(model, images, params=["*weight*"]) + ntk(model, images, params=["*bias"])
    assert relative(split, ntk(model, images)) < 1e-12


def test_frozen_parameters_do_not_count():
    model, images = build("mixer"), pictures()
    model.requires_grad_(False)
    model.head.requires_grad_(True)
    assert relative(ntk(model, images), ntk(model, images, params=["head.*"])) == 0


def test_shared_parameters_count_once_with_all_their_uses():
    torch.manual_seed(0)
    tied = nn.Sequential(nn.Flatten(), nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4))
    tied[3].weight = tied[1].weight
    images = torch.rand(3, 4)
    assert relative(ntk(tied, images, output="full"), explicit_kernel(tied, images, "full")) < 1e-12


class Branching(nn.Module):
    """A branch on data, which vmap cannot follow."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 2)

    def forward(self, x):
        return self.linear(x) if x.sum() > 2 else self.linear(x).tanh()


def test_a_model_that_vmap_cannot_follow_is_differentiated_row_by_row():
    torch.manual_seed(0)
    model, images = Branching(), torch.tensor([[0.0, 0.1, 0.2, 0.3], [1.0, 0.0, 1.0, 0.5], [0.5, 0.2, 0.0, 0.1]])
    with pytest.raises(RuntimeError, match="vmap"):
        torch.func.vmap(model)(images)
    assert relative(ntk(model, images, output="full"), explicit_kernel(model, images, "full")) < 1e-12


def test_the_model_comes_back_as_it_was():
    model, images = build("resnet-bn").train(), pictures()
    model.conv1.eval()
    model.fc.weight.grad = torch.ones_like(model.fc.weight)
    before, modes = deepcopy(model.state_dict()), [m.training for m in model.modules()]
    places, state = [p.data_ptr() for p in model.parameters()], torch.get_rng_state()
    generator = torch.Generator().manual_seed(0)
    ntk_condition_number(model, images, head="random", relu=True, generator=generator)
    after = model.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert places == [p.data_ptr() for p in model.parameters()]
    assert modes == [m.training for m in model.modules()]
    assert [p.grad is not None for p in model.parameters()] == [p is model.fc.weight for p in model.parameters()]
    assert torch.equal(model.fc.weight.grad, torch.ones_like(model.fc.weight))
    assert torch.equal(state, torch.get_rng_state())


def test_it_works_inside_no_grad_and_inference_mode():
    model, images = build("vit"), pictures()
    expected = ntk(model, images)
    with torch.no_grad():
        assert torch.equal(ntk(model, images), expected)
    with torch.inference_mode():
        assert torch.equal(ntk(model, images * 1), expected)


# --- zero head -------------------------------------------------------------------------------------------------------


def with_zero_head() -> nn.Module:
    model = build("vit")
    nn.init.zeros_(model.head.weight)
    return model


def test_with_a_zero_head_the_kernel_is_the_gram_matrix_of_the_features():
    model, images = with_zero_head(), pictures()
    reference = deepcopy(model).double().eval()
    with torch.no_grad():
        features = reference.forward_head(reference.forward_features(images.double()), pre_logits=True)
    per_logit = features @ features.T + 1  # + 1 is the bias of the head
    assert relative(ntk(model, images, output=0), per_logit) < 1e-12
    assert relative(ntk(model, images), 3 * per_logit) < 1e-12


def test_a_zero_head_is_refused_unless_drawn_at_random():
    model, images = with_zero_head(), pictures()
    with pytest.raises(ValueError, match=r"all zero.*head='random'"):
        ntk_condition_number(model, images)
    with pytest.raises(ValueError, match="generator"):
        ntk_condition_number(model, images, head="random")
    drawn = ntk_condition_number(model, images, head="random", generator=torch.Generator().manual_seed(0))
    with random_head(model, torch.Generator().manual_seed(0)):
        assert drawn.value == condition_number(ntk(model, images)).value
    assert not model.head.weight.any()


def test_a_network_of_ones_own_is_refused_for_its_zero_last_layer():
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    nn.init.zeros_(model[2].weight)
    with pytest.raises(ValueError, match="all zero"):
        ntk_condition_number(model, torch.rand(3, 4))


def test_a_random_head_has_lecuns_scale_and_goes_away_on_an_exception():
    model = nn.Sequential(nn.Linear(4, 400), nn.ReLU(), nn.Linear(400, 100))
    before = model[2].weight.detach().clone()

    def look_and_fail() -> None:
        scales.append(float(model[2].weight.detach().std() * 400**0.5))
        raise KeyError

    scales = []
    with pytest.raises(KeyError), random_head(model, torch.Generator().manual_seed(0)):
        look_and_fail()
    assert scales[0] == pytest.approx(1, abs=4 / math.sqrt(2 * 40_000))  # four standard errors of a deviation
    assert torch.equal(model[2].weight, before)


def test_a_model_without_a_head_has_none_to_draw():
    with pytest.raises(ValueError, match="no classifier head"), random_head(nn.Flatten(), torch.Generator()):
        pass


# --- ReLU for GELU ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("gelu", [nn.GELU, GELUTanh, QuickGELU])
def test_gelu_as_relu_computes_what_a_model_built_with_relu_does(gelu):
    torch.manual_seed(0)
    model, with_relu, images = vit(act_layer=gelu).eval(), vit(act_layer=nn.ReLU).eval(), pictures()
    with_relu.load_state_dict(model.state_dict())
    before, modules = model(images), list(model.modules())
    assert not torch.equal(before, with_relu(images))
    with gelu_as_relu(model):
        assert torch.equal(model(images), with_relu(images))
        assert torch.equal(ntk(model, images), ntk(with_relu, images))
    assert torch.equal(model(images), before)
    assert all(a is b for a, b in zip(model.modules(), modules, strict=True))


class Functional(nn.Linear):
    def forward(self, x):
        return F.gelu(super().forward(x))


def test_gelu_as_relu_reaches_a_call_of_the_function_and_ends_on_an_exception():
    model, x = Functional(4, 4), torch.randn(8, 4)
    before = model(x)
    with gelu_as_relu(model):
        assert torch.equal(model(x), nn.Linear.forward(model, x).relu())
    with pytest.raises(RuntimeError), gelu_as_relu(model):
        model(x.int())
    assert torch.equal(model(x), before)


def test_a_gelu_used_in_two_places_is_replaced_in_both():
    act = nn.GELU()
    model, x = nn.Sequential(act, nn.Sequential(act)), torch.randn(8)
    with gelu_as_relu(model):
        assert torch.equal(model(x), x.relu())
    assert model[0] is act
    assert model[1][0] is act


# --- condition number ------------------------------------------------------------------------------------------------


def test_a_diagonal_kernel_has_the_ratio_of_its_ends():
    kappa = condition_number(torch.diag(torch.tensor([2.0, 50.0, 5.0])))
    assert (kappa.value, kappa.lambda_max, kappa.lambda_min, kappa.rank, kappa.converged) == (25, 50, 2, 3, True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_kernel_singular_up_to_rounding_is_infinite_and_says_so(dtype):
    rows = torch.randn(6, 4, dtype=dtype, generator=torch.Generator().manual_seed(0))
    kappa = condition_number(rows @ rows.T)
    assert (kappa.value, kappa.rank, kappa.converged) == (math.inf, 4, False)
    assert condition_number(torch.zeros(3, 3, dtype=dtype)).rank == 0


@pytest.mark.parametrize(
    ("theta", "message"),
    [
        (torch.ones(2, 3), "square"),
        (torch.ones(0, 0), "square"),
        (torch.tensor([[1.0, 2.0], [0.0, 1.0]]), "symmetric"),
        (torch.tensor([[1.0, math.nan], [math.nan, 1.0]]), "finite"),
    ],
)
def test_what_is_not_a_kernel_is_refused(theta, message):
    with pytest.raises(ValueError, match=message):
        condition_number(theta)


# --- the average over batches ----------------------------------------------------------------------------------------


def test_the_estimate_is_the_mean_over_whole_batches_with_its_standard_error():
    model, images = build("mixer"), pictures(14)
    estimate = ntk_condition_number(model, images, batch_size=4)
    kappas = [condition_number(ntk(model, images[i : i + 4])).value for i in (0, 4, 8)]  # the rest of 2 is left out
    assert estimate.values == pytest.approx(kappas, rel=1e-9)
    assert estimate.value == pytest.approx(sum(kappas) / 3, rel=1e-9)
    assert estimate.stderr == pytest.approx(float(torch.tensor(kappas).std()) / 3**0.5, rel=1e-5)
    assert (estimate.n, estimate.batch_size, estimate.converged) == (3, 4, True)


def test_the_condition_of_the_mean_kernel_and_its_jackknife():
    model, images = build("mixer"), pictures(12)
    estimate = ntk_condition_number(model, images, batch_size=4, average="kernel")
    kernels = torch.stack([ntk(model, batch) for batch in images.split(4)])
    assert estimate.value == pytest.approx(condition_number(kernels.mean(0)).value, rel=1e-9)
    left_out = torch.tensor(
        [condition_number(kernels[[j for j in range(3) if j != i]].mean(0)).value for i in range(3)]
    )
    jackknife = (2 / 3 * (left_out - left_out.mean()).square().sum()).sqrt()  # (n - 1) / n times the sum of squares
    assert estimate.stderr == pytest.approx(float(jackknife), rel=1e-5)


def test_fewer_images_than_a_batch_are_one_batch_without_an_error_bar():
    estimate = ntk_condition_number(build("mixer"), pictures(5))
    assert (estimate.n, estimate.batch_size, estimate.stderr) == (1, 5, None)


def test_batches_can_be_given_as_such():
    model, images = build("mixer"), pictures(8)
    assert ntk_condition_number(model, iter(images.split(4))) == ntk_condition_number(model, images, batch_size=4)


def test_an_image_given_twice_makes_the_kernel_singular_not_the_estimate_silent():
    images = pictures(8)
    images[1] = images[0]
    estimate = ntk_condition_number(build("mixer"), images, batch_size=4)
    assert estimate.values[0] == math.inf
    assert math.isfinite(estimate.values[1])
    assert (estimate.value, estimate.stderr, estimate.converged) == (math.inf, None, False)


# --- bad input -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.zeros(1, 3, 8, 8), "at least two"),
        (torch.zeros(0, 3, 8, 8), "at least two"),
        (torch.zeros(4, 3, 8, 8, dtype=torch.uint8), "uint8 images / 255"),
        (torch.full((4, 3, 8, 8), math.nan), "not finite"),
    ],
)
def test_bad_images_are_refused(images, message):
    with pytest.raises(ValueError, match=message):
        ntk_condition_number(build("mixer"), images)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 1}, "at least 2 images"),
        ({"output": 3}, "a logit from 0 to 2"),
        ({"output": "max"}, "a logit from 0 to 2"),
        ({"params": ["no.such"]}, "selects no parameter"),
        ({"average": "median"}, "'kappa' or 'kernel'"),
        ({"head": "zero"}, "'keep' or 'random'"),
        ({"output": "full", "kernel_bytes": 1024}, r"5 images x 3 outputs.*MiB.*fewer images"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        ntk_condition_number(build("mixer"), pictures(), **options)


def test_no_batches_are_refused():
    with pytest.raises(ValueError, match="no batches"):
        ntk_condition_number(build("mixer"), [])


def test_a_mean_kernel_of_unequal_batches_is_refused():
    with pytest.raises(ValueError, match="differ in size"):
        ntk_condition_number(build("mixer"), list(pictures(5).split(3)), average="kernel")


def test_weights_that_are_not_finite_are_named():
    model = build("mixer")
    with torch.no_grad():
        model.blocks[0].mlp_tokens.fc1.bias[0] = math.inf
    with pytest.raises(ValueError, match=r"blocks\.0\.mlp_tokens\.fc1\.bias is not finite"):
        ntk(model, pictures())


def test_batch_norm_without_running_statistics_is_refused():
    model = resnet(partial(nn.BatchNorm2d, track_running_stats=False))
    with pytest.raises(ValueError, match=r"bn1 is a BatchNorm without running statistics.*track_running_stats=True"):
        ntk(model, pictures())


def test_an_output_that_is_no_tensor_is_refused():
    class Pair(nn.Linear):
        def forward(self, x):
            return super().forward(x), x

    with pytest.raises(TypeError, match="returns tuple"):
        ntk(Pair(4, 2), torch.rand(3, 4))
