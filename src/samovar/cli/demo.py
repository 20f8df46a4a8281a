"""`samovar demo`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from samovar.cli.flags import DIR, Flag, Kind, flag_lines, read, whole

FLAGS = (
    Flag("--output", DIR, "folder of the two runs and the report", Path("runs")),
    Flag(
        "--seed", Kind("N", "a number", lambda f, text: whole(f, text, least=0)), "random seed", 0
    ),
)

HELP = f"""\
usage: samovar demo [--output DIR] [--seed N]

Train a small ViT on scikit-learn's digits twice, with AdamW and with AdamW + SAM, everything else
the same. Measure both, print the numbers side by side and write a report with pictures. This takes
under 5 minutes on 2 cores and downloads nothing.

{flag_lines(FLAGS)}

examples:
  samovar demo
  samovar demo --output /tmp/demo --seed 1
"""


def parse(args: Sequence[str]) -> tuple[Path, int]:
    """Return the output folder and the seed.

    Raises:
        ValueError: an unknown argument, or a seed that is no whole number."""
    line = read(args, FLAGS, "demo")
    if line.words:
        raise ValueError(f"demo takes no {line.words[0]!r}; see `samovar demo --help`")
    return line["--output"], line["--seed"]


def run(args: Sequence[str]) -> None:
    """Run the demo."""
    output, seed = parse(args)
    from samovar.studies.demo import demo

    demo(output, seed)
