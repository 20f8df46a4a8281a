"""One ONNX file, normalization included, compared under onnxruntime."""

from __future__ import annotations

import contextlib
import io
import json
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from samovar.export.original import Original, compare
from samovar.export.preprocessing import Interface, from_dict, to_dict
from samovar.export.program import traced

MODEL = "model.onnx"
INPUT, OUTPUT = "images", "logits"
_KEY = "samovar"


def write_onnx(original: Original, folder: Path) -> float:
    """Write the file with what it takes and gives as its metadata; returns how far its logits are
    off.

    Raises:
        ValueError: packages that are missing, a network that ONNX does not express, logits that
            differ."""
    _need("onnx", "onnxscript", "onnxruntime")
    program = traced(original)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")  # about its own internals
            found: Any = torch.onnx.export(
                program, dynamo=True, input_names=[INPUT], output_names=[OUTPUT], verbose=False
            )
        found.model.metadata_props.update(_metadata(original.interface))
        found.save(folder / MODEL, external_data=False)
    except (RuntimeError, ValueError, NotImplementedError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise ValueError(
            f"{original.opened.name} cannot be written as ONNX ({reason}); give --format torch"
        ) from error
    session = open_session(folder / MODEL)
    try:
        return compare(original, lambda images: run(session, images))
    except ValueError as error:
        raise ValueError(f"the ONNX file of {original.opened.name} is not kept: {error}") from error


def open_session(path: Path, device: str = "cpu") -> Any:
    """An inference session of onnxruntime.

    Raises:
        ValueError: onnxruntime is missing, or the file is no ONNX model it can run."""
    _need("onnxruntime")
    import onnxruntime

    wanted = ["CUDAExecutionProvider"] if device.startswith("cuda") else []
    providers = [each for each in wanted if each in onnxruntime.get_available_providers()]
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = torch.get_num_threads()
    try:
        return onnxruntime.InferenceSession(
            str(path), options, providers=[*providers, "CPUExecutionProvider"]
        )
    except Exception as error:  # onnxruntime's errors share no base but this
        reason = str(error).strip().partition("\n")[0]
        raise ValueError(f"{path} cannot be run by onnxruntime ({reason})") from error


def run(session: Any, images: Tensor) -> Tensor:
    """Logits [B, K] of images [B, C, S, S] in [0, 1]."""
    return torch.from_numpy(session.run([OUTPUT], {INPUT: images.cpu().numpy()})[0])


def interface_in(session: Any, path: Path) -> Interface:
    """What the file says of itself.

    Raises:
        ValueError: it is none of ours."""
    said = session.get_modelmeta().custom_metadata_map.get(_KEY)
    if said is None:
        raise ValueError(
            f"{path} does not say how images are prepared; give one that `samovar export` wrote"
        )
    return from_dict(json.loads(said))


def _metadata(interface: Interface) -> dict[str, str]:
    """Values by name, all of them text as ONNX has it: for any reader first, then whole for
    ours."""
    size = interface.image_size
    return {
        "classes": json.dumps(interface.classes),
        "input_range": "[0, 1]",
        "input_shape": f"batch x {interface.channels} x {size} x {size}",
        _KEY: json.dumps(to_dict(interface)),
    }


def _need(*packages: str) -> None:
    from importlib.util import find_spec

    missing = [name for name in packages if find_spec(name) is None]
    if missing:
        raise ValueError(
            f"ONNX needs the package {missing[0]}; install it by `pip install samovar[onnx]`"
        )
