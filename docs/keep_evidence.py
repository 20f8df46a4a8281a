"""Copy the numbers of finished runs into the repository, small enough to be kept there.

    python docs/keep_evidence.py RUNS cifar10k table1 table3 figure1 figure2

RUNS is the output folder of `samovar reproduce table1 ... --scale cifar10k`. Of each run that is
trained and has all measurements of these studies, `docs/evidence/SCALE` keeps the settings, what is
done, and the records but those of single training steps and single corruptions. A copy of that
folder is an output folder that `samovar reproduce` goes on with: it repeats none of these runs."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from samovar import config as configs
from samovar.runs.records import RunDir, replace_text, to_json
from samovar.studies.jobs import Job
from samovar.studies.reproduce.plan import ReproduceRequest, jobs_of
from samovar.studies.running import DONE_FILE, is_done

EVIDENCE = Path(__file__).parent / "evidence"
LEFT_OUT = ("train/", "robustness/corruption_accuracy")
"""Beginnings of the names of records that are many and in no table."""
SEEDS = 20
"""Most seeds of a setting that are looked for."""


def finished(runs: Path, scale: str, names: tuple[str, ...]) -> list[Job]:
    """Return the jobs of studies that are done in an output folder."""
    request = ReproduceRequest(names, scale, SEEDS, runs, {}, {})
    return [job for job in jobs_of(request) if is_done(job)]


def keep(job: Job, kept: Path) -> None:
    """Copy the small files of a job's run into a folder of evidence."""
    run, target = RunDir(job.folder), RunDir(kept / job.folder.name)
    # places on the machine are no part of a result
    settings = configs.to_dict(configs.load(run.config_path))
    settings["output"] = f"runs/reproduce-{kept.name}"
    settings["data"]["root"] = "data"
    lines = [to_json(each) for each in run.records() if not each.name.startswith(LEFT_OUT)]
    target.path.mkdir(parents=True, exist_ok=True)
    replace_text(target.config_path, json.dumps(settings, indent=2) + "\n")
    replace_text(target.path / "records.jsonl", "\n".join(lines) + "\n")
    replace_text(target.path / DONE_FILE, (run.path / DONE_FILE).read_text(encoding="utf-8"))


if __name__ == "__main__":
    if len(sys.argv) < 4:
        sys.exit("usage: python docs/keep_evidence.py RUNS SCALE WHAT...")
    for found in finished(Path(sys.argv[1]), sys.argv[2], tuple(sys.argv[3:])):
        keep(found, EVIDENCE / sys.argv[2])
        print(found.folder.name)
