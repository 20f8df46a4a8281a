"""Pretrained weights on the Hugging Face hub: are they here, and can they be downloaded?

huggingface_hub tries for a minute and a half before it gives up; here a connection is tried once,
for seconds."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

PATIENCE = 4.0
"""Seconds to wait for a connection."""


def refuse_unreachable(name: str) -> None:
    """Refuse weights of timm that are not on this machine and cannot be downloaded.

    Raises:
        ValueError: says why no connection was made."""
    if (reason := _missing(name)) is not None:
        raise ValueError(
            f"{name}: its weights are not in the cache and cannot be downloaded ({reason}); "
            "connect once, or give a file"
        )


@contextmanager
def bounded(name: str) -> Iterator[None]:
    """Keep huggingface_hub from trying again and again for weights that it cannot download."""
    from huggingface_hub import constants

    known: Any = constants
    before = known.HF_HUB_OFFLINE
    known.HF_HUB_OFFLINE = before or _missing(name) is not None or bool(_cached(name))
    try:
        yield
    finally:
        known.HF_HUB_OFFLINE = before


def _missing(name: str) -> str | None:
    """Return why weights cannot be had; None where they are here or the hub answers."""
    if _cached(name) or _others():
        return None
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set"
    return unreachable(constants.ENDPOINT)


def _cached(name: str) -> list[Path]:
    """Return the snapshots of a timm name in the cache; without a tag, of any of its tags."""
    from huggingface_hub import constants

    cache = Path(constants.HF_HUB_CACHE)
    patterns = (f"models--timm--{name}", f"models--timm--{name}.*")
    return [
        path
        for pattern in patterns
        for suffix in ("safetensors", "bin", "npz")
        for path in cache.glob(f"{pattern}/snapshots/*/*.{suffix}")
    ]


def _others() -> bool:
    """Return whether timm's other cache, for weights that are not on the hub, holds any."""
    home = Path(os.environ.get("TORCH_HOME", "~/.cache/torch")).expanduser()
    return any(home.glob("hub/checkpoints/*"))


def unreachable(url: str, patience: float = PATIENCE) -> str | None:
    """Return why no connection to a host is made; None if one is.

    A proxy of the environment is asked in its place."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    proxies = getproxies()
    proxy = proxies.get(parts.scheme) or proxies.get("all")
    if proxy and not proxy_bypass(host):
        parts = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
    port = parts.port or (443 if parts.scheme == "https" else 80)
    reasons: list[str | None] = []

    def connect() -> None:
        try:
            socket.create_connection((parts.hostname or "", port), timeout=patience).close()
            reasons.append(None)
        except OSError as error:
            reasons.append(str(error))

    # looking up a name has no time limit of its own, so it runs aside and is left behind
    thread = Thread(target=connect, daemon=True)
    thread.start()
    thread.join(patience)
    return reasons[0] if reasons else f"no answer from {parts.hostname} in {patience:g} s"
