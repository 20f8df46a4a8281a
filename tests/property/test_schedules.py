"""Laws of the learning rate, for any lengths."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from samovar.config import OptimConfig
from samovar.train.schedules import lr_at

SCHEDULES = st.sampled_from(["cosine", "linear", "constant", "exponential"])


@st.composite
def runs(draw):
    total = draw(st.integers(1, 100_000))
    config = OptimConfig(
        lr=draw(st.floats(1e-6, 10)),
        schedule=draw(SCHEDULES),
        warmup_steps=draw(st.integers(0, total)),
        linear_end=draw(st.floats(0, 1)),
        exponential_end=draw(st.floats(1e-12, 1)),
    )
    return config, total, draw(st.integers(0, total))


def by_hand(step, config, total):
    """paper.md 3.1, written out."""
    warmup = config.warmup_steps
    progress = 0.0 if step <= warmup else (step - warmup) / (total - warmup)
    decayed = {
        "cosine": 0.5 * (1 + math.cos(math.pi * progress)),
        "linear": 1 - progress * (1 - config.linear_end),
        "constant": 1.0,
        "exponential": math.exp(progress * math.log(config.exponential_end)),
    }[config.schedule]
    return config.lr * decayed * (min(1, step / warmup) if warmup else 1)


@given(runs())
def test_the_rate_is_the_formula(run):
    config, total, step = run
    assert lr_at(step, config, total) == pytest.approx(by_hand(step, config, total), rel=1e-9, abs=1e-12 * config.lr)


@given(runs())
def test_the_rate_stays_between_zero_and_its_peak(run):
    config, total, step = run
    assert 0 <= lr_at(step, config, total) <= config.lr * (1 + 1e-12)


@given(runs())
def test_the_rate_rises_up_to_warmup_and_never_after(run):
    config, total, step = run
    change = lr_at(step + 1, config, total) - lr_at(step, config, total)
    slack = 1e-12 * config.lr
    assert change >= -slack if step < config.warmup_steps else change <= slack


@given(runs())
def test_warmup_ends_at_the_peak_and_starts_at_zero(run):
    config, total, _ = run
    assert lr_at(config.warmup_steps, config, total) == pytest.approx(config.lr)
    assert lr_at(0, config, total) == (0 if config.warmup_steps else config.lr)


@given(SCHEDULES, st.integers(1, 1000), st.floats(0, 1))
def test_schedules_end_where_they_should(schedule, total, end):
    config = OptimConfig(lr=2.0, schedule=schedule, linear_end=end, exponential_end=max(end, 1e-12))
    last = {"cosine": 0.0, "linear": 2 * end, "constant": 2.0, "exponential": 2 * max(end, 1e-12)}[schedule]
    assert lr_at(total, config, total) == pytest.approx(last, abs=1e-12)
    assert lr_at(total + 5, config, total) == pytest.approx(last, abs=1e-12)


@given(st.integers(0, 1000), st.integers(1, 1000))
def test_a_warmup_longer_than_the_run_is_refused_with_both_numbers(total, excess):
    config = OptimConfig(warmup_steps=total + excess)
    with pytest.raises(ValueError, match=rf"--optim.warmup-steps {total + excess} .* {total} steps"):
        lr_at(0, config, total)
