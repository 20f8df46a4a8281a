"""Test fine-tuning: a rate is chosen on held-out training images, then all train; nothing is done twice."""

import math
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from samovar import config as configs
from samovar.cli.train import parse as parse_train
from samovar.config import Config, GridConfig
from samovar.data.sources import open_source
from samovar.models.load import resolve
from samovar.runs.records import RunDir
from samovar.train import command, transfer, trials
from samovar.train.fit import Interrupted
from tests.unit.short_run import short_run

FLAGS = "--data.source digits --data.val-share 0.5 --data.crop none --data.no-flip --steps 12 --optim.warmup-steps 2"
FLAGS += " --data.batch-size 32 --grid.lr 100 0.1 --grid.share 0.2 --run.threads 1 --run.eval-every 6"


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    return short_run(tmp_path_factory.mktemp("weights")).path


def asked(weights: Path, output: Path) -> Config:
    config, *_ = parse_train(["transfer", "--init", str(weights), *FLAGS.split(), "--output", str(output)])
    return config


@pytest.fixture(scope="module")
def tuned(weights: Path, tmp_path_factory) -> RunDir:
    return command.train(asked(weights, tmp_path_factory.mktemp("runs")))


def test_the_better_rate_trains_the_run_from_the_weights_model(weights: Path, tuned: RunDir) -> None:
    found = {record.where["lr"]: record.value for record in tuned.records("grid/accuracy")}
    config = configs.load(tuned.config_path)
    assert found[0.1] > found[100.0] + 0.2  # steps of length 100 leave nothing of the weights
    assert config.optim.lr == 0.1
    assert (config.model.name, config.data.image_size) == ("vit-digits", 8)
    assert config.grid.lr == (100.0, 0.1)
    (last,) = [record for record in tuned.records("val/accuracy") if record.where["step"] == 12]
    assert last.value > 0.5


def test_trials_hold_out_training_images_and_the_run_trains_on_all(tuned: RunDir) -> None:
    config = configs.load(tuned.config_path)
    trial = configs.load(tuned.path / "grid" / "lr-0.1" / "config.json")
    whole, part = open_source(config.data), open_source(trial.data)
    assert config.data.tune_share == 0
    assert trial.data.tune_share == 0.2
    assert len(part.train) + len(part.val) == len(whole.train)
    assert {image.tobytes() for image in part.val.images}.isdisjoint(image.tobytes() for image in whole.val.images)


def test_the_weights_as_they_are_are_scored_beside_it(tuned: RunDir) -> None:
    for name in ("features/knn_accuracy", "features/linear_accuracy"):
        (record,) = tuned.records(name)
        assert record.where["step"] == 0
        assert record.n == len(open_source(configs.load(tuned.config_path).data).val)
        assert record.value > 0.5


def test_an_interrupted_choice_goes_on_where_it_was(weights: Path, tmp_path, monkeypatch, capsys) -> None:
    trained = []

    def stopped_at_the_second(config: Config, folder: Path, runtime: object) -> trials.Trial:
        if len(trained) == 1:
            trained.append(0.0)
            raise Interrupted(2, 3)
        if trials.finished(config, folder) is None:
            trained.append(config.optim.lr)
        return trials.run_trial(config, folder, runtime)

    monkeypatch.setattr(transfer, "run_trial", stopped_at_the_second)
    with pytest.raises(SystemExit) as stopped:
        command.train(asked(weights, tmp_path))
    (run,) = tmp_path.iterdir()
    assert stopped.value.code == 130
    assert f"samovar train --resume {run}" in capsys.readouterr().err
    config, resumed, *_ = parse_train(["--resume", str(run)])
    command.train(config, resumed)
    assert trained == [100.0, 0.0, 0.1]
    assert configs.load(run / "config.json").optim.lr == 0.1
    before = len(list(RunDir(run).records()))
    command.train(*parse_train(["--resume", str(run)])[:2])  # all is there: nothing is chosen, trained or scored again
    assert trained == [100.0, 0.0, 0.1]
    assert len(list(RunDir(run).records())) == before


@pytest.mark.parametrize("mean", [(0.5,), (0.1,)])
def test_the_weights_normalization_is_taken_over_where_none_is_given(weights: Path, tmp_path, mean) -> None:
    moved = tmp_path / "weights"
    shutil.copytree(weights, moved)
    theirs = configs.load(moved / "config.json")
    configs.save(replace(theirs, model=replace(theirs.model, mean=(0.3,))), moved / "config.json")
    base = asked(moved, tmp_path)
    found = resolve(replace(base, model=replace(base.model, name="vit-digits", mean=mean)))
    assert found.model.mean == ((0.3,) if mean == (0.5,) else mean)


def test_what_was_resized_is_said(weights: Path, tmp_path, capsys) -> None:
    config = replace(asked(weights, tmp_path), grid=GridConfig(), steps=2)
    command.train(replace(config, data=replace(config.data, image_size=12)))
    out = capsys.readouterr().out
    assert "position embeddings resized from 2 x 2 to 3 x 3" in out
    assert "the classifier is new" in out


def test_a_run_that_has_begun_resumes_without_the_weights_it_began_from(weights: Path, tmp_path) -> None:
    moved = tmp_path / "weights"
    shutil.copytree(weights, moved)
    run = command.train(replace(asked(moved, tmp_path / "runs"), grid=GridConfig()))
    shutil.rmtree(moved)
    shutil.rmtree(RunDir(run.path).checkpoints / "step-00000012")
    command.train(*parse_train(["--resume", str(run.path)])[:2])
    assert (RunDir(run.path).checkpoints / "step-00000012" / "model.safetensors").is_file()


def test_a_grid_beside_another_held_out_share_is_refused(weights: Path, tmp_path) -> None:
    config = asked(weights, tmp_path)
    with pytest.raises(ValueError, match=r"--data.tune-share 0.1 does not go with --grid.lr"):
        configs.validate(replace(config, data=replace(config.data, tune_share=0.1)))


def test_a_grid_without_a_finite_result_is_one_line(weights: Path, tmp_path, monkeypatch) -> None:
    config = replace(asked(weights, tmp_path), grid=GridConfig(lr=(1e30, 1e35)))
    diverged = lambda config, folder, _: trials.Trial(folder, config, math.nan, math.nan, 12, 0.1, finite=False)  # noqa: E731
    monkeypatch.setattr(transfer, "run_trial", diverged)
    with pytest.raises(ValueError, match=r"--grid.lr 1e\+30 1e\+35: no rate gave a finite result; give smaller ones"):
        command.train(config)


def test_transfer_without_weights_is_refused_in_the_words_of_the_flag(tmp_path) -> None:
    config = replace(asked(Path("nowhere"), tmp_path), init="")
    with pytest.raises(ValueError, match=r"--model.name is not given, and there is no --init to take it from"):
        command.train(config)
