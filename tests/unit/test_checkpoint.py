"""Test checkpoints: written whole or not at all, and nothing in them executes."""

import errno
import json
import pickle
import random
import shutil

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
    with pytest.raises(CheckpointError, match="no whole checkpoint"):
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
    meta = meta | {"files": meta["files"] | {"state.pt": facts}}
    (path / "meta.json").write_text(json.dumps(meta | {"sha256": checkpoint._hash_of(meta)}))
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


# --- any bit of any file ----------------------------------------------------------------------------------------------


def same(one: Checkpoint, other: Checkpoint) -> bool:
    """Whether two checkpoints hold the same bits."""
    tensors = one.model.keys() == other.model.keys() and all(
        torch.equal(one.model[name], other.model[name]) for name in one.model
    )
    return tensors and one.step == other.step and repr(one.state) == repr(other.state)


def flipped(path, bit: int) -> bytes:
    """Flip one bit of a file; return what it held."""
    before = path.read_bytes()
    content = bytearray(before)
    content[bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)
    return before


@pytest.mark.parametrize("flips", [500, pytest.param(20_000, marks=pytest.mark.slow)])
def test_any_flipped_bit_is_refused_as_damage_or_changes_nothing(tmp_path, flips: int) -> None:
    whole = example(300)
    folder = checkpoint.save(tmp_path, whole, "abc")
    draw = random.Random(0)
    # the description is small, and what hashes guard is large: a third of the flips for each file
    files = sorted(folder.iterdir())
    for k in range(flips):
        path = files[k % len(files)]
        before = flipped(path, draw.randrange(8 * path.stat().st_size))
        found, complaints = checkpoint.load_latest(tmp_path, "abc")
        assert (found is None and "step-00000300" in complaints[0]) or same(found, whole)
        path.write_bytes(before)
    assert same(checkpoint.load(folder, "abc"), whole)


def test_every_bit_of_the_description_is_guarded(tmp_path) -> None:
    folder = checkpoint.save(tmp_path, example(300), "abc")
    path, whole = folder / "meta.json", checkpoint.read_meta(folder)
    for bit in range(0, 8 * path.stat().st_size, 3):
        before = flipped(path, bit)
        found, complaints = checkpoint.load_latest(tmp_path, "abc")
        # only blanks and line ends may change without a word: they are no part of what it says
        assert complaints or checkpoint.read_meta(folder) == whole
        assert found is None or found.step == 300
        path.write_bytes(before)


@pytest.mark.parametrize("name", ["model.safetensors", "state.pt", "meta.json"])
def test_a_file_cut_anywhere_is_refused(tmp_path, name: str) -> None:
    path = checkpoint.save(tmp_path, example(2), "abc") / name
    content = path.read_bytes()
    # the last byte of the description ends its last line
    last = len(content) - (name == "meta.json")
    for length in {0, 1, *range(0, last, max(1, last // 40)), last - 1}:
        path.write_bytes(content[:length])
        with pytest.raises(CheckpointError, match="step-00000002"):
            checkpoint.load(path.parent)


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"step": 4}, "step-00000003 is damaged: meta.json says step 4"),
        ({"step": "3"}, "names no step or no run"),
        ({"step": True}, "names no step or no run"),
        ({"fingerprint": None}, "names no step or no run"),
        ({"files": {}}, "does not name model.safetensors and state.pt"),
        ({"files": []}, "does not name model.safetensors and state.pt"),
        ({"files": {"model.safetensors": 3, "state.pt": {}}}, "no size and hash of model.safetensors"),
        (
            {"files": {n: {"bytes": 1, "sha256": ""} for n in ("model.safetensors", "state.pt", "../../x")}},
            "names ../../x, which is not in its folder",
        ),
    ],
    ids=str,
)
def test_a_description_of_another_form_is_refused_whether_hashed_or_of_the_older_format(tmp_path, change, line) -> None:
    path = checkpoint.save(tmp_path, example(3), "abc")
    meta = checkpoint.read_meta(path) | change
    for form in (checkpoint.FORMAT, checkpoint.OLDER):
        meta["format"] = form
        meta["sha256"] = checkpoint._hash_of(meta)
        (path / "meta.json").write_text(json.dumps(meta))
        with pytest.raises(CheckpointError, match=line):
            checkpoint.load(path)


@pytest.mark.parametrize("text", ["[" * 100_000, '{"format": ' + "9" * 10_000 + "}", "3", "\x00", "", "null"])
def test_a_description_that_is_no_description_is_one_line(tmp_path, text: str) -> None:
    path = checkpoint.save(tmp_path, example(3), "abc")
    (path / "meta.json").write_text(text)
    with pytest.raises(CheckpointError) as error:
        checkpoint.load(path)
    assert len(str(error.value).splitlines()) == 1
    assert "step-00000003" in str(error.value)


def test_checkpoints_without_a_hash_of_their_description_are_still_read(tmp_path) -> None:
    path = checkpoint.save(tmp_path, example(3), "abc")
    meta = checkpoint.read_meta(path)
    del meta["sha256"]
    (path / "meta.json").write_text(json.dumps(meta | {"format": checkpoint.OLDER}))
    assert same(checkpoint.load(path, "abc"), example(3))


def test_a_renamed_folder_is_refused_and_a_copy_by_another_name_is_read(tmp_path) -> None:
    path = checkpoint.save(tmp_path, example(3), "abc")
    shutil.copytree(path, tmp_path / "backup")
    assert same(checkpoint.load(tmp_path / "backup"), example(3))
    path.rename(tmp_path / "step-00000009")
    with pytest.raises(CheckpointError, match="meta.json says step 3"):
        checkpoint.load(tmp_path / "step-00000009")
