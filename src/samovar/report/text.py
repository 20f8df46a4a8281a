"""Format numbers and names for readers."""

from __future__ import annotations

import math
import re
from typing import Any

from samovar.words import UNSEEN

# With an exponent: values of at least 10**6, and below 10**-4.
_LARGE, _SMALL = 6, -4


def number(value: float, digits: int = 4) -> str:
    """Format a value to `digits` significant digits; NaN and infinities get a name."""
    if not math.isfinite(value):
        return {math.inf: "∞", -math.inf: "−∞"}.get(value, "not a number")
    if value == 0:
        return "0"
    size = math.floor(math.log10(abs(value)))
    if size >= _LARGE or size < _SMALL:
        return f"{value:.{max(digits - 2, 0)}e}".replace("-", "−")
    return _grouped(value, max(digits - 1 - size, 0))


def _grouped(value: float, places: int) -> str:
    """Format with thin spaces between thousands and a true minus sign."""
    return f"{value:,.{places}f}".replace(",", "\u202f").replace("-", "−")


def apart(low: float, high: float) -> int:
    """Return the number of digits, three to six, at which the ends of an interval differ."""
    return next((digits for digits in (3, 4, 5) if f"{low:.{digits}g}" != f"{high:.{digits}g}"), 6)


def short(value: float) -> str:
    """Format a value to three digits, without trailing zeros."""
    return f"{value:.3g}".replace("-", "−") if math.isfinite(value) else number(value)


def with_error(value: float, error: float | None) -> tuple[str, str]:
    """Format a value and its error; the error is empty where there is none.

    The error has two digits. The value ends at the error's last digit, but has at most five."""
    if error is None or not math.isfinite(error) or error <= 0 or not math.isfinite(value):
        return number(value), ""
    size = math.floor(math.log10(max(abs(value), error)))
    places = max(min(1 - math.floor(math.log10(error)), 4 - size), 0)
    if size >= _LARGE or size < _SMALL:
        return number(value), f"± {number(error, 2)}"
    # An error below the value's last place would be rounded to zero: show one digit of it.
    lost = error < 0.5 * 10**-places
    return _grouped(value, places), f"± {number(error, 1) if lost else _grouped(error, places)}"


def percent(share: float, error: float | None) -> tuple[str, str]:
    """Format a share as a percentage with its standard error in percentage points."""
    value, error_text = with_error(100 * share, None if error is None else 100 * error)
    return f"{value} %", error_text


def count(n: int, one: str, many: str = "") -> str:
    """Format a number of things, such as `1 run` or `20 runs`."""
    return f"{n:,} {one if n == 1 else many or one + 's'}".replace(",", "\u202f")


def left_out(n: int, one: str, whose: str = "") -> str:
    """Return a sentence on values that a figure lacks because they are not finite."""
    return f"{count(n, one)}{whose} {'is' if n == 1 else 'are'} not finite and left out."


def clean(text: Any, length: int = 200) -> str:
    """Return one line without control characters, its middle cut if longer than `length`."""
    line = " ".join(UNSEEN.sub(" ", str(text)).split())
    half = (length - 1) // 2
    return line if len(line) <= length else f"{line[:half]}…{line[-half:]}"


def plain(text: Any) -> str:
    """Escape text for Plotly, which reads HTML tags, entities and $formulas$ in every label."""
    signs: dict[str, str | int | None] = {"&": "&amp;", "<": "&lt;", ">": "&gt;", "$": "&#36;"}
    return clean(text).translate(str.maketrans(signs))


def slug(text: Any) -> str:
    """Return text as letters, digits and hyphens, for ids in the page."""
    return re.sub(r"[^a-zA-Z0-9]+", "-", str(text)[:60]).strip("-") or "x"


def setting(value: Any) -> str:
    """Format the value of a setting."""
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list | tuple):
        return " ".join(map(setting, value))
    if isinstance(value, bool):
        return "yes" if value else "no"
    return clean(value)
