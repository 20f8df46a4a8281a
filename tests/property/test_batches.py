"""The law of batches: (seed, step) decides, nothing else does."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from samovar.config import DataConfig
from samovar.data.draws import Plan
from samovar.data.loader import batches
from samovar.data.sources import open_source
from samovar.data.splits import Arrays, Source, hold_out, keep_fraction

CPU = torch.device("cpu")


def random_source(n: int, channels: int, size: int) -> Source:
    images = np.random.default_rng(n).integers(0, 256, (n, channels, size, size), dtype=np.uint8)
    split = Arrays(np.arange(n) % 3, images)
    return Source("random", ("a", "b", "c"), split, split, channels, size)


configs = st.builds(
    DataConfig,
    image_size=st.integers(4, 12),
    batch_size=st.sampled_from([4, 8, 20]),
    crop=st.sampled_from(["none", "pad", "affine", "inception"]),
    pad=st.integers(0, 3),
    flip=st.booleans(),
    autoaugment=st.sampled_from(["none", "none", "imagenet", "cifar10"]),
    randaugment_layers=st.integers(0, 1),
    views=st.sampled_from([1, 1, 2, 3]),
    antialias=st.booleans(),
    workers=st.just(0),
)
sources = st.builds(random_source, st.integers(3, 30), st.sampled_from([1, 3]), st.sampled_from([6, 9]))
seeds = st.integers(-(2**63), 2**64)
loaders = st.sampled_from(["resident", "streaming"])


def take(source: Source, config: DataConfig, seed: int, start: int, stop: int, rank: int = 0, world_size: int = 1):
    stream = batches(source, config, seed=seed, start=start, stop=stop, device=CPU, rank=rank, world_size=world_size)
    return list(stream)


@settings(max_examples=30, deadline=None)
@given(sources, configs, seeds, loaders, st.integers(0, 5))
def test_a_batch_does_not_depend_on_where_the_loader_started(source, config, seed, loader, start):
    config = replace(config, loader=loader, mixup=0.5)
    whole = take(source, config, seed, 0, 6)
    for a, b in zip(take(source, config, seed, start, 6), whole[start:], strict=True):
        assert torch.equal(a.images, b.images)
        assert torch.equal(a.labels, b.labels)
        assert torch.equal(a.targets, b.targets)


@settings(max_examples=30, deadline=None)
@given(sources, configs, seeds, loaders, st.integers(0, 10**6), st.sampled_from([2, 4]))
def test_the_slices_of_the_ranks_are_the_global_batch(source, config, seed, loader, step, world_size):
    config = replace(config, loader=loader)
    (whole,) = take(source, config, seed, step, step + 1)
    slices = [take(source, config, seed, step, step + 1, rank, world_size)[0] for rank in range(world_size)]
    assert torch.equal(torch.cat([part.images for part in slices]), whole.images)
    assert torch.equal(torch.cat([part.labels for part in slices]), whole.labels)


@settings(max_examples=40, deadline=None)
@given(sources, configs, seeds, st.integers(0, 1000))
def test_both_loaders_give_one_batch(source, config, seed, step):
    if config.crop == "inception":  # their operations jump (posterize, equalize) where a pixel moves by one grey level
        config = replace(config, randaugment_layers=0, autoaugment="none")
    (resident,) = take(source, replace(config, loader="resident"), seed, step, step + 1)
    (streamed,) = take(source, replace(config, loader="streaming"), seed, step, step + 1)
    difference = 255 * (resident.images - streamed.images).abs().max()
    assert difference < (1.5 if config.crop == "inception" else 1e-9)
    assert torch.equal(resident.labels, streamed.labels)


@pytest.mark.parametrize("crop", ["none", "pad", "affine", "inception"])
def test_files_give_the_batches_of_the_same_images_in_memory(tmp_path, crop):
    source = random_source(12, 3, 8)
    source = replace(source, train=source.train.take(np.argsort(source.train.labels, kind="stable")))
    for i, (label, image) in enumerate(zip(source.train.labels, source.train.images, strict=True)):
        folder = tmp_path / "train" / source.classes[label]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.transpose(1, 2, 0)).save(folder / f"{i:02}.png")
    (tmp_path / "val").symlink_to("train")
    config = DataConfig(source=f"folder:{tmp_path}", image_size=8, batch_size=5, crop=crop, flip=True, workers=0, pad=1)
    files = open_source(config)
    for a, b in zip(take(files, config, 0, 0, 6), take(source, config, 0, 0, 6), strict=True):
        assert torch.equal(a.labels, b.labels)
        assert 255 * (a.images - b.images).abs().max() < (1.5 if crop == "inception" else 1e-9)


@pytest.mark.parametrize("crop", ["pad", "inception"])
def test_workers_change_nothing(crop):
    source = random_source(40, 3, 9)
    config = DataConfig(image_size=8, batch_size=20, crop=crop, flip=True, randaugment_layers=2, loader="streaming")
    alone = take(source, replace(config, workers=0), 7, 3, 6)
    for workers in (1, 2):
        for a, b in zip(take(source, replace(config, workers=workers), 7, 3, 6), alone, strict=True):
            assert torch.equal(a.images, b.images)
            assert torch.equal(a.labels, b.labels)


@settings(max_examples=30, deadline=None)
@given(sources, configs, seeds, loaders, st.integers(0, 10**6), st.integers(2, 4))
def test_views_of_an_image_lie_side_by_side_and_are_augmented_apart(source, config, seed, loader, step, views):
    config = replace(config, loader=loader, views=1)
    (single,) = take(source, config, seed, step, step + 1)
    (several,) = take(source, replace(config, views=views), seed, step, step + 1)
    assert torch.equal(several.labels, single.labels.repeat_interleave(views))
    still = replace(config, crop="none", flip=False, randaugment_layers=0, autoaugment="none")
    (single,) = take(source, still, seed, step, step + 1)
    (several,) = take(source, replace(still, views=views), seed, step, step + 1)
    assert torch.equal(several.images, single.images.repeat_interleave(views, 0))
    moved = replace(still, crop="affine", views=views)
    (several,) = take(source, moved, seed, step, step + 1)
    first, second = several.images[::views], several.images[1::views]
    assert all(not torch.equal(a, b) for a, b in zip(first, second, strict=True))


@given(st.integers(1, 200), st.integers(1, 12), st.sampled_from([1, 2, 3]), seeds)
def test_each_epoch_holds_each_image_once_and_nothing_is_dropped(n, per_rank, world_size, seed):
    plans = [Plan(seed, n, per_rank * world_size, rank, world_size) for rank in range(world_size)]
    steps = -(-2 * n // (per_rank * world_size))
    positions = np.concatenate([plan.positions(step) for step in range(steps) for plan in plans])
    assert np.array_equal(positions, np.arange(len(positions)))
    images = plans[0].images(positions)
    assert sorted(images[:n]) == list(range(n))
    assert sorted(images[n : 2 * n]) == list(range(n))


@given(st.integers(20, 200), seeds)
def test_epochs_and_seeds_differ_in_order(n, seed):
    plan = Plan(seed, n, 1)
    first, second = plan.images(np.arange(n)), plan.images(np.arange(n, 2 * n))
    assert not np.array_equal(first, second)
    assert not np.array_equal(first, replace(plan, seed=seed + 1).images(np.arange(n)))


labels = st.lists(st.integers(0, 4), min_size=1, max_size=80).map(lambda values: np.array(values, np.int64))


@given(labels, st.floats(0.01, 1), st.floats(0.01, 1), seeds)
def test_fractions_are_nested_and_keep_each_class(labels, a, b, seed):
    small, large = (keep_fraction(labels, share, seed) for share in sorted((a, b)))
    assert set(small) <= set(large)
    assert set(labels[small]) == set(labels)


@given(labels, st.floats(0.01, 0.99), seeds)
def test_a_held_out_share_is_stratified_and_leaves_training_images_of_each_class(labels, share, seed):
    train, val = hold_out(labels, share, seed)
    assert sorted([*train, *val]) == list(range(len(labels)))
    assert set(labels[train]) == set(labels)
    for k in set(labels):
        count = (labels == k).sum()
        assert abs((labels[val] == k).sum() - share * count) <= max(1, 0.5)
