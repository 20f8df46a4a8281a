"""Test checkpoints: written whole or not at all, and nothing in them executes."""

import errno
import pickle

import pytest
import torch

from samovar.runs import checkpoint
from samovar.runs.checkpoint import Checkpoint, CheckpointError


def example(step: int) -> Checkpoint:
    generator = torch.Generator().manual_seed(step)
    model = {"w": torch.randn(40, 3, generator=generator), "tied": torch.ones(2)}
    model["tied2"] = model["tied"]
    state = {"optimizer": {"state": {0: {"m": torch.randn(4, generator=generator)}}, "param_groups": [{"lr": 0.1}]}}
    return Checkpoint(step, model, {}, state)


def test_a_checkpoint_comes_back_bit_for_bit(tmp_path) -> None:
    saved = example(7)
    loaded = checkpoint.load(checkpoint.save(tmp_path, saved, "abc"), "abc")
    assert loaded.step == 7
    assert all(torch.equal(saved.model[k], loaded.model[k]) for k in saved.model)
    assert torch.equal(loaded.state["optimizer"]["state"][0]["m"], saved.state["optimizer"]["state"][0]["m"])


@pytest.mark.parametrize("name", ["model.safetensors", "state.pt", "meta.json"])
@pytest.mark.parametrize("damage", ["cut", "flip", "delete"])
def test_a_damaged_checkpoint_is_refused_by_name_and_the_one_before_is_used(tmp_path, name: str, damage: str) -> None:
    checkpoint.save(tmp_path, example(1), "abc")
    path = checkpoint.save(tmp_path, example(2), "abc") / name
    content = bytearray(path.read_bytes())
    if damage == "delete":
        path.unlink()
    elif damage == "cut":
        path.write_bytes(content[: len(content) // 2])
    else:
        content[len(content) // 2] ^= 0xFF
        path.write_bytes(content)
    found, complaints = checkpoint.load_latest(tmp_path, "abc")
    assert found is not None
    assert found.step == 1
    assert len(complaints) == 1
    assert "step-00000002" in complaints[0]


def test_a_checkpoint_of_another_run_or_another_program_is_refused(tmp_path) -> None:
    path = checkpoint.save(tmp_path, example(3), "abc")
    with pytest.raises(CheckpointError, match="another run"):
        checkpoint.load(path, "xyz")
    (path / "meta.json").write_text('{"format": "other"}')
    with pytest.raises(CheckpointError, match="format is 'other'"):
        checkpoint.load(path)
    with pytest.raises(CheckpointError, match="no checkpoint"):
        checkpoint.load(tmp_path / "absent")


class Bomb:
    def __reduce__(self):
        return (exec, ("raise SystemExit('executed')",))


def test_a_state_that_would_execute_on_load_is_refused(tmp_path) -> None:
    path = checkpoint.save(tmp_path, example(4), "abc")
    with (path / "state.pt").open("wb") as file:
        pickle.dump(Bomb(), file)
    meta = checkpoint.read_meta(path)
    facts = {"bytes": (path / "state.pt").stat().st_size, "sha256": checkpoint._sha256(path / "state.pt")}
    import json

    (path / "meta.json").write_text(json.dumps(meta | {"files": meta["files"] | {"state.pt": facts}}))
    with pytest.raises(CheckpointError, match="cannot be read"):
        checkpoint.load(path, "abc")


@pytest.mark.parametrize("failing", ["save_file", "rename", "flush"])
def test_a_failure_while_saving_leaves_the_older_checkpoints_and_nothing_else(tmp_path, monkeypatch, failing) -> None:
    checkpoint.save(tmp_path, example(1), "abc")

    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    if failing == "rename":
        monkeypatch.setattr("pathlib.Path.rename", full)
    else:
        monkeypatch.setattr(checkpoint, {"save_file": "save_file", "flush": "_flush"}[failing], full)
    with pytest.raises(OSError, match="No space left"):
        checkpoint.save(tmp_path, example(2), "abc")
    assert [p.name for p in tmp_path.iterdir()] == ["step-00000001"]


def test_a_checkpoint_is_chosen_by_name_or_step(tmp_path) -> None:
    with pytest.raises(ValueError, match="has no checkpoint yet"):
        checkpoint.choose(tmp_path, "best")
    for step in (1, 2, 3):
        checkpoint.save(tmp_path, example(step), "abc")
    chosen = {which: checkpoint.choose(tmp_path, which).name for which in ("best", "last", "2")}
    assert chosen == {"best": "step-00000003", "last": "step-00000003", "2": "step-00000002"}
    (tmp_path / "best.json").write_text('{"step": 1}')
    assert checkpoint.choose(tmp_path, "best").name == "step-00000001"
    with pytest.raises(ValueError, match="--checkpoint 7 is not there; give best, last, init or one of 1, 2, 3"):
        checkpoint.choose(tmp_path, "7")


def test_pruning_keeps_the_newest_and_the_best_and_sweeps_up_after_a_crash(tmp_path) -> None:
    for step in (1, 2, 3, 4):
        checkpoint.save(tmp_path, example(step), "abc")
    (tmp_path / ".partial-step-00000005").mkdir()
    checkpoint.prune(tmp_path, keep=2, best_step=1)
    assert checkpoint.steps_saved(tmp_path) == [1, 3, 4]
    assert not list(tmp_path.glob(".partial*"))
