"""The check of an operator's first product, and the functions and models that need a form of their own for it."""

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.nn.utils import parametrizations
from torch.utils.checkpoint import checkpoint

import samovar
from samovar.curvature import GaussNewton, Hessian, dense, spectral_density, top_eigenvalues, trace, twice
from samovar.curvature.graphs import HessianGraph
from samovar.measure.ntk_kernel import ntk

pytestmark = pytest.mark.costly


@pytest.fixture(autouse=True)
def _one_thread_one_seed():
    torch.set_num_threads(1)
    torch.manual_seed(0)


class NoGraph(torch.autograd.Function):
    """tanh as a custom kernel computes it: right gradients, which no second derivative passes."""

    @staticmethod
    def forward(ctx, x):
        ctx.kept = torch.tanh(x.detach())
        return ctx.kept.clone()

    @staticmethod
    def backward(ctx, slope):
        return torch.from_numpy((slope.detach() * (1 - ctx.kept**2)).numpy())


class Once(NoGraph):
    backward = staticmethod(once_differentiable(NoGraph.backward))


class SinglePrecision(NoGraph):
    """The same, of a kernel that exists for float32 only."""

    @staticmethod
    def forward(ctx, x):
        if x.dtype != torch.float32:
            raise RuntimeError("expected scalar type Float")
        return NoGraph.forward(ctx, x)


class LeftOut(torch.autograd.Function):
    """x times w, whose gradient forgets in its own derivative that it depends on w."""

    @staticmethod
    def forward(ctx, x, w):
        ctx.save_for_backward(x, w)
        return x * w

    @staticmethod
    def backward(ctx, slope):
        x, w = ctx.saved_tensors
        return slope * w.detach(), (slope * x.detach()).sum(0)


class Calls(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


class Scale(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(4) + torch.rand(4))

    def forward(self, x):
        return LeftOut.apply(x, self.weight)


def chain(*middle: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Linear(5, 8), nn.GELU(), nn.Linear(8, 4), *middle, nn.Linear(4, 3))


def batch(size: int = 6) -> tuple[Tensor, Tensor]:
    return torch.rand(size, 5), torch.randint(3, (size,))


def loss(model, batch):
    return F.cross_entropy(model(batch[0]), batch[1])


def gauss_newton(model, batches, **options):
    return GaussNewton(model, lambda m, b: m(b[0]), lambda z, b: F.cross_entropy(z, b[1]), batches, **options)


WRONG = {
    "once differentiable": lambda: chain(Calls(Once.apply)),
    "returns gradients without a graph": lambda: chain(Calls(NoGraph.apply)),
    "for float32 only": lambda: chain(Calls(SinglePrecision.apply)),
    "forgets a part": lambda: chain(Scale()),
    "deep in a larger network": lambda: nn.Sequential(
        nn.Linear(5, 200), nn.Tanh(), nn.Linear(200, 100), nn.Tanh(), nn.Linear(100, 4), Scale(), nn.Linear(4, 3)
    ),
    "straight-through estimator": lambda: chain(Calls(lambda x: x + (x.round() - x).detach())),
    "a detach": lambda: chain(Calls(lambda x: x * x.detach())),
}


@pytest.mark.parametrize("name", WRONG)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_wrong_second_derivative_is_refused_with_what_to_do(name, dtype):
    if name == "for float32 only" and dtype == torch.float64:
        pytest.skip("does not run")
    op = Hessian(WRONG[name](), loss, [batch()], dtype=dtype)
    with pytest.raises(ValueError, match=r"not those of the loss.*reference implementation.*check=False") as caught:
        op @ torch.randn(op.size)
    assert "\n" not in str(caught.value)
    assert not op.checked


def single(model, batch):
    if batch[0].dtype != torch.float32:
        raise RuntimeError("expected scalar type Float")
    return loss(model, batch)


@pytest.mark.parametrize("name", WRONG)
@pytest.mark.parametrize("number", range(3))
def test_a_wrong_second_derivative_is_refused_where_float32_is_all_there_is(name, number):
    torch.manual_seed(number)
    op = Hessian(WRONG[name](), single, [batch()])
    with pytest.raises(ValueError, match="not those of the loss"):
        op @ torch.randn(op.size)


@pytest.mark.parametrize("use", [top_eigenvalues, trace, spectral_density])
def test_every_reader_refuses_what_the_check_refuses_and_check_false_skips_it(use):
    model = chain(Scale())
    with pytest.raises(ValueError, match="check=False"):
        use(Hessian(model, loss, [batch()]))
    op = Hessian(model, loss, [batch()], check=False)
    use(op)
    assert not op.checked


def test_gauss_newton_products_are_checked_too():
    for right in (chain(), chain(Scale())):  # what is left out there is the curvature of the network
        op = gauss_newton(right, [batch()])
        op @ torch.randn(op.size)
        assert op.checked
    op = gauss_newton(chain(Calls(NoGraph.apply)), [batch()])
    with pytest.raises(ValueError, match="not those of the loss"):
        op @ torch.randn(op.size)


@pytest.mark.parametrize("check", [True, False])
def test_a_function_that_cannot_be_differentiated_twice_is_named_in_one_line(check):
    op = Hessian(chain(), lambda m, b: F.multi_margin_loss(m(b[0]), b[1]), [batch()], check=check)
    with pytest.raises(ValueError, match=r"no second derivative \(.*multi_margin_loss") as caught:
        op @ torch.randn(op.size)
    assert "\n" not in str(caught.value)


SMOOTH_OR_NOT = {
    "relu": lambda: nn.Sequential(nn.Linear(5, 300), nn.ReLU(), nn.Linear(300, 300), nn.ReLU(), nn.Linear(300, 3)),
    "max pooling": lambda: nn.Sequential(nn.Unflatten(1, (1, 5)), nn.Conv1d(1, 9, 2), nn.MaxPool1d(2), nn.Flatten(), nn.Linear(18, 3)),  # noqa: E501
    "zero last layer": lambda: zero_last(chain()),
    "linear": lambda: nn.Linear(5, 3),
    "casts to float32 inside": lambda: nn.Sequential(chain(nn.ReLU()), Calls(lambda x: x.float())),
    "dropout": lambda: chain(nn.Dropout(0.5)),
}  # fmt: skip


def zero_last(model):
    nn.init.zeros_(model[-1].weight)
    return model


@pytest.mark.parametrize("name", SMOOTH_OR_NOT)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("scale", [1, 30])
def test_right_products_pass_also_with_kinks_large_weights_and_rounding(name, dtype, scale):
    model = SMOOTH_OR_NOT[name]()
    with torch.no_grad():
        for param in model.parameters():
            param *= scale
    op = Hessian(model, loss, [batch(), batch()], dtype=dtype, mode="train")
    op @ torch.randn(op.size)
    assert op.checked


def test_a_saturated_network_passes():
    """Its curvature is at the level of float64's rounding."""
    model = chain()
    x, _ = batch()
    with torch.no_grad():
        model[-1].weight *= 100
        model[-1].bias *= 100
        y = model(x).argmax(1)
    for factor in (1, 3, 10, 30):
        with torch.no_grad():
            model[-1].weight *= factor
        op = Hessian(model, loss, [(x, y)])
        op @ torch.randn(op.size)
        assert op.checked or factor == 30  # there the noise hides everything


def counted_check(monkeypatch, model):
    """Products of single vectors, and the examples of each call of the loss, of an operator's first product."""
    sizes, calls = [], []
    product = HessianGraph.product
    monkeypatch.setattr(HessianGraph, "product", lambda self, v, keep: calls.append(1) or product(self, v, keep=keep))

    def counted(model, batch):
        sizes.append(len(batch[0]))
        return loss(model, batch)

    op = Hessian(model, counted, [batch(40), batch(40)])
    op @ torch.randn(op.size)
    assert op.num_products == 1
    assert op.checked
    op @ torch.randn(op.size)
    op.loss_and_gradient()
    return len(calls), sizes


def test_the_check_costs_one_product_and_one_gradient_of_one_example_once(monkeypatch):
    calls, sizes = counted_check(monkeypatch, chain())
    assert calls == 2 + 1 + 2  # one of each batch, one of the check; one of each batch
    # the halves show whether the loss is a sum; the check: its graph, and the gradient beside it
    assert sizes == [40, 20, 20, 1, 1, 40]


def test_what_the_quick_comparison_does_not_see_costs_two_products_of_two_examples(monkeypatch):
    monkeypatch.setattr("samovar.curvature.check.agrees", lambda *_: False)
    calls, sizes = counted_check(monkeypatch, chain())
    assert calls == 2 + 2 + 2
    assert sizes == [40, 20, 20, 1, 2, 2, 2, 40]


@pytest.mark.parametrize("name", WRONG)
def test_the_quick_comparison_alone_never_calls_wrong_products_right(name, monkeypatch):
    monkeypatch.setattr("samovar.curvature.check.fault", lambda *_, **__: None)
    op = Hessian(WRONG[name](), loss, [batch()])
    op @ torch.randn(op.size)
    assert not op.checked


def wrong_on_many():
    """A network that is wrong on 60 examples: not on the few that the check takes."""
    return chain(Calls(lambda x: NoGraph.apply(x) if len(x) == 60 else torch.tanh(x)))


@pytest.mark.parametrize("use", [top_eigenvalues, spectral_density])
def test_products_of_all_examples_that_are_not_symmetric_are_refused_in_float64(use):
    model, data = wrong_on_many(), [batch(6), batch(60)]
    with pytest.raises(ValueError, match=r"not symmetric: u.Hv and v.Hu differ by \d+% of Hv; look for .*check=False"):
        use(Hessian(model, loss, data, dtype=torch.float64))
    use(Hessian(model, loss, data, dtype=torch.float64, check=False))
    op = Hessian(model, loss, data)
    with pytest.warns(UserWarning, match=r"not symmetric.*Rounding may be the cause.*--dtype float64"):
        use(op)
    assert not op.checked


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("scale", [0.1, 1, 30])
def test_lanczos_finds_right_products_symmetric(dtype, scale):
    for name in SMOOTH_OR_NOT:
        model = SMOOTH_OR_NOT[name]()
        with torch.no_grad():
            for param in model.parameters():
                param *= scale
        op = Hessian(model, loss, [batch(), batch()], dtype=dtype, mode="train")
        top_eigenvalues(op, max_steps=3)
        assert op.checked


def test_products_are_the_same_bits_with_and_without_the_check():
    model, data = chain(), [batch()]
    ops = [Hessian(model, loss, data, check=check) for check in (True, False)]
    v = torch.randn(ops[0].size)
    assert torch.equal(ops[0] @ v, ops[1] @ v)


def test_a_gradient_alone_is_not_checked():
    op = Hessian(chain(Scale()), loss, [batch()])
    op.loss_and_gradient()
    assert not op.checked


def test_a_loss_that_needs_the_whole_batch_is_checked_on_it():
    def whole(model, batch):
        if len(batch[0]) != 6:
            raise IndexError("six, please")
        return loss(model, batch)

    op = Hessian(chain(), whole, [batch()])
    op @ torch.randn(op.size)
    assert op.checked
    op = Hessian(chain(Scale()), whole, [batch()])
    with pytest.raises(ValueError, match="not those of the loss"):
        op @ torch.randn(op.size)


def test_relus_whose_input_is_exactly_zero_hide_nothing():
    for middle, wrong in ((nn.Identity(), False), (Scale(), True)):
        model = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4), middle)
        with torch.no_grad():
            model[0].weight[:5] = 0
            model[0].bias[:5] = 0
        op = Hessian(model, loss, [batch()])
        if wrong:
            with pytest.raises(ValueError, match="not those of the loss"):
                op @ torch.randn(op.size)
        else:
            op @ torch.randn(op.size)
            assert op.checked


# --- functions with a form of their own


@pytest.mark.filterwarnings("ignore:.*weight_norm")
@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("dim", [0, 1, -1, None])
def test_weight_norm_has_the_second_derivative_of_its_formula(old, dim):
    wrap = nn.utils.weight_norm if old else parametrizations.weight_norm
    model = nn.Sequential(wrap(nn.Linear(5, 4), dim=dim), nn.GELU(), nn.Linear(4, 3))
    H = dense(Hessian(model, loss, [batch()], dtype=torch.float64))
    torch.testing.assert_close(H, H.T, rtol=1e-9, atol=1e-12)


@pytest.mark.filterwarnings("ignore:.*weight_norm")
def test_torchs_own_weight_norm_would_be_refused(monkeypatch):
    monkeypatch.setattr(twice, "_FORMS", {})
    for wrap in (nn.utils.weight_norm, parametrizations.weight_norm):
        model = nn.Sequential(wrap(nn.Linear(5, 4)), nn.GELU(), nn.Linear(4, 3))
        with pytest.raises(ValueError, match="weight_norm: remove_parametrizations"):
            top_eigenvalues(Hessian(model, loss, [batch()]))


def bags(mode, **options):
    """Two forms of an embedding bag: torch's, and what it stands for, by a loop."""
    torch.manual_seed(1)
    bag = nn.EmbeddingBag(7, 3, mode=mode, **options)
    ids, offsets = torch.tensor([1, 2, 2, 5, 0, 6, 3]), torch.tensor([0, 3, 3, 4])
    weights = torch.rand(7) if mode == "sum" else None
    return bag, ids, offsets, weights


@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
@pytest.mark.parametrize(
    "options", [{}, {"padding_idx": 2}, {"padding_idx": -2}, {"include_last_offset": True}], ids=str
)
def test_the_form_of_embedding_bag_has_its_values_and_gradients(mode, options):
    bag, ids, offsets, weights = bags(mode, **options)
    if "include_last_offset" in options:
        offsets = torch.cat([offsets, torch.tensor([len(ids)])])
    cases = [(ids, offsets, weights)]
    if "include_last_offset" not in options:
        grid = ids[:6].view(2, 3)
        cases += [
            (grid, None, None if weights is None else weights[:6].view(2, 3)),
            (ids.int(), offsets.int(), weights),
        ]
    for each in cases:
        expected = bag(*each)
        with twice.TwiceDifferentiable():
            found = bag(*each)
        torch.testing.assert_close(found, expected)
        cotangent = torch.randn_like(found)
        torch.testing.assert_close(*(torch.autograd.grad(out, bag.weight, cotangent)[0] for out in (found, expected)))


@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
@pytest.mark.parametrize("sparse", [False, True])
def test_embedding_bags_have_a_hessian(mode, sparse):
    if mode == "max" and sparse:
        pytest.skip("torch has none")
    model = nn.Sequential(nn.EmbeddingBag(10, 4, mode=mode, sparse=sparse), nn.Linear(4, 3))
    op = Hessian(model, loss, [(torch.randint(10, (6, 3)), torch.randint(3, (6,)))], dtype=torch.float64)
    torch.testing.assert_close(dense(op), dense(op).T)
    assert op.checked


def test_sparse_embeddings_have_the_hessian_of_dense_ones():
    data = [(torch.randint(10, (6, 3)), torch.randint(3, (6,)))]
    found = []
    for sparse in (True, False):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Embedding(10, 4, sparse=sparse, padding_idx=0), nn.Flatten(), nn.Linear(12, 3))
        op = Hessian(model, loss, data)
        found += [dense(op), op.loss_and_gradient()[1]]
    assert torch.equal(found[0], found[2])
    assert torch.equal(found[1], found[3])


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("kind", [nn.Hardsigmoid, nn.Hardswish, nn.Hardtanh, nn.ReLU6])
def test_hard_activations_have_a_hessian(kind, inplace):
    model = chain(kind() if kind is nn.Hardsigmoid else kind(inplace=inplace), nn.Hardsigmoid(inplace))
    op = Hessian(model, loss, [batch()], dtype=torch.float64)
    torch.testing.assert_close(dense(op), dense(op).T)
    assert op.checked


# --- wrappers


def test_compiled_modules_run_eagerly_at_any_depth():
    def lambda_max(change):
        torch.manual_seed(0)
        model = chain(nn.Sequential(nn.Linear(4, 4), nn.Tanh()))
        change(model)
        return float(top_eigenvalues(Hessian(model, loss, [batch()])).values[0])

    def block(model):
        model[3] = torch.compile(model[3], backend="aot_eager")

    def inner(model):
        model[3].compile(backend="aot_eager")

    eager = lambda_max(lambda model: None)
    changes = (block, inner, lambda model: model.compile(backend="aot_eager"))
    assert [lambda_max(change) for change in changes] == [eager] * 3


def test_a_compiled_function_in_the_loss_runs_eagerly():
    compiled = torch.compile(lambda x: torch.tanh(x) * 2, backend="aot_eager")
    model, data = chain(), [batch()]
    found, expected = (
        top_eigenvalues(Hessian(model, lambda m, b, f=f: F.cross_entropy(f(m(b[0])), b[1]), data)).values
        for f in (compiled, lambda x: torch.tanh(x) * 2)
    )
    assert torch.equal(found, expected)


def test_the_blocks_of_a_network_with_compiled_blocks_are_found():
    model = timm.create_model("vit_tiny_patch16_224", img_size=32, patch_size=16, embed_dim=12, depth=2, num_heads=2)
    expected = {title: len(names) for title, names in samovar.curvature.blocks(model).items()}
    for i in range(2):
        model.blocks[i] = torch.compile(model.blocks[i], backend="aot_eager")
    assert {title: len(names) for title, names in samovar.curvature.blocks(model).items()} == expected


class Checkpointed(nn.Module):
    def __init__(self, where: str, reentrant: bool) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(5, 4), nn.Linear(4, 4), nn.Linear(4, 3)
        self.where, self.reentrant = where, reentrant

    def forward(self, x):
        for name, layer in self.named_children():
            x = checkpoint(layer, x, use_reentrant=self.reentrant) if name == self.where else layer(x)
        return x


@pytest.mark.filterwarnings("ignore:None of the inputs")
@pytest.mark.parametrize("where", ["a", "b"])  # the inputs of `a` require no gradient, so the graph does not hold it
def test_reentrant_checkpoints_are_refused(where):
    model, (x, y) = Checkpointed(where, reentrant=True), batch()
    before = [param.clone() for param in model.parameters()]
    sam = samovar.SAM(torch.optim.SGD(model.parameters(), lr=0.1))

    def closure():
        value = F.cross_entropy(model(x), y)
        value.backward()
        return float(value.detach())

    for refused in (
        lambda: samovar.sam_backward(lambda m: F.cross_entropy(m(x), y), model, rho=0.1),
        lambda: sam.step(closure),
        lambda: top_eigenvalues(Hessian(model, loss, [(x, y)])),
        lambda: gauss_newton(model, [(x, y)]).loss_and_gradient(),
        lambda: ntk(model, x),
    ):
        with pytest.raises(ValueError, match="use_reentrant=False"):
            refused()
    assert all(torch.equal(p, w) and p.grad is None for p, w in zip(model.parameters(), before, strict=True))
    samovar.sam_backward(lambda m: F.cross_entropy(m(x), y), model, rho=0)  # plain training is not refused
    assert model.c.weight.grad is not None


@pytest.mark.parametrize("where", ["a", "b"])
def test_other_checkpoints_change_nothing(where):
    x, y = batch()
    found = []
    for name in (where, "none"):
        torch.manual_seed(0)
        model = Checkpointed(name, reentrant=False)
        samovar.sam_backward(lambda m: F.cross_entropy(m(x), y), model, rho=0.1)
        op = Hessian(model, loss, [(x, y)])
        found.append((model.a.weight.grad, dense(op), ntk(model, x)))
    for with_checkpoint, without in zip(*found, strict=True):
        torch.testing.assert_close(with_checkpoint, without)


def test_the_ntk_of_compiled_and_checkpointed_networks_is_that_of_plain_ones():
    def kernel(change):
        torch.manual_seed(0)
        model = timm.create_model(
            "vit_tiny_patch16_224", img_size=16, patch_size=8, embed_dim=8, depth=2, num_heads=2, num_classes=3
        )
        change(model)
        return ntk(model, torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(0)))

    def block(model):
        model.blocks[0] = torch.compile(model.blocks[0], backend="aot_eager")

    plain = kernel(lambda model: None)
    for change in (block, lambda model: model.compile(backend="aot_eager"), lambda m: m.set_grad_checkpointing(True)):
        torch.testing.assert_close(kernel(change), plain)
