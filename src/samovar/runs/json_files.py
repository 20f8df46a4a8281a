"""Read the JSON files of a run folder; errors name path and line. Without torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from samovar.words import read_regular

MOST_BYTES = 2**28
"""Largest file that is read whole."""


class Damaged(ValueError):
    """A file cannot be read as what it should be."""


def read_json(path: Path) -> Any:
    """Return the value in a JSON file.

    Raises:
        Damaged: the file cannot be read, or is no JSON; one line with its path, and the line in it
            where JSON ends."""
    try:
        return parsed(read_regular(path, MOST_BYTES).decode())
    except OSError as error:
        raise Damaged(f"{path} cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise Damaged(f"{path} is damaged: byte {error.start} is no UTF-8") from error
    except json.JSONDecodeError as error:
        raise Damaged(f"{path} is damaged: line {error.lineno}: {error.msg}") from error
    except ValueError as error:
        raise Damaged(f"{path} is damaged: {error}") from error


def read_object(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file.

    Raises:
        Damaged: as `read_json`, or it holds something else."""
    found = read_json(path)
    if not isinstance(found, dict):
        raise Damaged(f"{path} is damaged: it holds no object but {type(found).__name__}")
    return found


def parsed(text: str) -> Any:
    """Return the value that JSON text stands for.

    Raises:
        ValueError: it is no JSON, is nested too deeply, or has a number of thousands of digits."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
