"""Test how many images a pass takes under `--run.memory`, that numbers stay, and what is refused."""

from dataclasses import replace

import pytest
import torch

from samovar import recipes
from samovar.cli.train import parse
from samovar.config import Config
from samovar.data.loader import batches
from samovar.objectives import make_objective
from samovar.runtime import Runtime
from samovar.train import micro_batch
from samovar.train.fit import prepare
from samovar.train.loop import steps
from samovar.train.micro_batch import Need, divide, need_of, room_for
from samovar.train.rehearse import Data, rehearse
from tests.conftest import Shell

CPU = Runtime(torch.device("cpu"), torch.float32)
MEGA = 2**20


def config(m: int = 0, batch: int = 128, recipe: str = "vit-digits-sam", memory: float = 1.0) -> Config:
    base = recipes.get(recipe).config()
    return replace(
        base,
        steps=2,
        optim=replace(base.optim, warmup_steps=0),
        sam=replace(base.sam, m=m),
        data=replace(base.data, batch_size=batch),
        run=replace(base.run, memory=memory),
    )


@pytest.mark.parametrize(
    ("m", "batch", "ranks", "room", "wanted"),
    [
        (0, 128, 1, 10 + 128, 0),
        (0, 128, 1, 10 + 127, 64),  # two equal passes, not 127 and 1
        (0, 128, 1, 10 + 50, 43),
        (32, 128, 1, 10 + 32, 0),  # a pass takes one group at most
        (32, 128, 1, 10 + 31, 16),
        (0, 128, 4, 10 + 32, 0),
        (0, 128, 4, 10 + 31, 16),
        (0, 128, 1, 10 + 1, 1),
    ],
)
def test_a_pass_takes_as_many_images_as_fit(m: int, batch: int, ranks: int, room: int, wanted: int) -> None:
    need = Need(10 * MEGA, MEGA)
    found = divide(config(m, batch), need, room * MEGA, ranks, normalized=False)
    assert found.micro_batch == wanted
    assert f"{room} MiB are left" in found.note
    assert ("batch size and m stay" in found.note) == (wanted > 0)


def test_what_would_change_the_result_or_cannot_fit_is_refused_with_a_way_out() -> None:
    need = Need(10 * MEGA, MEGA)
    with pytest.raises(ValueError, match=r"--run.memory 1.0 is too little: 10 MiB are left, .* one image per pass"):
        divide(config(), need, 10 * MEGA, 1, normalized=False)
    with pytest.raises(ValueError, match=r"with BatchNorm .* give --run.micro-batch 90 if you accept"):
        divide(config(), need, 100 * MEGA, 1, normalized=True)
    assert divide(config(), need, 200 * MEGA, 1, normalized=True).micro_batch == 0
    with pytest.raises(ValueError, match="supcon compares all images"):
        divide(config(recipe="supcon-vit-cifar10", batch=256), need, 100 * MEGA, 1, normalized=False)


def test_the_need_of_a_step_grows_with_what_it_keeps() -> None:
    found = rehearse(config(), CPU, Data(269, 10, 1), num_steps=2, images=8)
    need = need_of(found, 8)
    assert need.fixed == found.state_bytes
    assert need.per_image == pytest.approx(micro_batch.SPARE * found.kept_bytes / 8)
    on_gpu = replace(found, peak_bytes=found.weight_bytes + found.state_bytes + 8 * 5 * MEGA)
    assert need_of(on_gpu, 8).per_image == 5 * MEGA


def test_room_is_what_the_process_has_not_taken(monkeypatch) -> None:
    less, more = (room_for(memory, CPU) for memory in (4.0, 5.0))
    assert more - less == pytest.approx(2**30, rel=0.02)
    assert less < 4 * 2**30
    with pytest.raises(ValueError, match=r"--run.memory 0.01 is too little: the process takes .* MiB before its first"):
        room_for(0.01, CPU)
    monkeypatch.setattr(micro_batch, "free_bytes", lambda device: 1000)
    assert room_for("auto", CPU) == 900


@pytest.mark.costly
def test_training_takes_the_same_steps_in_smaller_passes(monkeypatch) -> None:
    def losses(settings: Config) -> tuple[list[float], int]:
        source, state = prepare(settings, CPU)
        stream = batches(source, settings.data, seed=0, stop=2, device=CPU.device)
        found = steps(state, stream, make_objective(settings, 10), settings, CPU, 2)
        return [step.loss.item() for step in found], state.micro_batch

    whole, undivided = losses(config(m=64, memory=0.0))
    assert undivided == 0
    need = need_of(rehearse(config(), CPU, Data(269, 10, 1), num_steps=2, images=8), 8)
    monkeypatch.setattr(micro_batch, "room_for", lambda memory, runtime: need.fixed + 20 * need.per_image)
    parts, micro = losses(config(m=64))
    assert micro == 16
    assert parts == pytest.approx(whole, rel=1e-4)
    # a number that is given goes first
    asked = config(m=64)
    assert losses(replace(asked, run=replace(asked.run, micro_batch=8)))[1] == 0


@pytest.mark.costly
def test_a_run_says_what_it_chose(shell: Shell, monkeypatch) -> None:
    monkeypatch.setattr(micro_batch, "room_for", lambda memory, runtime: 12 * MEGA)
    command = ("train", "vit-digits-sam", "--steps", "2", "--run.memory", "auto", "--name", "r")
    found = shell.run_here(*command)
    assert found.returncode == 0, found.stderr
    assert "--run.memory auto: " in found.stdout
    rehearsed = shell.run_here(*command, "--dry-run")
    assert rehearsed.returncode == 0, rehearsed.stderr
    assert "passes     --run.memory auto: " in rehearsed.stdout


def test_memory_takes_a_number_or_auto() -> None:
    assert parse(["vit-digits", "--run.memory", "auto"]).config.run.memory == "auto"
    assert parse(["vit-digits", "--run.memory", "1.5"]).config.run.memory == 1.5
    for wrong in ("8G", "-1"):
        with pytest.raises(ValueError, match=r"--run.memory"):
            parse(["vit-digits", "--run.memory", wrong])
