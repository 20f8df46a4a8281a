"""Landscapes: exact at the trained point, of the directions asked for, and without a trace in the model."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from samovar import config as configs
from samovar import recipes
from samovar.config import MeasureConfig, RunConfig
from samovar.measure import grid, grid_processes
from samovar.measure.grid import Execution
from samovar.measure.landscape import landscape
from samovar.measure.losses import mean_loss
from samovar.measure.plane import Plane, axis, filter_direction, loss_between, loss_plane
from samovar.measure.subject import Subject, open_subject
from samovar.runs.records import RunDir
from samovar.runtime import Runtime
from samovar.train.fit import fit, prepare

CPU = Runtime(torch.device("cpu"), torch.float32)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def net(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Dropout(), nn.Linear(16, 3)
    )
    model(torch.randn(8, 1, 4, 4))  # running statistics of its own
    return model


def data(sizes=(4, 4, 2)) -> list[tuple[Tensor, Tensor]]:
    generator = seeded(1)
    return [(torch.rand(n, 1, 4, 4, generator=generator), torch.randint(3, (n,), generator=generator)) for n in sizes]


def cross_entropy(model: nn.Module, batch) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


def judged(model: nn.Module, batch) -> tuple[Tensor, Tensor]:
    logits = model(batch[0])
    return F.cross_entropy(logits, batch[1]), logits.argmax(1) == batch[1]


def two(model: nn.Module) -> list[dict[str, Tensor]]:
    generator = seeded()
    return [filter_direction(model, generator) for _ in range(2)]


def plane(model: nn.Module, points: int = 3, how: Execution = Execution(), span: float = 1.0) -> Plane:  # noqa: B008
    x = axis(points, span)
    return loss_plane(model, judged, data(), two(model), x, x, how)


class Quadratic(nn.Module):
    """1/2 (w - a).H (w - a) for random H, a and w, in float64."""

    def __init__(self):
        super().__init__()
        draw = {"generator": seeded(), "dtype": torch.float64}
        root = torch.randn(12, 12, **draw)
        self.hessian, self.lowest = root + root.T, torch.randn(12, **draw)
        self.weight = nn.Parameter(torch.randn(3, 4, **draw))

    def at(self, w: Tensor) -> Tensor:
        away = w.flatten() - self.lowest
        return 0.5 * away @ self.hessian @ away

    def forward(self) -> Tensor:
        return self.at(self.weight)


# --- values ----------------------------------------------------------------------------------------------------------


def test_the_centre_of_the_grid_is_the_trained_loss_to_the_bit():
    model = net()
    expected = mean_loss(model, cross_entropy, data())
    for points in (3, 5):
        found = plane(model, points)
        assert found.loss[points // 2, points // 2].item() == found.center_loss == expected
        assert found.loss[0, 0].item() != expected


def test_a_grid_without_the_trained_point_tells_its_loss_all_the_same():
    found = plane(net(), 4)
    assert found.center_loss == mean_loss(net(), cross_entropy, data())
    assert found.center_accuracy == plane(net(), 3).center_accuracy
    assert found.loss.shape == (4, 4)
    assert found.num_forwards == (4 * 4 + 1) * 3  # points, of three batches each


def test_a_plane_of_a_quadratic_is_the_quadratic():
    model = Quadratic()
    a, b = two(model)
    x, y = axis(5, 0.7), axis(4, 2.0)
    found = loss_plane(model, lambda m, _: m(), [torch.zeros(1)], [a, b], x, y)
    w, (a, b) = model.weight.detach(), (a["weight"], b["weight"])
    expected = [[model.at(w + s * a + t * b).item() for s in x.tolist()] for t in y.tolist()]
    torch.testing.assert_close(found.loss, torch.tensor(expected, dtype=torch.float64), rtol=1e-12, atol=1e-12)
    assert found.accuracy is None


def test_a_line_is_a_row_of_the_plane():
    model = net()
    a, b = two(model)
    line = loss_plane(model, judged, data(), [a], axis(5, 1.0))
    both = loss_plane(model, judged, data(), [a, b], axis(5, 1.0), [0.0])
    assert line.y is None
    assert torch.equal(line.loss, both.loss[0])
    assert torch.equal(line.accuracy, both.accuracy[0])


def test_accuracy_is_the_share_of_right_answers():
    model, batches = net().eval(), data()
    rights = sum((model(x).argmax(1) == y).sum().item() for x, y in batches)
    assert plane(model).center_accuracy == rights / 10


def test_height_is_over_the_finite_losses_alone():
    model = Quadratic()
    found = loss_plane(model, lambda m, _: 1 / (m() < 1e3), [torch.zeros(1)], two(model)[:1], [0.0, 1.0, 1e9])
    assert found.loss.tolist() == [1, 1, math.inf]
    assert found.height == 0


def test_random_numbers_of_the_loss_are_the_same_at_every_point():
    model = net()
    found = loss_plane(model, lambda m, b: torch.rand(()) + 0 * m(b[0]).sum(), data(), two(model)[:1], axis(3, 1.0))
    assert len(set(found.loss.tolist())) == 1


def test_the_axis_is_symmetric_and_holds_zero_where_it_can():
    for points, span in ((3, 1.0), (25, 0.1), (50, 1.0), (1001, 0.3)):
        x = axis(points, span)
        assert torch.equal(x, -x.flip(0))
        assert x[[0, -1]].tolist() == [-span, span]
        assert (0 in x.tolist()) == bool(points % 2)


# --- directions ------------------------------------------------------------------------------------------------------


def test_each_filter_of_a_direction_is_as_long_as_that_of_the_weights():
    model = net()
    model.position = nn.Parameter(torch.randn(1, 5, 7))
    direction = filter_direction(model, seeded())
    assert list(direction) == ["position", "0.weight", "5.weight"]  # no biases, no scales of norms
    for name, d in direction.items():
        w = model.get_parameter(name).detach()
        torch.testing.assert_close(d.flatten(1).norm(dim=1), w.flatten(1).norm(dim=1))
    assert len(direction["position"]) == 1


def test_filters_of_zero_stay():
    model = nn.Linear(4, 3)
    with torch.no_grad():
        model.weight[1] = 0
    direction = filter_direction(model, seeded())["weight"]
    assert not direction[1].any()
    assert direction.isfinite().all()


def test_two_draws_are_as_good_as_orthogonal_and_have_both_signs():
    model = nn.Linear(300, 300)
    a, b = (direction["weight"].flatten() for direction in two(model))
    # a peer draws from [0, 1): its mean is 0.5 and its cosine 0.75. Four deviations of 1 / sqrt(90000)
    assert abs(F.cosine_similarity(a, b, dim=0).item()) < 4 / 300
    assert abs(a.mean() / a.std()) < 4 / 300


def test_directions_are_a_function_of_the_generator():
    model = net()
    torch.manual_seed(5)
    first = filter_direction(model, seeded(3))
    torch.manual_seed(6)
    again, other = filter_direction(model, seeded(3)), filter_direction(model, seeded(4))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["0.weight"], other["0.weight"])


def test_a_wider_span_is_a_wider_plane():
    model = Quadratic()
    narrow, wide = (loss_plane(model, lambda m, _: m(), [torch.zeros(1)], two(model)[:1], axis(5, s)) for s in (1, 2))
    assert torch.equal(narrow.loss[[0, 2, 4]], wide.loss[1:4])  # the peer's shrinks


def test_frozen_and_tied_weights_move_as_they_train():
    model = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False))
    model[1].weight = model[0].weight
    model[2].weight.requires_grad_(False)
    direction = filter_direction(model, seeded())
    assert list(direction) == ["0.weight"]
    seen = []

    def loss(model, batch):
        seen.append([p.weight.clone() for p in model])
        return torch.zeros(())

    loss_plane(model, loss, [torch.zeros(1)], [direction], [2.0])
    moved = model[0].weight + 2 * direction["0.weight"]
    assert torch.equal(seen[0][0], moved)
    assert torch.equal(seen[0][1], moved)
    assert torch.equal(seen[0][2], model[2].weight)


def test_a_direction_may_be_the_weights_themselves():
    model = Quadratic()
    found = loss_plane(model, lambda m, _: m(), [torch.zeros(1)], [{"weight": model.weight}], [-1.0, 0.0, 1.0])
    w = model.weight.detach()
    assert found.loss.tolist() == pytest.approx([model.at(k * w).item() for k in (0, 1, 2)], rel=1e-12)


# --- what is left behind ---------------------------------------------------------------------------------------------


def state(model: nn.Module) -> list:
    kept = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    return [
        {name: tensor.detach().clone() for name, tensor in kept.items()},
        {name: (tensor.data_ptr(), tensor.requires_grad, id(tensor.grad)) for name, tensor in kept.items()},
        [module.training for module in model.modules()],
        torch.get_rng_state(),
    ]


def assert_same(before: list, after: list) -> None:
    assert all(torch.equal(tensor, after[0][name]) for name, tensor in before[0].items())
    assert before[1:3] == after[1:3]
    assert torch.equal(before[3], after[3])


@pytest.mark.parametrize("fails_at", [None, 0, 7, 20])
def test_the_model_comes_back_to_the_bit_even_after_a_failure(fails_at):
    model, calls = net(), []
    model[0].bias.requires_grad_(False)
    model[3].eval()
    cross_entropy(model, data()[0]).backward()
    before, directions = state(model), two(model)

    def loss(model, batch):
        calls.append(batch)
        if len(calls) - 1 == fails_at:
            raise RuntimeError("the disk is on fire")
        return cross_entropy(model, batch)

    try:
        loss_plane(model, loss, data(), directions, axis(3, 1.0), axis(3, 1.0))
    except RuntimeError:
        assert fails_at is not None
    assert len(calls) == (27 if fails_at is None else fails_at + 1)
    assert_same(before, state(model))


class Caching(nn.Module):
    """Keeps a table from one forward pass to the next, as rotary embeddings do."""

    def __init__(self):
        super().__init__()
        self.layer, self.table = nn.Linear(16, 3), None

    def forward(self, x: Tensor) -> Tensor:
        if self.table is None:
            self.table = torch.arange(16.0).sin()
        return self.layer(x.flatten(1) * self.table)


def test_a_model_that_caches_can_be_trained_on():
    model = Caching()
    plane(model)
    cross_entropy(model, data()[0]).backward()
    assert model.layer.weight.grad is not None


def test_an_outer_autocast_sees_the_moved_weights():
    model, batches = nn.Linear(16, 3), [(torch.rand(8, 16), torch.arange(8) % 3)]
    with torch.autocast("cpu", torch.bfloat16):
        found = loss_plane(model, cross_entropy, batches, two(model)[:1], axis(5, 1.0))
    assert len(set(found.loss.tolist())) == 5


# --- rows in files ---------------------------------------------------------------------------------------------------


def counted(calls: list):
    def loss(model, batch):
        calls.append(batch)
        return judged(model, batch)

    return loss


def test_a_resumed_grid_computes_the_missing_rows_alone(tmp_path):
    model, calls, x = net(), [], axis(5, 1.0)
    whole = plane(model, 5)

    def interrupted(model, batch):
        if len(calls) == 2 * 15 + 4:
            raise KeyboardInterrupt
        return counted(calls)(model, batch)

    directions, how = two(model), Execution(tmp_path / "rows")
    with pytest.raises(KeyboardInterrupt):
        loss_plane(model, interrupted, data(), directions, x, x, how)
    calls.clear()
    again = loss_plane(model, counted(calls), data(), directions, x, x, how)
    assert len(calls) == 3 * 15  # rows, of five points of three batches each
    assert torch.equal(again.loss, whole.loss)
    assert torch.equal(again.accuracy, whole.accuracy)
    calls.clear()
    assert torch.equal(loss_plane(model, counted(calls), data(), directions, x, x, how).loss, whole.loss)
    assert not calls


def test_rows_of_other_weights_images_or_points_are_not_taken_for_these(tmp_path):
    model, calls = net(), []
    (a, b), x, how = two(model), axis(3, 1.0), Execution(tmp_path)
    others = [
        (net(1), data(), [a, b], x),
        (model, data((4, 4, 3)), [a, b], x),
        (model, data(), [b, a], x),
        (model, data(), [a, b], axis(3, 0.5)),
    ]
    for one, batches, directions, points in others:
        loss_plane(model, judged, data(), [a, b], x, x, how)
        calls.clear()
        found = loss_plane(one, counted(calls), batches, directions, points, points, how)
        assert len(calls) == 27
        assert torch.equal(found.loss, loss_plane(one, judged, batches, directions, points, points).loss)


def test_a_damaged_row_is_computed_again(tmp_path):
    model, calls, x, how = net(), [], axis(3, 1.0), Execution(tmp_path)
    directions = two(model)
    whole = loss_plane(model, judged, data(), directions, x, x, how)
    (tmp_path / "row-0001.npy").write_bytes(b"")
    np.save(tmp_path / "row-0002.npy", np.zeros((2, 1)))
    again = loss_plane(model, counted(calls), data(), directions, x, x, how)
    assert len(calls) == 18
    assert torch.equal(again.loss, whole.loss)


def test_progress_tells_the_rows_that_are_done():
    told = []
    plane(net(), 3, Execution(progress=lambda done, total: told.append((done, total))))
    assert told[:3] == [(1, 3), (2, 3), (3, 3)]


# --- between two models ----------------------------------------------------------------------------------------------


def test_both_ends_of_the_line_between_two_models_are_theirs_to_the_bit():
    a, b = net(0), net(1)
    b(torch.randn(8, 1, 4, 4))  # BatchNorm counts its batches, an integer
    found = loss_between(a, b, judged, data(), torch.linspace(0, 1, 5))
    losses = [mean_loss(model, cross_entropy, data()) for model in (a, b)]
    assert found.loss[[0, -1]].tolist() == losses
    assert found.center_loss == losses[0]
    assert torch.equal(found.loss, loss_between(b, a, judged, data(), torch.linspace(0, 1, 5)).loss.flip(0))


def test_the_line_between_two_models_leaves_both_as_they_were():
    a, b = net(0), net(1)
    before = state(a), state(b)
    loss_between(a, b, judged, data(), [0.0, 0.3, 1.0])
    assert_same(before[0], state(a))
    assert_same(before[1], state(b))
    assert len(set(loss_between(a, a, judged, data(), [0.0, 0.3, 1.0]).loss.tolist())) == 1


# --- what does not fit -----------------------------------------------------------------------------------------------


def spoiled() -> nn.Module:
    model = net()
    with torch.no_grad():
        model[5].weight[0, 0] = math.nan
    return model


def line(model=None, loss=cross_entropy, batches=None, directions=None, x=(0.0, 1.0), y=None, how=Execution()):  # noqa: B008
    model = model or net()
    return loss_plane(model, loss, data() if batches is None else batches, directions or two(net())[:1], x, y, how)


@pytest.mark.parametrize(
    ("attempt", "complaint"),
    [
        (lambda: line(spoiled()), "5.weight is not finite; a landscape needs finite weights: load an earlier"),
        (lambda: line(x=()), "coordinates .* give at least one finite number"),
        (lambda: line(x=(0.0, math.inf)), "coordinates"),
        (lambda: line(y=(0.0,)), "1 directions: give one with x, or two with x and y"),
        (lambda: line(directions=[{"5.weigth": torch.zeros(3)}]), "5.weigth .* not in the model"),
        (lambda: line(directions=[{"5.bias": torch.zeros(4)}]), r"5.bias of shape \[4\], which is \[3\] in the model"),
        (lambda: line(directions=[{"5.bias": torch.full((3,), math.nan)}]), "5.bias of a direction is not finite"),
        (lambda: line(directions=[{}]), "a direction is empty"),
        (lambda: line(batches=[]), "batches is empty"),
        (lambda: line(loss=lambda m, b: m(b[0])), r"must return the mean loss over the batch, a tensor of shape \[\]"),
        (lambda: line(loss=lambda m, b: (cross_entropy(m, b), m(b[0]))), "which examples are right"),
        (
            lambda: loss_between(net(), nn.Linear(2, 3), judged, data(), [0.0]),
            "0.weight, .* give one of the same archit",
        ),
        (lambda: filter_direction(nn.LayerNorm(4), seeded()), "there are no filters"),
        (lambda: line(nn.Linear(2, 2), directions=two(nn.Linear(2, 3))[:1]), r"\[3, 2\], which is \[2, 2\]"),
    ],
)
def test_what_does_not_fit_is_one_clear_error(attempt, complaint):
    with pytest.raises(ValueError, match=complaint) as caught:
        attempt()
    assert "\n" not in str(caught.value)


def test_a_grid_larger_than_the_memory_is_refused():
    many = torch.arange(1e6)
    with pytest.raises(ValueError, match=r"1000000 x 1000000 points takes \d+\.\d GiB .* give fewer points"):
        loss_plane(net(), judged, data(), two(net()), many, many)


def test_processes_are_for_a_cpu_and_not_for_autocast():
    with torch.autocast("cpu", torch.bfloat16), pytest.raises(ValueError, match="processes=2 works only on a CPU"):
        line(how=Execution(processes=2))
    with pytest.raises(ValueError, match="processes=2 works only on a CPU"):
        line(how=Execution(processes=2, distributed=True))


def test_one_process_per_core_is_not_worth_it_for_a_small_grid(monkeypatch):
    monkeypatch.setattr(grid_processes, "start_processes", lambda *args, **options: pytest.fail("started"))
    assert plane(net(), 5, Execution(processes=0)).loss.equal(plane(net(), 5).loss)


# --- the measurement -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> RunDir:
    """Twelve steps of the digits demo, with a checkpoint at every four."""
    base = recipes.get("vit-digits").config()
    base = replace(base, steps=12, optim=replace(base.optim, warmup_steps=1))
    config = replace(base, run=RunConfig(eval_every=4, keep=3, threads=1))
    run = RunDir.create(tmp_path_factory.mktemp("runs"), "r")
    configs.save(config, run.config_path)
    list(fit(config, run, CPU, *prepare(config, CPU)))
    return run


def small(**changes) -> MeasureConfig:
    return replace(MeasureConfig(images=60, landscape_images=40, points=3, checkpoint="last", processes=1), **changes)


def measured(run, tmp_path, config: MeasureConfig, subject: Subject | None = None):
    """The record, and its arrays."""
    subject = subject or open_subject(str(run.path), config, CPU)
    (tmp_path / "arrays").mkdir(exist_ok=True)
    (record,) = landscape(subject, config, tmp_path / "arrays")
    with np.load(tmp_path / record.arrays) as arrays:
        return record, dict(arrays)


def test_the_measurement_keeps_its_arrays_and_no_rows(run, tmp_path):
    record, arrays = measured(run, tmp_path, small())
    assert {name: value.shape for name, value in arrays.items()} == {
        "x": (3,), "y": (3,), "loss": (3, 3), "accuracy": (3, 3), "center_loss": (), "center_accuracy": (),
    }  # fmt: skip
    assert arrays["loss"][1, 1] == arrays["center_loss"]
    assert record.name == "landscape/height"
    assert record.value == arrays["loss"].max() - arrays["center_loss"]
    assert (record.n, record.cost["forwards"], record.settings["landscape_images"]) == (9, 9, 40)
    assert record.settings["normalization"] == "filter"
    assert [path.name for path in (tmp_path / "arrays").iterdir()] == [record.arrays.removeprefix("arrays/")]


def test_the_measured_centre_is_the_loss_of_the_images(run, tmp_path):
    config = small(landscape_images=0, dims=1)
    subject = open_subject(str(run.path), config, CPU)
    _, arrays = measured(run, tmp_path, config, subject)
    assert arrays["x"].tolist() == [-1, 0, 1]
    assert float(arrays["center_loss"]) == pytest.approx(mean_loss(subject.model, subject.loss, subject.batches), 1e-6)


def test_the_second_difference_along_an_eigenvector_is_its_eigenvalue(run, tmp_path):
    config = small(landscape="eigenvectors", span=2e-4, tol=1e-6, dtype="float64")
    subject = open_subject(str(run.path), config, CPU)
    subject.model.double().register_forward_pre_hook(lambda _, images: (images[0].double(),))
    record, arrays = measured(run, tmp_path, config, subject)
    loss, h = arrays["loss"], config.span
    bends = [(ends[0] - 2 * loss[1, 1] + ends[1]) / h**2 for ends in (loss[1, [0, 2]], loss[[0, 2], 1])]
    assert bends == pytest.approx(record.settings["curvature"], rel=1e-3)  # h^2 times the fourth derivative
    assert abs(bends[0]) > abs(bends[1])
    assert record.converged


def test_between_two_steps_the_ends_are_their_losses(run, tmp_path):
    config = small(landscape="between", other="4", points=4)
    record, arrays = measured(run, tmp_path, config)
    assert arrays["x"].tolist() == pytest.approx([0, 1 / 3, 2 / 3, 1])
    ends = [measured(run, tmp_path, small(checkpoint=step))[1]["center_loss"] for step in ("last", "4")]
    assert arrays["loss"][[0, -1]].tolist() == ends
    assert record.settings["dims"] == 1
    assert record.settings["other_weights"] == "step-00000004"
    same = measured(run, tmp_path, small(landscape="between", other=str(run.path), points=2))[1]["loss"]
    assert same[0] == same[1] == ends[0]


def test_an_interrupted_eigenvector_landscape_goes_on_with_the_same_vectors(run, tmp_path, monkeypatch):
    config = small(landscape="eigenvectors", span=0.1)
    record, whole = measured(run, tmp_path, config)
    (tmp_path / record.arrays).unlink()
    real, calls = grid.compute_row, []

    def interrupted(*args):
        if len(calls) == 2:
            raise KeyboardInterrupt
        calls.append(args)
        return real(*args)

    monkeypatch.setattr(grid, "compute_row", interrupted)
    with pytest.raises(KeyboardInterrupt):
        measured(run, tmp_path, config)
    calls.clear()
    _, again = measured(run, tmp_path, config)
    assert len(calls) == 1
    assert all(np.array_equal(again[name], whole[name]) for name in whole)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"other": "nowhere"}, "--other nowhere is no run folder and no step of .*; give one of the two"),
        ({"other": "5"}, "--checkpoint 5 is not there; give best, last, init or one of 4, 8, 12"),
    ],
)
def test_another_checkpoint_that_is_not_there_is_one_line(run, tmp_path, changes, complaint):
    with pytest.raises(ValueError, match=complaint):
        measured(run, tmp_path, small(landscape="between", **changes))


def test_another_architecture_is_one_line(run, tmp_path):
    config = small(landscape="between", other=str(run.path), image_size=8)
    subject = open_subject("mixer-digits", replace(config, other="", landscape="random"), CPU)
    with pytest.raises(ValueError, match="is a vit-digits and mixer-digits a mixer-digits; give a run of the same"):
        measured(run, tmp_path, config, subject)
    subject = replace(subject, settings=subject.settings | {"model": "vit-digits"})
    with pytest.raises(ValueError, match="the other model has no body.*; give one of the same architecture"):
        measured(run, tmp_path, config, subject)


def test_images_that_do_not_fit_into_memory_are_refused(run, tmp_path, monkeypatch):
    monkeypatch.setattr("samovar.measure.landscape.free_bytes", lambda device: 1000)
    with pytest.raises(ValueError, match="keeps its 40 images in memory, .* give fewer with --landscape-images"):
        measured(run, tmp_path, small())
