"""What predictions say of a folder whose subfolders are classes, and copies of images by class."""

from __future__ import annotations

import filecmp
import re
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from samovar.export.prediction_output import Prediction, path_text
from samovar.measure.accuracy import wilson


class Tally:
    """Counts right predictions among images that lie in a subfolder named after a class."""

    def __init__(self, words: Sequence[str], classes: Sequence[str]) -> None:
        self._folders = [Path(word) for word in words if Path(word).is_dir()]
        self._classes = frozenset(classes)
        self.right = self.n = 0

    def watch(self, found: Iterator[Prediction]) -> Iterator[Prediction]:
        """Yield predictions as they come, and count them."""
        for each in found:
            if label := self._label(each.image):
                self.n += 1
                self.right += each.classes[0] == label
            yield each

    def line(self) -> str:
        """Return a line on the accuracy; empty where no subfolder is a class."""
        if not self.n:
            return ""
        low, high = wilson(self.right, self.n)
        interval = f"95 % interval {100 * low:.2f} to {100 * high:.2f} %"
        share = f"{100 * self.right / self.n:.2f} % ({interval})"
        return f"accuracy: {share}, {self.right} of {self.n} images in subfolders of their class"

    def _label(self, image: Path) -> str:
        """Return the class that an image's subfolder names; empty for others."""
        for folder in self._folders:
            if image.is_relative_to(folder):
                parts = image.relative_to(folder).parts[:-1]
                return next((part for part in reversed(parts) if part in self._classes), "")
        return ""


class Copies:
    """Copies images into a folder for each predicted class; replaces nothing."""

    def __init__(self, output: Path) -> None:
        """Take the folder that gets the folders of the classes.

        Raises:
            ValueError: it is a file."""
        if output.exists() and not output.is_dir():
            raise ValueError(f"--copy-to {output} is a file; give a folder")
        self.output = output
        self.counts = Counter[str]()
        self.kept = 0
        """Images that were there already, with the same content."""

    def watch(self, found: Iterator[Prediction]) -> Iterator[Prediction]:
        """Yield predictions as they come, and copy each image.

        Raises:
            ValueError: a file cannot be written."""
        for each in found:
            try:
                self._copy(each.image, each.classes[0])
            except OSError as error:
                raise ValueError(
                    f"cannot copy {path_text(each.image)} to --copy-to {self.output}: "
                    f"{error.strerror or error}; give another folder"
                ) from error
            yield each

    def line(self) -> str:
        """Return a line on what was copied."""
        total = sum(self.counts.values())
        parts = [f"{name} {count}" for name, count in sorted(self.counts.items())]
        there = f"; {self.kept} were there already" if self.kept else ""
        classes = f" ({', '.join(parts)})" if parts else ""
        return f"copied: {total} images to {self.output}{classes}{there}"

    def _copy(self, image: Path, name: str) -> None:
        folder = self.output / folder_name(name)
        folder.mkdir(parents=True, exist_ok=True)
        count = 1
        while True:
            ending = "" if count == 1 else f"-{count}"
            place = folder / f"{image.stem}{ending}{image.suffix}"
            try:
                # refuses a file that is there, also one that appeared just now
                with place.open("xb") as target, image.open("rb") as original:
                    shutil.copyfileobj(original, target)
            except FileExistsError:
                if place.is_file() and filecmp.cmp(image, place, shallow=False):
                    self.kept += 1
                    return
                count += 1
                continue
            shutil.copystat(image, place)
            self.counts[name] += 1
            return


def folder_name(name: str) -> str:
    """Return the name of a class as that of a folder, which has no slash and is not hidden."""
    return re.sub(r"^\.+|[/\\\0]", "_", name) or "_"
