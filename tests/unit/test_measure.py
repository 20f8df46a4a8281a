"""`samovar measure`: the right weights on the right images, stated in the records, and nothing measured twice."""

import io
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rich.console import Console

from samovar import config as configs
from samovar import recipes
from samovar.cli.measure import HELP
from samovar.config import MeasureConfig, RunConfig
from samovar.measure import catalog, command, watch
from samovar.measure.subject import open_subject
from samovar.runs.records import Record, RunDir
from samovar.runtime import Runtime
from samovar.train.fit import fit, prepare
from tests.conftest import assert_refused

CPU = Runtime(torch.device("cpu"), torch.float32)
NAMES = list(catalog.CATALOG)


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> RunDir:
    """A short run with averaged weights, watched every four steps."""
    base = recipes.get("vit-digits-sam").config()
    config = replace(
        base,
        steps=8,
        optim=replace(base.optim, warmup_steps=2, ema=0.5),
        run=RunConfig(eval_every=4, watch_every=4, watch_images=50, threads=1),
    )
    run = RunDir.create(tmp_path_factory.mktemp("runs"), "r")
    configs.save(config, run.config_path)
    list(fit(config, run, CPU, *prepare(config, CPU)))
    return run


def small(**changes) -> MeasureConfig:
    return replace(
        MeasureConfig(images=40, max_steps=30, probes=2, density_steps=6, draws=2, ascent_steps=2), **changes
    )


def test_the_command_line_knows_every_measurement() -> None:
    assert tuple(NAMES) == catalog.names()
    assert all(name in HELP for name in NAMES)
    assert all(catalog.load(name).__doc__ for name in NAMES)


@pytest.mark.parametrize("name", [name for name in NAMES if name != "testset"])  # which needs files of its own
def test_every_measurement_yields_records_that_state_their_protocol(run, name, tmp_path) -> None:
    config = small(ntk_batch=8, ntk_batches=2, split=catalog.default_split(name))
    subject = open_subject(str(run.path), config, CPU)
    before = {key: value.clone() for key, value in subject.model.state_dict().items()}
    records = list(command.measure(name, subject, config, tmp_path))
    assert records
    for record in records:
        assert record.settings["images"] == len(subject.batches.split)
        assert record.settings["augmentation"] == "none"
        assert record.settings["loss"] == "softmax"
        assert record.settings["weights"].startswith("average of step-")
        assert record.where["step"] in (4, 8)
    assert records[0].cost["seconds"] >= 0  # numbers that come of the same computation have no cost of their own
    assert all(torch.equal(before[key], value) for key, value in subject.model.state_dict().items())


def test_what_was_measured_is_not_measured_again_unless_asked_otherwise(run, monkeypatch) -> None:
    config = small(checkpoint="last")
    subject = open_subject(str(run.path), config, CPU)
    first = command.measure_once("flatness", subject, config, run)
    calls = []
    monkeypatch.setattr(command, "measure", lambda *args: calls.append(args) or iter(()))
    assert command.measure_once("flatness", subject, config, run) == first
    assert not calls
    command.measure_once("flatness", subject, replace(config, sigma=0.01), run)
    other = replace(config, checkpoint="4")
    command.measure_once("flatness", open_subject(str(run.path), other, CPU), other, run)
    other = replace(config, loss="sigmoid")
    command.measure_once("flatness", open_subject(str(run.path), other, CPU), other, run)
    assert len(calls) == 3


def test_an_interruption_keeps_what_is_done(run, monkeypatch, capsys) -> None:
    def interrupted(*args):
        raise KeyboardInterrupt

    config = small(seed=5, threads=1, workers=0)
    monkeypatch.setattr("samovar.measure.hessian.trace", interrupted)
    with pytest.raises(SystemExit) as caught:
        command.run(str(run.path), ["flatness", "trace"], config)
    assert caught.value.code == 130
    assert "the same command goes on from here" in capsys.readouterr().err
    assert [r for r in run.records("flatness/average_flatness") if r.settings["seed"] == 5]


def test_an_eigenvalue_that_did_not_converge_is_recorded_with_its_residual(run, tmp_path) -> None:
    config = small(max_steps=1, tol=1e-9)
    subject = open_subject(str(run.path), config, CPU)
    (record,) = command.measure("hessian", subject, config, tmp_path)
    assert not record.converged
    assert record.residual is not None
    assert record.residual > 0
    text = command.table_of([record], subject)
    assert "not converged" in text.columns[1]._cells[0]


def test_a_table_has_units_and_whole_names_at_any_width_and_shares_in_per_cent(run) -> None:
    subject = open_subject(str(run.path), small(), CPU)
    fixed = {"where": {"split": "val"}, "settings": {"images": 20}}
    records = [
        Record("accuracy/top1", 0.9551, "1", 0.011, 20, **fixed),
        Record("flatness/average_flatness", 1.084, "nats", 0.018, 10, **fixed),
        Record("hessian/lambda_max", 76.25, residual=0.5, **fixed),
        *(Record("robustness/a_name_that_is_longer_than_its_column", k / 100, "1", n=20, **fixed) for k in range(30)),
    ]
    for width in (40, 60, 120):
        console = Console(width=width, file=io.StringIO())
        console.print(command.table_of(records, subject))
        rows = console.file.getvalue().splitlines()
        # a cell goes on in the row below
        columns = [[row.split("│")[at].strip() for row in rows if row.count("│") == 7] for at in range(1, 7)]
        text = ["".join(column).replace(" ", "") for column in columns]
        assert "…" not in "".join(rows)
        assert all(record.name in text[0] for record in records)
        assert "95.51%" in text[1]
        assert "1.084nats" in text[1]
        assert "76.25" in text[1]
        assert "0to29%" in text[1]
        assert "±1.1%" in text[2]
        assert "±0.018nats" in text[2]
        assert "residual0.5" in text[2]


def test_a_device_that_is_not_there_is_named_by_the_flag_of_measure(run, capsys) -> None:
    assert_refused(f"measure {run.path} --device cuda:99", "--device cuda:99 asks for GPU 99", capsys)


def test_lambda_max_of_a_run_is_the_dense_hessians(run, tmp_path) -> None:
    config = small(images=20, dtype="float64", tol=1e-8, max_steps=60, params=("body.head.bias",))
    subject = open_subject(str(run.path), config, CPU)
    (record,) = command.measure("blocks", subject, config, tmp_path)
    images, labels = next(iter(subject.batches)).images.double(), next(iter(subject.batches)).labels
    model = subject.model.double()
    head = model.body.head

    def loss(bias: torch.Tensor) -> torch.Tensor:
        logits = torch.func.functional_call(model, {"body.head.bias": bias}, (images,))
        return torch.nn.functional.cross_entropy(logits, labels)

    dense = torch.autograd.functional.hessian(loss, head.bias.detach())
    assert record.value == pytest.approx(torch.linalg.eigvalsh(dense)[-1].item(), rel=1e-7)


def test_a_model_by_name_gets_a_folder_of_its_own(tmp_path, capsys) -> None:
    config = small(output=tmp_path, name="m", image_size=8, ntk_head="random", ntk_batch=8, ntk_batches=1, workers=0)
    folder = command.run("mixer-digits", ["ntk"], config)
    (record,) = folder.records()
    assert record.settings["weights"] == "initialisation"
    assert record.value > 1
    assert command.run("mixer-digits", ["ntk"], config).path == folder.path
    assert len(list(folder.records())) == 1


@pytest.mark.parametrize(
    ("args", "line"),
    [
        ("measure", "measure needs a run folder or a model"),
        ("measure vit-digits hesian", "cannot measure 'hesian'; did you mean hessian?"),
        ("measure nowhere-at-all", "unknown model 'nowhere-at-all'"),
        ("measure vit-digits --k 200", "--k 200 is more than --max-steps 100"),
        ("measure vit-digits --sigma -1", "--sigma -1.0 is out of range"),
        ("measure vit-digits --ntk-output all", "--ntk-output all is unknown"),
        ("measure vit-digits --image-size 8 ntk", "ntk"),
        ("measure vit-digits ntk --image-size 8 --images 20", "head is all zero"),
        ("measure vit-digits --sourc digits", "unknown flag --sourc; did you mean --source?"),
        ("measure vit-digits blocks --params nothing.like.it", "no parameter fits 'nothing.like.it'"),
    ],
)
def test_bad_input_is_one_line(args, line, capsys, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert_refused(args, line, capsys)


def test_a_checkpoint_that_is_not_there_names_those_that_are(run, tmp_path) -> None:
    with pytest.raises(ValueError, match="--checkpoint 5 is not there; give best, last, init or one of 4, 8"):
        open_subject(str(run.path), small(checkpoint="5"), CPU)
    with pytest.raises(ValueError, match="is no run"):
        open_subject(str(tmp_path), small(), CPU)


def test_a_watched_run_records_the_edge_of_stability_and_trains_the_same(run, tmp_path) -> None:
    for name in ("lambda_max", "grad_norm", "sam_sharpness", "stability_threshold"):
        assert [record.where["step"] for record in run.records(f"watch/{name}")] == [4, 8]
    config = configs.load(run.config_path)
    plain = replace(config, run=replace(config.run, watch_every=0))
    other = RunDir.create(tmp_path, "r")
    list(fit(plain, other, CPU, *prepare(plain, CPU)))
    files = [folder.checkpoints / "step-00000008" / "model.safetensors" for folder in (run, other)]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_the_stability_threshold_solves_its_equation() -> None:
    assert watch.threshold(0.1, 0.0, 1.0) == 20
    edge = watch.threshold(0.1, 0.05, 2.0)
    assert 0.1 * edge * (1 + 0.05 * edge / 2.0) == pytest.approx(2)
    assert edge < 20
    assert watch.threshold(0.1, 1e-12, 1.0) == pytest.approx(20, rel=1e-6)


@pytest.mark.trains
def test_the_demo_prints_both_twins_and_writes_a_report_that_lacks_nothing_it_measured(
    tmp_path, monkeypatch, capsys
) -> None:
    from samovar.studies import demo

    real = recipes.get
    short = {"epochs": 1, "steps": 6}

    def shortened(name: str):
        recipe = real(name)
        config = recipe.config()
        config = replace(config, **short, optim=replace(config.optim, warmup_steps=2))
        return replace(recipe, make=lambda: config)

    monkeypatch.setattr(recipes, "get", shortened)
    monkeypatch.setenv("COLUMNS", "160")
    # no processes, whose start takes longer than the work; what they compute is the same, as other tests show
    monkeypatch.setattr("samovar.measure.robustness.num_workers", lambda _: 0)
    few = {"images": 20, "points": 3, "corruption_images": 2, "draws": 2, "max_steps": 4}
    monkeypatch.setattr(demo, "SETTINGS", replace(demo.SETTINGS, **few))
    runs = demo.demo(Path(tmp_path), seed=0)
    out = capsys.readouterr().out
    assert "lambda_max of the Hessian" in out
    assert "average loss under weight noise" in out
    assert "accuracy on corrupted images" in out
    assert all(str(run.path) in out.replace("\n", "") for run in runs)
    page = (tmp_path / "demo-seed0.html").read_text(encoding="utf-8")
    assert all(f"samovar measure {run.path} {name}<" not in page for run in runs for name in demo.MEASURED)
    assert f"samovar measure {runs[0].path} density" in page


def test_a_measurement_that_was_cut_short_is_done_again(run) -> None:
    config = small(checkpoint="4", seed=11)
    subject = open_subject(str(run.path), config, CPU)
    whole = command.measure_once("sharpness", subject, config, run)
    lines = run.records_path.read_text().splitlines(keepends=True)
    run.records_path.write_text("".join(lines[:-1]) + lines[-1][:40])  # as a kill in the middle of a write leaves it
    again = command.measure_once("sharpness", subject, config, run)
    assert [r.value for r in again] == [r.value for r in whole]
    assert command.measure_once("sharpness", subject, config, run) == list(run.records())[-3:]


def test_arrays_of_older_records_stay_as_they_were(run) -> None:
    config = small(checkpoint="4", seed=12)
    subject = open_subject(str(run.path), config, CPU)
    first = command.measure_once("density", subject, config, run)[0]
    before = (run.path / first.arrays).read_bytes()
    other = replace(config, density_steps=5)
    second = command.measure_once("density", subject, other, run)[0]
    assert first.arrays != second.arrays
    assert (run.path / first.arrays).read_bytes() == before


@pytest.mark.parametrize("name", [name for name in NAMES if name not in ("testset", "trace", "density")])
def test_what_is_done_is_found_again_whatever_the_loss(run, name, monkeypatch) -> None:
    config = small(
        checkpoint="4", loss="sigmoid", seed=13, points=3, corruption_images=5, severities=(2,),
        split=catalog.default_split(name),
    )  # fmt: skip
    subject = open_subject(str(run.path), config, CPU)
    first = command.measure_once(name, subject, config, run)
    monkeypatch.setattr(command, "measure", lambda *args: pytest.fail("measured again"))
    assert command.measure_once(name, subject, config, run) == first


def test_a_run_on_images_of_other_classes_is_one_line(run, capsys, tmp_path) -> None:
    from PIL import Image

    for number in range(4):
        (tmp_path / f"c{number % 2}").mkdir(exist_ok=True)
        Image.new("RGB", (8, 8)).save(tmp_path / f"c{number % 2}" / f"{number}.png")
    assert_refused(f"measure {run.path} hessian --source folder:{tmp_path}", "do not fit images of folder:", capsys)
    assert_refused(f"measure {run.path} hessian --image-size 64", "was trained at 8 px", capsys)
    assert_refused(f"measure {run.path} attack --attack-norm 2", "almost nothing as a Euclidean length", capsys)
    assert_refused(f"measure {run.path} robustness --corruptions foggy", "--corruptions foggy is unknown", capsys)
