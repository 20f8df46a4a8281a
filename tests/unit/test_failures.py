"""However a command ends, it says so in one line, keeps what it has, and says how to go on."""

import errno
import os
import tempfile
from pathlib import Path

import pytest
from PIL import Image
from safetensors import SafetensorError

from samovar import cli
from samovar.config import Config
from samovar.runs.records import RunDir, replace_text
from tests.unit.made_run import made_run


class Odd(Exception):
    """An error that nobody thought of."""


@pytest.fixture
def run(tmp_path, monkeypatch) -> RunDir:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    Image.new("L", (8, 8)).save("x.png")
    return made_run(tmp_path / "runs", Config(), classes=10, channels=1)


def ended(args: str, code: int, capsys) -> str:
    """The one line of a command that ends with a code."""
    with pytest.raises(SystemExit) as caught:
        cli.main(args.split())
    assert caught.value.code == code
    err = capsys.readouterr().err
    assert err.startswith("samovar: ")
    assert err.count("\n") == 1
    return err


def raising(error: BaseException):
    def fail(*args, **rest):
        raise error

    return fail


VERBS = {
    "report runs/made": "samovar.report.write",
    "measure runs/made flatness": "samovar.measure.command.run",
    "predict runs/made x.png": "samovar.export.predict.show",
    "export runs/made --format timm": "samovar.export.export",
    "train --resume runs/made": "samovar.train.command.train",
    "tune vit-digits-sam --rho 0,0.1": "samovar.studies.tune.command.tune",
    "compare vit-digits": "samovar.studies.compare.command.compare",
    "reproduce table4 --scale digits": "samovar.studies.reproduce.command.reproduce",
    "demo": "samovar.studies.demo.demo",
    "corrupt . out": "samovar.data.corrupt_folder.corrupt_folder",
    "list runs": "samovar.cli.list_runs.lines",
    "show runs/made": "samovar.cli.show_run.lines",
}


def test_the_list_of_verbs_is_whole() -> None:
    assert {command.split()[0] for command in VERBS} == set(cli.VERBS) - {"completion"}


@pytest.mark.parametrize("command", VERBS)
def test_a_full_disk_in_any_verb_is_one_line_that_says_how_to_go_on(command, run, monkeypatch, capsys) -> None:
    monkeypatch.setattr(VERBS[command], raising(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "runs/made/x")))
    line = ended(command, 1, capsys)
    assert "No space left on device: runs/made/x; what was finished is kept; make room, then samovar " in line
    assert line.rstrip().endswith(command)


@pytest.mark.parametrize(
    ("number", "todo"),
    [
        (errno.EROFS, "give a folder that can be written to"),
        (errno.EACCES, "give a folder that can be written to"),
        (errno.ENOENT, "bring it back or give another path"),
        (errno.EIO, "mend that"),
    ],
)
def test_other_faults_of_the_file_system_say_what_to_do(number, todo, run, monkeypatch, capsys) -> None:
    monkeypatch.setattr("samovar.report.write", raising(OSError(number, os.strerror(number), "here")))
    assert todo in ended("report runs/made", 1, capsys)


@pytest.mark.parametrize("command", VERBS)
@pytest.mark.parametrize(
    "error", [Odd("of a kind\nof its own"), SafetensorError("header too large"), KeyError("step"), MemoryError()]
)
def test_no_traceback_reaches_a_user_and_it_is_kept(error, command, run, monkeypatch, capsys) -> None:
    monkeypatch.setattr(VERBS[command], raising(error))
    line = ended(command, 1, capsys)
    assert f"stopped by a fault of its own, {type(error).__name__}: " in line
    assert "please open an issue with it" in line
    place = Path(line.partition("the traceback is in ")[2].partition(";")[0])
    in_run = "runs/made" in command
    assert place == Path("runs/made/error.txt") if in_run else place.parent == Path(tempfile.gettempdir())
    text = place.read_text()
    assert text.startswith(f"samovar {command}\n")
    assert "Traceback (most recent call last):" in text
    assert type(error).__name__ in text


def test_the_traceback_goes_elsewhere_where_the_run_cannot_be_written(run, monkeypatch, capsys) -> None:
    (run.path / "error.txt").mkdir()
    monkeypatch.setattr("samovar.report.write", raising(Odd()))
    assert str(tempfile.gettempdir()) in ended("report runs/made", 1, capsys)


def test_the_traceback_of_a_run_that_the_command_made_is_in_it(run, monkeypatch, capsys) -> None:
    monkeypatch.setattr("samovar.train.command.fit", raising(Odd("in the middle")))
    line = ended("train vit-digits --steps 2 --optim.warmup-steps 0 --name mine", 1, capsys)
    assert "the traceback is in runs/mine/error.txt" in line


def test_an_interruption_is_one_line(run, monkeypatch, capsys) -> None:
    monkeypatch.setattr("samovar.report.write", raising(KeyboardInterrupt()))
    assert ended("report runs/made", 130, capsys) == "samovar: interrupted\n"


def test_a_message_of_any_length_is_a_short_line(run, monkeypatch, capsys) -> None:
    monkeypatch.setattr("samovar.report.write", raising(ValueError("x" * 10**6)))
    assert len(ended("report runs/made", 2, capsys)) < 4100


def test_a_device_that_is_written_to_stays_one(tmp_path) -> None:
    link = tmp_path / "out.html"
    link.symlink_to(os.devnull)
    replace_text(link, "page")
    assert link.is_symlink()
    assert not Path(os.devnull).is_file()


NOT_UTF8 = os.fsdecode(b"caf\xe9")


@pytest.mark.costly
def test_class_folders_that_are_not_utf8_train_measure_predict_and_report(run, tmp_path, capsys) -> None:
    for label in (NOT_UTF8, "b"):
        (tmp_path / "photos" / label).mkdir(parents=True)
        for number in range(4):
            Image.new("L", (8, 8), 60 * number).save(tmp_path / "photos" / label / f"{number}{NOT_UTF8}.png")
    small = "--steps 2 --optim.warmup-steps 0 --data.batch-size 4 --data.workers 0 --data.val-share 0.25"
    cli.main(f"train vit-digits --data.source folder:photos --name mine {small}".split())
    cli.main(["measure", "runs/mine", "accuracy", "predictions", "--workers", "0"])
    cli.main(["predict", "runs/mine", "photos"])
    cli.main(["predict", "runs/mine", "photos", "--csv", "out.csv"])
    cli.main(["predict", "runs/mine", "photos", "--copy-to", "sorted"])
    cli.main(["report", "runs/mine"])
    cli.main(["export", "runs/mine", "--format", "timm"])
    cli.main(["show", "runs/mine"])
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err
    assert RunDir(Path("runs/mine")).classes() == ("b", NOT_UTF8)
