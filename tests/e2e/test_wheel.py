"""The wheel, installed where the sources are not: it is whole, it runs, and type checkers see its types."""

import os
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

from tests.conftest import ROOT

TYPED = """\
from samovar import SAM, Hessian
from samovar.sam import sam_backward

reveal_type(SAM)
reveal_type(Hessian)
reveal_type(sam_backward)
from samovar import SAN
"""


def run(*command: str | Path, cwd: Path) -> subprocess.CompletedProcess:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run(
        list(map(str, command)), cwd=cwd, env=environment, capture_output=True, text=True, timeout=240
    )


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    done = run(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", folder, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    (found,) = folder.glob("*.whl")
    return found


@pytest.fixture(scope="module")
def scripts(wheel, tmp_path_factory) -> Path:
    """The programs of an environment that has the wheel, and what it depends on from the environment of the tests."""
    folder = tmp_path_factory.mktemp("environment")
    assert run(sys.executable, "-m", "venv", folder, cwd=folder).returncode == 0
    done = run(folder / "bin" / "python", "-m", "pip", "install", "--no-deps", "--no-index", wheel, cwd=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    (packages,) = folder.glob("lib/python*/site-packages")
    (packages / "tests.pth").write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")
    return folder / "bin"


def test_the_wheel_has_every_file_of_the_package_and_nothing_else(wheel) -> None:
    source = ROOT / "src"
    files = {path.relative_to(source).as_posix() for path in source.glob("samovar/**/*") if path.is_file()}
    held = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert held == {name for name in files if "__pycache__" not in name}
    assert "samovar/py.typed" in held


def test_it_runs_without_the_sources(scripts, tmp_path) -> None:
    shown = run(scripts / "samovar", "--help", cwd=tmp_path)
    assert "samovar demo" in shown.stdout, shown.stderr
    listed = run(scripts / "samovar", "list", "recipes", cwd=tmp_path)
    assert "vit-digits-sam" in listed.stdout, listed.stderr
    where = run(scripts / "python", "-c", "import samovar; print(samovar.__file__); samovar.SAM", cwd=tmp_path)
    assert Path(where.stdout.strip()).is_relative_to(scripts.parent), where.stderr


def test_a_type_checker_sees_the_types_and_the_misspelt_name(scripts, tmp_path) -> None:
    (tmp_path / "typed.py").write_text(TYPED, encoding="utf-8")
    # torch's own types take a minute to read, and this asks for none of them
    (tmp_path / "mypy.ini").write_text(
        "[mypy]\n[mypy-torch.*,torchvision.*,timm.*]\nfollow_imports = skip\n", encoding="utf-8"
    )
    done = run(scripts / "python", "-m", "mypy", "--strict", "typed.py", cwd=tmp_path)
    lines = [line.partition(": ")[2] for line in done.stdout.splitlines()]
    assert lines[0].startswith('note: Revealed type is "def (base_optimizer: '), done.stdout + done.stderr
    assert ", rho: float =, " in lines[0]
    assert lines[0].endswith(' -> samovar.sam.adapter.SAM"')
    assert lines[1].endswith(' -> samovar.curvature.operators.Hessian"')
    assert lines[2].startswith('note: Revealed type is "def (loss_fn: ')
    assert 'error: Module "samovar" has no attribute "SAN"' in lines[3]
    assert "Found 1 error in 1 file" in done.stdout
