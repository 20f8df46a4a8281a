"""The trajectory loss of SAF and MESA, and their teachers, against formulas on float64 written out here."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from samovar import recipes
from samovar.config import Config, OptimConfig, RunConfig, SamConfig
from samovar.data.loader import Batch
from samovar.objectives import make_objective
from samovar.objectives.trajectory import trajectory_loss
from samovar.runtime import Runtime
from samovar.train.loop import build, steps
from samovar.train.teacher import teacher_of

CPU = Runtime(torch.device("cpu"), torch.float32)
EXACT = {"rtol": 1e-12, "atol": 1e-14}
LR, TAU, STEPS, SIZE, IMAGES, CLASSES = 0.3, 3.0, 8, 6, 12, 5


def kl(teacher: Tensor, student: Tensor) -> Tensor:
    """tau^2 sum_k p_k log(p_k / q_k) of each image [B]."""
    p, q = ((x / TAU).exp() / (x / TAU).exp().sum(1, keepdim=True) for x in (teacher, student))
    return TAU**2 * (p * (p / q).log()).sum(1)


@pytest.mark.parametrize("squared", [True, False])
def test_the_loss_is_its_formula_and_the_factor_is_an_option(squared):
    torch.manual_seed(0)
    student = torch.randn(7, CLASSES, dtype=torch.float64, requires_grad=True)
    teacher = torch.randn(7, CLASSES, dtype=torch.float64, requires_grad=True)
    taught = torch.tensor([1, 0, 1, 1, 0, 1, 1]).bool()
    expected = (kl(teacher, student) * taught).sum() / 7 / (1 if squared else TAU**2)
    found = trajectory_loss(student, teacher, TAU, tau_squared=squared, taught=taught)
    torch.testing.assert_close(found, expected, **EXACT)
    (ours,) = torch.autograd.grad(found, student)
    (theirs,) = torch.autograd.grad(expected, student)
    torch.testing.assert_close(ours, theirs, **EXACT)
    assert trajectory_loss(student, teacher, TAU).grad_fn is not None
    assert float(trajectory_loss(student.detach(), student.detach(), TAU)) == pytest.approx(0, abs=1e-15)


def test_half_precision_is_computed_in_float32():
    torch.manual_seed(0)
    a, b = torch.randn(2, 4, 3).bfloat16().unbind()
    assert torch.equal(trajectory_loss(a, b), trajectory_loss(a.float(), b.float()))


def config_of(sam: SamConfig) -> Config:
    base = recipes.get("vit-digits").config()
    optim = OptimConfig(name="sgd", lr=LR, momentum=0.0, weight_decay=0.0, schedule="constant", clip_norm=0.0)
    data = replace(base.data, batch_size=SIZE)
    return replace(base, steps=STEPS, sam=sam, optim=optim, data=data, run=RunConfig(micro_batch=4))


def stream() -> list[Batch]:
    """Two steps an epoch, each with an order of its own."""
    torch.manual_seed(3)
    images, labels = torch.rand(IMAGES, 1, 8, 8).double(), torch.randint(CLASSES, (IMAGES,))
    found = []
    for epoch in range(STEPS // 2):
        for index in torch.randperm(IMAGES).split(SIZE):
            epochs = torch.full((SIZE,), epoch)
            found.append(Batch(images[index], labels[index], index=index, epoch=epochs))
    return found


def started(config: Config):
    state = build(config, CPU, num_classes=CLASSES, channels=1)
    state.model.double()
    torch.nn.init.normal_(state.model.body.head.weight, std=0.5, generator=torch.Generator().manual_seed(0))
    state.teacher = teacher_of(config, state.model)
    if config.sam.teacher == "earlier":
        state.teacher.num_images = IMAGES
    return state


def mean_loss(logits: Tensor, labels: Tensor) -> Tensor:
    return -logits.log_softmax(1)[torch.arange(len(labels)), labels].mean()


def by_formula(config: Config, further) -> list[Tensor]:
    """Weights after plain gradient descent on the loss plus `further(t, model, batch, logits)`."""
    model = started(config).model.eval()
    params = list(model.parameters())
    for t, batch in enumerate(stream()):
        logits = model(batch.images)
        loss = mean_loss(logits, batch.labels) + further(t, model, batch, logits)
        found = torch.autograd.grad(loss, params)
        with torch.no_grad():
            for param, grad in zip(params, found, strict=True):
                param -= LR * grad
        further(t, model, batch, None)
    return [param.detach() for param in params]


def trained(config: Config):
    state = started(config)
    losses = [step.loss for step in steps(state, stream(), make_objective(config, CLASSES), config, CPU, STEPS)]
    assert all(math.isfinite(float(loss)) for loss in losses)
    return list(state.model.parameters())


@pytest.mark.parametrize("start", [0.0, 1.0])
def test_mesa_is_its_formula(start):
    sam = SamConfig(teacher="average", teacher_weight=0.8, teacher_tau=TAU, teacher_start=start, teacher_decay=0.3)
    config, kept = config_of(sam), {}

    def further(t, model, batch, logits):
        if t == 0 and logits is not None:
            kept["average"] = started(config).model.eval()
        if logits is None:
            decay = min(0.3, (1 + t) / (10 + t))
            with torch.no_grad():
                for mine, theirs in zip(kept["average"].parameters(), model.parameters(), strict=True):
                    mine.copy_(decay * mine + (1 - decay) * theirs)
            return None
        on = t // 2 >= start
        return 0.8 * kl(kept["average"](batch.images).detach(), logits).mean() if on else 0.0

    for ours, theirs in zip(trained(config), by_formula(config, further), strict=True):
        torch.testing.assert_close(ours.detach(), theirs, **EXACT)
    plain = trained(config_of(SamConfig()))
    assert any(not torch.allclose(a, b) for a, b in zip(trained(config), plain, strict=True))


@pytest.mark.parametrize(("lag", "start"), [(1, 0.0), (2, 0.0), (1, 2.0)])
def test_saf_is_its_formula(lag, start):
    sam = SamConfig(teacher="earlier", teacher_weight=0.3, teacher_tau=TAU, teacher_start=start, teacher_lag=lag)
    config, kept = config_of(sam), {}

    def further(t, model, batch, logits):
        if logits is None:
            return None
        epoch = t // 2
        kept.update({(epoch, int(i)): row for i, row in zip(batch.index, logits.detach(), strict=True)})
        if epoch < max(lag, start):
            return 0.0
        return 0.3 * kl(torch.stack([kept[epoch - lag, int(i)] for i in batch.index]), logits).mean()

    for ours, theirs in zip(trained(config), by_formula(config, further), strict=True):
        torch.testing.assert_close(ours.detach(), theirs, **EXACT)
    plain = trained(config_of(SamConfig()))
    assert any(not torch.allclose(a, b) for a, b in zip(trained(config), plain, strict=True))


def test_saf_takes_one_pass_and_mesa_one_more_forward():
    for name, expected in (("earlier", 1), ("average", 2)):
        config = replace(config_of(SamConfig(teacher=name, teacher_start=0.0, teacher_lag=1)), run=RunConfig())
        state, seen = started(config), {"forward": 0, "backward": 0}

        def forward(_module, _inputs, output, seen=seen):
            seen["forward"] += len(output)

        def backward(_module, _inputs, outputs, seen=seen):
            seen["backward"] += len(outputs[0])

        for model in (state.model, getattr(state.teacher, "module", None)):
            if model is not None:
                model.register_forward_hook(forward)
        state.model.register_full_backward_hook(backward)
        for _ in steps(state, stream(), make_objective(config, CLASSES), config, CPU, STEPS):
            pass
        assert seen == {"forward": expected * STEPS * SIZE, "backward": STEPS * SIZE}
