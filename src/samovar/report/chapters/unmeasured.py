"""List what was not measured, with one command for each run."""

from __future__ import annotations

from collections.abc import Sequence

from samovar.report.parts import Chapter, Missing
from samovar.report.read import RunData
from samovar.report.run_names import command


def unmeasured(chapters: Sequence[Chapter], runs: Sequence[RunData]) -> list[Chapter]:
    """Return the chapter of what the others lack; nothing if they lack nothing.

    Measurements of one run become one command, which does not train again."""
    found = [note for chapter in chapters for note in chapter.missing]
    if not found:
        return []
    together: list[Missing] = []
    for run in runs:
        prefix = command(run) + " "
        lacked = {
            text.removeprefix(prefix): note.what
            for note in found
            for text in note.commands
            if text.startswith(prefix)
        }
        if lacked:
            what = "; ".join(dict.fromkeys(lacked.values()))
            together.append(Missing(what, (run.label,), (prefix + " ".join(lacked),)))
    rest = [note for note in found if not note.commands]
    return [Chapter("unmeasured", "Not measured", "", (), [*together, *rest])]
