"""Numbers and names as people read them."""

from __future__ import annotations

import math
import re
from typing import Any

_UNSEEN = re.compile(
    r"[\x00-\x1f\x7f-\x9f\u200b\u200e\u200f\u202a-\u202e\u2066-\u2069\ufeff\ud800-\udfff]+"
)


def number(value: float, digits: int = 4) -> str:
    """A value to some digits; NaN and infinities by name."""
    if not math.isfinite(value):
        return {math.inf: "∞", -math.inf: "−∞"}.get(value, "not a number")
    if value == 0:
        return "0"
    size = math.floor(math.log10(abs(value)))
    if size >= 6 or size < -4:
        return f"{value:.{max(digits - 2, 0)}e}".replace("-", "−")
    return f"{value:,.{max(digits - 1 - size, 0)}f}".replace("-", "−").replace(",", "\u202f")


def apart(low: float, high: float) -> int:
    """Digits by which the ends of an interval differ, three to six."""
    return next((digits for digits in (3, 4, 5) if f"{low:.{digits}g}" != f"{high:.{digits}g}"), 6)


def short(value: float) -> str:
    """A value to three digits, without trailing zeros."""
    return f"{value:.3g}".replace("-", "−") if math.isfinite(value) else number(value)


def with_error(value: float, error: float | None) -> tuple[str, str]:
    """A value, and its error to two digits; the value to the error's last digit, but to no more
    than five digits."""
    if error is None or not math.isfinite(error) or error <= 0 or not math.isfinite(value):
        return number(value), ""
    size = math.floor(math.log10(max(abs(value), error)))
    places = max(min(1 - math.floor(math.log10(error)), 4 - size), 0)
    if size >= 6 or size < -4:
        return number(value), f"± {number(error, 2)}"
    small = error < 0.5 * 10**-places
    digits = [f"{v:,.{places}f}".replace(",", "\u202f").replace("-", "−") for v in (value, error)]
    return digits[0], f"± {number(error, 1) if small else digits[1]}"


def duration(seconds: float) -> str:
    """Seconds as `41 s`, `12 min`, `3 h 20 min`."""
    if not math.isfinite(seconds):
        return number(seconds)
    if seconds < 100:
        return f"{seconds:.{0 if seconds >= 10 else 1}f} s"
    minutes = round(seconds / 60)
    hours, rest = divmod(minutes, 60)
    if not hours:
        return f"{minutes} min"
    return f"{hours} h {rest} min" if hours < 100 else f"{hours} h"


def count(n: int, one: str, many: str = "") -> str:
    """`1 run`, `20 runs`."""
    return f"{n:,} {one if n == 1 else many or one + 's'}".replace(",", "\u202f")


def clean(text: Any, length: int = 200) -> str:
    """One line without control characters, the middle left out where it is longer than `length`."""
    line = " ".join(_UNSEEN.sub(" ", str(text)).split())
    half = (length - 1) // 2
    return line if len(line) <= length else f"{line[:half]}…{line[-half:]}"


def plain(text: Any) -> str:
    """Text that Plotly shows as it is: it reads a few HTML tags and entities in every label."""
    return clean(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def slug(text: Any) -> str:
    """Letters, digits and hyphens, for the ids of a page."""
    return re.sub(r"[^a-zA-Z0-9]+", "-", str(text)[:60]).strip("-") or "x"


def setting(value: Any) -> str:
    """A setting's value as text."""
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list | tuple):
        return " ".join(map(setting, value))
    if isinstance(value, bool):
        return "yes" if value else "no"
    return clean(value)
