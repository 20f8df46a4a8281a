"""compare: what is run, what it costs, what may be said of it."""

import json
import math
import shlex
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from samovar import cli, recipes
from samovar import config as configs
from samovar.cli.compare import parse as parse_compare
from samovar.cli.train import parse as parse_train
from samovar.config import SamConfig
from samovar.recipes.relatives import RELATIVES
from samovar.runs.records import from_json, to_json
from samovar.studies.compare import timing
from samovar.studies.compare.command import _read
from samovar.studies.compare.cost import Cost, costs_of, counted, shares, steps_for, weighed
from samovar.studies.compare.plan import jobs_of, trunks_of
from samovar.studies.compare.recorded import records_of
from samovar.studies.compare.request import CompareRequest, config_of, passes_of, relatives_of
from samovar.studies.compare.results import CompareResults, number, results
from samovar.studies.compare.view import markdown
from samovar.studies.intervals import mean_interval, ratio_interval, stderr
from samovar.studies.jobs import command_of
from samovar.train import schedules
from samovar.train.rehearse import Data
from tests.conftest import assert_refused
from tests.unit.short_run import CPU

COSTS = counted({"plain": 1.0, "sam": 2.0, "quarter": 1.25, "late": 1.2, "gsam": 2.1})
TOTAL = 1000


def asked(*words: str) -> CompareRequest:
    return parse_compare(list(words))[0]


# --- the plan --------------------------------------------------------------------------------------------------------


def test_a_recipe_and_its_twin_with_sam_are_compared_alike() -> None:
    plain, sam = asked("vit-digits"), asked("vit-digits-sam")
    assert plain.base.sam == sam.base.sam == recipes.get("vit-digits-sam").config().sam
    assert set(configs.differences(plain.base, sam.base)) == {"recipe"}
    assert (plain.seeds, plain.budgets, plain.output) == (3, ("steps",), Path("runs/compare-vit-digits"))


def test_the_yardsticks_are_in_every_comparison_once_and_first() -> None:
    assert relatives_of("late,sam,late") == ("plain", "sam", "late")
    assert relatives_of(None)[:2] == ("plain", "sam")
    assert {part for name in relatives_of(None) for part in name.split("+")} <= set(RELATIVES)


def test_tails_of_a_seed_share_its_stable_phase() -> None:
    words = ("vit-digits", "--sam", "decay,quarter+decay,late,early", "--seeds", "2", "--budget", "both")
    found = asked(*words, "--optim.schedule", "wsd", "--steps", str(TOTAL))
    costs = counted(passes_of(found))
    runs = jobs_of(found, costs, TOTAL)
    branched = [(run.relative, run.seed) for run in runs if run.trunk]
    tails = ("plain", "decay", "quarter+decay", "late")
    assert branched == [(name, seed) for seed in (0, 1) for name in tails]
    trunks = trunks_of(found, runs, TOTAL)
    assert [trunk.folder for trunk in trunks] == list(dict.fromkeys(run.trunk for run in runs if run.trunk))
    assert [trunk.config.seed for trunk in trunks] == [0, 1]
    for trunk in trunks:
        assert (trunk.config.steps, trunk.config.sam, trunk.measurements) == (750, SamConfig(), ())
    # the cost of a tail is that of its whole run: the stable phase and the decay
    assert {name: costs[name].passes for name in tails} == {
        "plain": 1, "decay": 1.25, "quarter+decay": 1.0625, "late": 1.2
    }  # fmt: skip


def test_each_relative_runs_under_each_schedule_that_it_fits() -> None:
    found = asked("vit-digits", "--sam", "decay,late,gsam@linear", "--schedules", "cosine,wsd", "--seeds", "1")
    assert found.relatives == (
        "plain", "sam", "plain@wsd", "sam@wsd", "decay@wsd", "late", "late@wsd", "gsam@linear"
    )  # fmt: skip
    runs = jobs_of(found, counted(passes_of(found)), TOTAL)
    assert {run.relative: run.config.optim.schedule for run in runs} == {
        name: name.partition("@")[2] or "cosine" for name in found.relatives
    }
    assert not any("@" in run.config.name for run in runs)
    assert [run.relative for run in runs if run.trunk] == ["plain@wsd", "decay@wsd", "late@wsd"]
    # the schedule of the recipe is the one without a name
    other = asked("vit-digits", "--sam", "late", "--schedules", "wsd", "--optim.schedule", "wsd")
    assert other.relatives == ("plain", "sam", "late")


@pytest.mark.parametrize("flags", [[], ["--optim.schedule", "wsd", "--run.patience", "3"]], ids=["cosine", "patience"])
def test_without_a_stable_phase_that_all_share_every_run_is_whole(flags: list[str]) -> None:
    found = asked("vit-digits", "--sam", "late", *flags, "--steps", str(TOTAL))
    runs = jobs_of(found, COSTS, TOTAL)
    assert not any(run.trunk for run in runs)
    assert trunks_of(found, runs, TOTAL) == []


def test_a_stable_phase_for_one_run_is_not_split_off() -> None:
    found = asked("vit-digits", "--sam", "early", "--optim.schedule", "wsd", "--steps", str(TOTAL))
    runs = jobs_of(found, counted(passes_of(found)), TOTAL)
    assert not any(run.trunk for run in runs)


def test_every_run_is_the_recipe_but_for_sam_and_seed() -> None:
    found = asked("vit-digits", "--sam", "quarter+late", "--seeds", "2", "--epochs", "30")
    runs = jobs_of(found, COSTS, TOTAL)
    assert [run.config.name for run in runs] == [
        f"vit-digits-{name}-seed{seed}" for seed in (0, 1) for name in ("plain", "sam", "quarter+late")
    ]
    for run in runs:
        changed = set(configs.differences(run.config, replace(found.base, sam=run.config.sam)))
        assert changed <= {"seed", "name", "output"}
        assert run.config.optim.warmup_steps == 4  # a tenth of 300 epochs; of 42 steps
    plain, sam, both = (run.config.sam for run in runs[:3])
    assert (plain, sam) == (SamConfig(), found.base.sam)
    assert both == replace(sam, fraction=0.25, start=0.8)


@pytest.mark.parametrize(
    ("name", "sam"),
    [
        ("msam+rho=1", SamConfig(rho=1.0, momentum=True)),
        ("rho=1+msam", SamConfig(rho=1.0, momentum=True)),  # not times ten, as the order might tell
        ("looksam+reuse=0.2+every=3", SamConfig(rho=0.1, reuse=0.2, every=3)),
        ("rho=2e-1", SamConfig(rho=0.2)),
        ("sam+adaptive=true+m=16", SamConfig(rho=0.1, adaptive=True, m=16)),
        ("gsam+rho-min=0.02", SamConfig(rho=0.1, alpha=0.4, rho_schedule="lr", rho_min=0.02)),
        ("sam+rho-schedule=lr", SamConfig(rho=0.1, rho_schedule="lr")),
    ],
)
def test_a_relative_may_have_settings_of_its_own(name: str, sam: SamConfig, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    found = asked("vit-digits", "--sam", name, "--seeds", "1")
    assert config_of(found, name).sam == sam
    (run,) = [run for run in jobs_of(found, counted(passes_of(found)), TOTAL) if run.relative == name]
    assert run.config.name == f"vit-digits-{name}-seed0"
    config, *_ = parse_train(shlex.split(shlex.join(command_of(run)))[2:])
    assert config.sam == sam


def test_corrupted_images_are_drawn_from_all_that_are_held_out() -> None:
    found = asked("vit-digits", "--measure.images", "50", "--run.device", "cpu")
    (hessian, robustness) = jobs_of(found, counted(passes_of(found)), TOTAL)[0].measurements
    assert (hessian.config.images, robustness.config.images, robustness.config.corruption_images) == (50, 0, 300)
    assert {hessian.config.checkpoint, hessian.config.device} == {"last", "cpu"}


def test_a_budget_of_time_gives_each_the_steps_that_sams_time_pays_for_and_shares_sams_run() -> None:
    found = asked("vit-digits", "--sam", "quarter", "--seeds", "1", "--budget", "both")
    runs = {(run.relative, run.budget): run.config for run in jobs_of(found, COSTS, TOTAL)}
    assert [key for key in runs if key[0] == "sam"] == [("sam", "steps")]
    assert (runs["plain", "time"].steps, runs["quarter", "time"].steps) == (2000, 1600)
    assert runs["quarter", "time"].name == "vit-digits-quarter-time-seed0"
    assert runs["plain", "time"].optim.warmup_steps == found.base.optim.warmup_steps
    alone = jobs_of(replace(found, budgets=("time",)), COSTS, TOTAL)
    assert {run.config.name for run in alone} == {runs[key].name for key in runs if key[1] == "time" or "sam" in key}


def test_the_commands_of_a_plan_train_its_runs(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    found = asked("vit-digits", "--seeds", "1", "--budget", "both", "--data.root", "there", "--sam", "gsam,every5+late")
    for run in jobs_of(found, counted(passes_of(found)), TOTAL):
        config, *_ = parse_train(shlex.split(shlex.join(command_of(run)))[2:])
        assert not configs.differences(config, run.config)


# --- costs -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sam", [
    SamConfig(), SamConfig(rho=0.1), SamConfig(rho=0.1, every=5), SamConfig(rho=0.1, start=0.8),
    SamConfig(rho=0.1, end=0.2, every=3), SamConfig(rho=0.1, start=0.25, end=0.5, every=7),
    SamConfig(rho=0.1, start="decay", every=2),
], ids=str)  # fmt: skip
@pytest.mark.parametrize("total", [4, 100, 1261])
def test_the_shares_of_the_kinds_of_steps_are_those_that_training_takes(sam: SamConfig, total: int) -> None:
    config = replace(recipes.get("vit-digits").config(), sam=sam)
    kinds = []
    for step in range(total):
        inside = schedules.rho_at(step, config, total) > 0
        kinds.append("outside" if not inside else "between" if step % sam.every else "climb")
    assert shares(config, total) == {kind: kinds.count(kind) / total for kind in set(kinds)}


def test_an_average_step_is_weighed_by_how_often_each_kind_occurs() -> None:
    assert weighed({"climb": 2.0, "between": 1.0}, {"climb": 0.2, "between": 0.8}) == pytest.approx(1.2)


def test_a_cost_is_the_median_of_the_ratios_within_repetitions() -> None:
    # the machine was twice as slow in the last repetition, for both
    found = costs_of({"plain": [1.0, 1.0, 2.0], "sam": [2.0, 1.8, 4.2]}, {"plain": 1.0, "sam": 2.0})
    assert found["sam"] == Cost(2.0, 1.8, 2.1, 2.0, 2.0)
    assert (found["plain"].ratio, found["plain"].passes) == (1.0, 1.0)


def test_steps_that_a_time_pays_for() -> None:
    assert steps_for(1000, COSTS["sam"], COSTS["sam"]) == 1000
    assert steps_for(1000, COSTS["quarter"], COSTS["sam"]) == 1600
    assert steps_for(1, counted({"dear": 9.0})["dear"], COSTS["plain"]) == 1


def test_costs_are_timed_by_steps_of_every_kind_and_leave_the_threads_alone(monkeypatch) -> None:
    import torch

    monkeypatch.setattr(timing, "REPETITIONS", 3)
    monkeypatch.setattr(timing, "SHORTEST", 0.0)
    found = asked("vit-digits", "--sam", "every5,looksam,late,early,msam", "--data.batch-size", "16")
    before = torch.get_num_threads()
    costs = timing.measure({name: config_of(found, name) for name in found.relatives}, Data(269, 10, 1))
    assert torch.get_num_threads() == before
    assert {name: cost.passes for name, cost in costs.items()} == passes_of(found)
    assert costs["plain"].ratio == 1
    assert costs["sam"].ratio > max(costs[name].ratio for name in ("every5", "late", "early", "msam")) > 0.5


@pytest.mark.parametrize("name", ["plain", "sam", "every5", "late", "early", "every2+latehalf", "msam"])
def test_each_kind_of_step_is_timed_where_it_occurs(name: str, monkeypatch) -> None:
    clock = [0.0]

    def made_steps(state, stream, objective, config, runtime, total):
        """A climb takes as long as the rest of a step."""
        while True:
            climbs = schedules.rho_at(state.step, config, total) > 0 and state.step % config.sam.every == 0
            clock[0] += 2.0 if climbs else 1.0
            state.step += 1
            yield

    monkeypatch.setattr(timing, "steps", made_steps)
    monkeypatch.setattr(timing, "_now", lambda runtime: clock[0])
    config = config_of(asked("vit-digits", "--steps", "1000"), name)
    timer = timing.Timer(config, Data(269, 10, 1), CPU)
    climbing = {"plain": 0.0, "sam": 1.0, "every2+latehalf": 0.25, "msam": 1.0}.get(name, 0.2)
    assert [timer.seconds(count) for count in (1, 3)] == [pytest.approx(1 + climbing)] * 2


def test_only_a_part_of_a_large_batch_is_timed_in_whole_ascent_groups() -> None:
    assert timing.timed_images(recipes.get("vit-digits-sam").config()) == 64
    assert timing.timed_images(recipes.get("vit-b16-imagenet-sam").config()) == 32  # m = 32 of 41 that fit


def test_a_damaged_file_of_costs_is_told(tmp_path) -> None:
    found = replace(asked("vit-digits"), output=tmp_path)
    assert _read(found) == {}
    (tmp_path / "compare.json").write_text('{"costs": {"sam": {"ratio": 2}}}')
    with pytest.raises(ValueError, match="compare.json cannot be read .* remove it"):
        _read(found)


# --- numbers ---------------------------------------------------------------------------------------------------------


def made(
    accuracies: dict[str, list[float]], budget: str = "steps", costs: dict[str, Cost] = COSTS, **others: list[float]
) -> CompareResults:
    """Results of made accuracies; λ_max and corrupted accuracy are the same for all."""
    seeds = len(accuracies["plain"])
    rest = {"lambda_max": [10.0] * seeds, "corruption": [50.0] * seeds} | others
    values = {name: {"top1": found, **rest} for name, found in accuracies.items()}
    return results(budget, costs, dict.fromkeys(accuracies, TOTAL), values, seeds)


GAIN = {"plain": [70.0, 71.0, 69.0], "sam": [74.0, 75.2, 72.9]}


def test_eigenvalues_are_averaged_by_logarithms_and_what_is_missing_is_left_out() -> None:
    found = number("lambda_max", [1.0, 100.0, math.nan, -3.0])
    assert (found.mean, found.values) == (pytest.approx(10), (1.0, 100.0))
    error = stats.sem(np.log([1.0, 100.0]))
    assert (found.error, found.high / found.mean) == (pytest.approx(error), pytest.approx(math.exp(error)))
    plain = number("top1", [1.0, 3.0])
    assert (plain.mean, plain.low, plain.high) == (2.0, 1.0, 3.0)
    assert math.isnan(number("top1", [math.nan]).mean)
    assert number("top1", [5.0]).error is None


@pytest.mark.parametrize("seed", range(20))
def test_the_ends_of_the_interval_of_a_share_are_where_the_paired_t_test_turns(seed: int) -> None:
    rng = np.random.default_rng(seed)
    n = int(rng.integers(3, 6))
    sam = rng.normal(4.0, 0.5, n)
    ours = sam * rng.uniform(0.3, 1.2) + rng.normal(0, 0.3, n)
    low, high = ratio_interval(list(zip(ours, sam, strict=True)))
    assert stats.ttest_1samp(ours - low * sam, 0.0, alternative="greater").pvalue == pytest.approx(0.05, rel=1e-6)
    assert stats.ttest_1samp(ours - high * sam, 0.0, alternative="less").pvalue == pytest.approx(0.05, rel=1e-6)


@pytest.mark.parametrize("seed", range(20))
def test_errors_and_intervals_over_seeds_are_the_textbooks_to_1e_12(seed: int) -> None:
    rng = np.random.default_rng(seed)
    n = int(rng.integers(2, 9))
    x, y = rng.normal(3.0, 1.0, n), rng.normal(5.0, 0.5, n)
    mean_x, mean_y = math.fsum(x) / n, math.fsum(y) / n
    error = math.sqrt(math.fsum((x - mean_x) ** 2) / (n - 1) / n)
    assert stderr(list(x)) == pytest.approx(error, rel=1e-12)
    assert mean_interval(list(x)) == pytest.approx(tuple(stats.ttest_1samp(x, 0).confidence_interval(0.9)), rel=1e-12)

    reach = stats.t.ppf(0.95, n - 1) ** 2 / (n - 1) / n  # Fieller: the roots of a r^2 - 2 b r + c
    deviations = x - mean_x, y - mean_y
    xx, xy, yy = (math.fsum(deviations[i] * deviations[j]) * reach for i, j in ((0, 0), (0, 1), (1, 1)))
    a, b, c = mean_y**2 - yy, mean_x * mean_y - xy, mean_x**2 - xx
    root = math.sqrt(max(0.0, b * b - a * c))
    ends = ((b - root) / a, (b + root) / a) if a > 0 else (-math.inf, math.inf)
    assert ratio_interval(list(zip(x, y, strict=True))) == pytest.approx(ends, rel=1e-12)


def test_one_seed_has_no_error_and_an_interval_without_ends() -> None:
    assert stderr([1.0]) is stderr([]) is None
    assert mean_interval([1.0]) == mean_interval([]) == (-math.inf, math.inf)


def test_a_share_of_a_gain_that_may_be_none_has_no_ends() -> None:
    assert ratio_interval([(1.0, 5.0), (1.0, -4.0)]) == (-math.inf, math.inf)
    assert ratio_interval([(1.0, -5.0), (1.0, -5.1)]) == (-math.inf, math.inf)
    assert ratio_interval([(1.0, 5.0)]) == ratio_interval([]) == (-math.inf, math.inf)


def test_the_share_is_of_seeds_that_have_all_three_and_the_verdict_agrees_with_its_interval() -> None:
    found = made(GAIN | {"quarter": [73.9, 75.1, 72.7], "late": [73.0, math.nan, 72.0]})
    standings = {standing.relative: standing for standing in found.standings}
    quarter, late = standings["quarter"].share, standings["late"].share
    assert quarter.value == pytest.approx((3.9 + 4.1 + 3.7) / (4 + 4.2 + 3.9))
    assert (quarter.low > 0.9, quarter.outcome.verdict) == (True, "held")
    assert late.value == pytest.approx((3.0 + 3.0) / (4 + 3.9))
    assert (late.outcome.seeds, late.outcome.verdict) == (2, "undecided")
    assert standings["plain"].share is standings["sam"].share is None


def test_a_relative_has_a_share_of_sams_gain_under_its_own_schedule_as_well() -> None:
    under = {"plain@wsd": [71.0, 72.0, 70.5], "sam@wsd": [73.0, 74.2, 72.4], "decay@wsd": [72.9, 74.1, 72.4]}
    costs = COSTS | counted({"plain@wsd": 1.0, "sam@wsd": 2.0, "decay@wsd": 1.25})
    found = made(GAIN | under | {"quarter": SURE}, costs=costs)
    shares = {each.relative: (each.share, each.own_share) for each in found.standings}
    share, own = shares["decay@wsd"]
    assert share.value == pytest.approx((2.9 + 3.1 + 3.4) / (4 + 4.2 + 3.9))
    assert own.value == pytest.approx((1.9 + 2.1 + 1.9) / (2.0 + 2.2 + 1.9))
    assert [name for name, (_, own) in shares.items() if own] == ["decay@wsd"]
    assert shares["sam@wsd"][0].value == pytest.approx((3.0 + 3.2 + 3.4) / (4 + 4.2 + 3.9))
    lines = markdown([found], replace(asked("vit-digits"), seeds=3)).splitlines()
    assert len({line.count("|") for line in lines if line.startswith("|")}) == 1
    assert any(line.startswith("| decay@wsd") and "| 97 (" in line for line in lines)
    records = records_of(found, replace(asked("vit-digits"), seeds=3))
    (record,) = [record for record in records if record.name == "compare/own_share"]
    assert (record.where["relative"], record.value) == ("decay@wsd", own.value)


# --- the answer ------------------------------------------------------------------------------------------------------


SURE, BY_MEAN, LESS = [73.9, 75.1, 72.8], [74.5, 75.5, 71.6], [71.0, 72.1, 69.9]
CASES = [
    ({"quarter": SURE, "late": SURE}, "quarter and late keep at least 90 % of SAM's gain of 4 points"),
    ({"quarter": SURE, "late": LESS}, "plain, quarter keeps at least 90 % of SAM's gain"),
    ({"quarter": SURE, "late": BY_MEAN}, "By the mean over seeds alone, undecided by the test: late."),
    ({"quarter": BY_MEAN}, "no relative is sure to keep at least 90 % of SAM's gain of 4 points"),
    ({"quarter": LESS}, "no relative keeps at least 90 % of SAM's gain of 4 points (90 % interval 3.8 to 4.3, 3 "
                        "seeds), not even by the mean."),
    ({"gsam": SURE}, "No relative that was compared costs at most 1.25 times as much as plain training."),
]  # fmt: skip


@pytest.mark.parametrize(("accuracies", "sentence"), CASES)
def test_the_answer_says_what_is_sure_what_is_not_and_what_is_not_there(accuracies: dict, sentence: str) -> None:
    assert sentence in made(GAIN | accuracies).answer


def test_in_equal_time_every_relative_may_answer() -> None:
    found = made(GAIN | {"gsam": SURE}, budget="time")
    assert found.answer.startswith("In SAM's processor time, gsam keeps at least 90 % of SAM's gain")


@pytest.mark.parametrize("sam", [[70.5, 70.1, 69.6], [68.0, 69.1, 67.2], [math.nan] * 3, [74.0, 75.2, math.nan]])
def test_where_sam_gains_nothing_sure_no_share_of_it_is_told(sam: list[float]) -> None:
    found = made(GAIN | {"sam": sam, "quarter": SURE})
    assert found.answer.startswith("SAM's own gain over plain, ")
    assert found.answer.endswith("is not above 0 by the test, so shares of it have no meaning.")
    assert "held" not in markdown([found], asked("vit-digits"))


def test_one_seed_gives_numbers_and_no_verdict() -> None:
    found = made({"plain": [70.0], "sam": [74.0], "quarter": [74.0]})
    (quarter,) = [standing for standing in found.standings if standing.share]
    assert (quarter.share.value, quarter.share.outcome.verdict) == (1.0, "undecided")
    assert "4 points (1 seed), is not above 0 by the test" in found.answer


# --- tables and records ----------------------------------------------------------------------------------------------


def test_the_table_has_cost_numbers_share_and_verdict_of_each() -> None:
    found = made(GAIN | {"quarter": SURE}, lambda_max=[9.0, 10.0, 11.0])
    lines = markdown([found], replace(asked("vit-digits"), seeds=3)).splitlines()
    assert len({line.count("|") for line in lines if line.startswith("|")}) == 1
    row = next(line for line in lines if line.startswith("| quarter"))
    for cell in ("1.25 (1.25 counted)", "1000", "73.93 ± 0.66", "9.967 ×/÷ 1.06", "98 (97 to 98)", "held"):
        assert f" {cell} |" in row, row
    assert "the gain: 4 points (90 % interval" in next(line for line in lines if line.startswith("| sam"))


def test_records_keep_what_the_table_says(tmp_path) -> None:
    found = made(GAIN | {"quarter": SURE})
    records = [from_json(to_json(record)) for record in records_of(found, replace(asked("vit-digits"), seeds=3))]
    quarter = {r.name: r for r in records if r.where.get("relative") == "quarter"}
    assert quarter["compare/cost"].value == quarter["compare/cost"].settings["worth"] == 1.25
    assert quarter["compare/claim"].settings["verdict"] == "held"
    assert quarter["compare/share"].interval[0] > 0.9
    (top1,) = [r for r in records if r.where.get("key") == "top1" and r.where["relative"] == "quarter"]
    assert (top1.n, top1.settings["values"], top1.where["budget"]) == (3, SURE, "steps")
    assert top1.interval == (top1.value - top1.stderr, top1.value + top1.stderr)
    (answer,) = [r for r in records if r.name == "compare/answer"]
    assert (answer.value, answer.settings["text"]) == (1, found.answer)


# --- bad input -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("args", "line"),
    [
        ("compare --sam late", "compare needs a recipe; see `samovar list recipes`"),
        ("compare vit-digist", "unknown recipe 'vit-digist'; did you mean"),
        ("compare vit-digits late", "compare takes one recipe, not vit-digits and late; give relatives as --sam late"),
        ("compare vit-digits --sam ,", "--sam ',' names nothing; give some of plain, sam, asam"),
        ("compare vit-digits --sam", "--sam needs names, such as quarter,late"),
        ("compare vit-digits --sam gsma", "unknown relative of SAM 'gsma'; did you mean gsam? there are: plain, sam"),
        ("compare vit-digits --sam msam+quarter", "--sam msam+quarter with vit-digits: --sam.momentum with"),
        ("compare vit-digits --sam msam+roh=1", "--sam msam+roh=1: there is no setting 'roh' of SAM; there are: mom"),
        ("compare vit-digits --sam msam+rho=one", "--sam msam+rho=one: setting 'rho' is 'one'; allowed: float"),
        ("compare vit-digits --sam msam+rho=", "--sam msam+rho=: setting 'rho' is ''; allowed: float"),
        ("compare vit-digits --sam msam+rho=-1", "--sam msam+rho=-1 with vit-digits: --sam.rho -1.0 is out of range"),
        ("compare vit-digits --sam late+end=0.1", "--sam late+end=0.1 with vit-digits: --sam.start 0.8 with --sam.end"),
        ("compare vit-digits --sam late@wds", "--sam late@wds: unknown schedule 'wds'; there are: cosine, linear"),
        ("compare vit-digits --sam decay --schedules cosine", "--sam decay with vit-digits: --sam.start decay with"),
        ("compare vit-digits --schedules wds", "--schedules wds is unknown; did you mean wsd?"),
        ("compare vit-digits --schedules ,", "--schedules ',' names nothing; give some, such as cosine,wsd"),
        ("compare vit-digits --seeds three", "--seeds three is out of range; give a whole number, 1 or more"),
        ("compare vit-digits --jobs 0", "--jobs 0 is out of range"),
        ("compare vit-digits --budget money", "--budget money is unknown; give one of: steps, time, both"),
        ("compare vit-digits --seed 3", "compare chooses --seed itself; give --seeds N"),
        ("compare vit-digits --epoch 3", "unknown flag --epoch; did you mean --epochs?"),
        ("compare vit-digits --epochs -3", "--epochs -3.0 is out of range"),
        ("compare vit-digits --measure.images -1", "--measure.images -1 is out of range"),
        ("compare vit-digits --measure.imags 1", "--measure.imags; did you mean --measure.images?"),
        ("compare vit-digits --sam.rho 0", "vit-digits with --sam.rho 0 has no SAM to compare; give a radius"),
        ("compare vit-digits --sam.alpha 0.4", "vit-digits with alpha 0.4 trains with a relative of SAM already"),
        ("compare supcon-vit-digits --sam half", "--sam half with supcon-vit-digits: --sam.fraction 0.5 does not go"),
    ],
)  # fmt: skip
def test_bad_input_is_one_clear_line(args: str, line: str, capsys, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert_refused(args, line, capsys)
    assert not list(tmp_path.iterdir())


def test_the_folders_of_others_are_left_alone(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    run, other, file = (tmp_path / name for name in ("run", "other", "file"))
    file.touch()
    for folder in (run, other):
        folder.mkdir()
        configs.save(asked("vit-digits").base, folder / "config.json")
    (other / "compare.json").write_text(json.dumps({"costs": {}}))
    for words, line in (
        ("--output run", "run is a run, not a comparison; give another --output"),
        ("--output file", "--output file is a file; give a folder"),
        ("--output other --epochs 30", "other compares runs with --epochs 300.0, not 30.0; give another --output"),
    ):
        with pytest.raises(ValueError, match=line):
            asked("vit-digits", *words.split())  # only read, for what is not refused would train
    assert parse_compare(["vit-digits", "--output", "other", "--run.threads", "2"])


def test_help_tells_all_relatives(capsys) -> None:
    cli.main(["compare", "--help"])
    said = capsys.readouterr().out
    assert all(f"  {name} " in said for name in RELATIVES)
    assert max(map(len, said.splitlines())) <= 100
