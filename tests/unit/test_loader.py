import io
import multiprocessing
import os
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from samovar.config import DataConfig
from samovar.data import streaming
from samovar.data.badfiles import BadImages, summary
from samovar.data.loader import Batch, batches, choose_loader, eval_batches
from samovar.data.sources import open_source
from samovar.data.splits import Arrays, Source
from samovar.data.streaming import num_workers
from tests.conftest import SHARED

CPU = torch.device("cpu")


SIX = ("a/0", "a/1", "a/2", "b/0", "b/1", "b/2")
"""One unreadable image more than is allowed in any split."""


def arrays(n: int = 20, channels: int = 3, size: int = 8) -> Source:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (n, channels, size, size), dtype=np.uint8)
    split = Arrays(np.arange(n) % 4, images)
    return Source("random", tuple("abcd"), split, split, channels, size)


def photos(path: Path, per_class: int = 8, broken: tuple[str, ...] = ()) -> DataConfig:
    """Two classes of noise, each image of another shape; those named in `broken` are cut short."""
    rng = np.random.default_rng(0)
    for k, name in enumerate("ab"):
        (path / "train" / name).mkdir(parents=True)
        for i in range(per_class):
            pixels = rng.integers(0, 256, (12 + i, 16 + k, 3), dtype=np.uint8)
            file = io.BytesIO()
            Image.fromarray(pixels).save(file, "JPEG")
            data = file.getvalue()
            (path / f"train/{name}/{i}.jpg").write_bytes(data[:200] if f"{name}/{i}" in broken else data)
    (path / "val").symlink_to("train")
    return DataConfig(
        source=f"folder:{path}", image_size=8, batch_size=4, crop="inception", flip=True, workers=0, max_bad_share=0.5
    )


def images_of(config: DataConfig, seed: int = 0, stop: int = 6, **options) -> list[torch.Tensor]:
    return [batch.images for batch in batches(open_source(config), config, seed=seed, stop=stop, device=CPU, **options)]


# --- batches ---------------------------------------------------------------------------------------------------------


def test_a_batch_splits_into_contiguous_views():
    batch = Batch(torch.rand(7, 1, 2, 2), torch.arange(7), torch.rand(7, 3))
    parts = list(batch.split(3))
    assert [len(part) for part in parts] == [3, 3, 1]
    assert torch.equal(torch.cat([part.labels for part in parts]), batch.labels)
    assert torch.equal(torch.cat([part.targets for part in parts]), batch.targets)
    assert parts[1].images.data_ptr() == batch.images[3].data_ptr()


@pytest.mark.parametrize("loader", ["resident", "streaming"])
def test_batches_are_floats_in_0_to_1_and_writing_to_them_harms_nothing(loader):
    source, config = arrays(), DataConfig(image_size=8, batch_size=5, loader=loader, workers=0)
    first = next(batches(source, config, seed=0, stop=1, device=CPU))
    assert first.images.dtype == torch.float32
    assert first.labels.dtype == torch.int64
    assert first.images.min() >= 0
    assert first.images.max() <= 1
    expected = first.images.clone()
    first.images.zero_()
    assert torch.equal(next(batches(source, config, seed=0, stop=1, device=CPU)).images, expected)


def test_mixed_batches_bring_targets_and_keep_their_labels():
    config = DataConfig(image_size=8, batch_size=5, mixup=0.5, cutmix=1.0)
    plain = next(batches(arrays(), replace(config, mixup=0.0, cutmix=0.0), seed=0, stop=1, device=CPU))
    mixed = next(batches(arrays(), config, seed=0, stop=1, device=CPU))
    assert plain.targets is None
    assert mixed.targets.shape == (5, 4)
    assert torch.equal(mixed.labels, plain.labels)


@pytest.mark.parametrize("workers", [0, 1])
def test_loading_leaves_the_global_random_state_alone(tmp_path, workers):
    config = replace(photos(tmp_path), randaugment_layers=2, mixup=0.5, workers=workers)
    torch.manual_seed(0)
    before = torch.get_rng_state()
    images_of(config, stop=2)
    assert torch.equal(torch.get_rng_state(), before)


def test_the_views_of_a_file_share_one_decoding(tmp_path, monkeypatch):
    config, decoded = photos(tmp_path), []
    real = streaming.decode
    monkeypatch.setattr(streaming, "decode", lambda data: decoded.append(data) or real(data))
    single = images_of(config)
    count = len(decoded)
    several = images_of(replace(config, views=2))
    assert [len(images) for images in several] == [2 * len(images) for images in single]
    assert len(decoded) == 2 * count


def test_views_of_a_file_that_cannot_be_read_are_of_its_class(tmp_path):
    config = replace(photos(tmp_path, broken=("a/0", "b/3")), views=2)
    source = open_source(config)
    for batch in batches(source, config, seed=0, stop=8, device=CPU):
        assert torch.equal(batch.labels[::2], batch.labels[1::2])
        assert not batch.images.flatten(1).var(1).eq(0).any()


def test_any_start_costs_the_same():
    config = DataConfig(image_size=8, batch_size=4)
    started = time.perf_counter()
    next(batches(arrays(), config, seed=0, start=10**12, stop=10**12 + 1, device=CPU))
    assert time.perf_counter() - started < 1  # replaying a trillion steps would not fit


# --- which loader ----------------------------------------------------------------------------------------------------


def test_arrays_stay_resident_and_files_stream(tmp_path):
    files = photos(tmp_path)
    assert choose_loader(arrays(), DataConfig(), CPU) == "resident"
    assert choose_loader(arrays(), DataConfig(loader="streaming"), CPU) == "streaming"
    assert choose_loader(open_source(files), files, CPU) == "streaming"
    with pytest.raises(ValueError, match=r"--data.loader resident keeps .* has files of varied size; give"):
        images_of(replace(files, loader="resident"))


def test_a_gpu_streams_what_would_fill_it_and_what_randaugment_works_on(monkeypatch):
    class Properties:
        total_memory = 4 * arrays().train.images.nbytes

    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: Properties)
    gpu = torch.device("cuda")
    assert choose_loader(arrays(20), DataConfig(), gpu) == "resident"
    assert choose_loader(arrays(21), DataConfig(), gpu) == "streaming"
    assert choose_loader(arrays(20), DataConfig(randaugment_layers=2), gpu) == "streaming"
    assert choose_loader(arrays(20), DataConfig(autoaugment="imagenet"), gpu) == "streaming"


def test_cores_are_shared_among_the_ranks_of_a_machine(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    assert num_workers(DataConfig(workers=-1)) == 8
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
    assert num_workers(DataConfig(workers=-1)) == 2
    assert num_workers(DataConfig(workers=5)) == 5


# --- evaluation ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_evaluation_sees_each_image_once_in_order_whatever_the_ranks(world_size):
    source, config = arrays(20), DataConfig(image_size=8)
    parts = [
        list(eval_batches(source.val, config, batch_size=3, device=CPU, rank=rank, world_size=world_size))
        for rank in range(world_size)
    ]
    seen = torch.cat([batch.images for part in parts for batch in part])
    assert torch.equal(seen, torch.from_numpy(source.val.images).float() / 255)
    assert torch.equal(torch.cat([b.labels for part in parts for b in part]), torch.from_numpy(source.val.labels))
    assert max(len(batch) for part in parts for batch in part) == 3


def test_evaluation_scales_arrays_whole_and_frames_photos(tmp_path):
    (batch,) = eval_batches(arrays().val, DataConfig(image_size=5), batch_size=50, device=CPU)
    assert batch.images.shape == (20, 3, 5, 5)
    config = photos(tmp_path)
    sizes = [batch.images.shape for batch in eval_batches(open_source(config).val, config, batch_size=10, device=CPU)]
    assert sizes == [(10, 3, 8, 8), (6, 3, 8, 8)]


def test_evaluation_leaves_unreadable_images_out(tmp_path):
    config = photos(tmp_path, broken=("a/0", "b/7"))
    found = list(
        eval_batches(open_source(config).val, config, batch_size=4, device=CPU, bad_files=tmp_path / "bad_files.txt")
    )
    assert [len(batch) for batch in found] == [3, 4, 4, 3]
    assert sum(int(batch.labels.sum()) for batch in found) == 7
    assert {line.split("\t")[0] for line in (tmp_path / "bad_files.txt").read_text().splitlines()} == {"val"}
    with pytest.raises(BadImages, match="1 of 16 val images cannot be read"):
        list(eval_batches(open_source(config).val, replace(config, max_bad_share=0.0), batch_size=4, device=CPU))


# --- unreadable images -----------------------------------------------------------------------------------------------


def test_an_unreadable_image_is_named_once_and_replaced_from_its_class(tmp_path):
    clean, broken = photos(tmp_path / "clean"), photos(tmp_path / "broken", broken=("a/2",))
    source, bad_files = open_source(broken), tmp_path / "bad_files.txt"
    stream = list(batches(source, broken, seed=0, stop=12, device=CPU, bad_files=bad_files))
    expected = list(batches(open_source(clean), clean, seed=0, stop=12, device=CPU))
    role, name, reason = bad_files.read_text().rstrip("\n").split("\t")
    assert (role, name) == ("train", str(tmp_path / "broken/train/a/2.jpg"))
    assert "runcated" in reason
    replaced = 0
    for ours, theirs in zip(stream, expected, strict=True):
        assert torch.equal(ours.labels, theirs.labels)
        replaced += sum(not torch.equal(a, b) for a, b in zip(ours.images, theirs.images, strict=True))
    assert replaced == 3  # one image, three epochs; every other is as it was


def test_a_missing_file_is_an_unreadable_image(tmp_path):
    config = photos(tmp_path)
    source = open_source(config)
    (tmp_path / "train/a/0.jpg").unlink()
    list(batches(source, config, seed=0, stop=4, device=CPU, bad_files=tmp_path / "bad_files.txt"))
    assert "No such file" in (tmp_path / "bad_files.txt").read_text()


def test_replacements_do_not_depend_on_start_or_workers(tmp_path):
    config = photos(tmp_path, broken=("a/2", "a/3", "b/1", "b/5"))
    whole = images_of(config)
    for options in ({"start": 2}, {"start": 5}):
        assert all(map(torch.equal, images_of(config, **options), whole[options["start"] :]))
    assert all(map(torch.equal, images_of(replace(config, workers=2)), whole))


def test_a_resumed_run_does_not_list_an_image_again(tmp_path):
    config, bad_files = photos(tmp_path, broken=("a/2",)), tmp_path / "bad_files.txt"
    for start in (0, 4):
        images_of(config, start=start, stop=start + 4, bad_files=bad_files)
    assert len(bad_files.read_text().splitlines()) == 1


def test_too_many_unreadable_images_stop_the_run(tmp_path):
    config = replace(photos(tmp_path, broken=SIX), max_bad_share=1 / 16)
    bad_files = tmp_path / "bad_files.txt"
    with pytest.raises(
        BadImages, match=r"6 of 16 train images cannot be read, more than --data.max-bad-share"
    ) as error:
        images_of(config, bad_files=bad_files)
    assert str(bad_files) in str(error.value)
    assert "\n" not in str(error.value)
    assert len(bad_files.read_text().splitlines()) == 6


def test_up_to_five_unreadable_images_never_stop_a_run(tmp_path):
    config = replace(photos(tmp_path, broken=SIX[:5]), max_bad_share=0.001)
    bad_files = tmp_path / "bad_files.txt"
    assert len(images_of(config, bad_files=bad_files)) == 6
    list(eval_batches(open_source(config).val, config, batch_size=4, device=CPU, bad_files=bad_files))
    assert summary(bad_files) == (f"left out 5 train and 5 val images that cannot be read, listed in {bad_files}",)
    assert summary(tmp_path / "none.txt") == ()


@pytest.mark.parametrize(
    ("per_class", "broken", "message"),
    [
        (2, ("a/0", "a/1", "b/0"), "3 of 4 .* more than --data.max-bad-share 0.001"),
        (3, ("a/0", "a/1", "a/2"), "3 of 6 .* and a class has no other image"),
        (12, SIX, "6 of 24 .* more than --data.max-bad-share 0.001"),
    ],
)
def test_the_five_are_no_whole_class_and_no_more_than_half_a_split(tmp_path, per_class, broken, message):
    config = replace(photos(tmp_path, per_class, broken), max_bad_share=0.001)
    with pytest.raises(BadImages, match=message):
        list(eval_batches(open_source(config).val, config, batch_size=30, device=CPU))


def test_what_other_ranks_list_counts_too(tmp_path):
    config, bad_files = replace(photos(tmp_path, broken=("a/0",)), max_bad_share=1 / 16), tmp_path / "bad_files.txt"
    stream = batches(open_source(config), config, seed=0, stop=9, device=CPU, bad_files=bad_files)
    others = [f"train\t{tmp_path}/train/b/{i}.jpg\tread by rank 1\n" for i in range(3, 8)]
    bad_files.write_text("".join(others) + "val\tx\ty\n")
    with pytest.raises(BadImages, match="6 of 16 train images"):
        list(stream)


def test_a_class_without_a_readable_image_stops_the_run(tmp_path):
    config = replace(photos(tmp_path, per_class=2, broken=("a/0", "a/1")), max_bad_share=1.0)
    with pytest.raises(BadImages, match="a class has nothing to put in their place"):
        images_of(config)


# --- workers ---------------------------------------------------------------------------------------------------------


def wait_for_children() -> list:
    deadline = time.monotonic() + 10
    while multiprocessing.active_children() and time.monotonic() < deadline:
        time.sleep(0.05)
    return multiprocessing.active_children()


def test_closing_early_ends_the_workers(tmp_path):
    config = replace(photos(tmp_path), workers=2)
    stream = batches(open_source(config), config, seed=0, stop=10**9, device=CPU)
    next(stream)
    assert len(multiprocessing.active_children()) == 2
    stream.close()
    assert wait_for_children() == []


def test_an_error_ends_the_workers_and_arrives_as_itself(tmp_path):
    config = replace(photos(tmp_path, broken=("a/0",)), workers=2, max_bad_share=0.0)
    with pytest.raises(BadImages, match=r"^1 of 16 train images cannot be read"):
        images_of(config, stop=100)
    assert wait_for_children() == []


def test_evaluation_with_workers_is_evaluation_without(tmp_path):
    config = photos(tmp_path, per_class=20)
    split = open_source(config).val
    alone = list(eval_batches(split, config, batch_size=24, device=CPU))
    helped = list(eval_batches(split, replace(config, workers=2), batch_size=24, device=CPU))
    assert [len(batch) for batch in helped] == [24, 16]
    assert all(torch.equal(a.images, b.images) for a, b in zip(alone, helped, strict=True))
    assert wait_for_children() == []


@pytest.mark.skipif(not SHARED.exists(), reason="needs ../shared")
def test_real_photos_stream():
    config = DataConfig(
        source=f"folder:{SHARED}/data/flowers5", image_size=64, batch_size=8, crop="inception", flip=True, workers=0
    )
    source = open_source(config)
    (batch,) = batches(source, config, seed=0, stop=1, device=CPU)
    assert batch.images.shape == (8, 3, 64, 64)
    assert 0.1 < batch.images.mean() < 0.9
    framed = next(eval_batches(source.val, config, batch_size=8, device=CPU))
    assert framed.images.std() > 0.05
