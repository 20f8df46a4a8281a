"""Test that records and run folders survive crashes and strange values."""

import json
import math
from dataclasses import replace

import pytest

from samovar import config as configs
from samovar.config import Config
from samovar.report.read import read_runs
from samovar.runs.records import BAD_RECORDS, Record, RunDir, from_json, replace_text, to_json


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


def test_damaged_lines_are_left_out_named_once_and_set_aside_when_a_run_goes_on(tmp_path, caplog) -> None:
    run = RunDir.create(tmp_path, "r")
    run.append(*(Record("train/loss", float(step), where={"step": step}) for step in range(5)))
    lines = run.records_path.read_bytes().splitlines(keepends=True)
    bad = [b"\xff\n", b'{"name": "train/loss"\n', b'{"name": 3, "value": 1}\n', b'{"name": "a", "value": null}\n']
    bad += [b"[" * 100_000 + b"\n", b'{"name": "a", "value": 1, "where": 3}\n', b"null\n"]
    run.records_path.write_bytes(lines[0] + b"".join(bad) + b"".join(lines[1:]))
    for _ in range(2):
        assert [record.value for record in run.records()] == [0, 1, 2, 3, 4]
    said = [record.message for record in caplog.records]
    assert said == [f"{run.records_path}, line {k} is damaged and left out" for k in range(2, 9)]
    run.rewind(2)
    assert (run.path / BAD_RECORDS).read_bytes() == b"".join(bad)
    assert run.records_path.read_bytes() == b"".join(lines[:3])
    run.append(Record("train/loss", 3.0, where={"step": 3}))
    assert [record.value for record in run.records()] == [0, 1, 2, 3]


def test_records_that_two_processes_wrote_are_read_once(tmp_path) -> None:
    run = RunDir.create(tmp_path, "r")
    first = Record("hessian/lambda_max", 2.0, where={"step": 3}, settings={"k": 1}, cost={"seconds": 1.5})
    run.append(first, replace(first, cost={"seconds": 2.5}), first, replace(first, value=2.5))
    assert [record.value for record in run.records()] == [2.0, 2.5]


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ('["a"\n, 3', "classes.json is damaged: line 2: "),
        ("[3]", "classes.json is damaged: it holds no list of names"),
        ("[" * 100_000, "classes.json is damaged: it is nested too deeply"),
        ("9" * 10_000, "classes.json is damaged: "),
    ],
    ids=["cut", "numbers", "deep", "huge"],
)
def test_a_damaged_file_of_class_names_is_told_with_path_and_line(tmp_path, text: str, line: str) -> None:
    run = RunDir.create(tmp_path, "r")
    run.classes_path.write_text(text)
    with pytest.raises(ValueError, match=line) as error:
        run.classes()
    assert len(str(error.value).splitlines()) == 1


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
