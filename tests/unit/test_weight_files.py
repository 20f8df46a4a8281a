"""Files of weights as people have them: by ending, nest, prefix and what else lies in them."""

import argparse
import collections
import datetime
import os
import pathlib
import pickle
import re
import types

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file

from samovar.config import Config, MeasureConfig, ModelConfig
from samovar.measure.subject import open_subject
from samovar.models.factory import Classifier, create
from samovar.models.load import load_init
from samovar.models.open import open_model
from samovar.models.read import read_init
from samovar.models.tensor_files import read_tensors
from tests.unit.short_run import CPU

pytestmark = pytest.mark.costly

NAME = "resnet-digits-bn"


def network(seed: int = 0) -> Classifier:
    torch.manual_seed(seed)
    return create(ModelConfig(NAME, "library"), num_classes=10, image_size=8, channels=1).eval()


SOURCE = network()
STATE = {name: tensor for name, tensor in SOURCE.body.state_dict().items() if "num_batches" not in name}
OTHER = {name: tensor + 1 for name, tensor in STATE.items()}


def renamed(prefix: str, state: dict) -> dict:
    return {f"{prefix}{name}": tensor for name, tensor in state.items()}


def saved(content, path: pathlib.Path) -> str:
    torch.save(content, path)
    return str(path)


def started(path: str) -> str:
    """Return where in a file weights were, after a check that a start from it gives those of SOURCE."""
    model = network(seed=1)
    (note,) = load_init(model, Config(init=path, model=ModelConfig(NAME)))
    images = torch.rand(2, 1, 8, 8)
    with torch.no_grad():
        assert torch.equal(model.features(images), SOURCE.features(images))
    return note.removeprefix(f"starts from {path}").removesuffix("; the classifier is new").strip(" ()")


# --- endings ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        "w.pth.tar",
        "w.tar",
        "w.ckpt",
        "w.bin",
        "w.PTH",
        "w.Pt",
        "w.CKPT",
        "w.th",
        "w.pkl",
        "w.model",
        "weights",
        "a.b.c",
    ],
)
@pytest.mark.parametrize("zipped", [True, False])
def test_a_file_is_read_by_its_content_whatever_its_ending(name, zipped, tmp_path):
    torch.save(STATE, tmp_path / name, _use_new_zipfile_serialization=zipped)
    assert not started(str(tmp_path / name))
    opened = open_model(str(tmp_path / name), name=NAME)
    assert opened.num_classes == 10


@pytest.mark.parametrize("name", ["w.safetensors", "w.SAFETENSORS", "w.bin"])
def test_safetensors_are_known_by_their_content(name, tmp_path):
    save_file(STATE, tmp_path / name)
    started(str(tmp_path / name))


def test_a_missing_file_of_weights_is_no_name_of_timms(tmp_path):
    for name in ("gone.pth.tar", "gone.ckpt", "gone.BIN"):
        with pytest.raises(ValueError, match="No such file"):
            read_init(str(tmp_path / name))


@pytest.mark.parametrize("name", ["w.npz", "W.NPZ", "weights"])
def test_flax_files_are_known_by_their_content(name, tmp_path):
    with (tmp_path / name).open("wb") as file:
        np.savez(file, **{"Transformer/encoderblock_0/LayerNorm_0/scale": np.arange(8.0)})
    assert read_init(str(tmp_path / name)).tensors["blocks.0.norm1.weight"].tolist() == list(range(8))


# --- nests and prefixes ----------------------------------------------------------------------------------------------

NESTS = [
    "state_dict", "model", "model_state_dict", "net", "network", "ema", "teacher", "student", "model_ema",
    "state_dict_ema", "module", "weights", "params", "ema_state_dict", "generator.ema.model", "state.model",
]  # fmt: skip
PREFIXES = [
    "", "model.", "net.", "backbone.", "encoder.", "module.", "_orig_mod.", "module._orig_mod.model.",
    "model.backbone.module.", "_orig_mod.module.encoder.net.", "anything.of.theirs.",
]  # fmt: skip


@pytest.mark.parametrize("nest", ["", *NESTS])
@pytest.mark.parametrize("prefix", PREFIXES)
def test_weights_are_found_under_any_nest_and_prefix_and_it_is_said(nest, prefix, tmp_path):
    content = renamed(prefix, STATE)
    for key in reversed(nest.split(".")) if nest else ():
        content = {key: content, "epoch": 3}
    if nest:
        content["optimizer"] = {"state": {0: {"exp_avg": torch.ones(3)}}, "param_groups": [{"lr": 0.1}]}
    said = started(saved(content, tmp_path / "w.pth"))
    assert (f"weights of {nest}" in said) == bool(nest)
    assert (f"without the prefix {prefix}" in said) == bool(prefix)
    assert bool(said) == bool(nest or prefix)


def test_an_opened_file_says_where_its_weights_were(tmp_path):
    path = saved({"state_dict": renamed("model.", STATE) | {"loss.weight": torch.ones(3)}}, tmp_path / "w.ckpt")
    opened = open_model(path, name=NAME)
    where = "weights of state_dict, without the prefix model.; left alone: state_dict.loss.weight"
    assert opened.notes == (f"{path} ({where})",)
    with torch.no_grad():
        images = torch.rand(2, 1, 8, 8)
        assert torch.equal(opened.model(images), SOURCE(images))


@pytest.mark.parametrize("wrapper", ["_orig_mod", "module", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"])
def test_wrappers_of_single_layers_are_taken_out_of_the_middle_of_names(wrapper, tmp_path):
    state = {name.replace("layer1.", f"layer1.{wrapper}.").replace(".conv1", f".{wrapper}.conv1"): tensor
             for name, tensor in STATE.items()}  # fmt: skip
    assert state.keys() != STATE.keys()
    started(saved({"model": state}, tmp_path / "w.pth"))


@pytest.mark.parametrize(
    ("plain", "averaged"),
    [("model", "ema"), ("state_dict", "state_dict_ema"), ("model", "model_ema"), ("student", "teacher"),
     ("net", "ema_net"), ("params", "params_ema"), ("model", "averaged_model"), ("model", "swa_model"),
     ("model_state_dict", "ema_state_dict")],
)  # fmt: skip
@pytest.mark.parametrize("reverse", [False, True])
def test_averaged_weights_win_and_are_named(plain, averaged, reverse, tmp_path):
    content = {plain: OTHER, averaged: renamed("module.", STATE) | {"n_averaged": torch.tensor(3)}}
    if reverse:
        content = dict(reversed(content.items()))
    path = saved(content, tmp_path / "w.pth")
    note = started(path)
    assert note.startswith(f"weights of {averaged}, which are averaged, without the prefix module.")
    assert f"left alone: {averaged}.n_averaged" not in note
    assert plain in note.split("left alone: ")[1]
    assert torch.equal(read_init(path).tensors["conv1.weight"], STATE["conv1.weight"])


def test_averaged_weights_win_within_one_dict_as_well(tmp_path):
    state = renamed("model.", OTHER) | renamed("ema_model.module.", STATE) | {"loss.weight": torch.ones(1)}
    note = started(saved({"state_dict": state}, tmp_path / "w.ckpt"))
    assert note == (
        "weights of state_dict, which are averaged, without the prefix ema_model.module.; "
        "left alone: state_dict.model, state_dict.loss.weight"
    )


def test_averages_of_parameters_alone_do_not_win_where_statistics_are_missing(tmp_path):
    parameters = {name: OTHER[name] for name, _ in SOURCE.body.named_parameters()}
    assert "weights of model" in started(saved({"ema": parameters, "model": STATE}, tmp_path / "w.pth"))


def test_averages_of_parameters_alone_are_left_alone_within_one_dict_as_well(tmp_path):
    averages = {f"ema.{name}": OTHER[name] for name, _ in SOURCE.body.named_parameters()}
    counters = {"bn1.num_batches_tracked": torch.tensor(3), "ema.bn1.num_batches_tracked": torch.tensor(3)}
    path = saved({"net": STATE | averages | counters}, tmp_path / "w.pth")
    assert started(path) == "weights of net; left alone: net.ema"


def test_a_teacher_of_another_size_is_left_alone(tmp_path):
    wider = {name: torch.cat([tensor, tensor]) for name, tensor in STATE.items()}
    assert "weights of student" in started(saved({"teacher": wider, "student": STATE}, tmp_path / "w.pth"))


def test_a_classifier_beside_the_backbone_belongs_to_it(tmp_path):
    head = {name: tensor for name, tensor in STATE.items() if name.startswith("fc.")}
    body = {name: tensor for name, tensor in STATE.items() if name not in head}
    path = saved({"state_dict": renamed("backbone.", body) | head}, tmp_path / "w.ckpt")
    assert open_model(path, name=NAME).num_classes == 10
    assert open_model(saved({"backbone": body, **head}, tmp_path / "v.ckpt"), name=NAME).num_classes == 10


def test_what_lies_beside_the_weights_and_is_not_known_is_still_refused(tmp_path):
    path = saved({"model": STATE | {"layer9.conv.weight": torch.ones(2)}}, tmp_path / "w.pth")
    with pytest.raises(ValueError, match=r"1 weights do not fit .* \(layer9.conv.weight is not known here\)"):
        started(path)
    path = saved(
        {"model": {name: tensor for name, tensor in STATE.items() if "layer1.0" not in name}}, tmp_path / "w.pth"
    )
    with pytest.raises(ValueError, match=r"layer1.0.conv1.weight is missing"):
        started(path)


def test_timms_own_checkpoint_of_training_is_read(tmp_path):
    """`model_best.pth.tar`, as timm.utils.CheckpointSaver writes it."""
    from timm.utils import CheckpointSaver, ModelEmaV3

    model = timm.create_model("test_resnet", num_classes=7)
    average = ModelEmaV3(model)
    torch.nn.init.normal_(model.conv1[0].weight if isinstance(model.conv1, torch.nn.Sequential) else model.conv1.weight)
    args = argparse.Namespace(model="test_resnet", output=pathlib.Path("x"))
    saver = CheckpointSaver(
        model, torch.optim.SGD(model.parameters(), lr=0.1), args=args, model_ema=average, checkpoint_dir=str(tmp_path),
        recovery_dir=str(tmp_path),
    )  # fmt: skip
    saver.save_checkpoint(0, metric=np.float64(0.5))
    opened = open_model(str(tmp_path / "model_best.pth.tar"), name="test_resnet")
    assert "weights of state_dict_ema, which are averaged; left alone: state_dict" in opened.notes[0]
    with torch.no_grad():
        images = torch.rand(1, 3, 64, 64)
        inside = average.module.eval()((images - opened.model.mean) / opened.model.std)
        assert torch.allclose(opened.model(images), inside, atol=1e-5)


def test_lightnings_checkpoint_is_read(tmp_path):
    lightning = pytest.importorskip("lightning")

    class Module(lightning.LightningModule):
        def __init__(self, lr, out):
            super().__init__()
            self.save_hyperparameters()
            self.net = network().body
            self.criterion = torch.nn.CrossEntropyLoss(weight=torch.ones(10))

        def training_step(self, batch, _):
            return self.criterion(self.net(batch[0]), batch[1])

        def configure_optimizers(self):
            return torch.optim.Adam(self.parameters(), lr=0.0)

    module = Module(lr=np.float64(0.1), out=pathlib.Path("a"))
    data = torch.utils.data.TensorDataset(torch.rand(4, 1, 8, 8), torch.arange(4))
    trainer = lightning.Trainer(
        max_steps=1, accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
        default_root_dir=tmp_path,
    )  # fmt: skip
    trainer.fit(module, torch.utils.data.DataLoader(data, batch_size=2))
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    opened = open_model(str(tmp_path / "last.ckpt"), name=NAME)
    assert "weights of state_dict, without the prefix net.; left alone: state_dict.criterion.weight" in opened.notes[0]
    assert torch.equal(opened.model.body.bn1.running_mean, module.net.bn1.running_mean)


# --- what else lies in a file ----------------------------------------------------------------------------------------

HARMLESS = {
    "numpy numbers": [np.float64(1.5), np.float32(2), np.int64(3), np.bool_(True), np.datetime64("2020-01-01")],
    "numpy arrays": [np.arange(5), np.array(["a", "b"]), np.random.get_state()],
    "numpy types": [np.dtype("float32"), np.dtype("U3")],
    "paths": [pathlib.Path("a/b"), pathlib.PurePosixPath("/"), pathlib.PureWindowsPath("c:/a")],
    "defaultdicts": [collections.defaultdict(kind, {"a": kind()}) for kind in (list, int, float, dict, set, str, bool)],
    "containers": [collections.OrderedDict(a=1), collections.Counter("aab"), collections.deque([1, 2], maxlen=3)],
    "sets": [{1, 2}, frozenset([1]), range(3), slice(1, 2)],
    "arguments": [argparse.Namespace(lr=0.1, out=pathlib.Path("x")), types.SimpleNamespace(a=1)],
    "times": [datetime.datetime.now(datetime.UTC), datetime.date.today(), datetime.timedelta(1), datetime.time(3)],
    "torch": [torch.Size([1, 2]), torch.device("cpu"), torch.float32, torch.__version__, torch.get_rng_state()],
}


@pytest.mark.parametrize("name", HARMLESS)
@pytest.mark.parametrize("zipped", [True, False])
def test_harmless_values_beside_the_weights_are_no_obstacle(name, zipped, tmp_path):
    for value in HARMLESS[name]:
        torch.save(
            {"state_dict": STATE, "kept": value, "deep": [{"er": (value,)}]}, tmp_path / "w.ckpt",
            _use_new_zipfile_serialization=zipped,
        )  # fmt: skip
        started(str(tmp_path / "w.ckpt"))


@pytest.mark.parametrize(
    ("value", "here", "there"),
    [
        (pathlib.PurePosixPath("a"), rb"cpathlib\w*(\._local)?\nPurePosixPath", rb"cpathlib\nWindowsPath"),
        (pathlib.PurePosixPath("a"), rb"cpathlib\w*(\._local)?\nPurePosixPath", rb"cpathlib._local\nPosixPath"),
        (np.float64(1.5), rb"cnumpy\._core\.", rb"cnumpy.core."),
        (np.arange(3), rb"cnumpy\._core\.", rb"cnumpy.core."),
        (
            collections.OrderedDict(lr=1),
            rb"ccollections\nOrderedDict",
            rb"cpytorch_lightning.utilities.parsing\nAttributeDict",
        ),
    ],
)
def test_values_of_other_versions_and_systems_are_read(value, here, there, tmp_path):
    torch.save({"kept": value, "w": torch.ones(2)}, tmp_path / "w.pt", _use_new_zipfile_serialization=False)
    written = (tmp_path / "w.pt").read_bytes()
    changed = re.sub(here, there.replace(rb"\n", b"\n"), written, count=1)
    assert changed != written
    (tmp_path / "w.pt").write_bytes(changed)
    assert read_tensors(tmp_path / "w.pt")["w"].tolist() == [1, 1]


class Bomb:
    def __init__(self, call, *args):
        self.call, self.args = call, args

    def __reduce__(self):
        return self.call, self.args


BOMBS = {
    "system": Bomb(os.system, "touch executed"),
    "eval": Bomb(eval, "open('executed', 'w')"),
    "open": Bomb(open, "executed", "w"),
    "touch": Bomb(pathlib.Path.touch, pathlib.Path("executed")),
    "getattr": Bomb(getattr, pathlib.Path("executed"), "touch"),
    "mkdir": Bomb(os.mkdir, "executed"),
    "load": Bomb(np.save, "executed", np.ones(1)),
    "partial": Bomb(__import__("functools").partial, os.system, "touch executed"),
}


@pytest.mark.parametrize("name", BOMBS)
@pytest.mark.parametrize("ending", ["pth.tar", "ckpt", "bin", "PT", "weights"])
@pytest.mark.parametrize(
    "holder", [lambda b: b, lambda b: collections.defaultdict(list, {"a": b}), lambda b: np.array([b])]
)
def test_nothing_in_a_file_is_run(name, ending, holder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": STATE, "extra": holder(BOMBS[name])}, f"w.{ending}")
    with pytest.raises(
        ValueError, match=r"--init w\..+ is not read: it (holds more than tensors|is no file of tensors)"
    ):
        read_init(f"w.{ending}")
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"w.{ending}"]


@pytest.mark.parametrize("protocol", [4, 5])
@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_of_a_later_protocol_says_how_to_save_it_again(protocol, zipped, tmp_path):
    path = tmp_path / "w.pth"
    torch.save(STATE, path, pickle_protocol=protocol, _use_new_zipfile_serialization=zipped)
    with pytest.raises(
        ValueError, match=rf"protocol {protocol}, .*torch\.save\(torch\.load\(FILE, weights_only=False\), FILE\)"
    ):
        read_init(str(path))
    torch.save(torch.load(path, weights_only=False), path)
    assert read_init(str(path)).tensors.keys() == STATE.keys()


def test_a_pickle_of_arrays_says_what_to_do(tmp_path):
    with (tmp_path / "w.pkl").open("wb") as file:
        pickle.dump({name: tensor.numpy() for name, tensor in STATE.items()}, file, protocol=4)
    with pytest.raises(ValueError, match=r"protocol 4, .*read it by pickle, and save its tensors by torch\.save"):
        read_init(str(tmp_path / "w.pkl"))


def test_a_file_of_a_grey_network_of_timms_opens_with_the_mean_of_its_normalization(tmp_path):
    body = timm.create_model("test_resnet", num_classes=4, in_chans=1)
    torch.save({"model": body.state_dict()}, tmp_path / "grey.pth")
    opened = open_model(str(tmp_path / "grey.pth"), name="test_resnet")
    known = timm.get_pretrained_cfg("test_resnet")
    assert opened.channels == 1
    assert opened.config.mean == pytest.approx([sum(known.mean) / 3])
    assert opened.config.std == pytest.approx([sum(known.std) / 3])


def test_measuring_a_nested_file_says_which_tensors_are_taken(tmp_path):
    path = tmp_path / "last.pth.tar"
    torch.save({"state_dict": renamed("module.", STATE), "ema": renamed("module.", OTHER)}, path)
    subject = open_subject(str(path), MeasureConfig(model=NAME, source="digits", image_size=8), CPU)
    assert subject.notes[0] == f"measures {subject.settings['weights']}"
    assert "weights of ema, which are averaged, without the prefix module.; left alone: state_dict" in subject.notes[0]
    torch.save(STATE, path)
    plain = open_subject(str(path), MeasureConfig(model=NAME, source="digits", image_size=8), CPU)
    assert not any(note.startswith("measures") for note in plain.notes)


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_a_folder_of_transformers_says_which_file_to_give(name, tmp_path):
    (tmp_path / "config.json").write_text('{"architectures": ["ViTForImageClassification"], "model_type": "vit"}')
    save_file(STATE, tmp_path / name)
    with pytest.raises(ValueError, match=re.escape(f"give the file in it, {tmp_path / name}")):
        read_init(str(tmp_path))
    assert read_init(str(tmp_path / name)).tensors.keys() == STATE.keys()
