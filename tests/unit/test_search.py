"""The plan of a search: how many runs of which length, what they cost, who goes on."""

import itertools
import math
from dataclasses import replace

import pytest

from samovar import recipes
from samovar.config import Config, DataConfig, GridConfig, HeadConfig, OptimConfig, SamConfig
from samovar.studies.tune import search
from samovar.studies.tune.search import Rung, Search, TuneOutcome

CONFIG = recipes.get("vit-digits-sam").config()
RHO = (0.02, 0.05, 0.1, 0.2, 0.35)


def numbers(count: int) -> tuple[float, ...]:
    return tuple((k + 1) / 100 for k in range(count))


def test_five_radii_are_a_short_run_each_and_three_long_ones() -> None:
    assert search.plan(Search({"rho": RHO}), 1261, CONFIG) == (Rung(5, 63), Rung(3, 735))


@pytest.mark.parametrize("count", [2, 3, 4, 5, 6, 7, 12, 15, 16, 25, 60])
@pytest.mark.parametrize("total", [3, 100, 400, 1261, 90_000])
def test_a_search_costs_at_most_two_fifths_of_the_full_one(count: int, total: int) -> None:
    wanted = Search({"rho": numbers(count)}, seeds=2)
    rungs = search.plan(wanted, total, CONFIG)
    everything = search.plan(replace(wanted, full=True), total, CONFIG)
    assert everything == (Rung(count, total),)
    assert search.cost(everything, wanted, CONFIG) == 2 * 2 * count * total
    assert search.cost(rungs, wanted, CONFIG) <= 0.4 * search.cost(everything, wanted, CONFIG) or rungs[0].steps == 1
    assert rungs[0].settings == count
    assert all(b.settings < a.settings and a.steps < b.steps <= total for a, b in itertools.pairwise(rungs))


def test_plain_runs_cost_half_and_are_counted_so() -> None:
    wanted = Search({"rho": (0.0, *RHO)})
    rungs = search.plan(wanted, 1261, CONFIG)
    assert search.cost((Rung(6, 10),), wanted, CONFIG) == 10 * (1 + 5 * 2)
    # those that stay may all be the dear ones
    assert search.cost((Rung(3, 10),), wanted, CONFIG) == 10 * 3 * 2
    assert search.cost(rungs, wanted, CONFIG) <= 0.4 * 1261 * 11


def test_many_settings_get_a_rung_in_the_middle() -> None:
    assert [rung.settings for rung in search.plan(Search({"rho": numbers(20)}), 10_000, CONFIG)] == [20, 10, 5]


def test_a_run_too_short_to_be_shortened_twice_is_shortened_once() -> None:
    assert search.plan(Search({"rho": RHO}), 200, CONFIG) == (Rung(5, 80),)


def test_several_lists_are_combined() -> None:
    config, wanted = search.make(CONFIG, {"lr": (1e-3,), "rho": (0.1, 0.2)}, seeds=1, full=False)
    assert config == CONFIG
    assert wanted.settings == [{"rho": 0.1, "lr": 1e-3}, {"rho": 0.2, "lr": 1e-3}]
    applied = search.apply(CONFIG, {"rho": 0.2, "lr": 0.5, "weight_decay": 0.25})
    assert (applied.sam.rho, applied.optim.lr, applied.optim.weight_decay) == (0.2, 0.5, 0.25)


def test_a_recipes_own_grid_of_learning_rates_is_searched_with_the_rest() -> None:
    own = replace(CONFIG, grid=GridConfig(lr=(0.1, 0.01)))
    config, wanted = search.make(own, {"rho": (0.0, 0.1)}, seeds=1, full=False)
    assert config.grid.lr == ()
    assert wanted.values == {"rho": (0.0, 0.1), "lr": (0.01, 0.1)}
    _, given = search.make(own, {"lr": (0.3, 0.4)}, seeds=1, full=False)
    assert given.values == {"lr": (0.3, 0.4)}


def test_a_shortened_schedule_is_complete() -> None:
    config = Config(optim=OptimConfig(warmup_steps=42))
    short = search.shortened(config, 63, (1261,))
    assert (short.steps, short.optim.warmup_steps) == (63, 2)
    assert search.shortened(config, 1261, (1261,)).optim == config.optim


def test_both_stages_of_contrastive_training_are_shortened() -> None:
    config = Config(
        loss="supcon",
        steps=1000,
        data=DataConfig(views=2),
        optim=OptimConfig(warmup_steps=100),
        head=HeadConfig(steps=200, optim=OptimConfig(warmup_steps=20)),
    )
    lengths = search.stage_lengths(config, 5000)
    assert lengths == (1000, 200)
    short = search.shortened(config, 120, lengths)
    assert search.stage_lengths(short, 5000) == (100, 20)
    assert (short.optim.warmup_steps, short.head.optim.warmup_steps) == (10, 2)


def outcome(accuracies, losses=(1.0,), finite=True) -> TuneOutcome:
    return TuneOutcome({"rho": 0.1}, 1, 10, tuple(accuracies), tuple(losses), 1.0, finite)


def test_accuracy_ranks_then_loss_and_what_is_not_finite_comes_last() -> None:
    best, tied, worse = outcome([0.9], [0.2]), outcome([0.9], [0.3]), outcome([0.8], [0.1])
    lost = outcome([math.nan, 0.99], [math.nan, 0.0], finite=False)
    assert search.ranked([lost, worse, tied, best]) == [best, tied, worse, lost]


def test_means_and_standard_errors_are_over_seeds() -> None:
    found = outcome([0.1, 0.2, 0.6], [1.0, 2.0, 3.0])
    assert found.accuracy == pytest.approx(0.3)
    assert found.loss == pytest.approx(2.0)
    # deviations -0.2, -0.1, 0.3: variance 0.14 / 2, of the mean 0.07 / 3
    assert found.stderr == pytest.approx(math.sqrt(0.07 / 3))
    assert outcome([0.1]).stderr is None


@pytest.mark.parametrize(
    ("text", "values"),
    [("0.2,0.1,0.20", (0.1, 0.2)), ("1e-3", (0.001,)), ("-0.0,0", (0.0,)), (" 0.1, 2", (0.1, 2.0))],
)
def test_lists_are_sorted_and_without_duplicates(text: str, values: tuple[float, ...]) -> None:
    found = search.parse_values("--rho", text, search.AXES["rho"])
    assert found == values
    assert all(math.copysign(1, value) == 1 for value in found)


def test_folders_tell_close_values_apart() -> None:
    assert search.folder_name({"rho": 0.1}) != search.folder_name({"rho": 0.1000001})
    assert search.label({"rho": 0.1, "lr": 1e-3, "weight_decay": 0.3}) == "rho 0.1, lr 0.001, decay 0.3"


def test_a_best_value_at_the_edge_of_its_list_is_said() -> None:
    wanted = Search({"rho": (0.0, 0.1, 0.2), "lr": (1e-3, 3e-3), "weight_decay": (0.1,)})
    said = search.edges({"rho": 0.2, "lr": 1e-3, "weight_decay": 0.1}, wanted)
    assert said == [
        "rho 0.2 is the highest of --rho; a higher one may be better still",
        "lr 0.001 is the lowest of --lr; a lower one may be better still",
    ]
    assert search.edges({"rho": 0.0}, wanted) == [], "there is nothing below 0"


def test_sam_takes_two_gradients_a_step_and_plain_training_one() -> None:
    assert search.passes(CONFIG, {"rho": 0.0}) == 1
    assert search.passes(CONFIG, {"lr": 0.1}) == 2
    assert search.passes(replace(CONFIG, sam=SamConfig()), {"lr": 0.1}) == 1
