"""Weights to start from: of runs, timm and files, resized where that can be, else refused in a line."""

import logging
import os
import pickle
import subprocess
import sys
from argparse import Namespace
from dataclasses import replace

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn

from samovar import config as configs
from samovar.config import Config, DataConfig, ModelConfig, OptimConfig, RunConfig
from samovar.models.factory import Classifier, create
from samovar.models.load import load_init, read_init, resolve
from samovar.runs import checkpoint
from samovar.runs.records import RunDir
from samovar.train.fit import fit, prepare
from tests.conftest import assert_refused
from tests.unit.short_run import CPU


def network(name: str, size: int, *, channels: int = 3, classes: int = 10, seed: int = 0, init="library") -> Classifier:
    torch.manual_seed(seed)
    return create(ModelConfig(name, init), num_classes=classes, image_size=size, channels=channels).eval()


def started(model: Classifier, path, name: str = "the network") -> tuple[str, ...]:
    return load_init(model, Config(init=str(path), model=ModelConfig(name)))


@pytest.fixture
def saved(tmp_path):
    """Saves a network's body as tensors alone."""

    def save(model: Classifier, name: str = "w.safetensors") -> str:
        save_file(model.body.state_dict(), tmp_path / name)
        return str(tmp_path / name)

    return save


@pytest.fixture(scope="module")
def averaged(tmp_path_factory) -> RunDir:
    """A run of six steps on digits that keeps an average of its weights."""
    config = Config(
        steps=6, model=ModelConfig("vit-digits", dropout=0.1, mean=(0.3,), std=(0.2,)),
        optim=OptimConfig(ema=0.9), run=RunConfig(eval_every=3, threads=1),
    )  # fmt: skip
    run = RunDir.create(tmp_path_factory.mktemp("runs"), "averaged")
    configs.save(config, run.config_path)
    list(fit(config, run, CPU, *prepare(config, CPU)))
    return run


# --- what fits -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["vit-digits", "mixer-digits", "resnet-digits", "resnet-digits-bn"])
def test_features_are_those_of_the_weights_bit_for_bit_and_the_head_is_new(name, saved):
    source, model = network(name, 8, channels=1), network(name, 8, channels=1, classes=7, seed=1, init="paper")
    images = torch.rand(5, 1, 8, 8)
    if name.endswith("bn"):
        source.train()(images)  # running statistics are weights, too
        source.eval()
    notes = started(model, saved(source))
    with torch.no_grad():
        assert torch.equal(model.features(images), source.features(images))
        assert model(images).abs().max() == 0  # [5, 7]: a zero head
    assert len(notes) == 1
    assert notes[0].endswith("w.safetensors; the classifier is new")


def test_the_head_is_as_create_made_it_even_where_that_of_the_weights_would_fit(saved):
    source, model = network("vit-digits", 8, channels=1), network("vit-digits", 8, channels=1, seed=1)
    head = model.body.head.weight.clone()
    started(model, saved(source))
    assert torch.equal(model.body.head.weight, head)
    assert not torch.equal(head, source.body.head.weight)
    assert torch.equal(model.body.blocks[0].attn.qkv.weight, source.body.blocks[0].attn.qkv.weight)


def test_position_embeddings_are_resized_as_pictures_and_the_class_token_stays(saved):
    source, model = network("vit-cifar-s8", 32), network("vit-cifar-s8", 64, seed=1)
    notes = started(model, saved(source))
    before, after = source.body.pos_embed, model.body.pos_embed
    assert before.shape[1] == 1 + 4 * 4
    assert after.shape[1] == 1 + 8 * 8
    picture = before[0, 1:].T.reshape(1, -1, 4, 4)
    expected = F.interpolate(picture, (8, 8), mode="bicubic", antialias=True)
    assert torch.allclose(after[0, 1:].T.reshape(1, -1, 8, 8), expected, atol=1e-7)  # float32, values of some 0.05
    assert torch.equal(after[0, 0], before[0, 0])
    assert "position embeddings resized from 4 x 4 to 8 x 8" in notes
    assert model(torch.rand(1, 3, 64, 64)).isfinite().all()


def test_pooled_vits_without_a_class_token_are_resized_as_well(saved):
    name = "vit_base_patch16_clip_quickgelu_224"
    options = {"patch_size": 4, "embed_dim": 16, "depth": 1, "num_heads": 2, "class_token": False, "global_pool": "avg"}
    bodies = [timm.models.vision_transformer.VisionTransformer(img_size=size, **options) for size in (16, 32)]
    source, model = (Classifier(body, (0.5,), (0.5,)) for body in bodies)
    notes = started(model, saved(source), name)
    assert model.body.pos_embed.shape[1] == 64
    assert "position embeddings resized from 4 x 4 to 8 x 8" in notes


def test_kernels_of_patches_are_resized_so_that_enlarged_patches_give_what_they_gave(saved):
    source, model = network("vit-cifar-s", 32), network("vit-cifar-s8", 64, seed=1)
    notes = started(model, saved(source))
    patch = torch.rand(6, 3, 4, 4)
    enlarged = F.interpolate(patch, (8, 8), mode="bicubic", antialias=True)
    with torch.no_grad():
        before, after = source.body.patch_embed.proj(patch), model.body.patch_embed.proj(enlarged)
    assert torch.allclose(before, after, atol=1e-5)  # float32; the resizing has full rank, so its inverse is exact
    assert notes[1:] == ("patches resized from 4 x 4 to 8 x 8 pixels",)  # 8 x 8 of them in both


@pytest.mark.parametrize("name", ["vit-cifar-s", "resnet-cifar-s-bn", "mixer-cifar-s"])
@pytest.mark.parametrize(("before", "after"), [(3, 1), (1, 3)])
def test_grey_images_give_the_same_features_whatever_the_channels(name, before, after, saved):
    source, model = network(name, 32, channels=before), network(name, 32, channels=after, seed=1)
    notes = started(model, saved(source))
    grey = torch.rand(2, 1, 32, 32)
    with torch.no_grad():
        one, other = (net.features(grey.expand(-1, n, -1, -1)) for net, n in ((source, before), (model, after)))
    assert torch.allclose(one, other, atol=1e-5)  # float32
    assert f"first kernels adapted from {before} to {after} channels" in notes


# --- what does not ---------------------------------------------------------------------------------------------------


def test_a_mixer_at_another_resolution_is_refused_with_the_reason(saved):
    path = saved(network("mixer-digits", 8, channels=1))
    model = network("mixer-digits", 16, channels=1)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(ValueError, match="mlp_tokens.fc1.weight is 32 x 4, here 32 x 16") as caught:
        started(model, path, "mixer-digits")
    assert "token-mixing layers depend on the number of patches and cannot be resized" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_weights_of_another_network_are_refused_by_number_and_first_names(saved):
    path = saved(network("vit-digits", 8, channels=1))
    with pytest.raises(ValueError, match="weights do not fit the network") as caught:
        started(network("vit-cifar-s8", 32), path)
    assert "cls_token is 1 x 1 x 64, here 1 x 1 x 128; pos_embed is 1 x 5 x 64, here 1 x 17 x 128;" in str(caught.value)
    assert "patch_embed.proj.weight is 64 x 1 x 4 x 4, here 128 x 3 x 8 x 8" in str(caught.value)
    assert "; ...)" in str(caught.value)
    assert str(caught.value).endswith("give another --model.name or the --data.image-size of these weights")
    with pytest.raises(ValueError, match=r"patch_embed.proj.weight is missing|cls_token is missing") as caught:
        started(network("vit-digits", 8, channels=1), saved(network("resnet-digits", 8, channels=1), "r.safetensors"))
    count = int(str(caught.value).split(": ")[1].split()[0])
    names = [set(network(name, 8, channels=1).body.state_dict()) for name in ("vit-digits", "resnet-digits")]
    assert count == len(names[0] ^ names[1]) - 2  # our head.weight and head.bias are new; fc is not known here
    assert str(caught.value).count("\n") == 0


def test_weights_of_a_run_say_which_model_they_are_of(averaged):
    with pytest.raises(ValueError, match="give --model.name vit-digits, to which they belong"):
        started(network("mixer-digits", 8, channels=1), averaged.path, "mixer-digits")


def test_a_network_that_does_not_tell_its_classifier_cannot_start_from_weights(saved):
    body = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    source = Classifier(body, (0.5,), (0.5,))
    with pytest.raises(ValueError, match="has no get_classifier, which returns the classifier layer"):
        started(source, saved(source))


# --- files -----------------------------------------------------------------------------------------------------------

FORMS = {
    "plain": lambda state: state,
    "state_dict": lambda state: {"state_dict": state, "epoch": 3, "args": Namespace(lr=0.1)},
    "DDP": lambda state: {"model": {f"module.{name}": value for name, value in state.items()}},
    "compiled under DDP": lambda state: {f"module._orig_mod.{name}": value for name, value in state.items()},
    "ours": lambda state: {f"body.{name}": value for name, value in state.items()},
    "averaged": lambda state: {
        "model": {name: value + 1 for name, value in state.items()},
        "model_ema": {f"module.{name}": value for name, value in state.items()} | {"n_averaged": torch.tensor(5)},
    },
    "half precision": lambda state: {name: value.bfloat16().float() for name, value in state.items()},
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("suffix", [".pth", ".pt"])
def test_files_are_read_in_the_forms_that_programs_write(form, suffix, tmp_path):
    state = network("vit-digits", 8, channels=1).body.state_dict()
    if form == "half precision":
        state = {name: value.bfloat16() for name, value in state.items()}
    path = tmp_path / f"w{suffix}"
    torch.save(FORMS[form](state), path)
    found = read_init(str(path))
    assert found.model is None
    assert found.image_size == 0
    assert found.tensors.keys() == state.keys()
    assert all(torch.equal(found.tensors[name].float(), value.float()) for name, value in state.items())


def test_a_flax_file_is_read_under_timms_names(tmp_path):
    arrays = {
        "opt/target/Transformer/encoderblock_0/LayerNorm_0/scale": np.arange(8.0),
        "opt/target/Transformer/posembed_input/pos_embedding": np.ones((1, 5, 8)),
    }
    np.savez(tmp_path / "a.npz", **arrays)
    found = read_init(str(tmp_path / "a.npz"))
    assert found.tensors["blocks.0.norm1.weight"].tolist() == list(range(8))
    assert found.tensors["pos_embed"].shape == (1, 5, 8)
    assert found.model is None


class Bomb:
    def __reduce__(self):
        return os.system, ("touch executed",)


def test_a_file_that_would_execute_is_refused_by_what_it_calls(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": {"w": torch.ones(2)}, "extra": Bomb()}, "b.pth")
    with open("old.pth", "wb") as file:  # noqa: PTH123
        pickle.dump({"w": Bomb()}, file, protocol=2)
    for name in ("b.pth", "old.pth"):
        line = f"--init {name} is not read: it holds more than tensors and would call posix.system"
        with pytest.raises(ValueError, match=line):
            read_init(name)
    assert not (tmp_path / "executed").exists()
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("name", "content", "line"),
    [
        ("a.pth", b"garbage" * 100, "is not read: it is no file of tensors"),
        ("a.safetensors", b"garbage" * 100, "cannot be read"),
        ("a.pth", b"", "cannot be read"),
        ("a.npz", b"garbage" * 100, "--init .+a.npz cannot be read as .npz"),
        ("a.bin", b"garbage", "is a file of another kind; give one of .safetensors, .pth, .pt, .npz"),
        ("a.pth", None, "No such file"),
    ],
)
def test_files_that_are_no_weights_are_refused_in_a_line(tmp_path, name, content, line):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=line) as caught:
        read_init(str(tmp_path / name))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("held", [{"epoch": 3}, [torch.ones(2)], torch.ones(2), {}, {"n_averaged": torch.tensor(1)}])
def test_a_file_without_named_tensors_is_refused(tmp_path, held):
    torch.save(held, tmp_path / "a.pt")
    with pytest.raises(ValueError, match=r"a\.pt holds no tensors by name"):
        read_init(str(tmp_path / "a.pt"))


# --- runs ------------------------------------------------------------------------------------------------------------


def test_a_run_gives_the_averaged_weights_of_its_best_checkpoint(averaged):
    found = read_init(str(averaged.path))
    path = checkpoint.choose(averaged.checkpoints, "best")
    kept = checkpoint.load(path)
    assert found.name == f"average of {path.name} of {averaged.path}"
    assert all(torch.equal(found.tensors[name], value) for name, value in kept.ema.items())
    assert any(not torch.equal(found.tensors[name], value) for name, value in kept.model.items())
    assert found.model.name == "vit-digits"
    assert found.image_size == 8


def test_a_folder_that_is_no_run_or_has_no_checkpoint_is_refused(tmp_path):
    with pytest.raises(ValueError, match="is no run: it has no config.json"):
        read_init(str(tmp_path))
    configs.save(Config(), tmp_path / "config.json")
    with pytest.raises(ValueError, match="has no checkpoint yet; train it"):
        read_init(str(tmp_path))


# --- timm ------------------------------------------------------------------------------------------------------------


def test_a_timm_name_without_a_network_is_one_line(monkeypatch, capsys):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    levels = {name: logging.getLogger(name).level for name in ("timm", "huggingface_hub")}
    line = (
        "--init vit_tiny_patch16_224.augreg_in21k: its weights are not in the cache and cannot be downloaded "
        r"\(.+\); connect once, or give a file$"
    )
    with pytest.raises(ValueError, match=line):
        read_init("vit_tiny_patch16_224.augreg_in21k")
    assert capsys.readouterr().err == ""
    assert levels == {name: logging.getLogger(name).level for name in levels}


def test_the_reason_of_a_failed_download_is_the_first_cause(monkeypatch):
    def failing(*args, **kwargs):
        try:
            raise OSError(-2, "Name or service not known")
        except OSError as error:
            raise RuntimeError("something long\nabout caches") from error

    monkeypatch.setattr(timm, "create_model", failing)
    with pytest.raises(ValueError, match=r"downloaded \(\[Errno -2\] Name or service not known\)"):
        read_init("resnet50")


def test_pretrained_weights_come_with_their_name_and_pixels(monkeypatch):
    real = timm.create_model
    monkeypatch.setattr(timm, "create_model", lambda name, pretrained=False, **rest: real(name, **rest))
    found = read_init("test_vit.r160_in1k")  # timm's own, made for tests
    assert found.name == "test_vit.r160_in1k"
    assert found.model.name == "test_vit.r160_in1k"
    assert found.image_size == 160
    assert found.model.mean == (0.5, 0.5, 0.5)
    model = create(found.model, num_classes=3, image_size=160)
    with torch.no_grad():
        assert "the classifier is new" in load_init(model, Config(init=found.name, model=found.model))[0]


@pytest.mark.parametrize(
    ("what", "near"),
    [("vit_base_patch16_224.sam_in2k", "vit_base_patch16_224.sam_in1k"), ("resnet5O", "resnet50"), ("runs/typo", "")],
)
def test_an_unknown_name_is_answered_by_the_nearest(what, near):
    with pytest.raises(ValueError, match=f"--init {what} is no run folder, no file and no timm model") as caught:
        read_init(what)
    assert near in str(caught.value)


# --- what the config leaves to the weights ---------------------------------------------------------------------------

OPEN = Config(model=ModelConfig(name="", drop_path=0.2), data=DataConfig(image_size=0))


def test_a_run_fills_in_its_model_its_pixels_and_its_image_size(averaged):
    found = resolve(replace(OPEN, init=str(averaged.path)))
    assert found.model == ModelConfig("vit-digits", drop_path=0.2, mean=(0.3,), std=(0.2,))  # dropout stays ours
    assert found.data.image_size == 8
    assert resolve(found) == found


def test_what_is_given_stays(averaged):
    given = replace(OPEN, init=str(averaged.path), model=replace(OPEN.model, mean=(0.1,)))
    assert resolve(given).model.mean == (0.1,)
    assert resolve(given).model.std == (0.2,)
    larger = replace(given, data=DataConfig(image_size=16))
    assert resolve(larger).data.image_size == 16
    named = replace(given, model=ModelConfig("mixer-digits"))
    assert resolve(named).model == ModelConfig("mixer-digits", mean=(0.3,), std=(0.2,))  # pixels as they were
    assert resolve(Config()) == Config()  # nothing is left to weights


def test_a_timm_name_fills_in_a_model_that_hides_none_of_ours():
    found = resolve(replace(OPEN, init="resnet50"))
    assert found.model.name == "resnet50.a1_in1k"
    assert found.model.mean == (0.485, 0.456, 0.406)
    assert found.data.image_size == 224
    assert found.data == replace(found.data, image_size=224)


def test_what_nobody_says_is_one_line(tmp_path):
    path = str(tmp_path / "w.pth")
    torch.save({"w": torch.ones(1)}, path)
    for init, reason in (("", "there is no --init to take it from"), (path, f"--init {path} does not say it")):
        with pytest.raises(ValueError, match=f"--model.name is not given, and {reason}; give it"):
            resolve(replace(OPEN, init=init))
        sized = replace(OPEN, init=init, model=ModelConfig("vit-digits"))
        with pytest.raises(ValueError, match=f"--data.image-size is 0, and {reason}; give a side in pixels"):
            resolve(sized)


def test_what_a_run_says_is_known_without_torch(averaged):
    code = f"""if True:
    import sys
    from samovar.config import Config, DataConfig, ModelConfig
    from samovar.models.load import resolve
    found = resolve(Config(init={str(averaged.path)!r}, model=ModelConfig(name=""), data=DataConfig(image_size=0)))
    assert found.model.name == "vit-digits"
    assert not {{"torch", "timm"}} & set(sys.modules)
    """
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


# --- in a run --------------------------------------------------------------------------------------------------------


def test_a_run_starts_from_the_weights_and_its_own_seed_draws_the_head(averaged):
    config = Config(init=str(averaged.path), model=ModelConfig("vit-digits", init="library"), seed=4)
    _, state = prepare(config, CPU)
    _, fresh = prepare(replace(config, init=""), CPU)
    kept = read_init(str(averaged.path)).tensors
    assert torch.equal(state.model.body.pos_embed, kept["pos_embed"])
    assert torch.equal(state.model.body.head.weight, fresh.model.body.head.weight)
    assert not torch.equal(fresh.model.body.pos_embed, kept["pos_embed"])


def test_a_run_without_an_image_size_is_refused_before_anything_is_written(averaged, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    line = "--data.image-size is 0, and there is no --init to take it from"
    assert_refused("train vit-digits --data.image-size 0", line, capsys)
    with pytest.raises(ValueError, match="samovar.models.load.resolve"):
        prepare(replace(OPEN, init=str(averaged.path)), CPU)
    assert not (tmp_path / "runs").exists()


def test_weights_that_do_not_fit_end_the_command_in_a_line(averaged, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    args = f"train vit-digits --model.name mixer-digits --init {averaged.path}"
    assert_refused(args, "do not fit", capsys)
    assert not (tmp_path / "runs").exists()
