"""SAM's relatives in `samovar train`: flags, refusals, schedules, costs, and runs that resume bit for bit."""

import math
import os
import signal
from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from samovar import cli, recipes
from samovar import config as configs
from samovar.config import AdversarialConfig, Config, OptimConfig, RunConfig, SamConfig, passes
from samovar.data.loader import batches
from samovar.objectives import make_objective
from samovar.recipes.relatives import RELATIVES, published, related
from samovar.runs import checkpoint
from samovar.runs.records import RunDir
from samovar.runtime import Runtime
from samovar.train import schedules, teacher
from samovar.train.fit import Interrupted, fit, prepare
from samovar.train.loop import backward, steps
from tests.conftest import assert_refused

pytestmark = pytest.mark.costly

CPU = Runtime(torch.device("cpu"), torch.float32)
END, STOP = 7, 5
# Dropout, groups and an average of the weights: everything that has state or randomness is on.
BASE = recipes.get("vit-digits").config()
RUNS = {
    "fsam": SamConfig(rho=0.1, sigma=1.0, m=32),
    "looksam": SamConfig(rho=0.1, every=3, reuse=0.7, m=32),
    "gsam, late": SamConfig(rho=0.1, rho_min=0.02, rho_schedule="lr", alpha=0.4, start=0.4),
    "wsam, decoupled": SamConfig(rho=0.1, gamma=0.8, decoupled=True, m=32),
    "msam": SamConfig(rho=1.0, momentum=True),
    "stale": SamConfig(rho=0.1, stale=True),
    "arwp": SamConfig(rho=0.01, noise=True, rho_schedule="rise"),
    "ae-sam": SamConfig(rho=0.1, sharp_only=True, m=32),
    "mesa": SamConfig(teacher="average", teacher_weight=0.8, teacher_start=1.0),
    "mesa and sam": SamConfig(rho=0.1, teacher="average", teacher_start=0.0),
    "saf": SamConfig(teacher="earlier", teacher_lag=2, teacher_start=0.0),
}


def settings(sam: SamConfig) -> Config:
    return replace(
        BASE,
        steps=END,
        sam=sam,
        model=replace(BASE.model, dropout=0.1, drop_path=0.1),
        data=replace(BASE.data, fraction=0.3, batch_size=64),
        optim=OptimConfig(lr=1e-3, warmup_steps=2, clip_norm=1.0, ema=0.9),
        run=RunConfig(eval_every=4, log_every=1, threads=1, keep=10, micro_batch=24),
    )


def run_of(folder, config: Config):
    configs.validate(config)
    run = RunDir(folder)
    if not run.config_path.exists():
        run = RunDir.create(folder.parent, folder.name)
        configs.save(config, run.config_path)
    return run, fit(config, run, CPU, *prepare(config, CPU))


def end_of(run: RunDir) -> checkpoint.Checkpoint:
    return checkpoint.load(checkpoint.path_of(run.checkpoints, END))


def same(a, b) -> bool:
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(same, a, b))
    return bool(torch.equal(a, b)) if isinstance(a, torch.Tensor) else a == b


@pytest.mark.parametrize("name", [*RUNS, "saf, in a file"])
def test_a_run_that_is_stopped_and_resumed_ends_in_the_same_bits(tmp_path, name, monkeypatch):
    if name == "saf, in a file":
        monkeypatch.setattr(teacher, "MOST_IN_MEMORY", 0)
    config = settings(RUNS[name.partition(",")[0] if name.startswith("saf") else name])
    undisturbed, events = run_of(tmp_path / "undisturbed", config)
    list(events)
    run, events = run_of(tmp_path / "stopped", config)

    def play():
        for event in events:
            if event.kind == "train" and event.step == STOP:
                os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Interrupted):
        play()
    assert checkpoint.steps_saved(run.checkpoints)[-1] == STOP
    list(run_of(tmp_path / "stopped", config)[1])
    resumed, other = end_of(run), end_of(undisturbed)
    assert same(resumed.model, other.model)
    assert same(resumed.ema, other.ema)
    assert same(resumed.state, other.state)
    assert ("sam" in resumed.state) == (name in ("fsam", "looksam", "stale", "ae-sam"))


@pytest.mark.parametrize("sam", [SamConfig(rho=0.1, sigma=1.0), SamConfig(rho=0.1, every=2, reuse=0.7)])
def test_groups_of_m_share_one_memory_of_the_whole_batch(sam):
    """With equal groups, what is kept of m groups is what is kept of the batch, where they ascend alike: at rho ~ 0."""
    kept = []
    for m in (0, 16):
        config = settings(replace(sam, rho=1e-3, m=m))
        config = replace(config, model=BASE.model)  # no dropout, whose masks groups draw anew
        source, state = prepare(config, CPU)
        torch.nn.init.normal_(state.model.body.head.weight, std=0.1, generator=torch.Generator().manual_seed(0))
        stream = batches(source, config.data, seed=0, stop=1, device=CPU.device)
        backward(state, next(stream), make_objective(config, 10), config, CPU)
        assert state.memory.step == 1
        kept.append((state.memory.average | state.memory.component).values())
    for whole, groups in zip(*kept, strict=True):
        if sam.sigma:
            torch.testing.assert_close(groups, whole, rtol=1e-4, atol=1e-6)  # float32 sums in another order
        else:  # unit vectors, or nothing where there is but rounding
            assert groups.norm().item() == pytest.approx(1, rel=1e-4) or not groups.any()
    if not sam.sigma:  # the mean of ascents of 16 is not the ascent of 64, but it goes the same way
        whole, groups = (torch.cat([each.flatten() for each in vectors]) for vectors in kept)
        assert F.cosine_similarity(whole, groups, dim=0) > 0.3


def test_the_average_of_the_weights_is_taken_after_decoupled_wsam_has_subtracted():
    config = settings(RUNS["wsam, decoupled"])
    config = replace(config, optim=replace(config.optim, warmup_steps=0, ema=1e-9))  # as good as the weights
    source, state = prepare(config, CPU)
    torch.nn.init.normal_(state.model.body.head.weight, std=0.1)
    stream = batches(source, config.data, seed=0, stop=2, device=CPU.device)
    for _ in steps(state, stream, make_objective(config, 10), config, CPU, END):
        pass
    for name, value in state.model.body.state_dict().items():
        torch.testing.assert_close(state.ema.weights[name], value, rtol=1e-6, atol=1e-7)


def test_the_climb_takes_its_share_of_each_group_in_micro_batches():
    config = settings(SamConfig(rho=0.1, m=32, fraction=0.25))
    source, state = prepare(config, CPU)
    objective, sizes = make_objective(config, 10), []

    def watched(model, batch):
        sizes.append(len(batch))
        return objective(model, batch)

    stream = batches(source, config.data, seed=0, stop=1, device=CPU.device)
    loss = backward(state, next(stream), watched, config, CPU)
    assert sizes == [8, 24, 8] * 2
    assert loss.item() == pytest.approx(math.log(10), abs=0.05), "of a zero head, whatever the share"


# --- radius -----------------------------------------------------------------------------------------------------------

PEAK, TOTAL, WARM = 2e-3, 50, 10


@pytest.mark.parametrize(
    ("schedule", "share"),
    [
        ("cosine", lambda p: 0.5 * (1 + math.cos(math.pi * p))),
        ("linear", lambda p: 1 - p),  # from the peak to `linear_end`, which is the lowest
        ("exponential", lambda p: (0.01**p - 0.01) / 0.99),
        ("constant", lambda p: 1.0),
    ],
)
def test_rho_follows_the_learning_rate_from_its_peak_to_its_end(schedule, share):
    rate = OptimConfig(lr=PEAK, schedule=schedule, warmup_steps=WARM, linear_end=0.1, exponential_end=0.01)
    config = Config(optim=rate, sam=SamConfig(rho=0.6, rho_min=0.2, rho_schedule="lr"))
    lowest = {"cosine": 0.0, "linear": 0.1, "exponential": 0.01, "constant": 0.0}[schedule]
    for step in range(TOTAL):
        progress = max(0, step - WARM) / (TOTAL - WARM)
        whole = share(progress) * (1 - lowest) + lowest  # the rate over its peak, without warm-up
        expected = 0.2 + 0.4 * max(0.0, (whole * min(1, step / WARM) - lowest) / (1 - lowest))
        assert schedules.rho_at(step, config, TOTAL) == pytest.approx(expected, rel=1e-12), step


@pytest.mark.parametrize("ends", [{"schedule": "linear", "linear_end": 1.0}, {"schedule": "exponential"}])
def test_rho_tied_to_a_rate_that_stays_changes_in_the_warm_up_alone(ends):
    rate = OptimConfig(lr=PEAK, warmup_steps=WARM, exponential_end=1.0, **ends)
    config = Config(optim=rate, sam=SamConfig(rho=0.6, rho_min=0.2, rho_schedule="lr"))
    radii = [schedules.rho_at(step, config, TOTAL) for step in range(TOTAL)]
    assert radii == pytest.approx([0.2 + 0.4 * min(1, step / WARM) for step in range(TOTAL)])


def test_rho_rises_by_a_cosine_over_the_run():
    config = Config(sam=SamConfig(rho=0.6, rho_min=0.2, rho_schedule="rise"))
    radii = [schedules.rho_at(step, config, 50) for step in range(50)]
    assert radii == pytest.approx([0.2 + 0.4 * (1 - math.cos(math.pi * step / 50)) / 2 for step in range(50)])


@pytest.mark.parametrize(("start", "end", "climbing"), [(0.8, 1, range(40, 50)), (0, 0.2, range(10))])
def test_rho_is_zero_before_the_start_and_from_the_end(start, end, climbing):
    config = Config(sam=SamConfig(rho=0.1, start=start, end=end))
    assert [step for step in range(50) if schedules.rho_at(step, config, 50)] == list(climbing)


# --- flags and refusals -----------------------------------------------------------------------------------------------

RHO = {"rho": 0.1}
REFUSED = [
    ({"sigma": -1.0}, "--sam.sigma -1.0 is out of range; give a number of 0 or more"),
    ({"sigma_decay": 1.0}, "--sam.sigma-decay 1.0 is out of range"),
    ({"ascent_steps": 0}, "--sam.ascent-steps 0 is out of range"),
    ({"every": 0}, "--sam.every 0 is out of range"),
    ({"reuse": -1.0}, "--sam.reuse -1.0 is out of range"),
    ({"alpha": -1.0}, "--sam.alpha -1.0 is out of range"),
    ({"gamma": 1.0}, "--sam.gamma 1.0 is out of range"),
    ({"fraction": 0.0}, "--sam.fraction 0.0 is out of range; give a share above 0, up to 1"),
    ({"fraction": 1.5}, "--sam.fraction 1.5 is out of range"),
    ({"start": -0.1}, "--sam.start -0.1 is out of range; give a share of the run from 0 to 1"),
    ({"end": 1.1}, "--sam.end 1.1 is out of range"),
    ({"rho_min": -0.1}, "--sam.rho-min -0.1 is out of range"),
    ({"momentum": True, "sigma": 1.0}, "--sam.momentum with --sam.sigma 1.0: the optimizer's momentum is the whole"),
    ({"momentum": True, "ascent_steps": 2}, "--sam.momentum with --sam.ascent-steps 2"),
    ({"momentum": True, "every": 2}, "--sam.momentum with --sam.every 2: a step along the momentum costs what"),
    ({"momentum": True, "alpha": 0.1}, "--sam.momentum with --sam.alpha 0.1"),
    ({"momentum": True, "gamma": 0.8}, "--sam.momentum with --sam.gamma 0.8"),
    ({"momentum": True, "decoupled": True}, "--sam.momentum with --sam.decoupled"),
    ({"momentum": True, "fraction": 0.5}, "--sam.momentum with --sam.fraction 0.5: it takes no gradient"),
    ({"alpha": 0.1, "gamma": 0.8}, "--sam.alpha 0.1 with --sam.gamma 0.8"),
    ({"alpha": 0.1, "decoupled": True}, "--sam.alpha 0.1 with --sam.decoupled"),
    ({"reuse": 0.1, "every": 2, "decoupled": True}, "--sam.reuse 0.1 with --sam.decoupled"),
    ({"reuse": 0.1}, "--sam.reuse 0.1 with --sam.every 1: with no steps between there is none to use it in"),
    ({"alpha": 0.1, "every": 2}, "--sam.alpha 0.1 with --sam.every 2: plain steps between would undo"),
    ({"layerwise": True, "adaptive": True}, "--sam.layerwise with --sam.adaptive: each scales the climb"),
    ({"fraction": 0.5, "alpha": 0.1}, "--sam.fraction 0.5 with --sam.alpha 0.1: the two gradients would be"),
    ({"fraction": 0.5, "gamma": 0.8}, "--sam.fraction 0.5 with --sam.gamma 0.8"),
    ({"fraction": 0.5, "decoupled": True}, "--sam.fraction 0.5 with --sam.decoupled"),
    ({"fraction": 0.5, "reuse": 0.1, "every": 2}, "--sam.fraction 0.5 with --sam.reuse 0.1"),
    ({"start": 0.5, "end": 0.2}, "--sam.start 0.5 with --sam.end 0.2: there is no step between them"),
    ({"start": 0.5, "end": 0.5}, "--sam.start 0.5 with --sam.end 0.5: there is no step between them"),
    ({"rho_min": 0.2, "rho_schedule": "lr"}, "--sam.rho-min 0.2 with --sam.rho 0.1: the lowest radius is above"),
    ({"rho_min": 0.05}, "--sam.rho-min 0.05 with --sam.rho-schedule constant: give --sam.rho-schedule lr"),
    ({"stale": True, "fraction": 0.5}, "--sam.stale with --sam.fraction 0.5: it takes no gradient"),
    ({"noise": True, "fraction": 0.5}, "--sam.noise with --sam.fraction 0.5: it takes no gradient"),
    ({"noise": True, "adaptive": True}, "--sam.noise with --sam.adaptive: each scales the climb"),
    ({"noise": True, "stale": True}, "--sam.stale with --sam.noise: each is a direction of its own"),
    ({"sharp_only": True, "fraction": 0.5}, "--sam.fraction 0.5 with --sam.sharp-only: the two gradients would be"),
    ({"sharp_only": True, "every": 2}, "--sam.sharp-only with --sam.every 2: each says in which steps"),
    ({"teacher": "earlier"}, "--sam.teacher earlier with --sam.rho 0.1: earlier logits take the place of the climb"),
    ({"teacher_lag": 0}, "--sam.teacher-lag 0 is out of range; give a number of epochs, 1 or more"),
    ({"teacher_tau": 0.0}, "--sam.teacher-tau 0.0 is out of range"),
    ({"m": 32, "shared_ascent": True}, "--sam.m and --sam.shared-ascent exclude each other"),
]


@pytest.mark.parametrize(("size", "lag", "fits"), [(80, 1, True), (64, 1, False), (64, 2, True), (128, 2, False)])
def test_a_batch_that_would_need_its_own_logits_is_refused(size, lag, fits):
    sam = SamConfig(teacher="earlier", teacher_lag=lag)
    config = settings(sam)
    config = replace(config, data=replace(config.data, batch_size=size))
    if fits:
        prepare(config, CPU)
    else:
        with pytest.raises(ValueError, match=f"--data.batch-size {size} .*--sam.teacher-lag {lag}.*give"):
            prepare(config, CPU)


def refusal(config: Config) -> str:
    with pytest.raises(ValueError) as caught:
        configs.validate(config)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(("sam", "words"), REFUSED)
def test_what_means_nothing_is_refused_in_the_words_of_the_flags(sam, words):
    assert words in refusal(Config(sam=SamConfig(**RHO | sam)))


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (
            Config(sam=SamConfig(rho=0.1, fraction=0.5), adversarial=AdversarialConfig(eps=0.01)),
            "--sam.fraction 0.5 with --adversarial.eps 0.01: images climb by the same backward pass",
        ),
        (
            Config(sam=SamConfig(rho=0.1, ascent_steps=2), adversarial=AdversarialConfig(eps=0.01)),
            "--sam.ascent-steps 2 with --adversarial.eps 0.01",
        ),
        (
            Config(sam=SamConfig(rho=0.1, sharp_only=True), adversarial=AdversarialConfig(eps=0.01)),
            "--sam.sharp-only with --adversarial.eps 0.01: a step without a climb would train on images before",
        ),
        (
            Config(sam=SamConfig(teacher="average"), adversarial=AdversarialConfig(eps=0.01)),
            "--sam.teacher average with --adversarial.eps 0.01: the teacher would see other images",
        ),
        (
            Config(sam=SamConfig(teacher="earlier"), data=replace(Config().data, mixup=0.5)),
            "--sam.teacher earlier with --data.mixup 0.5: an image's earlier logits would be those of another",
        ),
        (
            Config(sam=SamConfig(teacher="average"), loss="supcon", data=replace(Config().data, views=2)),
            "--sam.teacher average does not go with --loss supcon",
        ),
        (
            Config(sam=SamConfig(rho=0.1, rho_schedule="lr"), optim=OptimConfig(schedule="constant")),
            "--sam.rho-schedule lr with --optim.schedule constant: the rate does not change",
        ),
        (
            Config(sam=SamConfig(rho=0.1, momentum=True), optim=OptimConfig(name="sgd", momentum=0.0)),
            "--sam.momentum with --optim.momentum 0.0: there is none to climb along; give --optim.momentum 0.9",
        ),
    ],
)
def test_what_means_nothing_beside_other_settings_is_refused_too(config, words):
    assert words in refusal(config)


def test_the_command_line_refuses_in_one_line(tmp_path, capsys):
    line = "--sam.momentum with --sam.fraction 0.5: it takes no gradient for its climb"
    assert_refused(f"train vit-digits-sam --output {tmp_path} --sam.momentum --sam.fraction 0.5", line, capsys)
    assert not list(tmp_path.iterdir())


FLAGS = [
    "--sam.fraction 0.25 --sam.start 0.3 --sam.m 64",
    "--sam.every 2 --sam.reuse 0.7 --sam.alpha 0.4 --sam.rho-schedule lr --sam.rho-min 0.05",
    "--sam.momentum --sam.end 0.8 --sam.norms-only",
    "--sam.sigma 1 --sam.sigma-decay 0.6 --sam.ascent-steps 2 --sam.layerwise",
    "--sam.stale --sam.layerwise --sam.start 0.3",
    "--sam.noise --sam.rho 0.01 --sam.rho-schedule rise --sam.m 64",
    "--sam.sharp-only --sam.sigma 1 --sam.no-c-skip --sam.m 64",
    "--sam.gamma 0.8 --sam.decoupled --sam.adaptive --optim.ema 0.9",
]


@pytest.mark.parametrize("flags", FLAGS)
def test_flags_go_together_and_train(tmp_path, flags):
    options = f"--output {tmp_path} --name r --steps 4 --optim.warmup-steps 1 --run.log-every 1 --data.fraction 0.3"
    assert not cli.main(f"train vit-digits-sam {options} {flags}".split())
    losses = [record.value for record in RunDir(tmp_path / "r").records("train/loss")]
    assert len(losses) == 4
    assert all(math.isfinite(loss) for loss in losses)


# --- relatives by name ------------------------------------------------------------------------------------------------

SAM_RECIPE = recipes.get("vit-digits-sam").config()
PASSES = {
    "plain": 1, "sam": 2, "asam": 2, "half": 1.5, "quarter": 1.25, "every2": 1.5, "every5": 1.2, "looksam": 1.2,
    "stale": 1, "arwp": 1, "ae-sam": 1.5, "msam-lr": 1,
    "saf": 1, "mesa": 1 + (1 - 5 / SAM_RECIPE.epochs) / 3, "mesa+rho=0.1": 2 + (1 - 5 / SAM_RECIPE.epochs) / 3,
    "ae-sam+c-skip=false": 2, "ae-sam+c_last=1": 1 + 0.158655, "ae-sam+latehalf": 1.25,
    "late": 1.2, "latehalf": 1.5, "early": 1.2, "msam": 1, "sam-on": 2, "gsam": 2, "fsam": 2, "wsam": 2,
    "wsam-decoupled": 2, "two-step": 3, "layerwise": 2, "quarter+late": 1.05, "every2+quarter": 1.125,
    "two-step+half": 2,
}  # fmt: skip


def test_every_relative_has_its_cost_here():
    # SAM in the decay needs a schedule that has one; tests/unit/test_wsd.py has its cost
    assert set(RELATIVES) <= {*PASSES, "decay"}


@pytest.mark.parametrize("name", PASSES)
def test_a_relative_is_a_valid_config_of_known_cost(name):
    config = related(SAM_RECIPE, name)
    assert passes(config) == pytest.approx(PASSES[name])
    assert config == replace(SAM_RECIPE, sam=config.sam), "nothing else changes"


def test_radii_go_by_those_of_sam():
    rho = SAM_RECIPE.sam.rho
    assert related(SAM_RECIPE, "sam") == SAM_RECIPE
    assert related(SAM_RECIPE, "plain").sam == SamConfig()
    assert related(SAM_RECIPE, "msam").sam.rho == pytest.approx(10 * rho)
    assert related(SAM_RECIPE, "gsam").sam.rho == rho
    for name in ("gsam", "late+gsam", "gsam+late"):
        assert related(SAM_RECIPE, name).sam.rho_min == pytest.approx(rho / 3, abs=1e-6)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("gsma", "unknown relative of SAM 'gsma'; did you mean gsam? there are: plain, sam, asam"),
        ("quarter+nothing-like-it", "unknown relative of SAM 'nothing-like-it'; there are: plain"),
        ("", "unknown relative of SAM ''"),
        ("msam+quarter", "--sam.momentum with --sam.fraction 0.25"),
        ("gsam+wsam", "--sam.alpha 0.4 with --sam.gamma 0.8"),
        ("late+early", "--sam.start 0.8 with --sam.end 0.2"),
        ("asam+layerwise", "--sam.layerwise with --sam.adaptive"),
    ],
)
def test_names_that_are_unknown_or_do_not_go_together_are_refused(name, words):
    with pytest.raises(ValueError) as caught:
        related(SAM_RECIPE, name)
    assert words in str(caught.value)


def test_a_recipe_without_a_radius_is_refused():
    with pytest.raises(ValueError, match=r"recipe vit-digits has no --sam.rho to go by; give one"):
        related(BASE, "gsam")


@pytest.mark.parametrize("recipe", published(), ids=lambda recipe: recipe.name)
def test_what_was_published_is_valid_and_has_a_schedule(recipe):
    config = recipe.config()
    configs.validate(config)
    configs.validate_layout(config, 1)
    total = configs.num_steps(config, 1_281_167)
    radii = [schedules.rho_at(step, config, total) for step in range(0, total, total // 50)]
    lowest = config.sam.rho_min if config.sam.rho_schedule == "lr" else config.sam.rho
    assert all(rho == 0 or lowest <= rho <= config.sam.rho for rho in radii)
    assert max(radii) == pytest.approx(config.sam.rho, rel=0.05)
    first = next(step for step, rho in enumerate(radii) if rho)
    assert (first > 0) == (config.sam.start > 0 or (lowest == 0 and config.optim.warmup_steps > 0))
