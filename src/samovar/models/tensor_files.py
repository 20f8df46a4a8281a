"""Read files of tensors without running anything in them."""

from __future__ import annotations

import pickle
import re
import struct
import warnings
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath, PureWindowsPath
from types import SimpleNamespace
from typing import Any
from zipfile import BadZipFile, ZipFile, is_zipfile

from samovar.models import nests
from samovar.models.known import SUFFIXES as SUFFIXES

_SURE = (".safetensors", ".pth", ".pt", ".npz")
"""Suffixes that nothing but weights has: a damaged file of these is called so."""
_DAMAGED = (
    *(EOFError, LookupError, TypeError, AttributeError, UnicodeDecodeError, struct.error),
    *(MemoryError, RecursionError, OverflowError, BadZipFile),
)
"""Errors that torch's reader of pickles raises for bytes that are no pickle, besides its own."""
_FREE, _DENSEST = 2**26, 64
"""Bytes that any archive may unpack to, and how many times its size larger ones may."""
_LONGEST_RANGE = 1_000_000
_SAFE_PROTOCOL = 2
"""The protocol of pickles that torch writes, and the highest that it reads without running code."""
_SAVE_AGAIN = {
    True: "save it again by torch.save(torch.load(FILE, weights_only=False), FILE)",
    False: "read it by pickle, and save its tensors by torch.save",
}
"""What to do about a pickle that is not read, by whether torch has written it."""
_LIGHTNING = (
    "pytorch_lightning.utilities.parsing",
    "lightning.pytorch.utilities.parsing",
    "lightning_fabric.utilities.data",
    "lightning.fabric.utilities.data",
)
"""Modules in which Lightning keeps its dict of settings."""


class _Wrong(RuntimeError):
    """A file asks for what no file of weights needs."""


def read_tensors(path: Path) -> Any:
    """Return the content of a file: nested dicts of tensors and other values, on the CPU.

    The parameters of a Flax `.npz` come under timm's names.

    Raises:
        ValueError: no such file, a damaged one, or one that would run code."""
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if path.exists() and not path.is_file():
        raise ValueError(f"{path} is no regular file; give a file of weights")
    with _refusals(path, (OSError, RuntimeError, SafetensorError, *_DAMAGED)):
        kind = _kind(path)
        if kind != "safetensors":
            _refuse_bomb(path)
        if kind == "safetensors":
            return load_file(path)
        if kind == "torch":
            with torch.serialization.safe_globals(_harmless()), warnings.catch_warnings():
                # a warning about the pickle's version would precede the error that matters
                warnings.simplefilter("ignore", UserWarning)
                try:
                    return _whole(torch.load(path, map_location="cpu", weights_only=True))
                except ValueError as error:  # of values in the file
                    raise _Wrong(str(error)) from error
    from samovar.models.flax import read_npz

    return read_npz(path)


def _kind(path: Path) -> str:
    """Return `safetensors`, `torch` or `npz`, by the content and else by the suffix.

    Raises:
        ValueError: the file is nothing of these."""
    suffix = path.suffix.lower()
    if path.is_file():
        with path.open("rb") as file:
            start = file.read(9)
        if start[8:] == b"{":  # after the length of the header
            return "safetensors"
        if start[:1] == b"\x80":
            return "torch"
        if start[:2] == b"PK":
            return "npz" if _holds_arrays(path) else "torch"
    if path.is_file() and start and suffix not in _SURE:
        raise ValueError(f"{path} is a file of another kind; give one of {', '.join(SUFFIXES)}")
    return {".safetensors": "safetensors", ".npz": "npz"}.get(suffix, "torch")


def _refuse_bomb(path: Path) -> None:
    """Refuse an archive that unpacks to far more than it is.

    Raises:
        _Wrong: gives both sizes."""
    if not is_zipfile(path):
        return
    with ZipFile(path) as archive:
        unpacked = sum(info.file_size for info in archive.infolist())
    packed = path.stat().st_size
    if unpacked > _FREE and unpacked > _DENSEST * packed:
        raise _Wrong(f"its {packed:,} bytes unpack to {unpacked:,}")


def _whole(content: Any) -> Any:
    """Return the content of a file whose tensors hold all the numbers that they claim.

    Raises:
        ValueError: a tensor of a few numbers claims to be a large one."""
    for (_, name), tensor in nests.flatten(content).items():
        if tensor.is_meta:
            raise ValueError(f"{name} is no plain tensor")
        claimed = tensor.numel() * tensor.element_size()
        if claimed > _FREE and claimed > tensor.untyped_storage().nbytes():
            raise ValueError(f"{name} claims {tensor.numel():,} numbers that it does not hold")
    return content


def _holds_arrays(path: Path) -> bool:
    try:
        with ZipFile(path) as archive:
            return all(name.endswith(".npy") for name in archive.namelist())
    except BadZipFile:
        return path.suffix.lower() == ".npz"


@contextmanager
def _refusals(path: Path, damaged: tuple[type[Exception], ...]) -> Iterator[None]:
    """Turn the errors of readers into one line."""
    try:
        yield
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL (\S+)", str(error))
        advice = "give a saved state_dict() and nothing else"
        if found:
            reason = f"it holds more than tensors and would call {found[1]}"
        elif (protocol := _protocol(path)) > _SAFE_PROTOCOL:
            reason = f"it is pickled by protocol {protocol}, which torch does not read safely"
            advice = f"if you trust it, {_SAVE_AGAIN[_is_torchs(path)]}"
        else:
            reason = "it is no file of tensors"
        raise ValueError(f"{path} is not read: {reason}; {advice}") from error
    except damaged as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(
            f"{path} cannot be read ({reason}); give a run folder, a timm name or a file"
        ) from error


def _protocol(path: Path) -> int:
    """Return the protocol of the pickle in a file that torch has written; 0 if there is none."""
    with suppress(BadZipFile, OSError):
        with ZipFile(path) as archive:
            names = [name for name in archive.namelist() if name.endswith("/data.pkl")]
            for name in names:
                return archive.open(name).read(2)[-1]
        return 0
    with path.open("rb") as file:
        start = file.read(2)
    return start[1] if start[:1] == b"\x80" and len(start) == 2 else 0


def _is_torchs(path: Path) -> bool:
    """Return whether torch has written a file: a zip archive, or after its older magic number."""
    magic = (0x1950A86A20F9469CFC6C).to_bytes(10, "little")
    with path.open("rb") as file:
        start = file.read(32)
    return start[:2] == b"PK" or magic in start


def _short_range(*args: Any) -> range:
    """Return a range; one of great length would fill the memory as a list."""
    made = range(*args)
    if len(made) > _LONGEST_RANGE:
        raise ValueError(f"it holds a range of {len(made):,} numbers")
    return made


def _harmless() -> list[Any]:
    """Return what a file of weights may hold beside tensors: values whose making does nothing.

    torch calls each of these with arguments of the file's choice, and nothing else."""
    import datetime

    import numpy as np
    from torch.torch_version import TorchVersion

    rebuild = [np.float64(0).__reduce__()[0], np.array(0).__reduce__()[0]]
    # object and void types can hold anything and are left out
    kinds = {type(np.dtype(code)) for code in f"{np.typecodes['AllInteger']}efdgFDG?SUMm"}
    # paths of either system become text that no system looks up
    paths = {"PosixPath": PurePosixPath, "WindowsPath": PureWindowsPath}
    paths |= {f"Pure{name}": pure for name, pure in paths.items()}
    renamed: dict[str, Any] = {
        # torch fills plain containers only
        "collections.defaultdict": lambda *_: {},
        "collections.deque": lambda *_: [],
        "builtins.range": _short_range,
        **{f"{home}.AttributeDict": dict for home in _LIGHTNING},
        # NumPy 2 has moved its package, and Python 3.13 for one version its own
        **{f"numpy.{core}.multiarray.scalar": rebuild[0] for core in ("core", "_core")},
        **{f"numpy.{core}.multiarray._reconstruct": rebuild[1] for core in ("core", "_core")},
        **{f"pathlib.{name}": pure for name, pure in paths.items()},
        **{f"pathlib._local.{name}": pure for name, pure in paths.items()},
    }
    plain = [int, float, bool, str, dict, list, tuple, frozenset, slice]
    times = [datetime.datetime, datetime.date, datetime.time, datetime.timedelta, datetime.timezone]
    known = [*plain, *times, Namespace, SimpleNamespace, TorchVersion, np.dtype, np.ndarray, *kinds]
    return known + [(made, name) for name, made in renamed.items()]
