"""The packed part of CIFAR-10 that benchmarks/gpu_paper.py carries to a GPU."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest

from samovar.config import DataConfig
from samovar.data.splits import Arrays, Source, keep_fraction

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "gpu_paper.py"


@pytest.fixture
def script():
    spec = importlib.util.spec_from_file_location("gpu_paper", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def made(rows: int, seed: int) -> Arrays:
    random = np.random.default_rng(seed)
    images = random.integers(0, 256, (rows, 3, 32, 32), dtype=np.uint8)
    return Arrays(np.arange(rows) % 4, images, "made")


def test_a_packed_part_gives_the_rows_that_a_fraction_takes_and_refuses_others(script, tmp_path, monkeypatch):
    whole = Source("made", ("a", "b", "c", "d"), made(1200, 0), made(600, 1), channels=3, image_size=32)
    monkeypatch.setattr(script, "open_source", lambda config: whole)
    script.pack(tmp_path, tmp_path / "deep" / "part.zip", share=0.5, test=0.25)
    monkeypatch.setenv(script.VARIABLE, str(tmp_path / "deep" / "part.zip"))

    part = script.open_part(DataConfig(fraction=0.2))
    rows = keep_fraction(whole.train.labels, 0.2, 0)
    np.testing.assert_array_equal(part.train.labels, whole.train.labels)
    np.testing.assert_array_equal(part.train.images[rows], whole.train.images[rows])
    kept = keep_fraction(whole.val.labels, 0.25, 0)
    np.testing.assert_array_equal(part.val.images, whole.val.images[kept])
    np.testing.assert_array_equal(part.val.labels, whole.val.labels[kept])
    with pytest.raises(ValueError, match="takes 600 images that are not packed; pack a larger --share"):
        script.open_part(DataConfig(fraction=1.0))


def test_records_of_all_runs_are_collected_with_their_names(script, tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "records.jsonl").write_text('{"value": 1}\n{"value": 2}\n')
    script.collect(tmp_path, tmp_path / "all.jsonl")
    lines = (tmp_path / "all.jsonl").read_text().splitlines()
    assert len(lines) == 4
    assert lines[0] == '{"run": "one", "value": 1}'
