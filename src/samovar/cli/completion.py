"""`samovar completion`: scripts that complete commands, made from the verbs and their flags."""

from __future__ import annotations

from collections.abc import Sequence

from samovar import recipes
from samovar.cli.flags import read
from samovar.cli.settings import flag_names
from samovar.cli.verbs import VERBS, load
from samovar.config import Config
from samovar.measure import catalog
from samovar.models import table

SHELLS = ("bash", "zsh", "fish")

HELP = """\
usage: samovar completion bash|zsh|fish

Print a script that completes verbs, flags, recipes, models and the runs below runs/.

bash: add to ~/.bashrc           eval "$(samovar completion bash)"
zsh:  add to ~/.zshrc            eval "$(samovar completion zsh)"
fish: add to ~/.config/fish/config.fish   samovar completion fish | source

examples:
  samovar completion bash
  samovar completion fish > ~/.config/fish/completions/samovar.fish
"""


def parse(args: Sequence[str]) -> str:
    """Return the shell.

    Raises:
        ValueError: no shell or several, an unknown one, a flag."""
    words = read(args, (), "completion").words
    if len(words) != 1 or words[0] not in SHELLS:
        given = f", not {' '.join(words)}" if words else ""
        raise ValueError(f"completion needs one of: {', '.join(SHELLS)}{given}")
    return words[0]


def run(args: Sequence[str]) -> None:
    """Print a script."""
    print(script(parse(args)), end="")


def script(shell: str) -> str:
    """Return the script for a shell of `SHELLS`."""
    if shell == "fish":
        return _fish()
    # zsh runs bash's completions, so that there is one script
    start = "autoload -U +X bashcompinit && bashcompinit\n" if shell == "zsh" else ""
    return start + _bash()


def words_of(verb: str) -> list[str]:
    """Return the words that a verb takes, its flags last; runs are looked up by the shell."""
    module = load(verb)
    models = table.names()
    plain: dict[str, Sequence[str]] = {
        **{verb: list(recipes.RECIPES) for verb in ("train", "tune", "compare")},
        "measure": [*catalog.names(), *models],
        **dict.fromkeys(("export", "predict"), models),
        "list": [*getattr(module, "TABLES", ()), "runs"],
        "show": [*recipes.RECIPES, *models],
        "completion": SHELLS,
    }
    flags = [flag.name for flag in getattr(module, "FLAGS", ())]
    if verb in ("train", "tune", "compare", "reproduce"):
        flags += flag_names(Config())
    elif hasattr(module, "explained"):
        flags += flag_names(module.explained(()))
    return [*plain.get(verb, ()), *sorted({*flags, "--help"})]


TAKES_RUNS = ("train", "measure", "report", "export", "predict", "show")
"""Verbs for which the names of the folders below runs/ are completed."""


def _bash() -> str:
    cases = "\n".join(f'    {verb}) words="{" ".join(words_of(verb))}" ;;' for verb in VERBS)
    return f"""\
_samovar() {{
  local word="${{COMP_WORDS[COMP_CWORD]}}" verb="${{COMP_WORDS[1]}}" words="" run
  COMPREPLY=()
  if [ "$COMP_CWORD" -eq 1 ]; then
    COMPREPLY=($(compgen -W "{" ".join([*VERBS, "help"])}" -- "$word"))
    return
  fi
  case "$verb" in
    help) words="{" ".join(VERBS)}" ;;
{cases}
  esac
  case "$verb" in
    {"|".join(TAKES_RUNS)})
      for run in runs/*/config.json; do
        [ -f "$run" ] && run="${{run%/config.json}}" && words="$words $run ${{run#runs/}}"
      done ;;
  esac
  COMPREPLY=($(compgen -W "$words" -- "$word"))
}}
complete -o default -F _samovar samovar
"""


def _fish() -> str:
    rows = [f"complete -c samovar -n __fish_use_subcommand -f -a '{' '.join([*VERBS, 'help'])}'"]
    for verb in VERBS:
        seen = f"'__fish_seen_subcommand_from {verb}'"
        words = words_of(verb)
        plain = " ".join(word for word in words if not word.startswith("--"))
        if plain:
            rows.append(f"complete -c samovar -n {seen} -a '{plain}'")
        if verb in TAKES_RUNS:
            rows.append(
                f"complete -c samovar -n {seen} -a "
                "'(path dirname runs/*/config.json 2>/dev/null | string replace runs/ \"\")'"
            )
        flags = (word.removeprefix("--") for word in words if word.startswith("--"))
        rows += [f"complete -c samovar -n {seen} -l {flag}" for flag in flags]
    return "\n".join(rows) + "\n"
