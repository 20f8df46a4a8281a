"""`samovar list runs` and `samovar show RUN`: what a run folder says of itself, and runs by name."""

from dataclasses import replace
from pathlib import Path

import pytest

from samovar import cli, recipes
from samovar import config as configs
from samovar.cli import list_recipes, named_run, show_run
from samovar.cli.export import parse as parse_export
from samovar.cli.measure import parse as parse_measure
from samovar.cli.predict import parse as parse_predict
from samovar.cli.report import parse as parse_report
from samovar.cli.train import parse as parse_train
from samovar.cli.tune import parse as parse_tune
from samovar.runs import progress
from samovar.runs.records import Record, RunDir


def make(name: str, accuracies: tuple[float, ...], *, recipe: str = "vit-digits-sam", sharp: float = 0.0,
         done: bool = True) -> RunDir:  # fmt: skip
    run = RunDir.create(Path("runs"), name)
    configs.save(replace(recipes.get(recipe).config(), seed=7), run.config_path)
    for step, value in enumerate(accuracies, 1):
        run.append(Record("val/accuracy", value, "1", n=100, where={"step": step, "split": "val"}))
    if sharp:
        run.append(Record("hessian/lambda_max", sharp, where={"step": 3}, settings={"measurement": "hessian"}))
    step = 10 if done else 4
    progress.write(run, progress.RunProgress("done" if done else "training", step, 10))
    return run


@pytest.fixture
def three(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    make("a", (0.5, 0.8, 0.7), sharp=6.43)
    make("b", (0.9,), recipe="vit-digits", sharp=76.0)
    make("c", (), done=False)


def rows(capsys) -> list[list[str]]:
    lines = capsys.readouterr().out.splitlines()
    return [line.split("  ") for line in lines[1:]]


def test_runs_are_listed_with_what_they_reached(three, capsys) -> None:
    cli.main(["list", "runs", "--sort", "name"])
    header, *lines = capsys.readouterr().out.splitlines()
    assert header.split() == ["name", "recipe", "when", "progress", "best", "accuracy", "lambda_max", "size"]
    assert "done" in lines[0]
    assert "80.00 %" in lines[0]
    assert "6.43" in lines[0]
    assert lines[2].startswith("c ")
    assert "stopped at 40 %" in lines[2]
    assert "nan" not in lines[2]


@pytest.mark.parametrize(
    ("flags", "names"),
    [("--sort accuracy", "bac"), ("--sort lambda_max", "abc"), ("--sort progress --filter sam", "ac"),
     ("--filter b", "b"), ("--sort recipe", "bac")],
)  # fmt: skip
def test_runs_are_sorted_and_filtered(flags: str, names: str, three, capsys) -> None:
    cli.main(["list", "runs", *flags.split()])
    assert [row[0].strip() for row in rows(capsys)] == list(names)


def test_no_runs_and_a_damaged_one_are_said(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit):
        cli.main(["list", "runs"])
    assert "there is no folder runs" in capsys.readouterr().err
    make("good", (0.5,))
    (tmp_path / "runs" / "good" / "records.jsonl").open("a").write('{"name": "val/accuracy", "va')
    bad = make("bad", (0.25,))
    bad.config_path.write_text("[")
    cli.main(["list", "runs", "--sort", "name"])
    found = rows(capsys)
    assert "damaged" in "".join(found[0])
    assert "50.00 %" in "".join(found[1])


def test_a_run_is_shown_by_how_it_went_then_by_what_differs_from_its_recipe(three, capsys) -> None:
    cli.main(["show", "a"])
    out = capsys.readouterr().out
    assert "status: done, step 10 of 10" in out
    assert "accuracy: 80.00 % at best, 70.00 % at last" in out
    assert "curve: ▁█▆  50.0 to 80.0 %" in out
    assert "measured: hessian" in out
    assert out.index("status:") < out.index("replay: samovar train vit-digits-sam --seed 7") < out.index("  --seed ")
    assert "--sam.rho" not in out
    cli.main(["show", "a", "--all"])
    assert "--sam.rho" in capsys.readouterr().out


def test_a_curve_has_one_bar_a_value_up_to_a_width() -> None:
    assert show_run.sparkline([0.0, 1.0]) == "▁█"
    assert show_run.sparkline([0.5, 0.5]) == "▄▄"
    assert show_run.sparkline([0.0, float("nan"), 1.0]) == "▁ █"
    assert len(show_run.sparkline(range(1000))) == show_run.COLUMNS


def test_a_run_is_found_by_its_name_and_never_hides_a_model_or_a_path(three, tmp_path) -> None:
    assert named_run.run_path("a") == "runs/a"
    assert named_run.run_path("nothing") == "nothing"
    for name in ("vit-b16", "resnet18"):
        make(name, ())
        assert named_run.run_path(name, models=True) == name
        assert named_run.run_path(name) == f"runs/{name}"
    assert parse_report(["a", "b"]).runs == [Path("runs/a"), Path("runs/b")]
    assert parse_measure(["a"]).subject == "runs/a"
    assert parse_export(["a", "--format", "timm"]).what == "runs/a"
    assert parse_predict(["a", "photo.jpg"]).what == "runs/a"
    (tmp_path / "a").mkdir()
    assert named_run.run_path("a") == "a"


def test_every_flag_that_takes_a_run_finds_it_by_its_name(three) -> None:
    make("resnet18", ())
    make("last", ())
    for verb in (["vit-digits"], ["--config", "a"], ["--resume", "a"]):
        assert parse_train([*verb, "--init", "b"]).config.init == "runs/b"
    assert parse_train(["vit-digits", "--init", "resnet18"]).config.init == "resnet18"  # timm's weights
    assert parse_train(["--config", "a"]).config == parse_train(["--config", "runs/a/config.json"]).config
    assert parse_train(["--config", "runs/a"]).config.seed == 7
    assert parse_train(["--branch", "a@last"]).origin == (Path("runs/a"), "last")
    assert parse_train(["--resume", "a"]).resumed == Path("runs/a")
    assert parse_tune(["vit-digits", "--rho", "0,0.1", "--init", "b"]).config.init == "runs/b"
    assert parse_tune(["--verdict", "a", "b"]).folders == (Path("runs/a"), Path("runs/b"))
    between = ["a", "landscape", "--landscape", "between", "--other"]
    assert parse_measure([*between, "b"]).config.other == "runs/b"
    assert parse_measure([*between, "last"]).config.other == "last"
    with pytest.raises(ValueError, match="--other nowhere is no run folder and no step of runs/a; give one"):
        parse_measure([*between, "nowhere"])


def test_a_recipe_goes_first_and_says_that_a_run_has_its_name(three, capsys) -> None:
    make("vit-digits", ())
    cli.main(["show", "vit-digits"])
    assert capsys.readouterr().out.startswith("(a run has this name too: samovar show runs/vit-digits)")


def test_models_of_timm_are_shown(capsys) -> None:
    cli.main(["show", "vit_tiny_patch16_224"])
    out = capsys.readouterr().out
    assert "5,717,416 parameters with 3 x 224 x 224 images, 1000 classes, patch 16, width 192, depth 12" in out
    assert "vit_tiny_patch16_224.augreg_in21k" in out
    with pytest.raises(SystemExit):
        cli.main(["show", "vit_tiny_patch16_225"])
    assert "did you mean vit_tiny_patch16_224?" in capsys.readouterr().err


def test_every_recipe_is_in_one_family(capsys) -> None:
    found = list_recipes.families()
    names = [name for head, endings in found.items() for name in (head, *(f"{head}-{end}" for end in endings))]
    assert sorted(names) == sorted(recipes.RECIPES)
    cli.main(["list", "recipes"])
    out = capsys.readouterr().out
    assert len(out.splitlines()) < 50
    first, second, third, *_ = out.splitlines()
    assert [line.split()[0] for line in (first, second, third)] == ["photos", "transfer", "vit-digits"]
    assert all(f"  {head} " in out or f"  {head}\n" in out for head in found)
