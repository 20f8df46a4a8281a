"""Test the loop: how a step changes the state, which steps it skips, what it counts."""

from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from torch import nn

from samovar import recipes
from samovar.config import Config, OptimConfig, RunConfig, SamConfig
from samovar.data.loader import Batch, batches
from samovar.objectives import make_objective
from samovar.runs import checkpoint
from samovar.runs.records import RunDir
from samovar.runtime import Runtime
from samovar.train.evaluation import evaluate
from samovar.train.fit import Diverged, fit, prepare
from samovar.train.loop import TrainState, backward, steps
from samovar.train.resume import fingerprint

CPU = Runtime(torch.device("cpu"), torch.float32)


def config(**changes) -> Config:
    base = recipes.get("vit-digits").config()
    return replace(base, steps=6, optim=OptimConfig(lr=1e-3, clip_norm=1.0), run=RunConfig(eval_every=3), **changes)


def start(settings: Config, runtime: Runtime = CPU) -> tuple[TrainState, Batch]:
    """Return a state and a batch; the head is random, since below a zero head there is no gradient."""
    source, state = prepare(settings, runtime)
    nn.init.normal_(state.model.body.head.weight, std=0.1)
    stream = batches(source, settings.data, seed=0, stop=1, device=runtime.device)
    return state, next(stream)


def gradient(settings: Config, runtime: Runtime = CPU) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    state, batch = start(settings, runtime)
    loss = backward(state, batch, make_objective(settings, 10), settings, runtime)
    return loss, torch.cat([p.grad.flatten() for p in state.model.parameters()])


@pytest.mark.parametrize("rho", [0.0, 0.1])
@pytest.mark.parametrize("micro_batch", [1, 5, 16, 64])
def test_micro_batches_leave_the_gradient_as_it_is(rho: float, micro_batch: int) -> None:
    whole = config(sam=SamConfig(rho=rho))
    loss, grad = gradient(whole)
    loss_pieces, grad_pieces = gradient(replace(whole, run=replace(whole.run, micro_batch=micro_batch)))
    assert loss_pieces.item() == pytest.approx(loss.item(), rel=1e-5)
    # float32 sums in another order; the ascent carries the difference on
    assert (grad - grad_pieces).norm() < 1e-3 * grad.norm()


@pytest.mark.parametrize("m", [1, 16, 32, 64])
def test_m_groups_give_the_mean_of_each_groups_sam_gradient(m: int) -> None:
    settings = config(sam=SamConfig(rho=0.1, m=m))
    _, grad = gradient(settings)
    _, batch = start(settings)
    single = replace(settings, sam=SamConfig(rho=0.1))
    total = torch.zeros_like(grad)
    for group in batch.split(m):
        torch.manual_seed(0)
        state_of_group, _ = start(single)
        backward(state_of_group, group, make_objective(single, 10), single, CPU)
        total += torch.cat([p.grad.flatten() for p in state_of_group.model.parameters()]) * (m / len(batch))
    assert (grad - total).norm() < 1e-4 * grad.norm()


def test_a_non_finite_step_changes_nothing_but_the_counts() -> None:
    settings = config()
    state, batch = start(settings)
    bad = replace(batch, images=batch.images * float("nan"))
    objective = make_objective(settings, 10)
    done = list(steps(state, [batch, bad, batch], objective, settings, CPU, 6))
    assert [bool(step.finite) for step in done] == [True, False, True]
    assert state.tally["skipped"] == 1
    assert state.step == 3
    assert all(torch.isfinite(p).all() for p in state.model.parameters())


@pytest.mark.parametrize("name", ["adamw", "sgd", "lamb"])
def test_a_skipped_step_leaves_weights_and_optimizer_bit_for_bit(name: str) -> None:
    settings = config(sam=SamConfig(rho=0.1))
    settings = replace(settings, optim=replace(settings.optim, name=name))
    state, batch = start(settings)
    bad = replace(batch, images=batch.images * float("inf"))
    stream = steps(state, [batch, bad], make_objective(settings, 10), settings, CPU, 6)
    next(stream)
    weights = [p.detach().clone() for p in state.model.parameters()]
    kept = deepcopy(state.optimizer.state_dict()["state"])
    next(stream)
    assert all(torch.equal(a, b) for a, b in zip(weights, state.model.parameters(), strict=True))
    for index, values in state.optimizer.state_dict()["state"].items():
        for key, value in values.items():
            assert torch.equal(torch.as_tensor(value), torch.as_tensor(kept[index][key])), key


def test_ten_non_finite_steps_in_a_row_end_the_run_with_the_last_checkpoint_intact(tmp_path, monkeypatch) -> None:
    settings = replace(config(), steps=40)
    source, state = prepare(settings, CPU)
    run = RunDir.create(tmp_path, "r")
    real = batches

    def poisoned(*args, **kwargs):
        for step, batch in enumerate(real(*args, **kwargs)):
            yield batch if step < 7 else replace(batch, images=batch.images * float("nan"))

    monkeypatch.setattr("samovar.train.fit.batches", poisoned)
    with pytest.raises(Diverged, match="10 steps in a row, up to step 17"):
        list(fit(settings, run, CPU, source, state))
    found, complaints = checkpoint.load_latest(run.checkpoints, fingerprint(settings))
    assert found is not None
    assert not complaints
    assert all(torch.isfinite(t).all() for t in found.model.values())


@pytest.mark.parametrize("part", ["optimizer", "tally", "model", "best"])
def test_a_checkpoint_whose_contents_are_of_no_such_run_is_named_and_the_one_before_is_used(tmp_path, part) -> None:
    settings = replace(config(), steps=6, run=replace(config().run, eval_every=2, keep=3))
    source, state = prepare(settings, CPU)
    run = RunDir.create(tmp_path, "r")
    list(fit(settings, run, CPU, source, state))
    # whole by its hashes, but written by something else
    last = checkpoint.load(checkpoint.path_of(run.checkpoints, 6))
    if part == "model":
        last = replace(last, model=dict(list(last.model.items())[1:]))
    else:
        last.state.pop(part)
    checkpoint.save(run.checkpoints, last, fingerprint(settings))
    source, state = prepare(settings, CPU)
    events = list(fit(settings, run, CPU, source, state))
    assert events[0].step == 4
    notes = "\n".join(events[0].notes)
    assert "the checkpoint of step 6 holds no state of this run: " in notes
    assert "using the one before" in notes
    assert events[-1].step == 6


def test_evaluation_weighs_batches_by_their_size_and_restores_the_mode() -> None:
    settings = config()
    state, batch = start(settings)
    objective = make_objective(settings, 10)
    state.model.train()
    whole = evaluate(state.model, [batch], objective, CPU)
    parts = evaluate(state.model, batch.split(24), objective, CPU)
    assert state.model.training
    assert (whole.n, parts.n) == (64, 64)
    assert parts.accuracy == whole.accuracy
    assert parts.loss == pytest.approx(whole.loss, rel=1e-6)


def test_the_learning_rate_follows_the_schedule() -> None:
    settings = replace(config(), optim=OptimConfig(lr=1.0, warmup_steps=2, schedule="linear", linear_end=0.0))
    state, batch = start(settings)
    done = steps(state, [batch] * 6, make_objective(settings, 10), settings, CPU, 6)
    assert [step.lr for step in done] == pytest.approx([0, 0.5, 1.0, 0.75, 0.5, 0.25])


def test_channels_last_gives_the_same_gradient() -> None:
    settings = replace(config(sam=SamConfig(rho=0.05)), model=replace(config().model, name="resnet-digits"))
    fast = replace(settings, run=replace(settings.run, channels_last=True))
    torch.manual_seed(0)
    grads = []
    for each in (settings, fast):
        source, state = prepare(each, CPU)
        batch = next(batches(source, each.data, seed=0, stop=1, device=CPU.device))
        backward(state, batch, make_objective(each, 10), each, CPU)
        grads.append([p.grad for p in state.model.parameters()])
    for a, b in zip(*grads, strict=True):
        assert torch.allclose(a, b, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("rho", [0.0, 0.1])
def test_half_precision_trains_with_float32_weights(dtype: torch.dtype, rho: float) -> None:
    settings = config(sam=SamConfig(rho=rho, m=32))
    runtime = Runtime(torch.device("cpu"), dtype)
    _, exact = gradient(settings)
    state, batch = start(settings, runtime)
    assert (state.scaler is not None) == (dtype == torch.float16)
    done = list(steps(state, [batch] * 4, make_objective(settings, 10), settings, runtime, 6))
    assert all(p.dtype == torch.float32 for p in state.model.parameters())
    assert done[-1].loss < done[0].loss
    # the first gradient is the float32 one to the precision of the type (8 or 11 bits), a few roundings deep
    torch.manual_seed(0)
    fresh, batch = start(settings, runtime)
    still = replace(settings, optim=OptimConfig(lr=0))
    first = next(steps(fresh, [batch], make_objective(still, 10), still, runtime, 6))
    assert first.grad_norm.item() == pytest.approx(exact.norm().item(), rel=0.05)


@pytest.mark.slow
def test_a_compiled_model_trains_like_an_eager_one() -> None:
    eager = config(sam=SamConfig(rho=0.1, m=32))
    compiled = replace(eager, run=replace(eager.run, compile=True))
    (loss, grad), (loss_compiled, grad_compiled) = gradient(eager), gradient(compiled)
    assert loss_compiled.item() == pytest.approx(loss.item(), rel=1e-4)
    assert (grad - grad_compiled).norm() < 1e-2 * grad.norm()
