"""What models and loss functions return: objects, dicts and tuples work, everything else is told in a line."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import samovar
from samovar import config as configs
from samovar import recipes
from samovar.config import MeasureConfig, ModelConfig, RunConfig
from samovar.curvature.summed import warn_if_summed
from samovar.data.loader import Batch
from samovar.export import export
from samovar.measure import command
from samovar.measure.accuracy import logits_of as measured_logits
from samovar.measure.activation_tally import run_tally
from samovar.measure.predictions import predict
from samovar.models.factory import Classifier
from samovar.models.open import open_model
from samovar.objectives import make_objective
from samovar.runs.records import RunDir
from samovar.runtime import Runtime
from samovar.train.fit import fit, prepare

pytestmark = pytest.mark.costly

CPU = Runtime(torch.device("cpu"), torch.float32)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def images(n: int = 6) -> tuple[Tensor, Tensor]:
    return torch.rand(n, 3, 4, 4, generator=seeded()), torch.arange(n) % 3


class Net(nn.Module):
    """A small network whose output is put into an object."""

    def __init__(self, wrap: Callable[[Tensor], Any] = lambda logits: logits):
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(48, 8), nn.GELU(), nn.Linear(8, 3))
        self.wrap = wrap

    def forward(self, x: Tensor) -> Any:
        return self.wrap(self.body(x))


OUTPUTS: dict[str, Callable[[Tensor], Any]] = {
    "an object": lambda logits: SimpleNamespace(loss=None, logits=logits),
    "a dict": lambda logits: {"logits": logits, "hidden_states": None},
    "a tuple": lambda logits: (logits,),
    "logits and states": lambda logits: (logits, (logits, logits)),
}


def vit() -> nn.Module:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.ViTConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, image_size=4, patch_size=2,
        num_labels=3,
    )  # fmt: skip
    return transformers.ViTForImageClassification(config).eval()


class Logits(nn.Module):
    """The logits of a model, as a tensor: what results are compared with."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        found = self.model(x)
        return found.logits if hasattr(found, "logits") else found


def pairs() -> dict[str, Callable[[], tuple[nn.Module, nn.Module]]]:
    plain = {name: lambda wrap=wrap: (Net(wrap), Net()) for name, wrap in OUTPUTS.items()}
    return plain | {"hugging face": lambda: (vit(), Logits(vit()))}


def criterion(logits: Tensor, batch: tuple[Tensor, Tensor]) -> Tensor:
    return F.cross_entropy(logits, batch[1])


def outputs(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Any:
    return model(batch[0])


USES: dict[str, Callable[[nn.Module], Any]] = {
    "ntk": lambda m: samovar.ntk_condition_number(m, images()[0]).value,
    "ntk with a random head": lambda m: (
        samovar.ntk_condition_number(m, images()[0], head="random", relu=True, generator=seeded()).value
    ),
    "fgsm": lambda m: samovar.fgsm(m, *images()),
    "pgd": lambda m: samovar.pgd(m, *images(), restarts=1),
    "gauss-newton": lambda m: samovar.top_eigenvalues(samovar.GaussNewton(m, outputs, criterion, [images()])).values,
    "accuracy": lambda m: measured_logits(m, [Batch(*images())])[0],
    "predictions": lambda m: predict(m, Batch(*images())).loss,
    "training": lambda m: make_objective(samovar.Config(), 3)(m, Batch(*images())).value,
    "in a classifier": lambda m: Classifier(m, (0.5,), (0.5,))(images()[0]),
    "activations": lambda m: [each.active for each in run_tally(m, [images()], "image").fractions()],
}


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("kind", pairs())
def test_a_model_that_returns_an_object_gives_the_numbers_of_its_logits(kind, use):
    model, plain = pairs()[kind]()
    found, expected = USES[use](model), USES[use](plain)
    assert torch.equal(torch.as_tensor(found), torch.as_tensor(expected))


def test_hugging_faces_own_loss_is_the_loss_everywhere():
    model, batch = vit(), images()

    def own(model, batch):
        return model(batch[0], labels=batch[1])

    def written_out(model, batch):
        return F.cross_entropy(model(batch[0]).logits, batch[1])

    for measure in LOSS_USES.values():
        assert torch.equal(torch.as_tensor(measure(model, own)), torch.as_tensor(measure(model, written_out)))
    grads = []
    for loss in (own, written_out):
        model.zero_grad()
        samovar.sam_backward(lambda m, loss=loss: loss(m, batch), model, rho=0.1)
        grads.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
    assert torch.equal(*grads)


@pytest.mark.parametrize(
    ("wrap", "told"),
    [
        (lambda logits: (logits, logits), r"returns tuple of 2 .*wrap it to return logits"),
        (lambda logits: {"out": logits}, "returns dict with the keys out; .*under the name logits"),
        (lambda logits: None, "returns None; wrap it"),
        (lambda logits: SimpleNamespace(logits=None), "returns SimpleNamespace; wrap it"),
    ],
)
def test_an_output_that_leaves_a_choice_is_refused_in_a_line(wrap, told):
    for use in USES.values():
        with pytest.raises(TypeError, match=told):
            use(Net(wrap))


# --- losses ----------------------------------------------------------------------------------------------------------


def plane(model, loss):
    direction = samovar.filter_direction(model, seeded())
    return samovar.loss_plane(model, loss, [images()], [direction], [0.0, 1.0]).loss


LOSS_USES: dict[str, Callable[[nn.Module, Any], Any]] = {
    "hessian": lambda m, loss: samovar.top_eigenvalues(samovar.Hessian(m, loss, [images()])).values,
    "flatness": lambda m, loss: (
        samovar.average_flatness(m, loss, [images()], sigma=0.1, num_draws=2, generator=seeded()).value
    ),
    "sharpness": lambda m, loss: samovar.sam_sharpness(m, loss, [images()], rho=0.1).value,
    "landscape": plane,
}
SAM_USES: dict[str, Callable[[nn.Module, Any], Any]] = {
    "sam_backward": lambda m, loss: samovar.sam_backward(lambda model: loss(model, images()), m, rho=0.1),
    "plain_backward": lambda m, loss: samovar.plain_backward(lambda model: loss(model, images()), m),
}
ALL_USES = LOSS_USES | SAM_USES


def cross_entropy(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


WRAPPED: dict[str, Callable[[Tensor], Any]] = {
    "an object": lambda loss: SimpleNamespace(loss=loss, logits=torch.ones(2, 2)),
    "a dict": lambda loss: {"loss": loss, "loss_cls": loss.detach()},
    "one number of shape [1]": lambda loss: loss[None],
}
TUPLES: dict[str, Callable[[Tensor], Any]] = {
    "loss and logits": lambda loss: (loss, torch.ones(2, 2)),
    "loss and a number": lambda loss: (loss, 1),
}


@pytest.mark.parametrize("kind", WRAPPED)
@pytest.mark.parametrize("use", ALL_USES)
def test_a_loss_inside_an_object_is_found(use, kind):
    found = ALL_USES[use](Net(), lambda m, b: WRAPPED[kind](cross_entropy(m, b)))
    assert torch.equal(torch.as_tensor(found), torch.as_tensor(ALL_USES[use](Net(), cross_entropy)))


@pytest.mark.parametrize("kind", TUPLES)
@pytest.mark.parametrize("use", [use for use in ALL_USES if use != "landscape"])  # which takes loss and right answers
def test_the_first_of_a_tuple_is_the_loss(use, kind):
    found = ALL_USES[use](Net(), lambda m, b: TUPLES[kind](cross_entropy(m, b)))
    assert torch.equal(torch.as_tensor(found), torch.as_tensor(ALL_USES[use](Net(), cross_entropy)))


@pytest.mark.parametrize(
    ("wrap", "told"),
    [
        (lambda loss: None, "the loss is None, not a scalar tensor; return the loss"),
        (lambda loss: loss.item(), "the loss is float, .*return the tensor itself"),
        (lambda loss: {"total": loss}, "the loss is dict with the keys total, .*return the one scalar loss"),
        (lambda loss: [loss, loss], "the loss is list of 2 .*sum of several"),
        (lambda loss: SimpleNamespace(loss=None), "the loss is SimpleNamespace, .*return the mean loss"),
        (lambda loss: loss.expand(3), r"the loss is a tensor of shape \[3\], .*its mean"),
    ],
)
@pytest.mark.parametrize("use", ALL_USES)
def test_any_other_return_value_is_told_in_a_line(use, wrap, told):
    with pytest.raises(ValueError, match=told):
        ALL_USES[use](Net(), lambda m, b: wrap(cross_entropy(m, b)))


class Focal(nn.Module):
    """A criterion of one's own."""

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        return -(logits.log_softmax(1) * F.one_hot(labels, 3)).sum(1).mean()


CRITERIA = {
    "a module of torch": nn.CrossEntropyLoss(),
    "a module": Focal(),
    "a function of torch": F.cross_entropy,
    "a function": lambda logits, labels: Focal()(logits, labels),
    "another function": lambda predicted, true: (predicted - true).square().mean(),
    "mse": F.mse_loss,
}


@pytest.mark.parametrize("use", LOSS_USES)
@pytest.mark.parametrize("kind", CRITERIA)
def test_a_criterion_of_input_and_target_is_told_the_lambda_to_write(kind, use):
    advice = r"is called with \(model, batch\); .*lambda model, batch: criterion\(model\(batch\[0\]\), batch\[1\]\)"
    with pytest.raises(TypeError, match=advice):
        LOSS_USES[use](Net(), CRITERIA[kind])


@pytest.mark.parametrize("kind", CRITERIA)
def test_sam_tells_the_lambda_of_its_own(kind):
    advice = r"is called with \(model\); .*lambda model: criterion\(model\(images\), labels\)"
    for backward in (samovar.plain_backward, lambda f, m: samovar.sam_backward(f, m, rho=0.1)):
        with pytest.raises(TypeError, match=advice):
            backward(CRITERIA[kind], Net())


def test_a_loss_in_place_of_its_function_is_told():
    with pytest.raises(TypeError, match=r"is a tensor of shape \[\]; give a function, such as lambda model: crit"):
        samovar.sam_backward(cross_entropy(model := Net(), images()), model, rho=0.1)


@pytest.mark.parametrize("kind", ["a module of torch", "a module", "a function of torch", "a function"])
def test_gauss_newton_tells_the_lambda_of_its_own(kind):
    op = samovar.GaussNewton(Net(), outputs, CRITERIA[kind], [images()])
    with pytest.raises(TypeError, match=r"lambda outputs, batch: criterion\(outputs, batch\[1\]\)"):
        op @ torch.ones(op.size)


@pytest.mark.parametrize("use", LOSS_USES)
def test_an_error_inside_a_right_loss_function_stays_its_own(use):
    with pytest.raises(AttributeError, match="'tuple' object has no attribute 'pixels'"):
        LOSS_USES[use](Net(), lambda model, batch: model(batch.pixels).mean())


@pytest.mark.parametrize("kind", [*WRAPPED, *TUPLES, "nothing"])
def test_the_closure_of_the_sam_optimizer_may_return_anything(kind):
    wrap = (WRAPPED | TUPLES | {"nothing": lambda loss: None})[kind]
    weights = []
    for returned in (wrap, lambda loss: loss):
        model = Net()
        sam = samovar.SAM(torch.optim.SGD(model.parameters(), lr=0.1), rho=0.1)

        def closure(model=model, sam=sam, returned=returned):
            sam.zero_grad()
            loss = cross_entropy(model, images())
            loss.backward()
            return returned(loss)

        sam.step(closure)
        weights.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    assert torch.equal(*weights)


# --- sums over a batch -----------------------------------------------------------------------------------------------


def summed(model, batch):
    return F.cross_entropy(model(batch[0]), batch[1], reduction="sum")


BATCHES = {
    "a tuple": lambda n: images(n),
    "a list": lambda n: list(images(n)),
    "a dict": lambda n: dict(enumerate(images(n))),
}
SUM_USES: dict[str, Callable[[Any, Any], Any]] = {
    "hessian": lambda loss, batches: samovar.top_eigenvalues(samovar.Hessian(Net(), loss, batches)),
    "gauss-newton": lambda loss, batches: (
        lambda op: [op @ torch.ones(op.size) for _ in range(2)]
    )(samovar.GaussNewton(Net(), lambda m, b: m(b[0]), lambda z, b: loss(lambda _: z, b), batches)),
    "flatness": lambda loss, batches: samovar.average_flatness(
        Net(), loss, batches, sigma=0.1, num_draws=2, generator=seeded()
    ),
    "sharpness": lambda loss, batches: samovar.sam_sharpness(Net(), loss, batches, rho=0.1, num_steps=2),
    "sharpness of batches": lambda loss, batches: samovar.sam_sharpness(Net(), loss, batches, rho=0.1, per_batch=True),
}  # fmt: skip


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("use", SUM_USES)
def test_a_summed_loss_is_warned_of_once(use, batch):
    batches = [BATCHES[batch](n) for n in (11, 8)]
    with pytest.warns(UserWarning, match=r"a batch of 11 .*looks like a sum.*reduction=\"mean\"") as caught:
        SUM_USES[use](summed, batches)
    assert len(caught) == 1


def penalized(model, batch):
    return cross_entropy(model, batch) + 0.01 * sum(p.square().sum() for p in Net().parameters())


def of_whole_batches(model, batch):
    if len(batch[0]) != 8:
        raise ValueError("this network takes 8 images")
    return summed(model, batch)


def without_examples(model, batch):
    return model(batch[0]).sum() * 0 + 1.0


@pytest.mark.parametrize("loss", [cross_entropy, penalized, of_whole_batches, without_examples])
@pytest.mark.parametrize("use", SUM_USES)
def test_no_other_loss_is_warned_of(use, loss):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        SUM_USES[use](loss, [images(8)])


@pytest.mark.parametrize("batch", [(*images(8), torch.tensor(1.0)), (*images(8), torch.ones(5)), images(1)])
def test_a_batch_that_cannot_be_halved_is_not_checked(batch):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        SUM_USES["hessian"](summed, [batch])


@pytest.mark.parametrize("use", SUM_USES)
def test_the_check_costs_one_forward_pass_over_the_first_batch_without_gradients(use, monkeypatch):
    passes = []

    def counted(model, batch):
        passes.append((len(batch[0]), torch.is_grad_enabled()))
        return cross_entropy(model, batch)

    SUM_USES[use](counted, [images(9), images(8)])
    checked, passes = passes, []
    for room in ("curvature.operators", "measure.losses"):
        monkeypatch.setattr(f"samovar.{room}.warn_if_summed", lambda *_: None)
    SUM_USES[use](counted, [images(9), images(8)])
    extra = checked.copy()
    for each in passes:
        extra.remove(each)
    assert extra == [(4, False), (5, False)]


def test_the_check_leaves_random_numbers_as_they_are():
    state = torch.get_rng_state()
    warn_if_summed(lambda batch: torch.rand(()), images(8), 1.0)
    assert torch.equal(torch.get_rng_state(), state)


# --- from the shell --------------------------------------------------------------------------------------------------

MINE = """
import torch
from types import SimpleNamespace

class Net(torch.nn.Module):
    def __init__(self, num_classes, image_size, channels):
        super().__init__()
        self.stem = torch.nn.Conv2d(channels, 8, image_size)
        self.head = torch.nn.Linear(8, num_classes)

    def forward(self, x):
        return SimpleNamespace(logits=self.head(self.stem(x).flatten(1)))

def net(num_classes, image_size, channels):
    return Net(num_classes, image_size, channels)

def vit(num_classes, image_size, channels):
    from transformers import ViTConfig, ViTForImageClassification
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    config = ViTConfig(image_size=image_size, patch_size=4, num_channels=channels, num_labels=num_classes, **sizes)
    return ViTForImageClassification(config)
"""


@pytest.mark.parametrize("name", ["net", "vit"])
def test_it_is_trained_measured_and_exported_from_the_shell(name, tmp_path, monkeypatch, capsys):
    if name == "vit":
        pytest.importorskip("transformers")
    module = f"returns_objects_{name}"
    (tmp_path / f"{module}.py").write_text(MINE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    recipe = recipes.get("vit-digits").config()
    config = replace(
        recipe,
        steps=2,
        model=ModelConfig(name=f"{module}:{name}", init="library"),
        optim=replace(recipe.optim, warmup_steps=0),
        run=RunConfig(threads=1),
    )
    run = RunDir.create(tmp_path, "r")
    configs.save(config, run.config_path)
    list(fit(config, run, CPU, *prepare(config, CPU)))
    wanted = ("accuracy", "attack", "flatness", "hessian", "landscape", "ntk", "predictions")
    few = MeasureConfig(images=30, attack_images=4, attack_steps=1, points=3, processes=1, ntk_batch=8, ntk_batches=1)
    for subject in (str(run.path), f"{module}:{name}"):
        folder = command.run(subject, wanted, replace(few, image_size=8, output=tmp_path, name="m", workers=0))
        assert {record.settings.get("measurement") for record in folder.records()} >= set(wanted)
    copied = export(str(run.path), "torch", output=tmp_path / "copy")
    copy = torch.export.load(copied / "model.pt2").module()
    pixels = torch.rand(3, 1, 8, 8, generator=seeded())
    found = copy(pixels)
    assert found.shape == (3, 10)
    assert torch.allclose(found, open_model(str(run.path)).model(pixels), atol=1e-5)  # two orders of float32 sums
