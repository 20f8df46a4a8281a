"""The command line: quick answers without torch, one clear line and exit code 2 for bad input."""

import importlib
import json
import shlex
import subprocess
import sys

import pytest

from samovar import cli, plugins, recipes
from samovar import config as configs
from samovar.cli import flags
from samovar.cli.train import parse as parse_train
from samovar.cli.verbs import VERBS, load
from samovar.config import Config
from samovar.measure import catalog
from samovar.models import table
from samovar.runs import loggers
from tests.conftest import assert_refused


@pytest.mark.parametrize(
    "args",
    ["--help", "train --help", "demo --help", "list", "list recipes", "show vit-b16-imagenet-sam", "show vit-b16",
     "train vit-cifar10 --help", "tune --help", "compare --help", "reproduce --help", "measure --help", "export --help",
     "predict --help", "corrupt a b --help", "list --help", "show --help"],
)  # fmt: skip
def test_help_list_and_show_answer_without_torch(args: str) -> None:
    code = (
        "import sys\nfrom samovar.cli import main\n"
        f"try:\n    main({args.split()!r})\nexcept SystemExit as e:\n    assert not e.code\n"
        "assert not {'torch', 'timm', 'torchvision', 'numpy'} & set(sys.modules), 'heavy import'\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert len(result.stdout) > 100


@pytest.mark.parametrize(
    ("args", "line"),
    [
        ("tran", "unknown command 'tran'; did you mean train?"),
        ("train", "train needs a recipe"),
        ("train --seed 1 vit-digits", "train needs a recipe or --config before the flags; see `samovar list recipes`"),
        ("measure --k 2 vit-digits", "measure needs a run folder or a model before the flags"),
        ("train vit-digits --seed -1 --name", "--name needs a value; see `samovar train vit-digits --help`"),
        ("train vit-cifer10", "unknown recipe 'vit-cifer10'; did you mean vit-cifar10"),
        ("train vit-digits --sam.roh 0.1", "unknown flag --sam.roh; did you mean --sam.rho?"),
        ("train vit-digits --sam.rho", "--sam.rho needs a value; see `samovar train vit-digits --help`"),
        ("train vit-digits --sam.rho big", "--sam.rho: could not convert string to float: 'big'"),
        ("train vit-digits --sam.rho -0.1", "--sam.rho -0.1 is out of range; give a radius"),
        ("train vit-digits --data.crop zoom", "invalid choice 'zoom'"),
        ("train vit-digits --recipe x", "unknown flag --recipe"),
        ("train --resume nowhere", "--resume nowhere is not a run"),
        ("train --config nowhere.json", "cannot read a config from nowhere.json"),
        ("train --config a --resume b", "exclude each other"),
        ("train --resume --output nowhere", "--resume finds no unfinished run in nowhere"),
        ("train photos --data.source folder:nowhere", "nowhere"),
        ("train vit-digits --model.name vit-digist", "unknown model 'vit-digist'"),
        ("train vit-digits --model.name no_such:thing", "no_such"),
        ("train vit-digits --data.image-size 7", "7"),
        ("train vit-digits --data.source digist", "digist"),
        ("train vit-digits --data.source folder:nowhere", "nowhere"),
        ("train vit-digits-sam --sam.m 33", "--sam.m 33 does not divide the 64 images of a rank"),
        ("train vit-digits --run.device cuda:99", "--run.device cuda:99 asks for GPU 99"),
        ("train vit-digits --run.device gpu", "--run.device gpu is no device"),
        ("train vit-digits --optim.name adamx", "adamx"),
        ("train vit-digits --optim.warmup-steps 99999", "99999"),
        ("train vit-digits --output /proc/nothing", "cannot write to --output"),
        ("list recipe", "cannot list 'recipe'; did you mean recipes?"),
        ("show nothing-like-it", "'nothing-like-it' is no recipe, model or run folder"),
        ("demo --sed 3", "unknown flag --sed; did you mean --seed?"),
        ("list recipes models extra", "cannot list 'extra'; give one of: recipes, models, sources, loggers"),
        ("show", "show needs one recipe, run or model; see `samovar show --help`"),
        ("show vit-b16 vit-b32", "show needs one recipe, run or model, not vit-b16 vit-b32"),
        ("show --schema vit-b16", "--schema is the same for all runs; leave vit-b16 out"),
        ("demo --seed x", "--seed x is out of range; give a whole number, 0 or more"),
        ("demo now", "demo takes no 'now'"),
        ("train vit-digits vit-cifar10", "train takes one recipe, not vit-digits and vit-cifar10"),
        ("train vit-digits --config c.json", "train takes a recipe or --config, not both vit-digits and c.json"),
        ("train vit-digits --resume runs/r", "--resume takes the recipe from the run; leave vit-digits out"),
        ("train vit-digits --ranks 2", "--ranks only works with --dry-run; real runs take torchrun --nproc-per-node"),
        ("train vit-digits --dry-run --ranks two", "--ranks two is out of range; give a whole number, 1 or more"),
        ("train vit-digits --dry-run=yes", "--dry-run takes no value, not even 'yes'; give --dry-run alone"),
        ("train vit-digits -- --seed 1", "-- has no meaning here; leave it out"),
        ("corrupt a", "corrupt needs a folder of images and one to write to"),
        ("corrupt a b c", "corrupt needs a folder of images and one to write to, not a b c"),
        ("measure runs/r", "no run folder runs/r and no model of that name; give a folder that `samovar train` made"),
    ],
)
def test_bad_input_is_one_clear_line_and_exit_code_2(args: str, line: str, capsys, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert_refused(args, line, capsys)
    assert not list(tmp_path.glob("runs/*")), "a run that cannot start leaves no folder"


def test_flags_override_the_recipe_and_nothing_else() -> None:
    config, resumed, *_ = parse_train(["vit-cifar10-sam", "--sam.rho", "0.3", "--seed", "5", "--data.no-flip"])
    base = recipes.get("vit-cifar10-sam").config()
    assert resumed is None
    assert (config.sam.rho, config.seed, config.data.flip) == (0.3, 5, False)
    assert config.optim == base.optim
    assert config.model == base.model


def test_every_recipe_can_be_shown_and_parsed(capsys) -> None:
    for name in recipes.RECIPES:
        cli.main(["show", name])
        assert recipes.get(name).expect in capsys.readouterr().out
    assert isinstance(parse_train(["vit-b16-imagenet-sam"])[0], Config)


def test_the_photos_recipe_follows_from_the_number_of_images(tmp_path) -> None:
    for label in ("cat", "dog"):
        folder = tmp_path / "train" / label
        folder.mkdir(parents=True)
        for i in range(40):
            (folder / f"{i}.jpg").write_bytes(b"")
    (tmp_path / "val").mkdir()
    config, *_ = parse_train(["photos", "--data.source", f"folder:{tmp_path}"])
    assert config.recipe == "photos"
    assert config.data.batch_size == 32
    assert config.model.name == "vit_tiny_patch16_224"
    assert recipes.photos(1_281_167).data.batch_size == 4096
    assert recipes.photos(1_281_167).model.name == "vit-b16"


# --- every verb ------------------------------------------------------------------------------------------------------


@pytest.fixture
def no_work(monkeypatch) -> None:
    """The demo, which a bare `samovar demo` starts, does nothing."""
    monkeypatch.setattr("samovar.studies.demo.demo", lambda output, seed: None)


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize(
    "args",
    ["--help", "-h", "--help now", "now -h", "now --no-such-flag 3 --help", "--output --help", "-- --help",
     "vit-digits nowhere --help"],
)  # fmt: skip
def test_help_anywhere_on_the_line_explains_the_verb(verb: str, args: str, capsys) -> None:
    assert cli.main([verb, *args.split()]) is None
    out, err = capsys.readouterr()
    assert out.startswith(load(verb).HELP)
    assert not err


@pytest.mark.usefixtures("no_work")
@pytest.mark.parametrize("verb", VERBS)
def test_a_verb_without_arguments_works_or_says_in_a_line_what_it_needs(verb: str, capsys) -> None:
    if verb in ("demo", "list"):
        cli.main([verb])
        assert not capsys.readouterr().err
    else:
        assert_refused(verb, f"{verb} needs ", capsys)


WORDS = {
    "corrupt": "a b",
    "predict": "a b",
    "reproduce": "table1 --scale digits",
    "list": "models",
    "demo": "",
    "completion": "bash",
}


@pytest.mark.parametrize("verb", VERBS)
def test_an_unknown_flag_is_refused_in_a_line_that_names_it(verb: str, capsys) -> None:
    words = WORDS.get(verb, "vit-digits")
    assert_refused(f"{verb} {words} --no-such-flag", "unknown flag --no-such-flag; ", capsys)
    assert_refused(f"{verb} {words} -x", "unknown flag -x; ", capsys)


@pytest.mark.parametrize("verb", VERBS)
def test_a_flag_without_its_value_is_refused_in_a_line_that_names_it(verb: str, capsys) -> None:
    words = WORDS.get(verb, "vit-digits")
    for flag in getattr(load(verb), "FLAGS", ()):
        if flag.kind is not flags.SWITCH and flag.kind.alone is None:
            assert_refused(f"{verb} {words} {flag.name}", f"{flag.name} needs {flag.kind.wanted}", capsys)
            assert_refused(f"{verb} {words} {flag.name} --help-me", f"{flag.name} needs {flag.kind.wanted}", capsys)
    if hasattr(load(verb), "explained"):
        assert_refused(f"{verb} {words} --seed", f"--seed needs a value; see `samovar {verb} ", capsys)
        assert_refused(f"{verb} {words} --seed --workers 1", "--seed needs a value", capsys)


@pytest.mark.parametrize("verb", VERBS)
def test_help_texts_are_short_lines_that_name_every_flag_and_give_an_example(verb: str) -> None:
    module = load(verb)
    first, *_ = module.HELP.splitlines()
    assert first.startswith(f"usage: samovar {verb}")
    assert module.HELP.count(f"\n  samovar {verb}") >= 2
    assert max(map(len, module.HELP.splitlines())) <= 100
    for flag in getattr(module, "FLAGS", ()):
        assert f"{flag.name} {flag.kind.placeholder}".strip() in module.HELP
    assert f"\n  {verb} {VERBS[verb].arguments}".rstrip() in cli.HELP


@pytest.mark.parametrize("args", ["train vit-cifar10-sam", "tune vit-cifar10-sam", "measure x", "corrupt a b"])
def test_help_behind_a_subject_lists_every_setting_with_its_value_there(args: str, capsys) -> None:
    cli.main([*args.split(), "--help-all"])
    name, *words = args.split()
    listed = capsys.readouterr().out.removeprefix(load(name).HELP)
    settings = configs.flatten(load(name).explained(words))
    idle = ("contrastive.", "head.") if name in ("train", "tune") else ()
    shown = [setting for setting in settings if setting != "recipe" and not setting.startswith(idle)]
    assert all(f"--{setting.replace('_', '-')}" in listed for setting in shown)
    if name in ("train", "tune"):
        assert "--recipe" not in listed
        assert "--contrastive.*" in listed
        assert "--head.epochs" not in listed
        assert listed.index("--sam.rho ") < listed.index("--sam.m ") < listed.index("--adversarial.eps ")
    if words == ["vit-cifar10-sam"]:
        assert "(default: 0.1)" in listed[listed.index("--sam.rho ") :][:200]


@pytest.mark.parametrize("verb", ["train", "tune"])
def test_help_behind_a_recipe_lists_the_fifteen_flags_to_begin_with(verb: str, capsys) -> None:
    cli.main([verb, "vit-cifar10-sam", "--help"])
    listed = capsys.readouterr().out.removeprefix(load(verb).HELP)
    found = [line.split()[0] for line in listed.splitlines() if line.startswith("  --")]
    assert len(found) == 15
    assert "--sam.rho" in found
    assert f"`samovar {verb} vit-cifar10-sam --help-all` lists all flags." in listed
    cli.main([verb, "supcon-vit-digits", "--help-all"])
    assert "--head.epochs" in capsys.readouterr().out


def test_the_version_has_a_short_flag(capsys) -> None:
    cli.main(["-V"])
    short = capsys.readouterr().out
    cli.main(["--version"])
    assert short == capsys.readouterr().out


def test_help_behind_a_saved_config_lists_its_values(capsys, tmp_path) -> None:
    path = tmp_path / "config.json"
    configs.save(recipes.get("mixer-cifar10-sam").config(), path)
    for verb, flag, saved in (("train", "--config", path), ("train", "--resume", tmp_path), ("tune", "--config", path)):
        cli.main([verb, flag, str(saved), "--help-all"])
        out = capsys.readouterr().out
        assert f"All flags, with their values in `samovar {verb} {flag} {saved}`:" in out
        assert "mixer-cifar" in out[out.index("--model.name ") :]


def test_help_is_a_verb_too(capsys) -> None:
    for args, expected in (([], cli.HELP), (["help"], cli.HELP), (["help", "report"], load("report").HELP)):
        cli.main(args)
        assert capsys.readouterr().out == expected
    assert_refused("help reprot", "unknown command 'reprot'; did you mean report?", capsys)


def test_the_help_of_a_verb_behind_bad_arguments_is_its_help_alone(capsys) -> None:
    cli.main(["train", "no-such-recipe", "--help"])
    assert capsys.readouterr().out == load("train").HELP


# --- reading flags ---------------------------------------------------------------------------------------------------

FLAGS = (
    flags.Flag("--top-k", flags.COUNT, "how many", 5),
    flags.Flag("--output", flags.FILE, "where", short="-o"),
    flags.Flag("--part", flags.NAME, "which", collects=True),
    flags.Flag("--plan", flags.SWITCH, "stop"),
)


def test_flags_are_read_in_any_spelling_and_order_and_the_last_of_a_repeated_one_holds() -> None:
    line = flags.read(shlex.split("a --top_k=1 --part x b --plan -o - --top-k 2 --part=y c"), FLAGS, "verb")
    assert line.words == ("a", "b", "c")
    assert (line["--top-k"], str(line["--output"]), line["--part"], line["--plan"]) == (2, "-", ("x", "y"), True)
    nothing = flags.read([], FLAGS, "verb")
    assert [nothing[flag.name] for flag in FLAGS] == [5, None, (), False]


def test_what_is_left_are_flags_of_settings_with_their_values() -> None:
    line = flags.read(shlex.split("a --x.y 1 2 --plan b --z=-3 --top-k 4 c --w -0.5"), FLAGS, "verb", settings=True)
    assert line.words == ("a", "b", "c")
    assert line.settings == ("--x.y", "1", "2", "--z=-3", "--w", "-0.5")


def test_a_flag_can_be_taken_out_of_a_command_line() -> None:
    assert flags.without(["a", "--name", "b", "--name=c", "--named", "d"], "--name") == ["a", "--named", "d"]


# --- list, show, measure ---------------------------------------------------------------------------------------------


def test_nothing_is_listed_before_a_bad_name_is_refused(capsys) -> None:
    with pytest.raises(SystemExit):
        cli.main(["list", "recipes", "models", "extra"])
    assert not capsys.readouterr().out


def test_names_of_other_packages_are_listed_and_ours_go_first(monkeypatch, capsys) -> None:
    monkeypatch.setattr(plugins, "names", lambda kind: (f"their-{kind}", "vit-b16", "digits", "wandb"))
    for kind in ("models", "sources", "loggers"):
        cli.main(["list", kind])
        out = capsys.readouterr().out
        assert f"  their-{kind} " in out
    assert out.count("added by an installed package") == 3, "wandb is ours"
    cli.main(["show", "their-models"])
    assert capsys.readouterr().out == "their-models: added by an installed package\n"


def test_the_lists_name_what_there_is(capsys) -> None:
    cli.main(["list"])
    assert capsys.readouterr().out.startswith("usage: samovar list ")
    cli.main(["list", "recipes", "models", "sources", "loggers", "--all"])
    out = capsys.readouterr().out
    known = getattr(loggers, "_LOGGERS", None) or loggers._OPENERS
    assert all(f"  {name} " in out for name in [*recipes.RECIPES, *table.MODELS, *known])


def test_the_help_of_measure_names_every_measurement_those_of_other_packages_too(monkeypatch) -> None:
    help_text = load("measure").HELP
    assert all(f"\n  {name} " in help_text for name in catalog.CATALOG)
    monkeypatch.setattr(plugins, "names", lambda kind: ("theirs", "hessian"))
    with_theirs = importlib.reload(load("measure")).HELP
    monkeypatch.undo()
    assert help_text == importlib.reload(load("measure")).HELP
    assert with_theirs.replace("\nadded by installed packages: theirs\n", "") == help_text


def test_a_run_folder_that_is_not_there_is_said_to_be_missing_with_one_that_is_near(capsys, tmp_path) -> None:
    (tmp_path / "vit-seed0").mkdir()
    configs.save(Config(), tmp_path / "vit-seed0" / "config.json")
    line = f"no run folder {tmp_path}/vit-sed0 and no model of that name; did you mean {tmp_path}/vit-seed0?"
    assert_refused(f"measure {tmp_path}/vit-sed0", line, capsys)


@pytest.mark.skipif(not hasattr(configs, "schema"), reason="needs samovar.config.schema")
def test_the_schema_of_settings_is_shown_as_json(capsys) -> None:
    cli.main(["show", "--schema"])
    assert json.loads(capsys.readouterr().out) == configs.schema()


def test_an_interruption_ends_in_one_line(monkeypatch, capsys) -> None:
    def interrupted(verb: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "load", interrupted)
    with pytest.raises(SystemExit) as caught:
        cli.main(["show", "vit-digits"])
    assert caught.value.code == 130
    assert capsys.readouterr().err == "samovar: interrupted\n"
