"""Write one ONNX file, normalization included, and compare it under onnxruntime."""

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
    """Write the ONNX file with its interface as metadata; return the largest difference of a logit.

    Raises:
        ValueError: missing packages, a network that ONNX cannot express, or logits that differ."""
    _need("onnx", "onnxscript", "onnxruntime")
    program = traced(original)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")  # the exporter warns about its own internals
            found: Any = torch.onnx.export(
                program,
                dynamo=True,
                input_names=[INPUT],
                output_names=[OUTPUT],
                # the program has the dimension already; this gives it its name in the file
                dynamic_shapes={"images": {0: "batch"}},
                verbose=False,
            )
        found.model.metadata_props.update(_metadata(original.interface))
        found.save(folder / MODEL, external_data=False)  # weights inside, so that it is one file
    except (RuntimeError, ValueError, NotImplementedError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise ValueError(
            f"{original.opened.name} cannot be written as ONNX ({reason}); give --format torch"
        ) from error
    session = open_session(folder / MODEL)
    try:
        return compare(original, lambda images: run(session, images))
    except ValueError as error:
        raise ValueError(
            f"the ONNX file of {original.opened.name} is discarded: {error}"
        ) from error


def open_session(path: Path, device: str = "cpu") -> Any:
    """Open an ONNX file as an inference session of onnxruntime.

    Raises:
        ValueError: onnxruntime is missing, or cannot run the file."""
    _need("onnxruntime")
    import onnxruntime

    wanted = ["CUDAExecutionProvider"] if device.startswith("cuda") else []
    providers = [each for each in wanted if each in onnxruntime.get_available_providers()]
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors only
    options.intra_op_num_threads = torch.get_num_threads()
    try:
        return onnxruntime.InferenceSession(
            str(path), options, providers=[*providers, "CPUExecutionProvider"]
        )
    except Exception as error:  # onnxruntime's errors share no other base class
        reason = str(error).strip().partition("\n")[0]
        raise ValueError(f"{path} cannot be run by onnxruntime ({reason})") from error


def run(session: Any, images: Tensor) -> Tensor:
    """Return logits [B, K] of images [B, C, S, S] in [0, 1]."""
    return torch.from_numpy(session.run([OUTPUT], {INPUT: images.cpu().numpy()})[0])


def interface_in(session: Any, path: Path) -> Interface:
    """Return the interface in the file's metadata.

    Raises:
        ValueError: the file was not written by `samovar export`."""
    said = session.get_modelmeta().custom_metadata_map.get(_KEY)
    if said is None:
        raise ValueError(
            f"{path} does not say how images are prepared; give a file that `samovar export` wrote"
        )
    return from_dict(json.loads(said))


def _metadata(interface: Interface) -> dict[str, str]:
    """Return the interface as text values by name: some for any reader, all for ours."""
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
