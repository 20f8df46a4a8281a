"""Published test sets as their authors distribute them.

ImageNet-C, -R, -A, -V2, -Sketch, ReaL labels, CIFAR-10/100-C. Copies corrupted by `samovar corrupt`
are read by `robustness`, never as one of these."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from samovar.data.corruptions import EXTRA, MAIN, SEVERITIES
from samovar.data.folders import readable
from samovar.data.testsets import imagenet
from samovar.data.testsets.corrupted import CIFAR10, open_cifar_c, open_imagenet_c
from samovar.data.testsets.imagenet import classes, open_folders, open_real
from samovar.data.testsets.kinds import Chosen, Condition, TestSet

__all__ = ["EXTRA", "MAIN", "SEVERITIES", "TESTSETS", "Condition", "TestSet", "open_testset"]


def open_testset(
    text: str, corruptions: Sequence[str] = (), severities: Sequence[int] = SEVERITIES
) -> TestSet:
    """Open `--testset`; images are not read yet.

    Args:
        text: NAME:PATH, with NAME one of TESTSETS.
        corruptions: the ones to score of a corruption set; none: all 19, or the main 15 where there
            are no others.
        severities: the ones to score.

    Raises:
        ValueError: an unknown name, or files that are not the published set, whole."""
    name, colon, argument = text.partition(":")
    if name + colon not in TESTSETS or not argument:
        known = ", ".join(f"{known}PATH" for known in TESTSETS).replace(
            "real:PATH", "real:VAL::REAL.json"
        )
        raise ValueError(
            f"--testset {text or '(empty)'} is no published test set; give one of {known}"
        )
    folder = Path(argument.partition("::")[0])
    chosen = Chosen(tuple(dict.fromkeys(corruptions)), tuple(sorted(set(severities))))
    try:
        if not folder.is_dir():
            raise ValueError(f"there is no folder {folder}; check the path")
        with readable(""):
            return TESTSETS[name + colon](argument, chosen)
    except ValueError as error:
        # the readers of folders name the flag they were made for
        reason = str(error).removeprefix("--data.source : ")
        raise ValueError(f"--testset {text}: {reason}") from error


def _open_v2(path: str, _: Chosen) -> TestSet:
    folders = {str(index): index for index in range(len(imagenet.wnids()))}
    return open_folders("ImageNet-V2", "arXiv:1902.10811", 10_000, path, folders)


TESTSETS: dict[str, Callable[[str, Chosen], TestSet]] = {
    "imagenet-r:": lambda path, _: open_folders(
        "ImageNet-R", "arXiv:2006.16241", 30_000, path, classes("R")
    ),
    "imagenet-a:": lambda path, _: open_folders(
        "ImageNet-A", "arXiv:1907.07174", 7_500, path, classes("A")
    ),
    "imagenet-v2:": _open_v2,
    "imagenet-sketch:": lambda path, _: open_folders(
        "ImageNet-Sketch", "arXiv:1905.13549", 50_889, path, classes()
    ),
    "imagenet-real:": open_real,
    "imagenet-c:": open_imagenet_c,
    "cifar10-c:": lambda path, chosen: open_cifar_c("CIFAR-10-C", CIFAR10, 10, path, chosen),
    "cifar100-c:": lambda path, chosen: open_cifar_c("CIFAR-100-C", (), 100, path, chosen),
}
"""Openers by name; they take the rest of `--testset` as their argument."""
