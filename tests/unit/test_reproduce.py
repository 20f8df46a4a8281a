"""reproduce: the studies are whole, the claims are tested as stated, the plan says what will be run."""

import contextlib
import json
import math
import shlex
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from samovar import cli, recipes
from samovar import config as configs
from samovar.cli.reproduce import parse as parse_reproduce
from samovar.cli.train import parse as parse_train
from samovar.recipes.regimes import FRACTIONS
from samovar.runs.records import Record, RunDir
from samovar.runtime.lock import locked
from samovar.studies.claims import decide, difference, larger_gain, ratio
from samovar.studies.columns import COLUMNS
from samovar.studies.jobs import Measured, command_of
from samovar.studies.reproduce.paper import is_unverified, paper_number
from samovar.studies.reproduce.plan import ReproduceJob, ReproduceRequest, check, claims_of, jobs_of
from samovar.studies.reproduce.rows import Row, config_of, name_of
from samovar.studies.reproduce.scales import SCALES
from samovar.studies.reproduce.studies import STUDIES
from samovar.studies.running import Done, is_done, records_of, run_all, run_job

pytestmark = pytest.mark.costly

EVERY = [(name, scale) for name in STUDIES for scale in SCALES if STUDIES[name].rows(SCALES[scale])]
MORE, LESS = ("a", "x"), ("b", "x")


def asked(*names: str, scale: str = "digits", seeds: int = 2, **changes) -> ReproduceRequest:
    return ReproduceRequest(names, scale, seeds, Path("runs/r"), changes, {})


@pytest.mark.parametrize(("name", "scale"), EVERY)
def test_every_study_finds_all_that_its_claims_are_about(name: str, scale: str) -> None:
    study, at = STUDIES[name], SCALES[scale]
    rows, columns = study.rows(at), study.columns(at)
    cells = {(row.key, column) for row in rows for column in columns}
    assert all(cell in cells for claim in study.claims(at) for cell in claim.cells)
    assert len({claim.text for claim in study.claims(at)}) == len(study.claims(at))
    assert len({name_of(row, at) for row in rows}) == len({row.key for row in rows}) == len(rows)
    assert set(columns) <= set(COLUMNS)


@pytest.mark.parametrize("scale", SCALES)
def test_every_run_has_settings_that_fit_each_other_and_differs_from_its_twin_in_rho_alone(scale: str) -> None:
    for study in STUDIES.values():
        for row in study.rows(SCALES[scale]):
            config = config_of(row, SCALES[scale])
            configs.validate(config)
            if row.sam and row.rho_factor == 1:
                twin = config_of(Row(row.family, False, row.words, row.contrastive, model=row.model), SCALES[scale])
                assert set(configs.differences(config, twin)) <= {"recipe", "sam.rho"}
                assert config.sam.rho > 0 == twin.sam.rho


@pytest.mark.parametrize("name", ["table1", "table2", "table4", "table5", "contrastive"])
def test_at_the_papers_scale_the_runs_are_the_papers_recipes(name: str) -> None:
    for row in STUDIES[name].rows(SCALES["imagenet"]):
        known = name_of(row, SCALES["imagenet"])
        assert config_of(row, SCALES["imagenet"]) == recipes.get(known).config()


# --- claims ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(40))
def test_a_verdict_is_that_of_a_one_sided_t_test(seed: int) -> None:
    rng = np.random.default_rng(seed)
    values = rng.normal(rng.normal(), 1.0, size=rng.integers(2, 6))
    found = decide(difference("", MORE, LESS), [{MORE: 3 + v, LESS: 3.0} for v in values], {})
    above = stats.ttest_1samp(values, 0.0, alternative="greater").pvalue
    below = stats.ttest_1samp(values, 0.0, alternative="less").pvalue
    assert found.verdict == ("held" if above < 0.05 else "not held" if below < 0.05 else "undecided")
    assert found.value == pytest.approx(values.mean())


def test_a_ratio_is_tested_on_logarithms_against_its_own_threshold() -> None:
    seeds = [{MORE: 8.0 * f, LESS: 2.0} for f in (0.98, 1.0, 1.03)]
    assert decide(ratio("", MORE, LESS), seeds, {}).verdict == "held"
    assert decide(ratio("", MORE, LESS, above=3), seeds, {}).verdict == "held"
    assert decide(ratio("", MORE, LESS, above=5), seeds, {}).verdict == "not held"
    found = decide(ratio("", MORE, LESS), seeds, {MORE: 700.0, LESS: 20.0})
    assert found.value == pytest.approx(4 * (0.98 * 1.03) ** (1 / 3))
    assert found.paper == pytest.approx(35.0)


def test_one_seed_decides_nothing_and_none_is_said_so() -> None:
    claim = difference("", MORE, LESS)
    assert decide(claim, [{MORE: 9.0, LESS: 0.0}], {}).verdict == "undecided"
    assert decide(claim, [{MORE: 9.0}, {LESS: 1.0}], {}).verdict == "not measured"


def test_where_a_seed_lacks_a_number_nothing_is_decided() -> None:
    seeds = [{MORE: 5.0, LESS: 1.0}, {MORE: 5.1, LESS: 1.0}]
    assert decide(difference("", MORE, LESS), seeds, {}).verdict == "held"
    found = decide(difference("", MORE, LESS), [*seeds, {MORE: math.nan, LESS: 1.0}], {})
    assert (found.seeds, found.asked, found.verdict) == (2, 3, "undecided")
    negative = decide(ratio("", MORE, LESS), [*seeds, {MORE: -5.0, LESS: 1.0}], {})
    assert (negative.seeds, negative.verdict) == (2, "undecided")


def test_a_gain_that_is_the_same_in_all_seeds_says_nothing_of_chance() -> None:
    seeds = [{MORE: 50.2, LESS: 50.0}, {MORE: 50.4, LESS: 50.2}]
    assert decide(difference("", MORE, LESS), seeds, {}).verdict == "undecided"


def test_a_larger_gain_is_a_difference_of_differences() -> None:
    claim = larger_gain("", (MORE, LESS), (("c", "x"), ("d", "x")))
    assert claim.contrast({MORE: 5, LESS: 2, ("c", "x"): 4, ("d", "x"): 3}) == 2


def test_the_claims_of_the_paper_hold_for_its_own_numbers() -> None:
    refuted = set()
    for name, study in STUDIES.items():
        scale = SCALES["imagenet"]
        paper = {
            (r.key, c): paper_number(name, r, c, scale) for r in study.rows(scale) for c in study.columns(scale)
        }  # fmt: skip
        for claim in study.claims(scale):
            value = claim.contrast(paper)
            if math.isfinite(value) and value <= (math.log(claim.above) if claim.ratio else claim.above):
                refuted.add(claim.text)
    assert not refuted


# --- the paper's numbers ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "row", "column", "expected"),
    [
        ("table1", Row("vit", True), "top1", 79.9),
        ("table1", Row("resnet"), "lambda_max", 179.8),
        ("table1", Row("resnet", True), "lambda_max", 42.0),
        ("table1", Row("mixer"), "kappa", 14468.0),
        ("table2", Row("resnet", model="resnet50"), "top1", 76.0),
        ("table2", Row("mixer", True), "corruption", 48.8),
        ("table3", Row("mixer"), "embedding", 1042.3),
        ("table4", Row("vit", True, ("half", "aug")), "top1", 75.8),
        ("table4", Row("resnet"), "top1", 78.5),
        ("table5", Row("mixer", False, ("adversarial",)), "pgd", 42.5),
        ("table6", Row("vit", True, transfer="cifar100"), "top1", 89.1),
        ("figure2", Row("mixer", True), "active1", 8.5),
        ("rho", Row("mixer", True), "top1", 77.4),
        ("rho", Row("vit", True, rho_factor=0.25), "top1", 77.5),
        ("contrastive", Row("vit", True, contrastive=True), "top1", 80.0),
    ],
)
def test_the_paper_stands_beside_ours(name: str, row: Row, column: str, expected: float) -> None:
    assert paper_number(name, row, column, SCALES["imagenet"]) == expected


def test_where_the_paper_has_no_number_none_is_made_up() -> None:
    at = SCALES["imagenet"]
    assert math.isnan(paper_number("sgd", Row("vit", True, ("sgd",)), "top1", at))
    assert math.isnan(paper_number("table4", Row("resnet", False, ("aug",)), "top1", at))
    assert math.isnan(paper_number("table2", Row("vit", model="vit-cifar-s"), "top1", SCALES["cifar"]))


def test_numbers_of_later_versions_alone_are_marked() -> None:
    at = SCALES["imagenet"]
    assert is_unverified("table1", Row("resnet", True), "lambda_max", at)
    assert is_unverified("table1", Row("vit"), "flatness", at)
    assert not is_unverified("table1", Row("resnet", True), "top1", at)
    assert not is_unverified("table1", Row("vit", True), "lambda_max", at)


# --- what is looked up ---


@pytest.fixture(scope="module")
def done(tmp_path_factory) -> ReproduceJob:
    """A short run of digits, measured."""
    output = tmp_path_factory.mktemp("runs")
    found = ReproduceRequest(
        ("sgd",), "digits", 1, output, {"epochs": 1.0}, {"images": 20, "max_steps": 3}, rows=("vit",)
    )
    (task,) = jobs_of(found)
    run_job(task)
    return task


def test_only_what_the_study_asked_for_gets_into_its_table(done: ReproduceJob) -> None:
    before = records_of(done)
    assert {record.name for record in before} >= {"val/accuracy", "hessian/lambda_max"}
    (sharp,) = [record for record in before if record.name == "hessian/lambda_max"]
    run = RunDir(done.folder)
    other = {"request": sharp.settings["request"].replace("max_steps=3", "max_steps=4")}
    run.append(
        replace(sharp, value=1.0, settings=sharp.settings | other),
        replace(sharp, value=2.0, settings=sharp.settings | {"weights": "initialisation"}),
        replace(sharp, value=3.0, settings=sharp.settings | {"images": 30}),
        Record("val/accuracy", 0.99, where={"step": 1}),
    )
    assert records_of(done) == before


def test_a_measurement_under_other_settings_is_taken_anew_and_kept_apart(done: ReproduceJob) -> None:
    (measured,) = done.measurements
    assert is_done(done)
    other = replace(done, measurements=(Measured("hessian", replace(measured.config, images=10)),))
    assert not is_done(other)
    run_job(other)
    lambdas = [
        [record.value for record in records_of(task) if record.name == "hessian/lambda_max"] for task in (done, other)
    ]
    assert [len(values) for values in lambdas] == [1, 1]
    assert lambdas[0] != lambdas[1]


def test_a_run_that_another_command_is_at_comes_last(done: ReproduceJob, tmp_path) -> None:
    first, second = (replace(done, config=replace(done.config, output=tmp_path, name=name)) for name in "ab")
    for job in (first, second):
        shutil.copytree(done.folder, job.folder)
        (job.folder / "reproduced.json").write_text(json.dumps({"steps": 5}))  # still to be measured
    ended = []
    with contextlib.ExitStack() as other:
        other.enter_context(locked(first.folder, "measure"))
        assert run_job(first, wait=False).busy

        def show(found: Done) -> None:
            ended.append(found.job)
            other.close()  # the other command ends once the second job is done here

        run_all([first, second], at_a_time=1, on_done=show)
    assert ended == [second, first]
    assert is_done(first)
    assert is_done(second)


def test_what_another_command_has_done_meanwhile_is_not_done_again(done: ReproduceJob, monkeypatch) -> None:
    before = (done.folder / "records.jsonl").read_bytes()
    monkeypatch.setattr("samovar.studies.running.is_done", lambda job: False)  # as it was before the wait
    run_job(done)
    assert (done.folder / "records.jsonl").read_bytes() == before


def test_of_a_run_that_diverged_no_number_counts(done: ReproduceJob, tmp_path) -> None:
    copy = replace(done, config=replace(done.config, output=tmp_path))
    shutil.copytree(done.folder, copy.folder)
    (copy.folder / "reproduced.json").write_text(json.dumps({"diverged": "it did"}))
    assert is_done(copy)
    assert records_of(copy) == []
    assert run_job(copy).diverged == "it did"


def test_a_fine_tuning_from_a_run_that_diverged_says_so(tmp_path) -> None:
    origin = tmp_path / "vit-digits-seed0"
    origin.mkdir()
    (origin / "reproduced.json").write_text(json.dumps({"diverged": "it did"}))
    config = replace(recipes.get("vit-digits").config(), output=tmp_path, name="tuned", init=str(origin))
    found = run_job(ReproduceJob(config, (), Row("vit", transfer="digits"), 0))
    assert "the run that it starts from, vit-digits-seed0, diverged" in found.diverged


def test_a_run_in_the_way_of_a_study_is_left_alone(tmp_path) -> None:
    (tmp_path / "sgd").mkdir()
    configs.save(recipes.get("vit-digits").config(), tmp_path / "sgd" / "config.json")
    with pytest.raises(ValueError, match="sgd is a run, and a study would be written there; give another --output"):
        check(ReproduceRequest(("sgd",), "digits", 1, tmp_path, {}, {}))


# --- columns ---------------------------------------------------------------------------------------------------------


def norm(index: int, value: float) -> Record:
    return Record("inside/activation_norm", value, where={"block": f"blocks.{index}", "index": index})


def test_columns_pick_the_first_middle_and_last_block_of_any_depth() -> None:
    records = [norm(index, float(index)) for index in range(5)]
    assert [COLUMNS[f"activation{k}"].value(records) for k in (1, 6, 12)] == [0.0, 2.0, 4.0]
    sharp = [
        Record("hessian/block_lambda_max", value, where={"block": block})
        for block, value in (("embedding", 9.0), ("token_mlp", 8.0), ("block1", 3.0), ("block2", 2.0), ("block4", 1.0))
    ]
    assert [COLUMNS[name].value(sharp) for name in ("block1", "block6", "block12")] == [3.0, 2.0, 1.0]
    assert COLUMNS["token_mixing"].value(sharp) == 8.0


def test_the_active_share_of_a_mixers_block_is_the_mean_of_its_layers() -> None:
    records = [
        Record("inside/active_fraction", value, where={"block": block, "layer": layer})
        for block, layer, value in (
            ("blocks.0", "mlp_tokens", 0.2), ("blocks.0", "mlp_channels", 0.4), ("blocks.1", "mlp_tokens", 0.9)
        )
    ]  # fmt: skip
    assert COLUMNS["active1"].value(records) == pytest.approx(30.0)
    assert COLUMNS["active12"].value(records) == pytest.approx(90.0)


def test_what_did_not_converge_is_no_number() -> None:
    assert math.isnan(COLUMNS["lambda_max"].value([Record("hessian/lambda_max", 5.0, converged=False)]))
    assert math.isnan(COLUMNS["lambda_max"].value([]))


# --- the plan --------------------------------------------------------------------------------------------------------


def test_tables_share_their_runs_and_each_is_measured_for_both() -> None:
    tasks = jobs_of(asked("table1", "table3"))
    assert len(tasks) == 12
    assert len({task.folder for task in tasks}) == 12
    vit = next(task for task in tasks if task.row == Row("vit"))
    assert {each.name for each in vit.measurements} >= {"hessian", "blocks", "ntk", "activations"}
    resnet = next(task for task in tasks if task.row == Row("resnet"))
    assert "blocks" not in {each.name for each in resnet.measurements}


def test_what_is_fine_tuned_comes_after_what_it_starts_from() -> None:
    tasks = jobs_of(asked("table6", scale="cifar10k"))
    folders = [str(task.folder) for task in tasks]
    started = [task for task in tasks if task.config.init]
    assert len(started) == len(tasks) / 2
    assert all(folders.index(task.config.init) < folders.index(str(task.folder)) for task in started)


@pytest.mark.costly
@pytest.mark.parametrize(("name", "scale"), [("table1", "digits"), ("table4", "cifar10k"), ("table6", "cifar10k"),
                                             ("table2", "imagenet"), ("rho", "cifar")])  # fmt: skip
def test_the_commands_of_a_plan_train_its_runs(name: str, scale: str, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    for task in jobs_of(asked(name, scale=scale, seeds=1, **{"data.root": Path("there")})):
        words = shlex.split(shlex.join(command_of(task)))
        if "transfer" in words:  # whose recipe counts the images of the source it is given
            continue
        config, *_ = parse_train(words[2:])
        assert not configs.differences(config, task.config)


def test_rows_can_be_chosen_and_only_claims_about_them_are_made() -> None:
    found, _ = parse_reproduce(["table4", "--scale", "digits", "--rows", "vit*quarter*,vit,vit-sam", "--seeds", "1"])
    assert {task.row.key for task in jobs_of(found)} == {
        "vit", "vit-sam", "vit-quarter", "vit-quarter-sam", "vit-quarter-aug", "vit-quarter-aug-sam"
    }  # fmt: skip
    assert [claim.text for claim in claims_of("table4", found)] == [
        "SAM raises the accuracy of ViT",
        "SAM raises the accuracy of ViT, a quarter of the images",
        "SAM's gain for ViT is larger on a quarter than on all",
    ]


def test_a_flag_counts_though_its_value_be_the_default() -> None:
    found, _ = parse_reproduce(["table1", "--scale", "digits", "--epochs", "1", "--measure.images", "0"])
    assert (dict(found.changes), dict(found.measure)) == ({"epochs": 1.0}, {"images": 0})
    assert all(task.config.epochs == 1 for task in jobs_of(found))


def test_fewer_epochs_warm_up_for_fewer_steps() -> None:
    tasks = jobs_of(asked("table1", seeds=1, epochs=30.0))
    assert {task.config.optim.warmup_steps for task in tasks} == {4}  # a tenth of 300 epochs; of 42 steps


# --- bad input -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["table9", "--scale", "digits"], "cannot reproduce 'table9'"),
        (["table1"], "--scale is missing; give one of: digits, cifar10k, cifar, imagenet"),
        (["table1", "--scale", "imagnet"], "--scale imagnet is unknown"),
        (["--scale", "digits"], "reproduce needs a table or figure; give some of: table1"),
        (["table1", "--scale", "digits", "--seeds", "0"], "--seeds 0 is out of range"),
        (["table1", "--scale", "digits", "--sam.rho", "1"], "--sam.rho is set by reproduce"),
        (["sgd", "--scale", "digits", "--optim.name", "sgd"], "--optim.name is set by reproduce"),
        (["table1", "--scale", "digits", "--measure.images", "-5"], "--measure.images -5"),
        (["table1", "--scale", "digits", "--measure.imags", "5"], "--measure.imags; did you mean --measure.images?"),
        (["table1", "--scale", "digits", "--rows", "vti*"], "--rows vti* fits no row of table1; it has vit, vit-sam"),
        (["table6", "--scale", "digits"], "table6 has nothing to train at --scale digits; give --scale cifar10k"),
        (["table1", "--scale", "digits", "--testset", "imagenet-r:x"], "--testset needs ImageNet's classes"),
        (["table1", "--scale", "digits", "--epoch", "1"], "unknown flag --epoch; did you mean --epochs?"),
        (["table1", "--scale", "imagenet", "--data.source", "imagenet:nowhere"], "nowhere"),
    ],
)
def test_bad_input_is_one_clear_line(words: list[str], message: str, capsys, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        cli.main(["reproduce", *words])
    assert stop.value.code == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_an_unknown_table_is_answered_with_all_there_are(capsys) -> None:
    with pytest.raises(SystemExit):
        cli.main(["reproduce", "tabel1", "--scale", "digits"])
    said = capsys.readouterr().err
    assert all(name in said for name in STUDIES)


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize(("word", "parts"), FRACTIONS.items())
def test_a_part_of_the_images_is_a_part_of_those_that_the_scale_has(scale: str, word: str, parts: int) -> None:
    for family in ("vit", "mixer", "resnet"):
        whole, part = (config_of(Row(family, words=words), SCALES[scale]) for words in ((), (word,)))
        assert part.data.fraction == pytest.approx(whole.data.fraction / parts)
        assert part.data.batch_size == whole.data.batch_size // min(parts, 8)
