"""`demo`, `reproduce` and `compare`: runs by the dozen."""

from __future__ import annotations

from pathlib import Path

from samovar.cli import compare as interface_of_compare
from samovar.cli import reproduce as interface_of_reproduce
from samovar.cli.flags import nearest, parse_flags, take
from samovar.cli.texts import DEMO_HELP
from samovar.cli.training import recipe_config
from samovar.studies.compare.plan import CompareRequest
from samovar.studies.reproduce.plan import ReproduceRequest


def parse_reproduce(args: list[str]) -> tuple[ReproduceRequest, bool]:
    """What a `reproduce` command line asks for, and whether only its plan.

    Raises:
        ValueError: as `samovar.cli.reproduce.parse`."""
    return interface_of_reproduce.parse(args, parse_flags, take)


def reproduce(args: list[str]) -> None:
    """Reproduce tables and figures of the paper."""
    if not args or "-h" in args or "--help" in args:
        print(interface_of_reproduce.HELP, end="")
        raise SystemExit(0 if args else 2)
    words = ["samovar", "reproduce", *args]
    asked, only_plan = parse_reproduce(args)
    from samovar.studies.reproduce.command import reproduce

    reproduce(asked, words, only_plan=only_plan)


def parse_compare(args: list[str]) -> tuple[CompareRequest, bool]:
    """What a `compare` command line asks for, and whether only its plan.

    Raises:
        ValueError: as `samovar.cli.compare.parse`."""
    return interface_of_compare.parse(args, parse_flags, take, recipe_config)


def compare(args: list[str]) -> None:
    """Compare SAM and its relatives."""
    if not args or "-h" in args or "--help" in args:
        print(interface_of_compare.HELP, end="")
        raise SystemExit(0 if args else 2)
    words = ["samovar", "compare", *args]
    asked, only_plan = parse_compare(args)
    from samovar.studies.compare.command import compare

    compare(asked, words, only_plan=only_plan)


def demo(args: list[str]) -> None:
    """Train the twins."""
    if args in (["-h"], ["--help"]):
        print(DEMO_HELP, end="")
        return
    output, seed = take(args, "--output") or "runs", take(args, "--seed") or "0"
    if args:
        raise ValueError(f"unknown flag {args[0]}; {nearest(args[0], ['--output', '--seed'])}")
    if not seed.isdigit():
        raise ValueError(f"--seed {seed} is not a whole number; give 0 or more")
    from samovar.studies import demo

    demo.demo(Path(output), int(seed))
