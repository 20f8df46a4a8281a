"""A run's copies predict what the run predicts: in timm, in onnxruntime, by torch.export, and here."""

import contextlib
import io
import json
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from samovar import cli
from samovar.config import DataConfig
from samovar.data.sources import open_source
from tests.unit.short_run import short_run

pytestmark = pytest.mark.oracle
pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")

FORMATS = ("timm", "onnx", "torch")
NUM_IMAGES = 6
TOLERANCE = 1e-4  # onnxruntime adds up in another order; logits of some 1

OTHERS = """
import json, sys
import numpy, onnxruntime, timm, torch

torch.set_num_threads(1)
images = torch.from_numpy(numpy.load("images.npy"))  # [6, 1, 8, 8] in [0, 1]
found = {}
with torch.no_grad():
    model = timm.create_model("local-dir:runs/r/export-timm", pretrained=True).eval()
    config = timm.data.resolve_model_data_config(model)
    mean, std = (torch.tensor(config[name]).view(1, -1, 1, 1) for name in ("mean", "std"))
    found["timm"] = model((images - mean) / std).tolist()
    program = torch.export.load("runs/r/export-torch/model.pt2").module()
    found["torch"] = program(images).tolist()
    assert program(images[:1]).shape == (1, 10)
session = onnxruntime.InferenceSession("runs/r/export-onnx/model.onnx")
found["onnx"] = session.run(["logits"], {"images": images.numpy()})[0].tolist()
found["classes"] = json.loads(session.get_modelmeta().custom_metadata_map["classes"])
assert not [name for name in sys.modules if name.startswith("samovar")]
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A short run of digits, its three copies, and a few images as files and as an array."""
    folder = tmp_path_factory.mktemp("export")
    short_run(folder / "runs")
    images = open_source(DataConfig()).val.images[:NUM_IMAGES]
    np.save(folder / "images.npy", images.astype(np.float32) / 255)
    for index, image in enumerate(images):
        Image.fromarray(image[0]).save(folder / f"{index}.png")
    for kind in FORMATS:
        path = folder / "runs" / "r"
        assert said("export", path, "--format", kind) == f"{kind}: {path}/export-{kind}\n"
    return folder


def said(*args: object) -> str:
    """What the command prints."""
    with contextlib.redirect_stdout(io.StringIO()) as out:
        cli.main(list(map(str, args)))
    return out.getvalue()


@pytest.fixture(scope="module")
def elsewhere(folder):
    """Logits of the images in programs that do not know samovar."""
    command = [sys.executable, "-c", OTHERS]
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=600)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


@pytest.fixture(scope="module")
def here(folder):
    """Probabilities [n, K] of the images by `samovar predict` on the run itself."""
    return predicted(folder, "runs/r")


@pytest.mark.parametrize("kind", FORMATS)
def test_a_copy_gives_the_same_probabilities_elsewhere_as_the_run_here(kind, elsewhere, here):
    logits = np.array(elsewhere[kind])
    shares = np.exp(logits - logits.max(1, keepdims=True))
    assert np.abs(shares / shares.sum(1, keepdims=True) - here).max() < TOLERANCE
    assert elsewhere["classes"] == list("0123456789")
    assert here.max() - here.min() > 0.1, "a run that has learned nothing proves nothing"


@pytest.mark.parametrize("copy", ["runs/r/export-timm", "runs/r/export-onnx"])
def test_predict_takes_a_copy_in_the_place_of_the_run(copy, folder, here):
    assert np.abs(predicted(folder, copy) - here).max() < TOLERANCE


def predicted(folder, what: str) -> np.ndarray:
    """Probabilities [n, K] by `samovar predict`."""
    files = [f"{folder}/{index}.png" for index in range(NUM_IMAGES)]
    out = said("predict", folder / what, *files, "--json", "--top-k", 10, "--device", "cpu")
    lines = [json.loads(line) for line in out.splitlines()]
    assert [line["image"] for line in lines] == files
    rows = [{each["index"]: each["probability"] for each in line["predictions"]} for line in lines]
    return np.array([[row[index] for index in range(10)] for row in rows])
