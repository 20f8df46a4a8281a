"""Test that mistakes of spelling and missing things are answered before torch is imported."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from samovar.models import hub, known

SCRIPT = """\
import json, sys
from samovar.cli import main
mistakes = json.load(open("mistakes.json"))
for args, message in mistakes:
    class Lines:
        text = ""
        def write(self, text): Lines.text += text
        def flush(self): pass
    Lines.text, sys.stderr = "", Lines()
    try:
        main(args.split())
        code = 0
    except SystemExit as end:
        code = end.code
    sys.stderr = sys.__stderr__
    heavy = {"torch", "timm", "torchvision"} & set(sys.modules)
    assert code == 2, (args, code, Lines.text)
    assert message in Lines.text, (args, Lines.text)
    assert Lines.text.count("\\n") == 1, (args, Lines.text)
    assert not heavy, (args, heavy)
print(len(mistakes), "refused")
"""
MISTAKES = [
    ("trian", "did you mean train?"),
    ("train vit-cifer10", "did you mean vit-cifar10"),
    ("train vit-digits --model.name vit-digist", "unknown model 'vit-digist'; did you mean vit-digits"),
    ("train vit-digits --model.name vit_tiny_patch16_242", "did you mean vit_tiny_patch16_224"),
    ("train vit-digits --optim.name adamx", "unknown optimizer 'adamx'; did you mean"),
    ("train vit-digits --optim.name lomb", "lamb"),
    ("train vit-digits --image-size 7", "patch_size=4 does not divide image_size=7; pick 4 or 8"),
    ("train mine --scratch --image-size 65", "patch_size=16 does not divide image_size=65; pick 64 or 80"),
    ("train vit-digits --run.memory 8G", "give GiB above 0, 0 for no limit, or auto; see"),
    ("train one", "--data.source folder:one has only the class 'a'; training needs two or more"),
    ("train mien", "unknown recipe 'mien'; did you mean mine?"),
    ("train vit-digits --device gpu", "--run.device gpu is no device; give auto, cpu"),
    ("train vit-digits --data.source digist", "--data.source digist is unknown; did you mean digits"),
    ("train vit-digits --data.source folder:nowhere", "there is no folder nowhere; check the path"),
    ("train vit-digits --init nowhere.pth", "--init nowhere.pth: no such file; check the path"),
    ("train vit-digits --init vit_tiny_patch16_242", "--init vit_tiny_patch16_242 is no run folder, no file and no"),
    ("train vit-digits --init vit_tiny_patch16_224.augreg_in21k", "its weights are not in the cache and cannot be"),
    ("train mine", "vit_small_patch16_224.augreg_in21k_ft_in1k: its weights are not in the cache and cannot be"),
    ("train mine --init bare.pth", "--model.name is not given, and --init bare.pth does not say it; give it"),
    ("train no/where", "there is no folder no/where; check the path"),
    ("train transfer --data.source folder:mine", "there is no --init to take it from"),
    ("train --resume runs/nowhere", "runs/nowhere is not a run"),
    ("train --config nowhere.yaml", "cannot read a config from nowhere.yaml"),
    ("train vit-digits --lrr 1", "unknown flag --lrr"),
    ("tune vit-digits-sam --rho 0.1,0.2 --model.name vit-digist", "unknown model 'vit-digist'"),
    ("tune vit-digits-sam --rho 0.1,0.2 --data.source folder:nowhere", "there is no folder nowhere"),
    ("compare vit-digits --optim.name adamx", "unknown optimizer 'adamx'"),
    ("measure vit-digist", "unknown model 'vit-digist'"),
    ("measure runs/nowhere", "no run folder runs/nowhere"),
    ("measure vit-digits hesian", "hessian"),
    ("report runs/nowhere", "runs/nowhere is not a run"),
    ("export nowhere.pth --format timm", "nowhere.pth: no such file"),
    ("export vit_tiny_patch16_242 --format timm", "did you mean vit_tiny_patch16_224"),
    ("predict nowhere.pth mine", "nowhere.pth: no such file"),
    ("show vit-digist", "did you mean vit-digits"),
]  # fmt: skip


def test_mistakes_are_answered_without_torch(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / "mine" / name).mkdir(parents=True)
        for k in range(3):
            (tmp_path / "mine" / name / f"{k}.png").touch()
    (tmp_path / "one" / "a").mkdir(parents=True)
    (tmp_path / "one" / "a" / "0.png").touch()
    (tmp_path / "bare.pth").touch()
    (tmp_path / "script.py").write_text(SCRIPT, encoding="utf-8")
    (tmp_path / "mistakes.json").write_text(json.dumps(MISTAKES), encoding="utf-8")
    offline = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hub"), "TORCH_HOME": str(tmp_path / "torch")}
    result = subprocess.run(
        [sys.executable, "script.py"],
        cwd=tmp_path, env=os.environ | offline, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert result.stdout == f"{len(MISTAKES)} refused\n"
    assert not (tmp_path / "runs").exists()


@pytest.mark.costly
def test_no_name_that_exists_is_refused_early() -> None:
    import timm
    from timm import optim

    for name in timm.list_models():
        known.refuse_unknown_model(name)
    for name in timm.list_pretrained():
        if not name.endswith(".pt"):  # a tag of timm's that looks like a file
            known.refuse_missing(name)
    for name in optim.list_optimizers():
        known.refuse_unknown_optimizer(name)
    assert set(known.timm_models()) == set(timm.list_models())


def test_a_hub_that_does_not_answer_is_given_up_at_once(monkeypatch) -> None:
    import socket
    import time

    monkeypatch.setattr("samovar.models.hub.getproxies", dict)

    def silent(*args, **kwargs):
        time.sleep(1)
        raise OSError("nobody waits for this any more")

    monkeypatch.setattr(socket, "create_connection", silent)
    assert hub.unreachable("https://hub.test/", 0.1) == "no answer from hub.test in 0.1 s"

    def refused(*args, **kwargs):
        raise OSError("no route to host")

    monkeypatch.setattr(socket, "create_connection", refused)
    assert hub.unreachable("https://hub.test/", 5) == "no route to host"


def test_a_proxy_is_asked_in_place_of_the_hub(monkeypatch) -> None:
    import socket

    asked = []

    class Connection:
        def close(self) -> None:
            pass

    def connect(place, timeout):
        asked.append(place)
        return Connection()

    monkeypatch.setattr(socket, "create_connection", connect)
    monkeypatch.setattr("samovar.models.hub.proxy_bypass", lambda host: False)
    monkeypatch.setattr("samovar.models.hub.getproxies", lambda: {"https": "http://proxy.test:3128"})
    assert hub.unreachable("https://hub.test/") is None
    monkeypatch.setattr("samovar.models.hub.getproxies", dict)
    assert hub.unreachable("https://hub.test/") is None
    assert asked == [("proxy.test", 3128), ("hub.test", 443)]


def test_weights_in_the_cache_need_no_network(tmp_path: Path, monkeypatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr(hub, "unreachable", lambda url: "no network")
    with pytest.raises(ValueError, match=r"cannot be downloaded \(no network\); connect once, or give a file"):
        hub.refuse_unreachable("resnet18.a1_in1k")
    with hub.bounded("resnet18.a1_in1k"):
        assert constants.HF_HUB_OFFLINE
    assert not constants.HF_HUB_OFFLINE
    snapshot = tmp_path / "models--timm--resnet18.a1_in1k" / "snapshots" / "1"
    snapshot.mkdir(parents=True)
    (snapshot / "model.safetensors").touch()
    hub.refuse_unreachable("resnet18.a1_in1k")
    hub.refuse_unreachable("resnet18")
    with pytest.raises(ValueError, match="resnet18.a2_in1k"):
        hub.refuse_unreachable("resnet18.a2_in1k")
