"""Copy the numbers of finished runs into the repository, small enough to be kept there.

    python docs/keep_evidence.py RUNS docs/evidence/NAME

RUNS is the folder of a study (`samovar reproduce --output RUNS`). Of each finished run this keeps
the settings, what is done, and the records but those of single training steps and single
corruptions. A copy of the kept folder is an output folder that `samovar reproduce` goes on with."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from samovar import config as configs
from samovar.runs.json_files import read_object
from samovar.runs.records import RunDir, replace_text, to_json
from samovar.studies.running import DONE_FILE

LEFT_OUT = ("train/", "robustness/corruption_accuracy")
"""Beginnings of the names of records that are many and in no table."""


def keep(runs: Path, kept: Path) -> list[str]:
    """Copy the finished runs that are not kept yet; return their names."""
    new = []
    for done in sorted(runs.glob(f"*/{DONE_FILE}")):
        run, target = RunDir(done.parent), RunDir(kept / done.parent.name)
        facts = read_object(done)
        if not facts.get("measured") or _same(done, target.path / DONE_FILE):
            continue
        # places on the machine are no part of a result
        settings = configs.to_dict(configs.load(run.config_path))
        settings["output"] = f"runs/{kept.name}"
        settings["data"]["root"] = "data"
        lines = [to_json(each) for each in run.records() if not each.name.startswith(LEFT_OUT)]
        target.path.mkdir(parents=True, exist_ok=True)
        replace_text(target.config_path, json.dumps(settings, indent=2) + "\n")
        replace_text(target.path / "records.jsonl", "\n".join(lines) + "\n")
        replace_text(target.path / DONE_FILE, done.read_text(encoding="utf-8"))
        new.append(done.parent.name)
    return new


def _same(one: Path, other: Path) -> bool:
    return other.is_file() and one.read_bytes() == other.read_bytes()


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: python docs/keep_evidence.py RUNS docs/evidence/NAME")
    for name in keep(Path(sys.argv[1]), Path(sys.argv[2])):
        print(name)
