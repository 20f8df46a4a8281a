"""Test that records and run folders survive crashes and strange values."""

import json
import math

import pytest

from samovar import config as configs
from samovar.config import Config
from samovar.report.read import read_runs
from samovar.runs.records import Record, RunDir, from_json, replace_text, to_json


def test_a_record_comes_back_from_its_line_with_non_finite_values() -> None:
    record = Record("hessian/lambda_max", math.inf, stderr=0.5, n=3, where={"step": 4}, converged=False)
    line = to_json(record)
    json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert from_json(line) == record
    assert math.isnan(from_json(to_json(Record("train/loss", math.nan))).value)
    spread = Record("a/b", 1.0, stderr=math.inf, residual=math.inf, interval=(0.0, math.inf))
    assert from_json(to_json(spread)) == spread


def test_fields_of_a_later_version_are_ignored_and_nonsense_is_refused() -> None:
    assert from_json('{"name": "a/b", "value": 1.0, "colour": "red"}') == Record("a/b", 1.0)
    with pytest.raises(ValueError, match="not a record"):
        from_json('{"value": 1.0}')


def test_a_line_cut_short_by_a_crash_is_left_out_and_rewound_away(tmp_path) -> None:
    run = RunDir.create(tmp_path, "r")
    for step in (10, 20, 30):
        run.append(Record("train/loss", float(step), where={"step": step}))
    run.append(Record("note/x", 1.0))
    with run.records_path.open("a") as file:
        file.write('{"name": "train/lo')
    assert [r.value for r in run.records("train/loss")] == [10, 20, 30]
    run.rewind(20)
    run.append(Record("train/loss", 31.0, where={"step": 30}))
    assert [r.value for r in run.records()] == [10, 20, 1, 31]


def test_a_taken_name_gets_a_number_and_a_file_in_the_way_is_named(tmp_path) -> None:
    assert RunDir.create(tmp_path, "r").path.name == "r"
    assert RunDir.create(tmp_path, "r").path.name == "r-2"
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="--output"):
        RunDir.create(tmp_path / "file", "r")
    with pytest.raises(ValueError, match="is not a run"):
        RunDir.open(tmp_path)


def test_a_failed_replacement_leaves_the_old_text(tmp_path) -> None:
    path = tmp_path / "x.json"
    replace_text(path, "old")
    with pytest.raises(UnicodeEncodeError):
        replace_text(path, "\ud800")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_line_cut_short_by_a_crash_does_not_swallow_the_next(tmp_path):
    run = RunDir.create(tmp_path, "r")
    run.append(Record("a/b", 1.0), Record("a/b", 2.0))
    with run.records_path.open("a") as file:
        file.write('{"name": "a/b", "val')
    run.append(Record("a/b", 3.0))
    assert [record.value for record in run.records()] == [1.0, 2.0, 3.0]


def test_records_of_earlier_versions_are_read_under_their_present_name(tmp_path):
    run = RunDir.create(tmp_path, "old")
    run.append(Record("sharpness/average_flatness", 2.0, "nats"), Record("sharpness/sam", 1.0))
    assert [record.name for record in run.records()] == ["flatness/average_flatness", "sharpness/sam"]
    assert [record.value for record in run.records("flatness/average_flatness")] == [2.0]
    assert [record.value for record in run.records("sharpness/average_flatness")] == [2.0]
    configs.save(Config(), run.config_path)
    (data,) = read_runs([run.path])
    assert data.latest("flatness/average_flatness") == Record("flatness/average_flatness", 2.0, "nats")
    with pytest.raises(ValueError, match="not a record"):
        from_json("[]")
