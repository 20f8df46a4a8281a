"""The runs kept in docs/evidence are those that `samovar reproduce` goes on with, and name no machine."""

import importlib.util
import json
import re
import shutil
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs"
SCALES = sorted(path.name for path in (DOCS / "evidence").glob("*"))
STUDIES = ("table1", "table3", "figure1", "figure2")


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("keep_evidence", DOCS / "keep_evidence.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("scale", SCALES)
def test_kept_runs_are_finished_runs_of_the_recipes_as_they_are(script, scale: str) -> None:
    kept = {path.name for path in (DOCS / "evidence" / scale).iterdir()}
    assert kept
    # a recipe that has changed since is refused here, and its runs have to go
    assert {job.folder.name for job in script.finished(DOCS / "evidence" / scale, scale, STUDIES)} == kept


@pytest.mark.parametrize("scale", SCALES)
def test_kept_runs_name_no_place_of_a_machine(scale: str) -> None:
    for path in (DOCS / "evidence" / scale).glob("*/*"):
        # no path from the root of a file system, alone or after a source's name or a flag
        assert not re.findall(r"""(?:^|[\s"':=])/\w+""", path.read_text())


def test_a_run_is_kept_without_what_is_large(script, tmp_path) -> None:
    source = DOCS / "evidence" / SCALES[0]
    name = min(path.name for path in source.iterdir())
    run = tmp_path / "runs" / name
    shutil.copytree(source / name, run)
    before = (run / "records.jsonl").read_text()
    (run / "records.jsonl").write_text(before + json.dumps({"name": "train/loss", "value": 1.0}) + "\n")
    (job,) = script.finished(tmp_path / "runs", SCALES[0], STUDIES)
    script.keep(job, tmp_path / "kept")
    assert (tmp_path / "kept" / name / "records.jsonl").read_text() == before
    # without one of its measurements it is not finished
    done = json.loads((run / "reproduced.json").read_text())
    done["measured"].popitem()
    (run / "reproduced.json").write_text(json.dumps(done))
    assert script.finished(tmp_path / "runs", SCALES[0], STUDIES) == []
