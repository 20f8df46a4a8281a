"""Lay out the pages of the documentation site: `python docs/make_site.py FOLDER`.

The site has the pages of docs/, the Markdown files of the repository's root, and an API reference
made from docstrings. `make docs` calls this, then zensical builds the folder into HTML; mkdocs.yml
has the navigation."""

from __future__ import annotations

import re
import shutil
import sys
from collections import defaultdict
from pathlib import Path

import samovar

sys.path.insert(0, str(Path(__file__).parent))
import make_reference as reference

DOCS = Path(__file__).parent
ROOT_PAGES = {
    "README.md": "overview.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "UPGRADING.md": "upgrading.md",
    "SECURITY.md": "security.md",
    "CODE_OF_CONDUCT.md": "code-of-conduct.md",
}
"""Files of the root and their pages; a page named README.md would take the place of index.md."""
CHAPTERS = {
    "commands": reference.commands,
    "settings": reference.settings,
    "measurements": reference.measurements,
}
"""Chapters of docs/reference.md that the site takes over; mkdocstrings writes the one on Python."""


def lay_out(folder: Path) -> None:
    """Write all pages below `folder`, which is emptied first."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(
        DOCS, folder, ignore=shutil.ignore_patterns("*.py", "__pycache__", "reference.md")
    )
    for page in folder.glob("*.md"):
        text = moved_links(page.read_text(encoding="utf-8"), prefix="../")
        page.write_text(text, encoding="utf-8")
    for name, page in ROOT_PAGES.items():
        text = moved_links((DOCS.parent / name).read_text(encoding="utf-8"), prefix="")
        (folder / page).write_text(text, encoding="utf-8")
    api = folder / "reference"
    api.mkdir()
    for name, chapter in CHAPTERS.items():
        text = re.sub(r"^#(?=#)", "", "\n".join(chapter()), flags=re.MULTILINE)
        (api / f"{name}.md").write_text(text, encoding="utf-8")
    rooms = public_names()
    for room, names in rooms.items():
        (api / f"{room}.md").write_text(api_page(room, names), encoding="utf-8")
    (api / "index.md").write_text(api_index(rooms), encoding="utf-8")


def moved_links(text: str, prefix: str) -> str:
    """Point links between docs/ and the root, which is `prefix` away, at the pages of the site."""
    for name, page in ROOT_PAGES.items():
        text = text.replace(f"]({prefix}{name}", f"]({page}")
    text = text.replace("](docs/", "](")
    return text.replace("](reference.md", "](reference/index.md")


def public_names() -> dict[str, list[str]]:
    """Group the names of `samovar.__all__` by the room they live in."""
    rooms = defaultdict(list)
    for name in sorted(samovar.__all__, key=str.lower):
        rooms[getattr(samovar, name).__module__.split(".")[1]].append(name)
    return dict(sorted(rooms.items()))


def api_page(room: str, names: list[str]) -> str:
    """Write the page of a room: a directive for each name, which mkdocstrings turns into text."""
    paths = []
    for name in names:
        paths.append(f"samovar.{name}")
        result = reference.result_of(getattr(samovar, name))
        if result and result.__name__ not in samovar.__all__:
            paths.append(f"{result.__module__}.{result.__name__}")
    intro = f"# samovar.{room}\n\n`from samovar import NAME` imports the public names.\n"
    return intro + "".join(f"\n::: {path}\n" for path in dict.fromkeys(paths))


def api_index(rooms: dict[str, list[str]]) -> str:
    """Write the list of all public names, and of the other chapters of the reference."""
    lines = ["# Reference", "", "Written from docstrings, help texts and defaults.", ""]
    lines += [f"* [{name.capitalize()}]({name}.md)" for name in CHAPTERS]
    lines += ["", "## Python", "", "| room | names |", "|---|---|"]
    for room, names in rooms.items():
        links = ", ".join(f"[`{name}`]({room}.md#samovar.{name})" for name in names)
        lines.append(f"| [`samovar.{room}`]({room}.md) | {links} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    lay_out(Path(sys.argv[1]))
