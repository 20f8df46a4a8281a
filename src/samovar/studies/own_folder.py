"""Write a study's own folder: what it is about, and its records."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from samovar import config as configs
from samovar.config import Config, RunConfig
from samovar.runs.records import Record, RunDir, replace_text, to_json
from samovar.runtime import provenance, started


def write_study(
    folder: RunDir, mark: str, facts: dict[str, Any], config: Config, recipe: str
) -> None:
    """Write a study's own folder: what it is about, and the config that its report shows.

    Args:
        mark: name of the file that distinguishes the folder from a run's."""
    make_folder(folder.path, folder.path)
    folder.write_json(mark, facts)
    named = replace(config, name=folder.path.name, output=folder.path.parent, recipe=recipe)
    folder.write_json(folder.config_path.name, configs.to_dict(named))


def write_records(folder: RunDir, records: Sequence[Record], run: RunConfig) -> None:
    """Write a study's records anew, since they follow from its runs, and the machine's provenance.

    Equal records keep their file and its time, so that the same runs make the same page."""
    with started(run) as runtime:
        folder.write_json("provenance.json", provenance(runtime))
    path, text = folder.records_path, "".join(to_json(record) + "\n" for record in records)
    if not (path.is_file() and path.read_text(encoding="utf-8") == text):
        replace_text(path, text)


def make_folder(folder: Path, output: Path) -> None:
    """Make a folder below `--output`.

    Raises:
        ValueError: it cannot be made."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(
            f"cannot write to --output {output}: {error.strerror}; give another"
        ) from error
