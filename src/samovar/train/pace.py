"""Pace of a run in words: steps, epochs and the time that is left."""

from __future__ import annotations

import time

from samovar.config import Config
from samovar.train.fit import Progress as Event
from samovar.words import duration


class Pace:
    """How far a run is, in steps and epochs, and when it will end."""

    def __init__(self, config: Config, start: Event) -> None:
        self.per_epoch = start.values["train_images"] / config.data.batch_size
        self.first, self.since = start.step, time.monotonic()

    def __call__(self, event: Event) -> str:
        """Return `step 40/900  epoch 1.2/27`."""
        epochs = f"{event.step / self.per_epoch:.3g}/{event.total / self.per_epoch:.3g}"
        return f"step {event.step}/{event.total}  epoch {epochs}"

    def eta(self, event: Event) -> str:
        """Return `ETA 12 min`, from the pace so far, evaluations included."""
        per_step = (time.monotonic() - self.since) / max(1, event.step - self.first)
        return f"ETA {duration(per_step * (event.total - event.step))}"
