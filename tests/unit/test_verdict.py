"""`samovar tune --verdict`: each rule on both sides of its threshold, the gain, and what is missing."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest

from samovar import cli, recipes
from samovar import config as configs
from samovar.config import Config
from samovar.runs.records import Record, RunDir
from samovar.studies.tune.finished import RunFacts, pair_of, paired, read_runs
from samovar.studies.tune.verdict import FEW_CLIMBS, RULES, unmeasured, verdict
from tests.conftest import assert_refused

BASE = recipes.get("vit-digits-sam").config()


def facts(rho: float, seed: int = 0, *, config: Config = BASE, steps: int = 1000, **values: float) -> RunFacts:
    config = replace(config, sam=replace(config.sam, rho=rho), seed=seed)
    known = {"accuracy": 0.9, "train_loss": 0.1, "clean_loss": math.nan, "lambda_max": math.nan, "epochs": 50.0}
    return RunFacts(Path(f"run-{rho}-{seed}"), config, steps, **known | values)


def sam(**settings: float) -> Config:
    return replace(BASE, sam=replace(BASE.sam, **settings))


def fired(plain: RunFacts, climbed: RunFacts) -> list[str]:
    pair = paired([plain], [climbed])
    return [rule.__name__ for rule in RULES if rule(pair)]


# One pair of runs on each side of the threshold of each rule.
SIDES = {
    "underfitted": ((facts(0, train_loss=0.66), facts(0.1)), (facts(0, train_loss=0.64), facts(0.1))),
    "rho_too_large": (
        (facts(0), facts(0.1, train_loss=0.31, accuracy=0.89)),
        (facts(0), facts(0.1, train_loss=0.29, accuracy=0.89)),
    ),
    "never_started": ((facts(0), facts(0.1, config=sam(start=0.96))), (facts(0), facts(0.1, config=sam(start=0.94)))),
    "too_few_epochs": ((facts(0), facts(0.1, epochs=29.9)), (facts(0), facts(0.1, epochs=30.0))),
    "large_group": ((facts(0), facts(0.1, config=sam(m=129))), (facts(0), facts(0.1, config=sam(m=128)))),
    "not_flatter": (
        (facts(0, lambda_max=10.0), facts(0.1, lambda_max=9.1)),
        (facts(0, lambda_max=10.0), facts(0.1, lambda_max=8.9)),
    ),
}


def test_every_rule_has_its_two_sides() -> None:
    assert set(SIDES) == {rule.__name__ for rule in RULES}


@pytest.mark.parametrize("name", list(SIDES))
def test_a_rule_fires_on_one_side_of_its_threshold_alone(name: str) -> None:
    over, under = SIDES[name]
    assert fired(*over) == [name]
    assert fired(*under) == []


def test_a_higher_loss_with_a_gain_is_no_fault_of_rho() -> None:
    assert fired(facts(0), facts(0.1, train_loss=0.5, accuracy=0.91)) == []


def test_mixed_labels_silence_the_logged_loss_but_not_the_measured_one() -> None:
    mixed = replace(BASE, data=replace(BASE.data, mixup=0.2))
    runs = [facts(rho, config=mixed, train_loss=2.0) for rho in (0, 0.1)]
    assert fired(*runs) == []
    assert unmeasured(paired(runs[:1], runs[1:]))[0].startswith("Training loss:")
    assert fired(*(replace(run, clean_loss=0.7) for run in runs)) == ["underfitted"]


def test_steps_between_climbs_count_as_plain() -> None:
    assert facts(0.1, config=sam(every=5)).climbs == 0.2
    assert facts(0.1, config=sam(start=0.8)).climbs == 0.2
    assert facts(0.0).climbs == 0.0
    assert facts(0.1, config=sam(every=25)).climbs == 0.04 < FEW_CLIMBS


def test_the_pair_is_the_best_of_each_kind_at_the_greatest_common_length() -> None:
    runs = [
        facts(0, steps=100), facts(0.1, steps=100, accuracy=0.99), facts(0, steps=500, accuracy=0.8),
        facts(0.05, steps=500, accuracy=0.81), facts(0.2, steps=500, accuracy=0.83),
        facts(0.4, steps=500, accuracy=math.nan), facts(0.2, steps=900),
    ]  # fmt: skip
    pair = pair_of(runs)
    assert pair is not None
    assert (pair.plain[0].steps, pair.sam[0].rho) == (500, 0.2)
    assert pair.gains == pytest.approx([3.0])
    assert pair_of(runs[4:]) is None


# --- folders ---------------------------------------------------------------------------------------------------------


def write_trial(search: Path, rho: float, seed: int, accuracy: float | None, loss: float = 0.05) -> RunDir:
    """Write a finished trial of 1,000 steps as `samovar tune` does; without an accuracy it diverged."""
    config = replace(BASE, sam=replace(BASE.sam, rho=rho), seed=seed, steps=1000)
    run = RunDir(search / "trials" / f"rho-{rho}" / f"steps-1000-seed-{seed}")
    run.path.mkdir(parents=True)
    run.write_json("config.json", configs.to_dict(config))
    finite = accuracy is not None
    run.write_json("trial.json", {"accuracy": accuracy, "loss": 0.3, "steps": 1000, "seconds": 1.0, "finite": finite})
    run.append(Record("train/loss", 2.0, where={"step": 1}), Record("train/loss", loss, where={"step": 1000}))
    return run


def write_search(folder: Path, gains=(0.01, 0.02, 0.03), **options: float) -> Path:
    search = RunDir(folder)
    for seed, more in enumerate(gains):
        write_trial(folder, 0.0, seed, 0.9, **options)
        write_trial(folder, 0.1, seed, 0.9 + more)
    search.append(Record("tune/accuracy", 0.9, settings={"training_images": 1000}))
    return folder


def test_a_search_is_read_back_with_gain_interval_and_price(tmp_path, capsys) -> None:
    write_search(tmp_path)
    cli.main(["tune", "--verdict", str(tmp_path)])
    said = capsys.readouterr().out
    # mean 2, standard error 1 / sqrt(3), t quantile of 95 % for 2 degrees of freedom 2.92
    assert "by seed: +1.00, +2.00, +3.00 points; mean +2.00, 90 % interval +0.31 to +3.69, above 0." in said
    assert "SAM takes 2.00 times the gradients" in said
    assert "No cause found" in said
    assert "samovar measure RUN hessian" in said
    assert "--budget time" in said


def test_causes_are_told_from_the_last_logged_loss(tmp_path) -> None:
    said = verdict([write_search(tmp_path, gains=(-0.01, 0.01), loss=0.8)])
    assert "around 0, so undecided" in said[0]
    assert said[1].startswith("Underfitted: plain training ends at a training loss of 0.80 nats, above 0.65.")


def test_a_diverged_radius_is_named(tmp_path) -> None:
    write_trial(write_search(tmp_path), 2.0, 0, None)
    assert verdict([tmp_path])[0] == "Not finite: runs diverged at rho 2."


def test_without_plain_runs_the_gain_is_unknown(tmp_path) -> None:
    write_trial(tmp_path, 0.1, 0, 0.9)
    (said,) = verdict([tmp_path])
    assert said.startswith("Gain unknown: there are no finite runs without SAM")
    assert "--rho 0,0.05,0.1" in said


def test_runs_are_read_with_what_was_measured_on_them(tmp_path) -> None:
    for name, rho in {"plain": 0.0, "sam": 0.1}.items():
        run = RunDir.create(tmp_path, name)
        run.write_json("config.json", configs.to_dict(replace(BASE, sam=replace(BASE.sam, rho=rho))))
        run.write_json("progress.json", {"status": "done", "step": 900, "total": 1000})
        run.append(Record("train/loss", 0.2), Record("val/accuracy", 0.9 + rho), Record("hessian/lambda_max", 40.0))
    said = verdict([tmp_path / "plain", tmp_path / "sam"])
    assert "900 steps, by seed: +10.00 points. One seed decides nothing" in said[0]
    assert any(text.startswith("Not flatter: lambda_max is 40 with SAM and 40 without") for text in said)
    assert not any(text.startswith("lambda_max: not measured") for text in said)


def test_an_unfinished_trial_takes_no_part(tmp_path) -> None:
    run = write_trial(write_search(tmp_path), 0.2, 0, 0.99)
    (run.path / "trial.json").write_text(json.dumps({"seconds": 3.0}))
    assert len(read_runs([tmp_path])) == 6


# --- refusals --------------------------------------------------------------------------------------------------------


def test_runs_of_other_networks_are_refused(tmp_path, capsys) -> None:
    write_search(tmp_path)
    other = write_trial(tmp_path, 0.3, 0, 0.9)
    other.write_json("config.json", configs.to_dict(replace(BASE, model=replace(BASE.model, dropout=0.3))))
    assert_refused(f"tune --verdict {tmp_path}", "give runs of one network on the same data", capsys)


@pytest.mark.parametrize(
    ("args", "line"),
    [
        ("tune --verdict", "--verdict needs folders"),
        ("tune --verdict nowhere", "nowhere is no folder"),
        ("tune --verdict . --rho 0,0.1", "--verdict trains nothing, so --rho has no use"),
        ("tune --verdict . --optim.lr 0.1", "--verdict trains nothing, so --optim.lr has no use"),
    ],
)
def test_a_command_line_that_does_not_fit_is_refused(args: str, line: str, capsys) -> None:
    assert_refused(args, line, capsys)
