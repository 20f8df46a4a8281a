"""docs/reference.md is what the code says today."""

import runpy

import samovar
from samovar import cli
from tests.conftest import ROOT


def test_the_reference_is_what_make_reference_writes_and_names_everything() -> None:
    page = (ROOT / "docs" / "reference.md").read_text(encoding="utf-8")
    made = runpy.run_path(str(ROOT / "docs" / "make_reference.py"))["reference"]()
    assert page == made, "out of date: run `make reference`"
    assert all(f"### `{name}`" in page for name in samovar.__all__)
    assert all(f"### `samovar {verb}`" in page for verb in cli.VERBS)
