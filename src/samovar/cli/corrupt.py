"""`samovar corrupt`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from samovar import config as configs
from samovar.cli.flags import read
from samovar.cli.settings import parse_settings
from samovar.config import CorruptConfig

HELP = """\
usage: samovar corrupt DATA OUT [--flags]

Write corrupted copies of all images below the folder DATA, as PNG: the 19 corruptions of ImageNet-C
at 5 severities, as OUT/CORRUPTION/SEVERITY/... They are made here (frost and other textures
procedurally), and are the same for the same image and --seed. Copies that are there stay, so an
interrupted command goes on where it stopped.

`samovar corrupt DATA OUT --help` lists all flags with their defaults.

examples:
  samovar corrupt photos/val photos-c
  samovar corrupt photos/val photos-c --corruptions fog frost --severities 3 5 --size 224
"""


def parse(args: Sequence[str]) -> tuple[Path, Path, CorruptConfig]:
    """Return the folder of images, the folder to write and the settings.

    Raises:
        ValueError: not two folders, an unknown flag, a value that does not fit."""
    line = read(args, (), "corrupt", settings=True)
    if len(line.words) != 2:
        given = f", not {' '.join(line.words)}" if len(line.words) > 2 else ""
        raise ValueError(
            f"corrupt needs a folder of images and one to write to{given}; "
            "see `samovar corrupt --help`"
        )
    data, output = line.words
    config = parse_settings(CorruptConfig(), line.settings, f"corrupt {data} {output}")
    configs.validate_corrupt(config)
    return Path(data), Path(output), config


def explained(args: Sequence[str]) -> CorruptConfig:
    """Return the settings whose flags `samovar corrupt DATA OUT --help` lists."""
    return CorruptConfig()


def run(args: Sequence[str]) -> None:
    """Write corrupted copies of images."""
    data, output, config = parse(args)
    from samovar.data.corrupt_folder import corrupt_folder

    try:
        count = corrupt_folder(data, output, config)
    except KeyboardInterrupt:
        print("samovar: interrupted; the same command goes on from here", file=sys.stderr)
        raise SystemExit(130) from None
    print(f"corrupted copies of {count} images: {output}")
