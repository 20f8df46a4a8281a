"""The verdict of the report: its tests against SciPy and by hand, its sentences on made runs."""

import json

import numpy as np
import pytest
from scipy import stats

from samovar.report.chapters.verdict import verdict
from samovar.report.significance import holm, mcnemar, over_images, over_seeds, shares, wilson
from tests.unit.report_runs import load, make_run


def _outcomes(first_only: int, second_only: int, both: int = 50, none: int = 20) -> tuple[np.ndarray, np.ndarray]:
    a = np.repeat([True, False, True, False], [first_only, second_only, both, none])
    b = np.repeat([False, True, True, False], [first_only, second_only, both, none])
    return a, b


@pytest.mark.parametrize(("b", "c"), [(0, 0), (0, 5), (0, 6), (3, 9), (10, 10), (5, 30), (40, 12)])
def test_mcnemar_is_scipys_exact_test_and_its_interval_agrees(b: int, c: int) -> None:
    found = mcnemar(*_outcomes(b, c))
    n = b + c + 70
    assert found.value == pytest.approx((c - b) / n)
    p = stats.binomtest(c, b + c).pvalue if b + c else 1.0
    assert found.p == pytest.approx(p)
    assert found.decided == (p < 0.05)
    assert found.low <= found.value <= found.high


@pytest.mark.parametrize("differing", [1, 5, 6, 12, 25, 60])
def test_a_difference_below_the_least_is_noise_and_the_least_is_not(differing: int) -> None:
    least = round(mcnemar(*_outcomes(0, differing)).least * (differing + 70))
    tried = max(differing, least)
    lost = (tried - least) // 2
    assert mcnemar(*_outcomes(lost, tried - lost)).decided
    if least > 2 and tried == differing:
        assert not mcnemar(*_outcomes(lost + 1, tried - lost - 1)).decided


def test_intervals_are_those_of_scipy() -> None:
    known = stats.binomtest(45, 50).proportion_ci(method="wilson")
    assert wilson(0.9, 50) == pytest.approx((known.low, known.high), abs=1e-6)
    rng = np.random.default_rng(0)
    a, b = rng.random(30), rng.random(30)
    known = stats.ttest_rel(b, a).confidence_interval()
    assert (over_images(a, b).low, over_images(a, b).high) == pytest.approx((known.low, known.high))
    known = stats.ttest_ind(b[:4], a[:7], equal_var=False).confidence_interval()
    welch = over_seeds(a[:7], b[:4], paired=False)
    assert (welch.low, welch.high) == pytest.approx((known.low, known.high))
    # Newcombe's paper, example of 56 / 70 and 48 / 80
    gap = shares((48 / 80, 80), (56 / 70, 70))
    assert (gap.low, gap.high) == pytest.approx((0.0524, 0.3339), abs=1e-4)


def test_holm_stops_at_the_first_that_is_not_significant() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == [True, False, False, True]
    assert holm([]) == []


def _said(*folders) -> list:
    return list(verdict(load(*folders)).parts[0].statements)


def _rewrite(folder, name: str, **changes) -> None:
    path = folder / "records.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    for line in lines:
        if line["name"] == name:
            line["settings"] = line.get("settings", {}) | changes.pop("settings", {})
            line |= changes
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def _predict(folder, wrong: int) -> None:
    labels = np.arange(500) % 10
    predicted = np.where(np.arange(500) < wrong, (labels + 1) % 10, labels)
    sure = np.full(500, 0.5)
    np.savez(folder / "arrays" / "outcomes.npz", labels=labels, predicted=predicted, probability=sure,
             probability_true=sure, classes=np.array(list("0123456789")))  # fmt: skip


def test_one_seed_that_differs_by_noise_is_not_decided(tmp_path) -> None:
    runs = [make_run(tmp_path / "a"), make_run(tmp_path / "b", recipe="vit-digits-sam", seed=0)]
    _predict(runs[0], 20), _predict(runs[1], 23)
    said = _said(*runs)[0]
    test = mcnemar(np.arange(500) >= 20, np.arange(500) >= 23)
    assert not test.decided
    assert said.tone == "open"
    assert "is −0.6 points on 500 held-out images" in said.text
    assert "McNemar’s exact test, p 0.25" in said.text
    assert f"a difference under {100 * test.least:.1f} points is noise" in said.more
    assert "`--seed 1`" in said.more


@pytest.mark.parametrize(("first", "second", "better"), [(20, 60, "vit-digits"), (60, 20, "vit-digits-sam")])
def test_one_seed_that_differs_is_decided_for_these_networks_alone(tmp_path, first, second, better) -> None:
    runs = [make_run(tmp_path / "a"), make_run(tmp_path / "b", recipe="vit-digits-sam")]
    _predict(runs[0], first), _predict(runs[1], second)
    said = _said(*runs)[0]
    assert said.tone == "decided"
    assert said.text.startswith(f"{better} classifies 8.0 points more of 500 held-out images rightly (95 % interval +")
    assert "for these two networks" in said.text
    assert "one seed of each" in said.more


def test_without_outcomes_or_with_other_images_the_test_is_unpaired(tmp_path) -> None:
    runs = [
        make_run(tmp_path / "a"),
        make_run(tmp_path / "b", recipe="vit-digits-sam", config={"data": {"split_seed": 5}}),
    ]
    said = _said(*runs)[0]
    assert "Newcombe" in said.text
    assert "image by image" in said.more


def test_different_protocols_and_data_are_said_and_not_compared(tmp_path) -> None:
    a = make_run(tmp_path / "a")
    b = make_run(tmp_path / "b", recipe="vit-digits-sam")
    _rewrite(b, "accuracy/top1", settings={"precision": "bf16"})
    _rewrite(b, "flatness/average_flatness", settings={"sigma": 0.1})
    accuracy, *_, flatness = _said(a, b)
    assert accuracy.tone == flatness.tone == "apart"
    assert "precision: not stated (vit-digits); bf16 (vit-digits-sam)" in accuracy.text
    assert "sigma: 0.05 (vit-digits); 0.1 (vit-digits-sam)" in flatness.text
    c = make_run(tmp_path / "c", recipe="vit-digits-sam", config={"data": {"source": "cifar10"}})
    assert {said.tone for said in _said(a, c)} == {"apart"}
    assert "different data: digits, cifar10" in _said(a, c)[0].text


def test_flatness_is_the_rise_of_the_loss_and_not_its_level(tmp_path) -> None:
    a = make_run(tmp_path / "a")
    b = make_run(tmp_path / "b", recipe="vit-digits-sam")
    # twice the loss with noise, and the same rise
    _rewrite(b, "flatness/average_flatness", value=4.5)
    _rewrite(b, "flatness/clean_loss", value=2.02)
    said = _said(a, b)[-1]
    assert said.tone == "open"
    assert "by 2.48 nats and that of vit-digits by 2.48" in said.text


@pytest.mark.parametrize(("spread", "tone"), [(0.001, "decided"), (0.2, "open")])
def test_seeds_decide_for_the_recipes(tmp_path, spread: float, tone: str) -> None:
    folders = []
    for recipe, mean in (("vit-digits", 0.90), ("vit-digits-sam", 0.93)):
        for seed in range(3):
            folder = make_run(tmp_path / f"{recipe}-{seed}", recipe=recipe, seed=seed)
            _rewrite(folder, "accuracy/top1", value=mean + spread * [0.3, -0.2, 0.5][(seed + len(recipe)) % 3])
            folders.append(folder)
    said = _said(*folders)[0]
    assert said.tone == tone
    assert "paired t-test over seeds, 3 seeds, 500 images each" in said.text
    assert ("decided for the recipes" in said.text) == (tone == "decided")


def test_several_recipes_share_the_error(tmp_path) -> None:
    folders = [make_run(tmp_path / "a")]
    folders += [make_run(tmp_path / f"{k}", recipe="vit-digits-sam", config={"sam": {"rho": 0.1 * k}}) for k in (1, 2)]
    assert "97.5 % interval, so that all comparisons hold at 95 %" in _said(*folders)[0].text


def test_one_run_says_its_accuracy_with_an_interval(tmp_path) -> None:
    (said,) = _said(make_run(tmp_path / "a"))
    assert "90.0 % of 500 held-out images are classified rightly (95 % interval 87.1 to 92.3 %)" in said.text


# --- lambda_max


def _curvature(*folders):
    (said,) = [said for said in _said(*folders) if "λ_max" in said.text]
    return said


def test_one_run_of_each_decides_nothing_about_lambda_max(tmp_path) -> None:
    said = _curvature(make_run(tmp_path / "a"), make_run(tmp_path / "b", recipe="vit-digits-sam", flat=8.0, seed=3))
    assert said.tone == "open"
    assert said.text == (
        "λ_max, the largest eigenvalue of the Hessian, is 5.38 for vit-digits-sam (seed 3), 0.134 times that of "
        "vit-digits (40.0, seed 0), on 269 training images. This decides nothing: λ_max differs from seed to seed."
    )
    assert "two more seeds" in said.more


@pytest.mark.parametrize(("values", "tone"), [((5, 6, 4), "decided"), ((5, 300, 30), "open")])
def test_lambda_max_over_seeds_is_a_ratio_with_its_interval(tmp_path, values, tone: str) -> None:
    folders = [make_run(tmp_path / f"a{seed}", seed=seed) for seed in range(3)]
    for seed, value in enumerate(values):
        folders.append(make_run(tmp_path / f"b{seed}", seed=seed, recipe="vit-digits-sam"))
        _rewrite(folders[-1], "hessian/lambda_max", value=float(value))
    said = _curvature(*folders)
    gains = np.log(values) - np.log([40, 41, 42])
    known = stats.ttest_1samp(gains, 0).confidence_interval()
    assert said.tone == tone
    assert f"is {np.exp(gains.mean()):.3g} times that of vit-digits" in said.text
    assert f"(95 % interval {np.exp(known.low):.3g} to {np.exp(known.high):.3g}, paired t-test over seeds" in said.text
    assert "seeds 0, 1, 2 against seeds 0, 1, 2, on 269 training images" in said.text
    assert ("decided for the recipes" in said.text) == (tone == "decided")


def test_lambda_max_of_other_images_or_of_a_saddle_is_not_compared(tmp_path) -> None:
    a, b = make_run(tmp_path / "a"), make_run(tmp_path / "b", recipe="vit-digits-sam")
    _rewrite(b, "hessian/lambda_max", value=-3.0)
    assert _curvature(a, b).tone == "apart"
    assert "no minimum" in _curvature(a, b).text
    _rewrite(b, "hessian/lambda_max", value=3.0, settings={"images": 12}, converged=False)
    assert "images: 269 (vit-digits)" in _curvature(a, b).text
    _rewrite(b, "hessian/lambda_max", settings={"images": 269})
    assert "1 value did not converge" in _curvature(a, b).more
