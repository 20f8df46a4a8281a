"""Write chapters as one HTML page that needs no network and no server."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape
from plotly.offline import get_plotlyjs

from samovar.report.contents import chapters, is_summary, notices, title
from samovar.report.drawing import palette
from samovar.report.drawing.plots import legend
from samovar.report.parts import Data, Figure, Gallery, Group, Part, Table
from samovar.report.read import RunData

HERE = Path(__file__).parent


def render(runs: Sequence[RunData], *, live: str = "", scripted: bool = True) -> str:
    """Return the whole page as HTML.

    Args:
        runs: the runs, with labels and colours.
        live: version of a page that is served and keeps itself up to date; empty for a file.
        scripted: False leaves the scripts out, for a page that only brings another up to date."""
    contents = chapters(runs)
    parts = [part for chapter in contents for part in _walk(chapter.parts)]
    images = _images(parts)
    # The page allows no scripts but these two, which it names by their digests.
    texts = (get_plotlyjs(), (HERE / "script.js").read_text(encoding="utf-8"))
    scripts = [_inline(text) for text in texts] if scripted else []
    environment = Environment(
        loader=FileSystemLoader(HERE),
        autoescape=True,
        # A misspelt name in the template is an error, not an empty text.
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "json": embed,
        "image": images.__getitem__,
        "math": _math,
        "code": _code,
    }
    page = environment.get_template("template.html.j2").render(
        title=title(runs),
        live=live,
        runs=runs,
        keys=legend([run for run in runs if not is_summary(run)]),
        chapters=contents,
        notices=notices(runs),
        updated=_updated(runs),
        images=images,
        style=Markup((HERE / "style.css").read_text(encoding="utf-8")),
        scripts=[Markup(script) for script in scripts],
        hashes=" ".join(f"'sha256-{_digest(script)}'" for script in scripts),
        heights=palette.HEIGHT,
        colors=list(zip(palette.LIGHT, palette.DARK, strict=True)),
        payload={part.id: found for part in parts if (found := payload(part))},
    )
    # A name that is not valid Unicode must not stop the rest.
    return page.encode("utf-8", "replace").decode("utf-8")


def payload(part: Part) -> dict[str, Any]:
    """Return what the page's script needs of a part: its plot, and its data as CSV."""
    found: dict[str, Any] = {}
    if isinstance(part, Figure):
        found["plot"] = part.plot
    if isinstance(part, Figure | Table | Gallery) and isinstance(part.data, Data):
        found["csv"] = part.data.csv
    return found


def embed(values: Any) -> Markup:
    """Return JSON that can stand inside a script element: without markup and line ends."""
    # The text is ASCII, so U+2028, at which JavaScript ends a line, is written as an escape.
    text = json.dumps(values, allow_nan=False, separators=(",", ":"))
    return Markup(text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"))


def _inline(script: str) -> str:
    """Return a script that cannot end the element it stands in."""
    return script.replace("\r\n", "\n").replace("</script", "<\\/script")


def _digest(script: str) -> str:
    """Return the SHA-256 by which the page's security policy allows a script."""
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def _walk(parts: Sequence[Part]) -> Iterator[Part]:
    """Yield the parts, and after a group those in it."""
    for part in parts:
        yield part
        if isinstance(part, Group):
            yield from _walk(part.parts)


def _images(parts: Sequence[Part]) -> dict[str, str]:
    """Return a CSS class for each image, so that the page holds each only once."""
    # As backgrounds of CSS classes they can be shown many times: the worst mistakes are also shown
    # among the classes that are confused, and open large.
    galleries = [part for part in parts if isinstance(part, Gallery)]
    pictures = [
        picture for gallery in galleries for strip in gallery.strips for picture in strip.pictures
    ]
    uris = dict.fromkeys(picture.image for picture in pictures if picture.image)
    return {uri: f"i{index}" for index, uri in enumerate(uris)}


def _updated(runs: Sequence[RunData]) -> str:
    """Return when the last record was written.

    The time of the report itself would make pages of the same runs differ."""
    times = [path.stat().st_mtime for run in runs if (path := run.path / "records.jsonl").is_file()]
    return datetime.fromtimestamp(max(times), UTC).strftime("%Y-%m-%d %H:%M UTC") if times else ""


def _math(text: str) -> Markup:
    """Escape text, and set the index of λ_max as a subscript."""
    return Markup(str(escape(text)).replace("λ_max", "λ<sub>max</sub>"))


def _code(text: str) -> Markup:
    """Escape text, set what stands between backquotes as code, and the index of λ_max."""
    parts = text.split("`")
    each = (f"<code>{escape(p)}</code>" if k % 2 else _math(p) for k, p in enumerate(parts))
    return Markup("".join(each))
