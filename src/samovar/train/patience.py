"""Early stopping: end a run whose validation accuracy has stopped to improve (`--run.patience`)."""

from __future__ import annotations

from samovar.config import Config
from samovar.train.state import TrainState


def judge(config: Config, state: TrainState, values: dict[str, float]) -> None:
    """Enter an evaluation into the state: as the last, as the best if it is, and in the count.

    Args:
        values: step, loss and accuracy by name."""
    state.last = values
    better = not state.best or values["val/accuracy"] > state.best["val/accuracy"]
    if better:
        state.best = values
    # counted only where it is asked for, so that other checkpoints stay as they were
    state.stale = 0 if better or not config.run.patience else state.stale + 1


def is_over(config: Config, state: TrainState) -> bool:
    """Return whether patience has run out."""
    return 0 < config.run.patience <= state.stale


def note(config: Config, state: TrainState, total: int) -> str:
    """Return a line for the reader on why the run ended before `total` steps."""
    return (
        f"stopped early at step {state.step:,} of {total:,}: {state.stale} evaluations in a row "
        f"gave no better accuracy than step {state.best['step']:,.0f} "
        f"(--run.patience {config.run.patience})"
    )
