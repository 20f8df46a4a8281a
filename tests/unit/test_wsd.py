"""Warmup-stable-decay, and SAM in a tail that owns the decay."""

import json
import math
from dataclasses import replace

import pytest

from samovar import cli, recipes
from samovar import config as configs
from samovar.config import Config, OptimConfig, SamConfig
from samovar.recipes.relatives import RELATIVES
from samovar.train.schedules import lr_at, rho_at

FALLS = {"linear": lambda t: 1 - t, "sqrt": lambda t: 1 - math.sqrt(t)}


def wsd(**settings) -> Config:
    """Settings with a decay in the last quarter of the run."""
    optim = OptimConfig(lr=2.0, schedule="wsd", warmup_steps=10)
    return replace(Config(), optim=replace(optim, **settings), sam=SamConfig(rho=0.1, start="decay"))


@pytest.mark.parametrize("shape", ["linear", "sqrt"])
@pytest.mark.parametrize(("total", "share"), [(100, 0.25), (100, 0.9), (1261, 0.1), (40, 0.5)])
def test_the_rate_rises_stays_and_falls_to_zero_by_its_closed_form(shape: str, total: int, share: float) -> None:
    optim = wsd(decay_share=share, decay_shape=shape).optim
    first = round((1 - share) * total)
    expected = [
        2.0 * min(1, step / 10) * (FALLS[shape]((step - first) / (total - first)) if step > first else 1)
        for step in range(total)
    ]
    assert [lr_at(step, optim, total) for step in range(total)] == pytest.approx(expected, rel=1e-15, abs=1e-15)
    assert lr_at(total, optim, total) == 0


@pytest.mark.parametrize(("total", "share"), [(100, 0.25), (7, 0.3), (1261, 0.1), (40, 0.5)])
def test_sam_starts_exactly_where_the_rate_begins_to_fall(total: int, share: float) -> None:
    config = wsd(decay_share=share, warmup_steps=0)
    rates = [lr_at(step, config.optim, total) for step in range(total)]
    radii = [rho_at(step, config, total) for step in range(total)]
    first = next(step for step in range(total) if radii[step])
    assert set(radii[first:]) == {0.1}
    # the first step of the decay still has the peak rate, all after it less
    assert rates[: first + 1] == [2.0] * (first + 1)
    assert all(later < rate for rate, later in zip(rates[first:], rates[first + 1 :], strict=False))
    assert configs.passes(config) == pytest.approx(1 + share)


def test_a_tail_costs_what_its_relatives_take() -> None:
    base = replace(wsd(), sam=SamConfig(rho=0.1))
    settings = RELATIVES["quarter"].settings | RELATIVES["decay"].settings
    tail = replace(base, sam=replace(base.sam, **settings))
    configs.validate(tail)
    assert configs.passes(tail) == pytest.approx(1.0625)


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        (["--sam.start", "decay"], "--sam.start decay with --optim.schedule cosine: it has no decay of its own"),
        (["--optim.schedule", "wsd", "--optim.decay-share", "0"], "--optim.decay-share 0.0 is out of range"),
        (["--optim.schedule", "wsd", "--optim.decay-shape", "cubic"], "decay-shape"),
        (["--sam.start", "dekay"], "--sam.start"),
        (
            ["--optim.schedule", "wsd", "--optim.decay-share", "0.5", "--sam.start", "decay", "--sam.end", "0.4"],
            "--sam.start decay with --sam.end 0.4: there is no step between them",
        ),
    ],
)
def test_settings_that_do_not_fit_are_one_line(flags: list[str], line: str, capsys) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main(["train", "vit-digits-sam", *flags])
    assert stop.value.code == 2
    said = capsys.readouterr().err
    assert line in said
    assert len(said.splitlines()) == 1


def test_a_warm_up_that_reaches_into_the_decay_is_refused() -> None:
    with pytest.raises(ValueError, match="--optim.warmup-steps 80 reaches into the decay of wsd, .* step 75 of 100"):
        lr_at(0, wsd(warmup_steps=80).optim, 100)


def test_the_word_comes_back_from_json_and_from_flags(tmp_path) -> None:
    config = replace(recipes.get("vit-digits-sam").config(), optim=wsd().optim, sam=SamConfig(rho=0.1, start="decay"))
    configs.save(config, tmp_path / "config.json")
    assert configs.load(tmp_path / "config.json") == config
    command = cli.train.parse([config.recipe, *configs.to_flags(config, recipes.get(config.recipe).config())])
    assert command.config == config
    values = json.loads((tmp_path / "config.json").read_text())
    values["sam"]["start"] = "later"
    with pytest.raises(ValueError, match="setting 'start' is 'later'; allowed: float or decay"):
        configs.from_dict(values)
