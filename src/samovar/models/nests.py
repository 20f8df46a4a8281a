"""Find a network's tensors in what training programs save around them.

A file is flattened to tensors by their full path, such as
`state_dict.module.backbone.conv1.weight`, so that the keys under which a program nests weights and
the prefixes that a wrapper puts before names are the same thing: a start of the path. Which start
is cut off is decided by the names of the network at hand, and before it is known by `usual`."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

_AVERAGED = re.compile(r"(^|[._-])ema|ema([._-]|\d|$)|teacher|swa([._-]|$)|averag", re.IGNORECASE)
"""Paths of weights averaged over training."""
_USUAL = {
    *("module", "_orig_mod", "_fsdp_wrapped_module", "body", "model", "net", "network", "backbone"),
    *("encoder", "ema", "teacher", "student"),
}
"""Prefixes that all names of a network have only if something is wrapped around it."""
_WRAPPERS = re.compile(
    r"(^|\.)(_orig_mod|module|_fsdp_wrapped_module|_checkpoint_wrapped_module)(?=\.)"
)
"""Parts that DDP, `torch.compile`, FSDP and checkpointing put into names, anywhere."""
_COUNTER = "num_batches_tracked"
"""A buffer of BatchNorm that older programs do not save, and that counts for nothing."""
_SHOWN = 3
_DEEPEST = 100
_MOST_VALUES = 5_000_000
"""Limits of nested values, far above those of any training program."""
Flat = Mapping[tuple[str, str], "Tensor"]
"""Tensors by the path of their dict and their key in it."""


@dataclass(frozen=True)
class Found:
    """Tensors of one network, and where in the file they were."""

    tensors: dict[str, Tensor]
    """Under the network's own names."""
    note: str = ""
    """What was cut off, and what else the file holds; empty for a plain state dict."""


@dataclass
class _Start:
    """A start of paths, and the tensors of the network at hand that lie under it."""

    path: str
    order: int
    """Place of its first tensor in the file."""
    names: dict[str, str] = field(default_factory=dict)
    """Full path of each tensor by the network's name."""
    fitting: int = 0
    """Number of these that have the shape of the network's."""

    @property
    def rank(self) -> tuple[int, int, bool, int, int]:
        """Order starts by what fits; among equals averages win, then the first of the file."""
        averaged = bool(_AVERAGED.search(self.path))
        return self.fitting, len(self.names), averaged, -self.order, len(self.path)


def flatten(content: Any) -> dict[tuple[str, str], Tensor]:
    """Return all tensors of nested dicts and lists by (path of their dict, key).

    Raises:
        ValueError: nested too deeply, or in itself."""
    return {(path, key): tensor for path, key, tensor in _walk(content)}


def _walk(content: Any) -> Iterator[tuple[str, str, Tensor]]:
    from torch import Tensor

    # by hand and not by recursion: a file may nest deeply, hold itself, or one part many times
    nested = [(content, "", _parts(content))]
    seen = 0
    while nested:
        inside, path, parts = nested[-1]
        key, value = next(parts, (None, nested))
        if value is nested:
            nested.pop()
            continue
        seen += 1
        if seen > _MOST_VALUES or len(nested) > _DEEPEST:
            raise ValueError("it nests its values too deeply, in itself, or far too many times")
        if not isinstance(value, Tensor):
            nested.append((value, f"{path}{key}.", _parts(value)))
        # tensors of a list have no names
        elif isinstance(inside, Mapping) and str(key) != "n_averaged":
            yield path, str(key), value


def _parts(content: Any) -> Iterator[tuple[Any, Any]]:
    if isinstance(content, Mapping):
        return iter(content.items())
    return iter(enumerate(content if isinstance(content, (list, tuple)) else ()))


def usual(flat: Flat) -> dict[str, Tensor]:
    """Return the largest dict of tensors without the prefixes that wrappers put before all names.

    Among dicts of one size averages win, then the first. This serves as long as the network is not
    known."""
    sizes = Counter(path for path, _ in flat)
    nest = max(sizes, key=lambda path: (sizes[path], bool(_AVERAGED.search(path))), default="")
    tensors = {key: tensor for (path, key), tensor in flat.items() if path == nest}
    while len(firsts := {key.partition(".")[0] for key in tensors if "." in key}) == 1:
        prefix = f"{firsts.pop()}."
        if prefix[:-1] not in _USUAL or not all(key.startswith(prefix) for key in tensors):
            break
        tensors = {key.removeprefix(prefix): tensor for key, tensor in tensors.items()}
    return tensors


def matched(flat: Flat, wanted: Mapping[str, Tensor]) -> Found | None:
    """Return the tensors that a network's names choose; None if no start of paths fits half.

    Names that the network lacks are returned, too, if they lie beside those that it has.

    Args:
        flat: tensors from `flatten`.
        wanted: the network's state dict."""
    starts = _starts(flat, wanted)
    half = sum(not name.endswith(_COUNTER) for name in wanted) / 2
    best = max(starts.values(), key=lambda start: start.rank, default=None)
    if best is None or len(best.names) < half:
        return None
    chosen = dict(best.names)
    # a classifier is often kept beside the backbone that it belongs to
    outer = best.path
    while outer:
        outer = outer[: outer[:-1].rfind(".") + 1]
        if outer in starts:
            chosen = starts[outer].names | chosen
    # other copies of the network, by their start
    rivals = {
        tuple(start.names.values()): start.path.removesuffix(".") or "the top"
        for start in starts.values()
        if len(start.names) >= half and set(chosen.values()).isdisjoint(start.names.values())
    }
    full = {nest + key: (nest, tensor) for (nest, key), tensor in flat.items()}
    nests = {full[path][0] for path in chosen.values()}
    beside = [path for path, (nest, _) in full.items() if nest in nests]
    beside = sorted(set(beside).difference(chosen.values(), *rivals))
    tensors = {
        _plain(path.removeprefix(best.path)): full[path][1]
        for path in beside
        if path.startswith(best.path)
    }
    tensors |= {name: full[path][1] for name, path in chosen.items()}
    others = [path for path in beside if not path.startswith(best.path) and _COUNTER not in path]
    nest = max((nest for nest in nests if best.path.startswith(nest)), key=len, default="")
    note = _said(nest, best.path.removeprefix(nest), [*rivals.values(), *others])
    return Found(tensors, note)


def _starts(flat: Flat, wanted: Mapping[str, Tensor]) -> dict[str, _Start]:
    """Return every start of paths under which names of the network lie."""
    # wrappers count on neither side, since the network at hand may be wrapped as well
    plain = {_plain(name): name for name in wanted if not name.endswith(_COUNTER)}
    starts: dict[str, _Start] = {}
    for order, ((nest, key), tensor) in enumerate(flat.items()):
        path = nest + key
        # the key itself may be cut where it has dots, and the nest where it ends
        places = [match.end() for match in re.finditer(r"\.", path)]
        for place in [0, *places]:
            name = plain.get(_plain(path[place:]))
            if name is None:
                continue
            start = starts.setdefault(path[:place], _Start(path[:place], order))
            if start.names.setdefault(name, path) == path:
                start.fitting += tensor.shape == wanted[name].shape
    return starts


def _plain(name: str) -> str:
    return _WRAPPERS.sub("", name).removeprefix(".")


def _said(nest: str, prefix: str, others: list[str]) -> str:
    if not nest and not prefix:
        return ""
    parts = [f"weights of {nest.removesuffix('.')}"] if nest else []
    parts += ["which are averaged"] if _AVERAGED.search(nest + prefix) else []
    parts += [f"without the prefix {prefix}"] if prefix else []
    more = ", ..." if len(others) > _SHOWN else ""
    left = f"; left alone: {', '.join(others[:_SHOWN])}{more}" if others else ""
    return ", ".join(parts) + left
