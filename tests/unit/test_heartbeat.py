"""Test the heartbeat: what it prints, when it keeps silent, what an activity says of itself."""

import time

import pytest

from samovar.runtime import heartbeat
from samovar.runtime.heartbeat import Activity, beating, counted, doing, said


def wait_for_lines(count: int, capsys, seconds: float = 20) -> list[str]:
    """Wait until so many lines are on stderr, however slow the machine is."""
    text, end = "", time.monotonic() + seconds
    while text.count("\n") < count and time.monotonic() < end:
        time.sleep(0.02)
        text += capsys.readouterr().err
    return text.splitlines()


def test_a_silent_command_says_what_it_is_doing_again_and_again(monkeypatch, capsys) -> None:
    monkeypatch.setenv(heartbeat.VARIABLE, "0.05")
    with beating("samovar test"):
        lines = wait_for_lines(2, capsys)
    assert len(lines) >= 2
    assert all(line.startswith("... samovar test, ") and line.endswith(" so far") for line in lines)


def test_nested_work_is_named_from_the_outside_in_and_counted(monkeypatch, capsys) -> None:
    monkeypatch.setenv(heartbeat.VARIABLE, "0.05")
    with beating("samovar test"), doing("lr 0.1"), doing("val images", 1200) as images:
        images.advance(1000)
        lines = wait_for_lines(1, capsys)
    assert lines[0].startswith("... lr 0.1, val images: 1,000 of 1,200, ETA ")


@pytest.mark.parametrize(("variable", "value"), [(heartbeat.VARIABLE, "0"), ("RANK", "1")])
def test_it_can_be_switched_off_and_other_ranks_are_silent(monkeypatch, capsys, variable: str, value: str) -> None:
    monkeypatch.setenv(heartbeat.VARIABLE, "0.01")
    monkeypatch.setenv(variable, value)
    with beating("samovar test"):
        time.sleep(0.1)
    assert capsys.readouterr().err == ""


def test_a_line_of_the_command_puts_the_heartbeat_off(monkeypatch, capsys) -> None:
    monkeypatch.setenv(heartbeat.VARIABLE, "30")
    with beating("samovar test"):
        said()
        assert heartbeat.silence() < 30
    assert capsys.readouterr().err == ""


def test_a_period_that_is_no_number_is_refused(monkeypatch) -> None:
    monkeypatch.setenv(heartbeat.VARIABLE, "often")
    with pytest.raises(ValueError, match="SAMOVAR_HEARTBEAT=often is no number; give seconds"):
        heartbeat.period()


def test_work_ends_with_its_block_in_any_order() -> None:
    outer, inner = doing("outer"), doing("inner")
    outer.__enter__()
    inner.__enter__()
    outer.__exit__(None, None, None)
    assert [each.what for each in heartbeat._current] == ["inner"]
    inner.__exit__(None, None, None)
    assert heartbeat._current == []


def test_counted_passes_every_item_on() -> None:
    stream = counted([5, 6, 7], "items", 3)
    assert next(stream) == 5
    assert next(stream) == 6
    assert [each.done for each in heartbeat._current] == [1]
    assert list(stream) == [7]


def test_the_time_left_follows_the_pace_of_this_command_alone() -> None:
    activity = Activity("training", 300, "steps", done=110, first=100, since=time.monotonic() - 20)
    assert activity.seconds_left() == pytest.approx(2 * 190, rel=0.05)
    assert str(activity).startswith("training: 110 of 300 steps, ETA 6 min")
    assert str(Activity("training", 300, "steps", done=100, first=100)) == "training: 100 of 300 steps"
