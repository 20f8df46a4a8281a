"""Run folders as the report reads them: whatever is in them, there is a clear line or a value, never a crash."""

import json
import math
import zipfile
from pathlib import Path

import numpy as np
import pytest

from samovar.report import read
from samovar.report.protocol import disagreements
from samovar.report.read import UnreadableArrays, read_runs
from samovar.report.run_names import MANY, command, differing, recipes
from samovar.report.text import apart, clean, number, plain, with_error
from samovar.runs.records import Record, RunDir
from samovar.words import duration
from tests.unit.report_runs import HOSTILE, NOTHING, load, make_run


@pytest.fixture
def folder(tmp_path) -> Path:
    return make_run(tmp_path / "run", without=NOTHING)


def add(folder: Path, *records: Record) -> None:
    for record in records:
        RunDir(folder).append(record)


def test_a_folder_that_is_no_run_is_refused(tmp_path, folder) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "list").mkdir()
    (tmp_path / "list" / "config.json").write_text("[1]")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "config.json").write_text('{"a": ')
    for name, line in (
        ("nowhere", "is not a run folder"), ("empty", "has no config.json"), ("list", "expected an object, found list"),
        ("broken", "cannot read"), ("run/config.json", "is not a run folder"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=line):
            read_runs([folder, tmp_path / name])
    with pytest.raises(ValueError, match="no run is given"):
        read_runs([])


def test_a_run_given_twice_is_refused_whatever_it_is_called(tmp_path, folder) -> None:
    (tmp_path / "link").symlink_to(folder)
    for twin in (folder, folder / ".." / "run", tmp_path / "link"):
        with pytest.raises(ValueError, match="is given twice"):
            read_runs([folder, twin])


def test_lines_that_are_no_records_are_counted_and_the_rest_is_kept(folder) -> None:
    add(folder, Record("a/b", 1.0))
    with (folder / "records.jsonl").open("ab") as file:
        file.write(b'not json\n[]\n{"name": "a/b"}\n{"name": "a/b", "value": "x"}\n\xff\xfe\n\n')
        file.write(
            b'{"name": "a/b", "value": 2, "where": "here"}\n{"name": "a/b", "value": 3, "later": 1}\n{"name": "c'
        )
    (run,) = load(folder)
    assert [r.value for r in run.records["a/b"]] == [1.0, 3.0]
    assert run.bad_lines == 6


def test_numbers_written_as_strings_come_back_as_numbers(folder) -> None:
    add(folder, Record("a/b", math.nan, stderr=math.inf, residual=math.nan))
    add(folder, Record("c/d", -math.inf, where={"step": 3}, n=5))
    (run,) = load(folder)
    first, second = run.latest("a/b"), run.latest("c/d")
    assert math.isnan(first.value)
    assert first.stderr == math.inf
    assert math.isnan(first.residual)
    assert (second.value, second.n) == (-math.inf, 5)


def test_a_series_has_one_record_a_step_in_order(folder) -> None:
    for step, value in ((20, 1.0), (10, 2.0), (20, 3.0)):
        add(folder, Record("train/loss", value, where={"step": step}))
    add(folder, Record("train/loss", 9.0), Record("train/loss", 9.0, where={"step": "nan"}))
    (run,) = load(folder)
    assert [(r.where["step"], r.value) for r in run.series("train/loss")] == [(10, 2.0), (20, 3.0)]


def test_a_batch_is_of_the_newest_command_alone(folder) -> None:
    for request, block, value in (("old", "a", 1.0), ("old", "b", 2.0), ("new", "a", 3.0), ("new", "a", 4.0)):
        add(folder, Record("h/block", value, where={"block": block, "step": 1}, settings={"request": request}))
    assert [r.value for r in load(folder)[0].batch("h/block")] == [4.0]


def test_arrays_that_cannot_be_used_say_why(folder, monkeypatch) -> None:
    (run,) = load(folder)
    good, arrays = folder / "arrays" / "good.npz", folder / "arrays"
    np.savez(good, x=np.arange(1000.0))
    np.savez(arrays / "object.npz", x=np.array([{"a": 1}], dtype=object))
    (arrays / "cut.npz").write_bytes(good.read_bytes()[:4000])
    (arrays / "text.npz").write_text("no zip")
    (folder.parent / "outside.npz").write_bytes(good.read_bytes())
    data = bytearray(good.read_bytes())
    data[3000] ^= 255  # the zip's checksum sees it
    (arrays / "flipped.npz").write_bytes(data)
    assert run.arrays(Record("a", 1, arrays="arrays/good.npz"))["x"].shape == (1000,)
    for path, line in (
        ("arrays/none.npz", "is missing"), ("arrays/object.npz", "cannot be read"),
        ("arrays/cut.npz", "cannot be read"),
        ("arrays/text.npz", "cannot be read"), ("arrays/flipped.npz", "cannot be read"), ("", "names no array file"),
        ("../outside.npz", "of this run"), ("/etc/passwd", "of this run"), ("arrays", "cannot be read"),
    ):  # fmt: skip
        with pytest.raises(UnreadableArrays, match=line):
            run.arrays(Record("a", 1, arrays=path))
    monkeypatch.setattr(read, "MAX_ARRAY_BYTES", 1000)
    with pytest.raises(UnreadableArrays, match="more than the 0 read here"):
        run.arrays(Record("a", 1, arrays="arrays/good.npz"))


def test_a_grid_that_unpacks_to_more_than_memory_is_not_read(folder) -> None:
    path = folder / "arrays" / "bomb.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("x.npy", "w") as file:
        for _ in range(300):
            file.write(bytes(2**20))
    assert path.stat().st_size < 2**20
    with pytest.raises(UnreadableArrays, match="300 MiB"):
        load(folder)[0].arrays(Record("a", 1, arrays="arrays/bomb.npz"))


def test_labels_differ_and_say_what_differs(tmp_path) -> None:
    nothing = {"without": ("training", *NOTHING[2:])}  # `watch` is there: they count as trained
    folders = [
        make_run(tmp_path / "a", seed=0, without=NOTHING[1:]), make_run(tmp_path / "b", seed=1, without=NOTHING[1:]),
        make_run(tmp_path / "c", seed=1, config={"sam": {"rho": 0.3}}, without=NOTHING[1:]),
        make_run(tmp_path / "d", config={"name": "mine"}, without=NOTHING[1:]),
        make_run(tmp_path / "x" / "e", seed=5, config={"name": "n" * 300}, **nothing),
        make_run(tmp_path / "y" / "e", seed=5, config={"name": "n" * 300}, **nothing),
    ]  # fmt: skip
    labels = [run.label for run in load(*folders)]
    assert labels[:4] == [
        "vit-digits, seed 0, rho 0",
        "vit-digits, seed 1, rho 0",
        "vit-digits, seed 1, rho 0.3",
        "mine",
    ]
    assert len(set(labels)) == 6
    assert all(len(label) < 60 for label in labels)


def test_many_runs_are_coloured_by_recipe(tmp_path) -> None:
    folders = [
        make_run(tmp_path / f"{recipe}-{seed}", recipe=recipe, seed=seed, without=NOTHING[1:], log_lines=2)
        for seed in range(5)
        for recipe in ("vit-digits", "vit-digits-sam")
    ]
    few, many = load(*folders[:MANY]), load(*folders)
    assert [run.color for run in few] == list(range(MANY))
    assert [run.color for run in many] == [0, 1] * 5
    assert [(r.label, len(r.runs)) for r in recipes(many)] == [("vit-digits", 5), ("vit-digits-sam", 5)]
    assert differing(few[:2]) == ["recipe", "sam.rho"]


@pytest.mark.parametrize("name", HOSTILE)
def test_names_become_one_line_without_markup(name: str) -> None:
    assert not set(clean(name)) & set("\n\r\u2028\u2029\u202e\x00")
    assert len(clean(name)) <= 200
    assert not set(plain(name)) & set("<>")


def test_commands_can_be_pasted(tmp_path) -> None:
    folder = make_run(tmp_path / "a run; rm -rf 'x'", without=NOTHING)
    (run,) = load(folder)
    import shlex

    assert shlex.split(command(run, "hessian")) == ["samovar", "measure", str(folder), "hessian"]


def test_protocols_that_differ_are_named_and_the_step_of_the_best_is_no_difference(tmp_path) -> None:
    def pair(name: str, images: int, step: int):
        folder = make_run(tmp_path / name, without=NOTHING[1:])
        (folder / "checkpoints" / "best.json").write_text(json.dumps({"step": step}))
        record = Record(
            "h", 1, where={"split": "train", "step": step}, settings={"images": images, "weights": str(step)}
        )
        return record, load(folder)[0]

    same = {"a": pair("a", 10, 100), "b": pair("b", 10, 200)}  # b's best is also its last
    assert disagreements(same) == []
    other = same | {"c": pair("c", 20, 120)}
    assert disagreements(other) == ["images: 10 (a, b); 20 (c)"]
    record, run = other["c"]
    third = Record("h", 1, where={"step": 40}, settings=record.settings)
    assert disagreements({"b": same["b"], "c": (third, run)}) == [
        "checkpoint: best and last (b); step 40 (c)", "split: train (b); not stated (c)", "images: 10 (b); 20 (c)",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("value", "error", "texts"),
    [
        (49.780166, 0.0202, ("49.780", "± 0.020")), (2.6951, 0.113, ("2.70", "± 0.11")),
        (3922.1, 953.0, ("3\u202f922", "± 953")),
        (0.2124651, 7.6e-05, ("0.21247", "± 0.00008")), (0.0, None, ("0", "")), (math.nan, 1.0, ("not a number", "")),
        (-math.inf, None, ("−∞", "")), (1e9, 1e3, ("1.00e+09", "± 1\u202f000")), (5.0, math.inf, ("5.000", "")),
    ],
)  # fmt: skip
def test_a_value_is_shown_to_the_last_digit_of_its_error(value, error, texts) -> None:
    assert with_error(value, error) == texts


def test_durations_and_numbers_are_short() -> None:
    assert [duration(s) for s in (0.5, 41.2, 600, 12000, 4e6)] == ["0.5 s", "41 s", "10 min", "3 h 20 min", "46 days"]
    assert [number(v) for v in (0.0143, 123456, -2.5)] == ["0.01430", "123\u202f456", "−2.500"]


def test_the_ends_of_an_interval_are_told_apart_where_six_digits_can() -> None:
    cases = {(0.5, 2.0): 3, (1.01641, 1.01793): 4, (1.00041, 1.00043): 6, (1.0, 1.0): 6}
    assert {ends: apart(*ends) for ends in cases} == cases
