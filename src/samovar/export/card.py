"""Write the model card of a copy: network, accuracy, sharpness, training, how to load it."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Sequence
from dataclasses import replace
from importlib.metadata import version
from typing import Any

from samovar import config as configs
from samovar.config import Config
from samovar.export import UNKNOWN
from samovar.export.original import Original
from samovar.measure.accuracy import wilson
from samovar.recipes import replay
from samovar.runs.json_files import read_object
from samovar.runs.records import Record, RunDir
from samovar.runs.saddle import saddle
from samovar.words import visible


def card(original: Original, kind: str, difference: float, license: str = UNKNOWN) -> str:
    """Return the text of `README.md`.

    Args:
        original: the network that was copied.
        kind: the format.
        difference: largest difference of a logit from the original's.
        license: identifier of the licence."""
    interface = original.interface
    named = license if re.fullmatch(r"[\w.+-]+", license) else json.dumps(license)
    head = ["---", f"license: {named}", "tags:", "- image-classification", "- samovar"]
    head += [*_HEADS.get(kind, ()), "---", ""]
    num_params = sum(p.numel() for p in original.opened.model.parameters())
    facts = [
        f"- network: {inert(original.opened.config.name)}, {num_params:,} parameters",
        f"- weights: {inert(original.weights)}",
        f"- input: {_pixels(original, kind)}; {_prepared(original)}",
        f"- output: logits of {len(interface.classes)} classes, "
        f"trained by {interface.loss} cross-entropy",
    ]
    if original.run:
        facts += [*_measured(original, original.run), *_trained(original.run)]
    checked = f"Its logits agree with the original's to {difference:.1e} on random images."
    loading = ["## Loading", "", *_LOADING[kind], "", checked]
    made = f"Written by samovar {version('samovar')} in the format `{kind}`."
    return "\n".join([*head, f"# {inert(original.title)}", "", *facts, "", *loading, "", made, ""])


_HEADS = {"timm": ("- timm", "library_name: timm"), "onnx": ("- onnx", "library_name: onnx")}
_LOADING: dict[str, tuple[str, ...]] = {
    "timm": (
        "```python",
        "import timm",
        "",
        'model = timm.create_model("local-dir:FOLDER", pretrained=True).eval()',
        "config = timm.data.resolve_model_data_config(model)",
        "transform = timm.data.create_transform(**config, is_training=False)",
        "```",
        "",
        "From a hub its name is `hf-hub:OWNER/NAME`.",
    ),
    "onnx": (
        "```python",
        "import onnxruntime",
        "",
        'session = onnxruntime.InferenceSession("model.onnx")',
        'logits = session.run(["logits"], {"images": images})[0]  # [B, C, H, W] float32',
        'names = session.get_modelmeta().custom_metadata_map["classes"]  # a JSON list',
        "```",
    ),
    "torch": (
        "```python",
        "import torch",
        "",
        'model = torch.export.load("model.pt2").module()',
        "logits = model(images)  # [B, C, H, W] float32; class names are in model.json",
        "```",
        "",
        "`torch.export.load` can run code from the file: load programs only of people you trust.",
    ),
}


def _pixels(original: Original, kind: str) -> str:
    """Return what pixels the copy takes: normalized ones under timm, which has no layer for it."""
    interface, config = original.interface, original.opened.config
    images = f"images of {interface.channels} x {interface.image_size} x {interface.image_size}"
    if kind != "timm":
        return f"{images} with pixels in [0, 1], which the copy normalizes itself"
    mean, std = (", ".join(f"{x:g}" for x in values) for values in (config.mean, config.std))
    return (
        f"{images} with pixels ([0, 1] - mean) / std, mean {mean}, std {std}, as `transform` does"
    )


def _prepared(original: Original) -> str:
    if original.interface.whole:
        return "an image is scaled whole (bilinear, antialias)"
    return (
        "the shorter side is scaled to size * 256 / 224 (bilinear, antialias), "
        "the central square is cut out"
    )


# --- from the run's records -----------------------------------------------------------------------


def _measured(original: Original, run: RunDir) -> list[str]:
    """Return lines on accuracy and sharpness of these weights, or that they were not measured."""
    source = configs.load(run.config_path).data.source
    # records of other checkpoints or other data say nothing about these weights here
    at_step = (record for record in run.records() if record.where.get("step") == original.step)
    own = [record for record in at_step if record.settings.get("source", source) == source]
    eigenvalue = f"lambda_max, the largest Hessian eigenvalue: {_lambda_max(own)}"
    return [f"- {_accuracy(own)}", f"- {eigenvalue}"]


def _accuracy(records: Sequence[Record]) -> str:
    # the validation during training is the fallback, where `samovar measure` has not been run
    measured = [
        record
        for record in records
        if record.name == "accuracy/top1" and record.where.get("split") == "val"
    ]
    validated = [record for record in records if record.name == "val/accuracy"]
    found = (measured or validated)[-1:]
    if not found or not found[0].n:
        return "accuracy: not measured"
    last, n = found[0], found[0].n
    low, high = last.interval or wilson(round(last.value * n), n)
    of = inert(f"{n:,} {last.where.get('split', 'val')} images")
    return f"accuracy: {last.value:.2%} (95 % interval {low:.2%} to {high:.2%}) on {of}"


def _lambda_max(records: Sequence[Record]) -> str:
    found = [
        record
        for record in records
        if record.name == "hessian/lambda_max" and "block" not in record.where
    ]
    if not found:
        return "not measured (`samovar measure RUN hessian`)"
    last = found[-1]
    error = f" (residual {last.residual:.2g})" if last.residual is not None else ""
    state = "" if last.converged else ", not converged"
    loss, images = last.settings.get("loss", ""), last.settings.get("images", "?")
    on = inert(f"{loss} loss on {images} {last.where.get('split', '')} images")
    below = saddle(last, records)
    return f"{last.value:.4g}{error}{state}; {on}" + (below and f"; {below}")


def _trained(run: RunDir) -> list[str]:
    config = configs.load(run.config_path)
    found = read_provenance(run)
    versions = found.get("versions")
    known = versions.items() if isinstance(versions, dict) else ()
    used = inert(", ".join(f"{name} {value}" for name, value in known))
    words = configs.sam_words(config.sam)
    sam = f"SAM with rho {config.sam.rho:g}, m {config.sam.m or 'all'}{words and f', {words}'}"
    lines = [
        f"- data: {inert(_last_part(config.data.source))}",
        f"- training: {inert(config.optim.name)}, {sam if config.sam.rho else 'without SAM'}; "
        f"{_code(command_of(config))}",
    ]
    return [*lines, f"- versions: {used}"] if used else lines


def inert(text: str) -> str:
    """Return text that Markdown shows as it is: one line, without links, pictures and tags."""
    signs = re.sub(r"([\\`*\[\]<>|#]|(?<!\w)_|_(?!\w))", r"\\\1", visible(text))
    return signs.replace("&", "&amp;")


def _code(text: str) -> str:
    """Return text as code of Markdown, whose fence is longer than any row of backticks in it."""
    line = visible(text)
    fence = "`" * (1 + max(map(len, re.findall("`+", line)), default=0))
    edge = " " if "`" in line else ""
    return f"{fence}{edge}{line}{edge}{fence}"


def read_provenance(run: RunDir) -> dict[str, Any]:
    """Return the provenance of the run; empty where the run has none."""
    path = run.path / "provenance.json"
    return read_object(path) if path.is_file() else {}


def command_of(config: Config) -> str:
    """Return the command that trains this again, without paths of one machine."""
    free = Config()
    data = replace(config.data, root=free.data.root, source=_last_part(config.data.source))
    public = replace(
        config, output=free.output, name=free.name, data=data, init=_last_part(config.init)
    )
    return shlex.join(replay.command(public))


def _last_part(source: str) -> str:
    """Return a source or path without its parent folders, which are private."""
    on_hub = source.startswith("hf:") and not source.startswith("hf:/")  # OWNER/NAME
    return source if on_hub else re.sub(r"[^:]*/", "", source.rstrip("/"))
