"""Write copies of a trained network that work without this package.

The formats are timm's folder, ONNX, and a program of `torch.export`. A copy is written to a
temporary folder, loaded as its reader would load it, and compared with the original on random
images; it is kept only if the logits are the same."""

from __future__ import annotations

import sys
from pathlib import Path

from samovar.words import visible

__all__ = ["FORMATS", "UNKNOWN", "export"]

UNKNOWN = "unknown"
"""What a model card says of a licence that nobody named."""

FORMATS = {
    "timm": "a folder that timm.create_model opens, as the Hugging Face hub expects it",
    "onnx": "one file for onnxruntime and others; needs samovar[onnx]",
    "torch": "a program of torch.export, which needs torch alone",
}


def export(
    what: str,
    kind: str,
    *,
    output: Path | None = None,
    checkpoint: str = "best",
    name: str = "",
    title: str = "",
    license: str = UNKNOWN,
) -> Path:
    """Write a copy of a model as a folder and return the folder's path.

    Args:
        what: a run, or any model that `samovar.models.open.open_model` opens.
        kind: one of `FORMATS`.
        output: the folder, which may hold an earlier copy; None: `export-KIND` in the run, or in
            the working directory.
        checkpoint: for a run: `best`, `last` or a step.
        name: the network of a bare file of weights.
        title: title of the model card; empty: the run's name.
        license: what the card says of the licence, an identifier such as `apache-2.0`.

    Raises:
        ValueError: an unknown format, a model or folder that does not fit it, or logits that
            differ."""
    from samovar.export.folder import write
    from samovar.export.original import open_original

    if kind not in FORMATS:
        raise ValueError(f"--format {kind} is unknown; give one of {', '.join(FORMATS)}")
    original = open_original(what, checkpoint=checkpoint, name=name, title=title)
    if original.note:
        print(f"samovar: {visible(original.note)}", file=sys.stderr)
    return write(original, kind, output or original.home / f"export-{kind}", license)
