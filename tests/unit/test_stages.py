"""Test runs of two stages, contrastive then classifier, and a classifier that learns alone."""

import json
import os
import signal
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from samovar import cli, recipes
from samovar import config as configs
from samovar.config import (
    Config,
    ContrastiveConfig,
    DataConfig,
    HeadConfig,
    ModelConfig,
    OptimConfig,
    RunConfig,
    SamConfig,
    num_steps,
    stages,
    validate,
)
from samovar.data.loader import batches
from samovar.data.sources import open_source
from samovar.objectives import make_objective
from samovar.report.chapters.training import training
from samovar.report.parts import Figure
from samovar.runs import checkpoint
from samovar.runs.records import RunDir
from samovar.runtime import Runtime
from samovar.train.fit import Diverged, Interrupted, fit, prepare
from samovar.train.loop import backward, next_stage, steps
from samovar.train.view import start_lines, train_facts, val_facts
from tests.unit.report_runs import load

CPU = Runtime(torch.device("cpu"), torch.float32)
BORDER, END = 6, 11

# Dropout, SAM and an average of the classifier: everything that has state or randomness is on.
TWO_STAGES = Config(
    recipe="supcon-test",
    loss="supcon",
    steps=BORDER,
    model=ModelConfig(name="vit-digits", dropout=0.1, drop_path=0.1),
    data=DataConfig(fraction=0.1, batch_size=32, views=2, crop="affine", autoaugment="cifar10"),
    optim=OptimConfig(name="lamb", lr=0.01, warmup_steps=2, weight_decay=0.1),
    sam=SamConfig(rho=0.02),
    contrastive=ContrastiveConfig(hidden=32, projection=16),
    head=HeadConfig(steps=END - BORDER, optim=replace(HeadConfig().optim, lr=0.01, ema=0.9)),
    run=RunConfig(eval_every=4, log_every=3, threads=1, keep=10),
)


def start(folder, config=TWO_STAGES, runtime=CPU):
    validate(config)
    run = RunDir(folder)
    if not folder.exists():
        run = RunDir.create(folder.parent, folder.name)
        configs.save(config, run.config_path)
    return run, fit(config, run, runtime, *prepare(config, runtime))


def finish(folder, config=TWO_STAGES, runtime=CPU):
    run, events = start(folder, config, runtime)
    return run, list(events)


def saved(run, step):
    return checkpoint.load(checkpoint.path_of(run.checkpoints, step))


def records(run):
    return [(r.name, r.value, r.where) for r in run.records() if r.name != "train/images_per_second"]


def same(a, b) -> bool:
    """Return True if two nests of dicts, lists and tensors hold the same bits."""
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    torch.set_num_threads(1)
    return finish(tmp_path_factory.mktemp("whole") / "run")


# --- two stages ------------------------------------------------------------------------------------------------------


def test_a_run_goes_through_both_stages_with_one_count_of_steps(whole):
    run, events = whole
    assert [(e.kind, e.step) for e in events if e.kind != "train"] == [
        ("start", 0), ("val", 4), ("val", 6), ("val", 10), ("val", 11), ("done", END),
    ]  # fmt: skip
    assert all(event.total == END for event in events)
    steps_of = {name: [r.where["step"] for r in run.records(name)] for name, _, _ in records(run)}
    assert steps_of["train/contrastive_loss"] == [3, 4, 6]
    assert steps_of["train/loss"] == [9, 10, 11]
    assert steps_of["val/knn_accuracy"] == [4, 6]
    assert steps_of["val/accuracy"] == steps_of["val/loss"] == [10, 11]


def test_each_stage_has_its_own_schedule_from_its_own_start(whole):
    run, _ = whole
    rates = {r.where["step"]: r.value for r in run.records("train/lr")}
    assert rates[3] == pytest.approx(0.01)  # the third step: warm-up is over
    decay = 0.01 ** (np.array([2, 3, 4]) / 5)  # exponential to a hundredth over five steps
    assert [rates[step] for step in (9, 10, 11)] == pytest.approx(list(0.01 * decay))


def test_the_first_stage_leaves_the_classifier_and_the_second_all_else(whole):
    run, _ = whole
    first, border, last = (saved(run, step).model for step in (4, BORDER, END))
    head = {"head.weight", "head.bias"}
    assert all(not first[name].any() and torch.equal(first[name], border[name]) for name in head)
    assert not any(torch.equal(first[name], border[name]) for name in ("patch_embed.proj.weight", "norm.weight"))
    assert {name for name in last if not torch.equal(border[name], last[name])} == head


def test_the_projection_head_is_in_the_first_stages_state_and_in_no_file_of_weights(whole):
    run, _ = whole
    border, last = saved(run, BORDER), saved(run, END)
    assert {name: list(t.shape) for name, t in border.state["projection"].items()} == {
        "0.weight": [32, 64], "0.bias": [32], "2.weight": [16, 32], "2.bias": [16],
    }  # fmt: skip
    assert "projection" not in last.state
    assert border.model.keys() == last.model.keys()
    assert not any("projection" in name for name in border.model)


def test_only_a_classifier_can_be_best(whole):
    run, events = whole
    best = json.loads((run.checkpoints / "best.json").read_text())
    assert best["step"] > BORDER
    assert best["val/accuracy"] == max(r.value for r in run.records("val/accuracy"))
    assert saved(run, BORDER).state["best"] == saved(run, BORDER).state["last"] == {}
    assert events[-1].values["best/val/accuracy"] == best["val/accuracy"]


def test_resuming_a_finished_run_trains_nothing_more(whole):
    run, _ = whole
    before = records(run)
    _, events = finish(run.path)
    assert [e.kind for e in events] == ["start", "done"]
    assert "resumed at step 11" in events[0].notes
    assert records(run) == before


@pytest.mark.parametrize("step", [3, 4, BORDER, 9, 10])
def test_a_run_that_is_stopped_in_either_stage_or_between_them_ends_in_the_same_bits(whole, tmp_path, step):
    run, events = start(tmp_path / "run")

    def play():
        for event in events:
            if event.kind == "train" and event.step == step:  # at a boundary before the evaluation, which goes on
                os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Interrupted, match=f"SIGTERM at step {step}, which is saved"):
        play()
    assert checkpoint.steps_saved(run.checkpoints)[-1] == step
    _, rest = finish(run.path)
    assert f"resumed at step {step}" in rest[0].notes
    undisturbed, _ = whole
    assert records(run) == records(undisturbed)
    for at in (BORDER, END):
        a, b = saved(run, at), saved(undisturbed, at)
        assert same(a.model, b.model)
        assert same(a.ema, b.ema)
        assert same(a.state, b.state)


def test_the_loss_falls_and_its_features_tell_classes_apart(tmp_path):
    config = replace(
        TWO_STAGES,
        steps=60,
        model=ModelConfig(name="vit-digits"),
        data=replace(TWO_STAGES.data, autoaugment="none", fraction=0.2),
        optim=OptimConfig(lr=1e-3, warmup_steps=5),
        sam=SamConfig(),
        head=HeadConfig(steps=40),
        run=replace(TWO_STAGES.run, eval_every=1000, log_every=20),
    )
    run, events = finish(tmp_path / "run", config)
    losses = [r.value for r in run.records("train/contrastive_loss")]
    assert losses[-1] < losses[0] - 0.15  # over six seeds it falls by 0.27 or more
    (neighbours,) = run.records("val/knn_accuracy")
    assert neighbours.n == 179
    assert neighbours.settings == {"k": 20, "temperature": 0.07, "train_images": 324}
    assert neighbours.value > 0.6  # chance is 0.1; over six seeds 0.82 or more
    assert events[-1].values["last/val/accuracy"] > 0.35  # over six seeds 0.51 or more


def test_sharpness_is_watched_of_the_first_stages_loss_alone(tmp_path):
    config = replace(TWO_STAGES, run=replace(TWO_STAGES.run, watch_every=4, watch_images=32))
    run, _ = finish(tmp_path / "run", config)
    watched = list(run.records("watch/lambda_max"))
    assert [r.where["step"] for r in watched] == [4]
    assert np.isfinite(watched[0].value)
    assert watched[0].converged


def test_the_norm_that_is_clipped_is_of_the_projection_head_too():
    source, state = prepare(TWO_STAGES, CPU)
    config = replace(TWO_STAGES, optim=replace(TWO_STAGES.optim, clip_norm=1e-3))
    stream = batches(source, config.data, seed=0, stop=1, device=CPU.device)
    (step,) = steps(state, stream, make_objective(config, 10), config, CPU, BORDER)
    assert step.grad_norm > 0.1
    clipped = [p.grad for p in state.wrapped.parameters() if p.grad is not None]
    assert len(clipped) == len(list(state.wrapped.parameters())) - 2  # all but the classifier's
    assert torch.cat([g.flatten() for g in clipped]).norm().item() == pytest.approx(1e-3, rel=1e-3)


def test_a_class_with_one_training_image_is_refused_by_name(monkeypatch):
    source = open_source(TWO_STAGES.data)
    sevens = np.flatnonzero(source.train.labels == 7)
    kept = np.setdiff1d(np.arange(len(source.train)), sevens[1:])
    monkeypatch.setattr("samovar.train.fit.open_source", lambda _: replace(source, train=source.train.take(kept)))
    with pytest.raises(ValueError, match=r"^--loss supcon compares images of one class, and class '7' [^\n]* has one"):
        prepare(TWO_STAGES, CPU)
    prepare(replace(TWO_STAGES, loss="softmax"), CPU)


def test_a_warmup_longer_than_its_stage_is_refused_with_its_flag():
    long = replace(TWO_STAGES.head, optim=replace(TWO_STAGES.head.optim, warmup_steps=6))
    with pytest.raises(ValueError, match=r"^--head.optim.warmup-steps 6 is more than the run's 5 steps"):
        prepare(replace(TWO_STAGES, head=long), CPU)
    with pytest.raises(ValueError, match=r"^--optim.warmup-steps 7 is more than the run's 6 steps"):
        prepare(replace(TWO_STAGES, optim=replace(TWO_STAGES.optim, warmup_steps=7)), CPU)


def test_the_speed_counts_images_once_for_all_their_views(monkeypatch, tmp_path):
    clock = iter(range(1000))
    monkeypatch.setattr("samovar.train.keeper.time.perf_counter", lambda: float(next(clock)))  # a second a look
    run, _ = finish(tmp_path / "run", replace(TWO_STAGES, run=replace(TWO_STAGES.run, eval_every=1000, log_every=1)))
    speeds = {r.where["step"]: r.value for r in run.records("train/images_per_second")}
    assert speeds[2] == speeds[3] == 32


def test_what_is_shown_names_the_stages_numbers(whole):
    _, events = whole
    (title,) = start_lines(TWO_STAGES, events[0])[:1]
    assert title.endswith("6 + 5 steps")
    first = next(e for e in events if e.kind == "val")
    assert val_facts(first).startswith("val k-NN accuracy ")
    assert all(train_facts(e).startswith("loss ") for e in events if e.kind == "train")
    assert "val accuracy" in val_facts([e for e in events if e.kind == "val"][-1])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_both_stages_train_in_half_precision(tmp_path, dtype):
    run, events = finish(tmp_path / "run", runtime=Runtime(torch.device("cpu"), dtype))
    assert events[-1].values["skipped"] <= 2  # until the scale of fp16 has come down
    assert all(np.isfinite(r.value) for r in run.records())
    assert all(t.dtype == torch.float32 for t in saved(run, END).model.values())


def test_both_stages_train_with_channels_last(tmp_path):
    config = replace(TWO_STAGES, model=ModelConfig(name="resnet-digits"), sam=SamConfig())
    config = replace(config, run=replace(config.run, channels_last=True))
    _, events = finish(tmp_path / "run", config)
    assert events[-1].values["skipped"] == 0


@pytest.mark.slow
def test_both_stages_train_compiled(tmp_path):
    compiled = replace(TWO_STAGES, run=replace(TWO_STAGES.run, compile=True))
    _, events = finish(tmp_path / "run", compiled)
    assert events[-1].values["skipped"] == 0


def test_a_run_of_two_stages_is_trained_measured_and_reported_from_the_shell(tmp_path, capsys):
    flags = "--steps 4 --head.steps 3 --optim.warmup-steps 1 --run.threads 1 --run.eval-every 10 --name r --output"
    cli.main(["train", "supcon-vit-digits", *flags.split(), str(tmp_path)])
    assert "val k-NN accuracy" in capsys.readouterr().out
    run = str(tmp_path / "r")
    cli.main(["measure", run, "accuracy", "landscape", "--dims", "1", "--points", "3", "--threads", "1"])
    cli.main(["report", run])
    (measured,) = RunDir(tmp_path / "r").records("accuracy/top1")
    (trained,) = RunDir(tmp_path / "r").records("val/accuracy")
    assert measured.where["step"] == 7
    assert measured.value == pytest.approx(trained.value)


def test_a_report_draws_the_losses_of_the_stages_apart(whole):
    run, _ = whole
    section = training(load(run.path))
    steps = {part.id: part.plot["data"][0]["x"] for part in section.parts if isinstance(part, Figure)}
    assert steps["train-contrastive-loss"] == [3, 4, 6]
    assert steps["train-loss"] == [9, 10, 11]
    assert steps["val-knn-accuracy"] == [4, 6]


# --- a classifier alone ----------------------------------------------------------------------------------------------

HEAD_ALONE = replace(
    TWO_STAGES,
    loss="softmax",
    steps=5,
    model=ModelConfig(name="test_resnet", dropout=0.5, trainable="head"),  # with BatchNorm
    data=DataConfig(fraction=0.1, batch_size=32, image_size=32),
    optim=OptimConfig(lr=0.01, weight_decay=0.1, decay="all"),
    sam=SamConfig(),
)


@pytest.mark.parametrize("rho", [0.0, 0.1])
def test_a_frozen_encoder_stays_as_it_is_with_batchnorms_statistics(rho):
    config = replace(HEAD_ALONE, sam=SamConfig(rho=rho))
    source, state = prepare(config, CPU)
    before = {name: value.clone() for name, value in state.model.body.state_dict().items()}
    assert not before["fc.weight"].any()
    stream = batches(source, config.data, seed=0, stop=5, device=CPU.device)
    list(steps(state, stream, make_objective(config, 10), config, CPU, 5))
    after = state.model.body.state_dict()
    assert {name for name in after if not torch.equal(before[name], after[name])} == {"fc.weight", "fc.bias"}
    assert any("running_mean" in name for name in after)


def test_a_frozen_encoder_keeps_no_graph_and_drops_nothing_out():
    source, state = prepare(HEAD_ALONE, CPU)
    seen = []
    state.model.body.fc.register_forward_hook(lambda module, args, out: seen.append(args[0]))
    (batch,) = batches(source, HEAD_ALONE.data, seed=0, stop=1, device=CPU.device)
    next(steps(state, [batch], make_objective(HEAD_ALONE, 10), HEAD_ALONE, CPU, 5))
    assert not seen[0].requires_grad
    assert torch.equal(seen[0], state.model.eval().features(batch.images))
    assert not torch.equal(seen[0], state.model.train().features(batch.images))


def test_the_gradient_of_a_classifier_alone_is_that_of_the_whole_network_in_eval_mode():
    source, state = prepare(HEAD_ALONE, CPU)
    nn.init.normal_(state.model.body.fc.weight, std=0.1)
    objective = make_objective(HEAD_ALONE, 10)
    (batch,) = batches(source, HEAD_ALONE.data, seed=0, stop=1, device=CPU.device)
    state.wrapped.eval()
    backward(state, batch, objective, HEAD_ALONE, CPU)
    partial = {name: p.grad for name, p in state.model.named_parameters() if p.grad is not None}
    assert partial.keys() == {"body.fc.weight", "body.fc.bias"}
    expected = torch.autograd.grad(objective(state.model, batch).value, [*state.model.head_parameters()])
    torch.testing.assert_close(list(partial.values()), list(expected))


def test_a_stage_takes_the_weights_and_nothing_else_of_the_one_before():
    _, state = prepare(TWO_STAGES, CPU)
    weights = {name: value.clone() for name, value in state.model.body.state_dict().items()}
    state.step = BORDER
    _, head = stages(TWO_STAGES)
    after = next_stage(state, head, CPU)
    assert after.model is state.model
    assert after.step == BORDER
    assert all(torch.equal(weights[name], value) for name, value in after.model.body.state_dict().items())
    assert sum(len(group["params"]) for group in after.optimizer.param_groups) == 2
    assert after.projection is None
    assert num_steps(head, 100) == END - BORDER


def test_a_network_that_hides_its_classifier_cannot_learn_it_alone():
    config = replace(HEAD_ALONE, model=replace(HEAD_ALONE.model, name="tests.unit.test_stages:hidden", dropout=0.0))
    with pytest.raises(ValueError, match=r"^Sequential has no get_classifier, which returns the classifier layer"):
        prepare(config, CPU)


def hidden(num_classes, image_size, channels) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(channels * image_size**2, num_classes))


def test_a_network_that_does_not_part_its_head_is_refused_under_supcon():
    config = replace(TWO_STAGES, model=ModelConfig(name="tests.unit.test_stages:hidden"))
    with pytest.raises(ValueError, match=r"^Sequential [^\n]*$"):
        prepare(config, CPU)


def test_an_encoder_that_diverges_ends_the_run_as_diverged(tmp_path) -> None:
    config = recipes.get("supcon-vit-digits").config()
    optimizer = OptimConfig(name="sgd", lr=1e8)
    config = replace(config, steps=8, optim=optimizer, head=HeadConfig(steps=4), run=RunConfig(eval_every=4, threads=1))
    run = RunDir.create(tmp_path, "run")
    with pytest.raises(Diverged, match=r"at step 4 features of .* are not finite.*lower --optim.lr"):
        list(fit(config, run, CPU, *prepare(config, CPU)))
