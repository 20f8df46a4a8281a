"""Corrupted copies of a tree of images: OUT/CORRUPTION/SEVERITY/… for each image below a folder."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import signal
import sys
from collections.abc import Generator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from rich.progress import Progress

from samovar.config import CorruptConfig, DataConfig
from samovar.data.corruptions import CORRUPTIONS, corrupt
from samovar.data.decode import UnreadableImage, decode
from samovar.data.folders import EXTENSIONS, images_in, readable
from samovar.data.pipeline import frame
from samovar.data.streaming import num_workers, worker_context
from samovar.runs.records import replace_text
from samovar.runtime.heartbeat import counted
from samovar.runtime.terminal import console
from samovar.words import read_regular, suggest, visible

SHOWN = 5
"""Most unreadable files that are named."""


@dataclass(frozen=True)
class _Copies:
    """Copies of each image: every corruption at every severity."""

    data: Path
    output: Path
    names: tuple[str, ...]
    severities: tuple[int, ...]
    size: int
    seed: int
    owner: int
    """Process id of the command, part of the names of unfinished files."""

    def __call__(self, path: str) -> str:
        """Write the missing copies of an image; return the reason if it cannot be read, else ""."""
        torch.set_num_threads(1)  # processes share the cores, not threads
        missing = [
            (name, level)
            for name in self.names
            for level in self.severities
            if not self._target(name, level, path).exists()
        ]
        if not missing:
            return ""
        try:
            image = self._read(path)
        except (UnreadableImage, OSError) as error:
            return f"{path}: {error}"
        for name, severity in missing:
            made = corrupt(image, name, severity=severity, seed=self._seed(path))
            self._write(Image.fromarray(made), self._target(name, severity, path))
        return ""

    def _write(self, image: Image.Image, target: Path) -> None:
        # aside first, so that an interrupted run leaves no half file that counts as done
        target.parent.mkdir(parents=True, exist_ok=True)
        aside = target.with_name(f".{target.name}.{self.owner}.partial")
        try:
            image.save(aside, "PNG", compress_level=1)
            aside.replace(target)
        finally:
            aside.unlink(missing_ok=True)

    def remove_unfinished(self) -> None:
        """Remove what workers that were killed had not finished; none may run any more."""
        for name in self.names:
            for aside in (self.output / name).rglob(f".*.{self.owner}.partial"):
                aside.unlink(missing_ok=True)

    def _target(self, name: str, severity: int, path: str) -> Path:
        return (self.output / name / str(severity) / path).with_suffix(".png")

    def _read(self, path: str) -> np.ndarray:
        pixels = decode(read_regular(self.data / path))
        if self.size:
            pixels = frame(pixels[None], self.size, fixed=False)[0]
        return pixels.permute(1, 2, 0).contiguous().numpy()

    def _seed(self, path: str) -> int:
        # from the path, not from its place in the list, so that a new file changes no other
        text = f"{self.seed}:".encode() + os.fsencode(path)
        return int.from_bytes(hashlib.sha256(text).digest()[:7], "big")


def corrupt_folder(data: Path, output: Path, config: CorruptConfig) -> int:
    """Write a PNG of every image, corruption and severity; return the number of images.

    Copies that exist stay. Images are RGB, upright by their EXIF. One that cannot be read is named
    on stderr and left out.

    Raises:
        ValueError: no folder, no images or none that can be read, an unknown corruption, an output
            inside the data, a process that died."""
    names = _names(config.corruptions)
    paths = _paths(data)
    if data.resolve() in (output.resolve(), *output.resolve().parents):
        raise ValueError(
            f"{output} lies within {data}, so the copies would be images to corrupt; "
            "give another folder"
        )
    _claim(output, config)
    copies = _Copies(data, output, names, config.severities, config.size, config.seed, os.getpid())
    workers = num_workers(DataConfig(workers=config.workers))
    unread = []
    bar = Progress(console=console(stderr=True), disable=not sys.stderr.isatty())
    # closed at once after control-C, so that the workers have ended when the command has
    with contextlib.closing(_write_all(copies, paths, workers)) as reasons, bar as progress:
        told = counted(reasons, "corrupting", len(paths), "images")
        for reason in progress.track(told, total=len(paths), description="corrupting"):
            unread += [reason] if reason else []
    if len(unread) == len(paths):
        raise ValueError(
            f"none of the {len(paths)} images in {data} can be read, among them {unread[0]}"
        )
    for reason in unread[:SHOWN]:
        print(f"samovar: left out {visible(reason)}", file=sys.stderr)
    if len(unread) > SHOWN:
        print(f"samovar: left out {len(unread) - SHOWN} more", file=sys.stderr)
    return len(paths) - len(unread)


def _claim(output: Path, config: CorruptConfig) -> None:
    """Write the settings beside the copies; refuse a folder with copies of another seed or size."""
    stated, wanted = output / "samovar.json", {"seed": config.seed, "size": config.size}
    if stated.is_file():
        found = json.loads(stated.read_text(encoding="utf-8"))
        if found != wanted:
            raise ValueError(
                f"{output} holds copies made with {found}, not {wanted}; give another folder"
            )
        return
    output.mkdir(parents=True, exist_ok=True)
    replace_text(stated, json.dumps(wanted) + "\n")


def _names(asked: tuple[str, ...]) -> tuple[str, ...]:
    for name in asked:
        if name not in CORRUPTIONS:
            raise ValueError(f"--corruptions {name} is unknown; {suggest(name, CORRUPTIONS)}")
    return asked or tuple(CORRUPTIONS)


def _paths(data: Path) -> list[str]:
    """Return the images below a folder, sorted, as paths relative to it."""
    if not data.is_dir():
        raise ValueError(f"{data} is no folder; give the folder that holds the images")
    with readable(str(data)):
        paths = sorted(path.removeprefix("./") for path in images_in(data, "."))
    if not paths:
        raise ValueError(f"no images in {data}; known endings: {' '.join(EXTENSIONS)}")
    # every copy ends in .png, so a.jpg and a.png would overwrite each other
    stems: dict[Path, str] = {}
    for path in paths:
        other = stems.setdefault(Path(path).with_suffix(""), path)
        if other != path:
            raise ValueError(
                f"{other} and {path} would both be written as .png; rename one of them"
            )
    return paths


def _write_all(copies: _Copies, paths: list[str], workers: int) -> Generator[str, None, None]:
    """Write the copies of all images; yield the reason or "" for each, in order."""
    if workers == 0:
        yield from map(copies, paths)
        return
    # Not runtime.workers.share: its processes are for long tasks on GPUs and each import torch.
    # These fork from a server that has imported it: a small folder took 12 s of processor time with
    # two workers instead of 31 s, and torch is in memory once instead of once a core.
    with ProcessPoolExecutor(workers, worker_context(), initializer=_ignore_sigint) as pool:
        try:
            yield from pool.map(copies, paths, chunksize=4)
        except BrokenProcessPool as error:
            pool.shutdown()
            copies.remove_unfinished()
            raise ValueError(
                "a process ended by itself, perhaps for lack of memory; lower --workers"
            ) from error
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _ignore_sigint() -> None:
    # Control-C reaches the whole group; workers finish their image, and the parent ends them.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
