"""Test that a step which does not fit into memory is divided, computes the same, and says so."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from samovar import recipes
from samovar.config import Config, OptimConfig, RunConfig, SamConfig
from samovar.data.loader import Batch, batches
from samovar.objectives import make_objective
from samovar.runs.records import RunDir
from samovar.runtime import Runtime
from samovar.train.fit import fit, prepare
from samovar.train.loop import Step, TrainState, steps
from samovar.train.memory import OutOfMemory, is_out_of_memory

CPU = Runtime(torch.device("cpu"), torch.float32)


class Small(nn.Module):
    """Module whose memory suffices for a few images; it has a buffer that every pass changes."""

    def __init__(self, inner: nn.Module, most: int, error: type[Exception] = torch.OutOfMemoryError) -> None:
        super().__init__()
        self.inner, self.most, self.error, self.passes = inner, most, error, [0]
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, images: Tensor) -> Tensor:
        if self.training:
            self.passes.append(len(images))
            self.seen += len(images)
            if len(images) > self.most:
                raise self.error("CUDA out of memory. Tried to allocate 2.00 GiB.\nMore words")
        return self.inner(images)


def config(recipe: str = "vit-digits", **changes) -> Config:
    base = recipes.get(recipe).config()
    changes = {"steps": 3, "optim": OptimConfig(lr=1e-3, clip_norm=1.0), "run": RunConfig(eval_every=3), **changes}
    return replace(base, **changes)


def start(settings: Config, most: int, **options) -> tuple[TrainState, Small]:
    _, state = prepare(settings, CPU)
    if hasattr(state.model.body, "head"):
        nn.init.normal_(state.model.body.head.weight, std=0.1, generator=torch.Generator().manual_seed(0))
    small = Small(state.model.body, most, **options)
    state.model.body = small  # type: ignore[assignment]
    return state, small


def trained(settings: Config, most: int, **options) -> tuple[list[Step], TrainState, Small]:
    state, small = start(settings, most, **options)
    source, _ = prepare(settings, CPU)
    stream: list[Batch] = list(batches(source, settings.data, seed=0, stop=settings.steps, device=CPU.device))
    done = list(steps(state, stream, make_objective(settings, 10), settings, CPU, settings.steps))
    return done, state, small


@pytest.mark.parametrize(
    ("sam", "most", "wanted"),
    [
        (SamConfig(), 20, 16),
        (SamConfig(rho=0.1), 64, 0),
        (SamConfig(rho=0.1), 20, 16),
        (SamConfig(rho=0.1, m=32), 9, 8),
        (SamConfig(rho=0.1, m=16, sigma=0.6), 5, 4),
        (SamConfig(m=16), 40, 32),  # without a radius m groups nothing
    ],
    ids=str,
)
def test_a_divided_step_equals_the_undivided_one(sam: SamConfig, most: int, wanted: int) -> None:
    settings = config(sam=sam)
    whole, wide, _ = trained(settings, 1000)
    parts, state, small = trained(settings, most)
    assert state.micro_batch == wanted
    for a, b in zip(whole, parts, strict=True):
        assert b.loss.item() == pytest.approx(a.loss.item(), rel=1e-4)
        assert b.grad_norm.item() == pytest.approx(a.grad_norm.item(), rel=5e-3)
    assert [bool(step.note) for step in parts] == [wanted > 0, False, False]
    # what the failed tries changed is undone: the buffer counted the images that were trained on
    assert small.seen == wide.model.body.seen
    assert state.memory.step == wide.memory.step
    for name, average in wide.memory.average.items():
        assert torch.allclose(state.memory.average[name], average, rtol=1e-3, atol=1e-5)


def test_the_message_says_what_changed_and_what_did_not() -> None:
    note = trained(config(), 20)[0][0].note
    assert note == (
        "memory ran out: 16 images per pass from step 1 on; batch size and m stay what they are; "
        "--run.micro-batch 16 starts with it"
    )


def test_a_given_micro_batch_is_the_start() -> None:
    settings = config(run=RunConfig(micro_batch=24))
    _, state, small = trained(settings, 20)
    assert state.micro_batch == 12
    assert max(small.passes) == 24


def test_one_image_that_does_not_fit_is_refused_with_a_way_out() -> None:
    words = (
        r"at step 1 \(CUDA out of memory. Tried to allocate 2.00 GiB.\); one image per pass is too much; give a smaller"
    )
    with pytest.raises(OutOfMemory, match=words):
        trained(config(), 0)


def first_step(settings: Config, state: TrainState, runtime: Runtime = CPU) -> list[Step]:
    source, _ = prepare(settings, CPU)
    stream = batches(source, settings.data, seed=0, stop=1, device=CPU.device)
    return list(steps(state, stream, make_objective(settings, 10), settings, runtime, 1))


def test_with_batchnorm_a_step_is_not_divided_unless_its_statistics_stand_still() -> None:
    state, small = start(config(), 20)
    small.norm = nn.BatchNorm2d(1)
    with pytest.raises(OutOfMemory, match="with BatchNorm fewer images per pass change the result; give --run.micro-b"):
        first_step(config(), state)
    small.norm = nn.InstanceNorm2d(1)
    assert first_step(config(), state)[0].note


def test_several_ranks_are_told_to_give_the_number() -> None:
    state, _ = start(config(), 20)
    with pytest.raises(
        OutOfMemory, match="several ranks do not divide a step by themselves; give --run.micro-batch 32"
    ):
        first_step(config(), state, replace(CPU, world_size=2))


def test_other_errors_pass_through() -> None:
    with pytest.raises(RuntimeError, match="CUDA out of memory"):  # an error of another type that quotes the words
        trained(config(), 20, error=RuntimeError)
    assert is_out_of_memory(RuntimeError("MPS backend out of memory (MPS allocated: 3 GB)"))
    assert is_out_of_memory(torch.OutOfMemoryError("anything"))
    assert not is_out_of_memory(RuntimeError("shapes do not fit"))


def test_a_run_records_the_number_and_goes_on_with_it_after_a_resume(tmp_path) -> None:
    settings = config(steps=6)
    source, state = prepare(settings, CPU)
    state.model.body.register_forward_pre_hook(_too_many)
    run = RunDir.create(tmp_path, "r")
    events = fit(settings, run, CPU, source, state)
    for event in events:
        if event.kind == "val":
            break
    next(events)  # the checkpoint is saved after the evaluation is shown
    events.close()
    (record,) = run.records("train/micro_batch")
    assert (record.value, record.where, record.settings) == (32, {"step": 1}, {"batch_size": 64})
    source, state = prepare(settings, CPU)
    list(fit(settings, run, CPU, source, state))
    assert state.micro_batch == 32


def _too_many(module: nn.Module, inputs: tuple[Tensor]) -> None:
    if module.training and len(inputs[0]) > 40:
        raise torch.OutOfMemoryError("CUDA out of memory.")
