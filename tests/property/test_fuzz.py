"""Whatever is damaged or forged in a run or an export, every verb ends in one line: no traceback, no hang, no bomb."""

import json
import os
import random
import resource
import shutil
import signal
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from samovar import cli
from samovar import config as configs
from samovar.config import Config, DataConfig, RunConfig
from samovar.export import export
from samovar.runs import progress
from samovar.runs.progress import RunProgress
from samovar.runs.records import Record
from tests.unit.made_run import made_run

SECONDS = 60
"""The time after which a command counts as hanging; ten on an idle machine."""
MEMORY = 2**30
"""Bytes that a command may take beside those of the libraries."""
MEASURE = "flatness --images 8 --draws 2 --workers 0"
CHEAP = ("show RUN", "show RUN --all", "list runs", "predict RUN x.png", "predict EXPORT x.png", "tune --verdict RUN")
VERBS = (
    *CHEAP * 5,
    *("train --resume RUN", "train --config RUN/config.json --dry-run"),
    "train transfer --init RUN --data.source digits --lr 0.01 --dry-run",
    *(f"measure RUN {MEASURE}", "export RUN --format timm", "report RUN -o out.html"),
    *(f"measure EXPORT {MEASURE}", "export EXPORT --format timm"),
)
"""Commands; those that take milliseconds are drawn more often."""
NUMBERS = (0, -1, 3, 10**30, -(10**30), 0.5, -0.0, 1e308, float("nan"), float("inf"), 2**63, 65_536, 10**7)
TEXTS = (
    "",
    "x",
    "x" * 5000,
    "\x1b[31mred",
    "\u202eabc",
    "\ud800",
    "=1+1",
    "../../etc/passwd",
    "/dev/zero",
    "a\nb",
    "nan",
)
NESTED = ([], {}, [[]], {"": None}, [None], ["a", 1, {}], [[[[[[[[]]]]]]]], {"a": {"a": {"a": 1}}})
ODD = (None, True, False, *NUMBERS, *TEXTS, *NESTED, "os:getcwd", "hf-hub:a/b")
FILES = (
    *("config.json", "records.jsonl", "classes.json", "progress.json", "provenance.json", "class_counts.json"),
    *("checkpoints/best.json", "checkpoints/step-00000003/meta.json", "checkpoints/step-00000003/model.safetensors"),
    *("checkpoints/step-00000003/state.pt", "export/config.json", "export/model.safetensors"),
)


@pytest.fixture(scope="module")
def original(tmp_path_factory) -> Path:
    """A folder with a run and its export, and an image."""
    folder = tmp_path_factory.mktemp("fuzz")
    config = Config(recipe="vit-digits", data=DataConfig(workers=0), run=RunConfig(threads=1), steps=3)
    run = made_run(folder / "runs", config, classes=10, channels=1)
    run.keep_classes([str(digit) for digit in range(10)])
    progress.write(run, RunProgress("done", 3, 3))
    run.write_json("provenance.json", {"versions": {"torch": "2"}, "command": ["samovar", "train"], "data": ["a"]})
    run.write_json("class_counts.json", {"classes": list("0123456789"), "train": [1] * 10, "val": [1] * 10})
    (run.checkpoints / "best.json").write_text(json.dumps({"step": 3, "val/accuracy": 0.5}))
    where = {"step": 3, "split": "val"}
    np.savez(run.arrays / "spectrum.npz", eigenvalues=np.ones(3), weights=np.ones(3))
    run.append(
        *(Record("train/loss", 1.0 / step, where={"step": step}) for step in (1, 2, 3)),
        Record("val/accuracy", 0.5, unit="1", n=10, where=where),
        Record("hessian/lambda_max", 2.0, where=where, settings={"loss": "softmax", "images": 8}, residual=0.1),
        Record("density/spectrum", 2.0, where=where, arrays="arrays/spectrum.npz"),
    )
    export(str(run.path), "timm", output=run.path / "export")
    Image.new("L", (8, 8)).save(folder / "x.png")
    return folder


def spoil(path: Path, draw: random.Random) -> None:
    """Damage or forge one file."""
    kind = draw.random()
    if path.suffix in (".json", ".jsonl") and kind < 0.7:
        lines = path.read_text().splitlines() if path.suffix == ".jsonl" else [path.read_text()]
        row = draw.randrange(len(lines))
        lines[row] = json.dumps(forged(json.loads(lines[row]), draw))
        path.write_text("\n".join(lines) + "\n")
        return
    data = bytearray(path.read_bytes())
    place = draw.randrange(len(data))
    if kind < 0.8:
        data[place] ^= 1 << draw.randrange(8)
    elif kind < 0.88:
        del data[place:]
    elif kind < 0.92:
        data[place:place] = draw.choice([b"[" * 50_000, b"\xff\xfe", b"\0" * 100, b"{", b'"'])
    else:
        path.unlink()
        swap = draw.choice(["nothing", "folder", "pipe", "loop", "empty"])
        if swap == "folder":
            path.mkdir()
        elif swap == "pipe":
            os.mkfifo(path)
        elif swap == "loop":
            path.symlink_to(path)
        elif swap == "empty":
            path.touch()
        return
    path.write_bytes(bytes(data))


def forged(value, draw: random.Random):
    """A JSON value with one place of it replaced, removed or added."""
    if isinstance(value, dict) and value and draw.random() < 0.9:
        key = draw.choice(sorted(value))
        if draw.random() < 0.1:
            return {name: each for name, each in value.items() if name != key}
        if draw.random() < 0.05:
            return value | {draw.choice(["", "x", "\x1b[2J", "__class__"]): draw.choice(ODD)}
        return value | {key: forged(value[key], draw)}
    if isinstance(value, list) and value and draw.random() < 0.6:
        place = draw.randrange(len(value))
        return [*value[:place], forged(value[place], draw), *value[place + 1 :]]
    return draw.choice(ODD)


class Hangs(BaseException):
    """A command took too long."""


def ends_well(command: str, capsys) -> str:
    """What is wrong with the end of a command; empty if nothing is."""

    def late(*args) -> None:
        raise Hangs

    before = signal.signal(signal.SIGALRM, late)
    limits = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + MEMORY, limits[1]))
    signal.alarm(SECONDS)
    code = 0
    try:
        cli.main(command.split())
    except SystemExit as end:
        code = end.code
    except Hangs:
        return "it hangs"
    except BaseException as error:
        return f"{type(error).__name__} came through"
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
        resource.setrlimit(resource.RLIMIT_AS, limits)
    err = capsys.readouterr().err
    if code not in (0, 1, 2):
        return f"it ends with {code}"
    if "stopped by a fault of its own" in err or "Traceback" in err:
        return err
    return "" if code in (0, 1) or err.count("\n") >= 1 else "it says nothing"


def attack(seed: int, original: Path, folder: Path, capsys) -> str:
    """Spoil one to three files of a copy, and run a verb on it."""
    draw = random.Random(seed)
    place = folder / str(seed)
    shutil.copytree(original, place)
    files = draw.choices(FILES, weights=[8, 6, 2, 2, 2, 1, 2, 4, 2, 2, 6, 2], k=draw.choice([1, 1, 2, 3]))
    for name in dict.fromkeys(files):
        spoil(place / "runs" / "made" / name, draw)
    command = draw.choice(VERBS).replace("RUN", "runs/made").replace("EXPORT", "runs/made/export")
    os.chdir(place)
    try:
        wrong = ends_well(command, capsys)
    finally:
        os.chdir(folder)
    shutil.rmtree(place)
    return wrong and f"{seed}: samovar {command} with {', '.join(files)}: {wrong}"


def fuzzed(seeds: range, original: Path, tmp_path: Path, monkeypatch, capsys) -> list[str]:
    # what a forged length makes it train is no fault; reading, checking and building are tried
    monkeypatch.setattr("samovar.train.command.fit", lambda *args, **rest: iter(()))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    torch.set_num_threads(1)
    return list(filter(None, (attack(seed, original, tmp_path, capsys) for seed in seeds)))


@pytest.mark.costly
def test_two_hundred_spoiled_runs_and_exports_end_in_one_line(original, tmp_path, monkeypatch, capsys) -> None:
    assert fuzzed(range(200), original, tmp_path, monkeypatch, capsys) == []


@pytest.mark.slow
def test_two_thousand_spoiled_runs_and_exports_end_in_one_line(original, tmp_path, monkeypatch, capsys) -> None:
    assert fuzzed(range(1000, 3000), original, tmp_path, monkeypatch, capsys) == []


def test_nothing_is_wrong_with_what_is_whole(original, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(original)
    monkeypatch.setattr("samovar.train.command.fit", lambda *args, **rest: iter(()))
    assert configs.load(Path("runs/made/config.json")).recipe == "vit-digits"
    for command in ("show RUN", "predict RUN x.png", "predict EXPORT x.png", "export RUN --format timm --output OUT"):
        args = command.replace("RUN", "runs/made").replace("EXPORT", "runs/made/export").replace("OUT", f"{tmp_path}/o")
        cli.main(args.split())
