"""`samovar train --branch`: a tail from a checkpoint of a run's stable phase."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from samovar import cli
from samovar import config as configs
from samovar.runs import checkpoint
from samovar.runs.records import RunDir
from samovar.train.branch import find, settings

pytestmark = pytest.mark.costly

STEPS = 24
WORDS = (
    f"train vit-digits --steps {STEPS} --optim.schedule wsd --optim.warmup-steps 4 --optim.ema 0.9"
    " --model.dropout 0.1 --data.mixup 0.2 --run.eval-every 6 --run.keep 9 --run.threads 1"
).split()


def trained(folder: Path, *words: str) -> RunDir:
    """Train in this process, and return the run of the given name."""
    cli.main([*words, "--output", str(folder), "--name", "new"])
    taken = folder / "new"
    return RunDir(taken)


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> Path:
    """A plain run with all its checkpoints: 6, 12, 18, where the decay begins, and 24."""
    return trained(tmp_path_factory.mktemp("plain"), *WORDS).path


def weights(run: Path, step: int = STEPS) -> list:
    """Return the bytes of the weights and their average, and the optimizer's numbers."""
    folder = checkpoint.path_of(run / "checkpoints", step)
    files = [(folder / name).read_bytes() for name in ("model.safetensors", "ema.safetensors")]
    found = checkpoint.load(folder).state
    moments = {
        (index, name): value.tolist() if isinstance(value, torch.Tensor) else value
        for index, each in found["optimizer"]["state"].items()
        for name, value in each.items()
    }
    return [*files, moments, found["best"], found["last"]]


def curves(run: Path) -> list[tuple]:
    aside = ("train/images_per_second", "train/branch")
    return [(r.name, r.value, r.where) for r in RunDir(run).records() if r.name not in aside]


def line_of(words: list[str], capsys) -> str:
    with pytest.raises(SystemExit) as stop:
        cli.main(words)
    assert stop.value.code == 2
    said = capsys.readouterr().err
    assert len(said.splitlines()) == 1
    return said


@pytest.mark.parametrize("step", ["6", "18", "last"])
def test_unchanged_settings_end_in_the_same_bits(plain: Path, step: str, tmp_path: Path, capsys) -> None:
    source = plain
    if step == "last":
        source = tmp_path / "cut"
        shutil.copytree(plain, source)
        shutil.rmtree(checkpoint.path_of(source / "checkpoints", STEPS))
    first = 18 if step == "last" else int(step)
    run = trained(tmp_path, "train", "--branch", f"{source}@{step}")
    assert f"branched from {source} at step {first}" in capsys.readouterr().out
    assert weights(run.path) == weights(plain)
    assert curves(run.path) == curves(plain)
    (left,) = run.records("train/branch")
    assert (left.value, left.settings["run"], left.settings["changed"]) == (first, str(source), {})
    assert (run.path / "provenance.json").is_file()


def test_sam_in_the_tail_is_the_run_of_its_config_and_differs_after_the_branch_only(
    plain: Path, tmp_path: Path
) -> None:
    run = trained(tmp_path, "train", "--branch", f"{plain}@18", "--sam.rho", "0.1", "--sam.fraction", "0.25")
    config = configs.load(run.config_path)
    assert config.sam.start == "decay"
    assert weights(run.path, 18) == weights(plain, 18)
    assert weights(run.path)[0] != weights(plain)[0]
    (left,) = run.records("train/branch")
    assert left.settings["changed"] == {"sam.rho": "0.1", "sam.fraction": "0.25", "sam.start": "decay"}
    whole = trained(tmp_path / "whole", "train", "--config", str(run.config_path))
    assert weights(whole.path) == weights(run.path)
    assert curves(whole.path) == curves(run.path)


def test_a_longer_stable_phase_goes_on_from_a_shorter_one(plain: Path, tmp_path: Path) -> None:
    run = trained(tmp_path, "train", "--branch", f"{plain}@12", "--steps", "30", "--optim.decay-shape", "sqrt")
    whole = trained(tmp_path / "whole", "train", "--config", str(run.config_path))
    assert weights(whole.path, 30) == weights(run.path, 30)


def test_a_branch_without_a_name_is_named_after_run_and_step(plain: Path, tmp_path: Path) -> None:
    cli.main(["train", "--branch", f"{plain}@18", "--output", str(tmp_path)])
    assert [path.name for path in tmp_path.iterdir()] == ["new-step18"]


def test_a_best_checkpoint_that_is_gone_counts_no_more(plain: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    shutil.copytree(plain, source)
    for step in (6, 12):
        shutil.rmtree(checkpoint.path_of(source / "checkpoints", step))
    run = trained(tmp_path, "train", "--branch", f"{source}@18")
    best = json.loads((run.checkpoints / "best.json").read_text())
    assert checkpoint.path_of(run.checkpoints, int(best["step"])).is_dir()


@pytest.mark.parametrize(
    ("step", "flags", "line"),
    [
        ("7", [], "@7 is not there; there are 6, 12, 18, 24 and last"),
        ("18", ["--optim.lr", "0.1"], "--optim.lr 0.1 differs from the run's 0.0007, and a branch may change --sam.*"),
        ("18", ["--seed", "1"], "--seed 1 differs from the run's 0"),
        ("18", ["--data.batch-size", "32"], "--data.batch-size 32 differs"),
        ("18", ["--steps", "18"], "a run of 18 steps ends before the branch begins"),
        ("18", ["--steps", "16"], "a run of 16 steps ends before the branch begins"),
        ("18", ["--optim.decay-share", "0.5"], "step 13 had learning rate 0.0007, and has 0.000641667"),
        ("last", ["--steps", "48"], "step 19 had learning rate 0.000583333, and has 0.0007"),
        ("18", ["--sam.rho", "0.1", "--sam.start", "0.5"], "step 12 had rho 0, and has 0.1"),
        ("18", ["--dry-run"], "--branch and --dry-run exclude each other"),
        ("18", ["--sam.rhoo", "1"], "--sam.rho"),
    ],
)
def test_what_would_not_be_a_tail_is_one_line(plain: Path, step: str, flags: list[str], line: str, capsys) -> None:
    before = sorted(plain.parent.iterdir())
    assert line in line_of(["train", "--branch", f"{plain}@{step}", *flags], capsys)
    assert sorted(plain.parent.iterdir()) == before


def test_what_is_no_run_is_one_line(tmp_path: Path, capsys) -> None:
    assert "give RUN@STEP, such as runs/a@last" in line_of(["train", "--branch", "runs/a"], capsys)
    assert f"{tmp_path} is not a run" in line_of(["train", "--branch", f"{tmp_path}@6"], capsys)


def test_sam_of_the_stable_phase_can_end_but_not_change(tmp_path: Path) -> None:
    run = trained(tmp_path, *WORDS, "--sam.rho", "0.1")
    origin = find(run.path, "18")
    num_train = 268
    sam = origin.config.sam
    changes = [
        ({"rho": 0.2}, "step 0 had rho 0.1, and has 0.2"),
        ({"adaptive": True}, "steps before it had --sam.adaptive False, not True"),
    ]
    for change, line in changes:
        wanted = configs.from_dict(configs.to_dict(origin.config) | {"sam": {**vars(sam), **change}})
        with pytest.raises(ValueError, match=line):
            settings(origin, wanted, num_train)
    ended = trained(tmp_path / "ended", "train", "--branch", f"{run.path}@18", "--sam.end", "0.75")
    whole = trained(tmp_path / "whole", "train", "--config", str(ended.config_path))
    assert weights(whole.path) == weights(ended.path) != weights(run.path)
