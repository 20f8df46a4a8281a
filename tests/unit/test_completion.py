"""The scripts of `samovar completion`, asked in a real bash."""

import re
import shlex
import shutil
import subprocess

import pytest

from samovar import recipes
from samovar.cli import completion
from samovar.cli.verbs import VERBS
from tests.conftest import assert_refused


def complete(line: str, folder) -> list[str]:
    words = ["samovar", *line.split(" ")]
    ask = (
        f"{completion.script('bash')}\nCOMP_WORDS=({shlex.join(words)}); COMP_CWORD={len(words) - 1}; _samovar; "
        'printf "%s\\n" "${COMPREPLY[@]}"'
    )
    done = subprocess.run(["bash", "--norc", "-c", ask], cwd=folder, capture_output=True, text=True, check=True)
    assert not done.stderr
    return done.stdout.split()


@pytest.mark.skipif(not shutil.which("bash"), reason="needs bash")
def test_bash_completes_verbs_flags_names_and_runs(tmp_path) -> None:
    (tmp_path / "runs" / "mine").mkdir(parents=True)
    (tmp_path / "runs" / "mine" / "config.json").touch()
    assert complete("me", tmp_path) == ["measure"]
    assert set(complete("", tmp_path)) == {*VERBS, "help"}
    assert complete("help rep", tmp_path) == ["report", "reproduce"]
    assert complete("train vit-digits", tmp_path) == [name for name in recipes.RECIPES if name.startswith("vit-digits")]
    assert complete("train vit-digits --sam.reu", tmp_path) == ["--sam.reuse"]
    assert complete("measure mi", tmp_path)[-1] == "mine"
    assert complete("report runs/m", tmp_path) == ["runs/mine"]
    assert complete("predict mine --copy", tmp_path) == ["--copy-to"]
    assert complete("measure mine flat", tmp_path) == ["flatness"]
    assert complete("list ru", tmp_path) == ["runs"]


def test_each_shell_gets_every_verb_and_flag() -> None:
    for shell in completion.SHELLS:
        text = completion.script(shell)
        assert all(re.search(rf"\b{verb}\b", text) for verb in VERBS)
        assert "sam.rho" in text
        assert "copy-to" in text
    assert completion.script("zsh").startswith("autoload -U +X bashcompinit")


def test_an_unknown_shell_is_one_line(capsys) -> None:
    assert_refused("completion tcsh", "completion needs one of: bash, zsh, fish, not tcsh", capsys)
