import math

import pytest

from samovar.words import duration, suggest


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.44, "0.4 s"),
        (41.2, "41 s"),
        (720, "12 min"),
        (12_000, "3 h 20 min"),
        (12 * 86_400, "12 days"),
        (math.nan, "–"),
    ],
)
def test_a_duration_is_written_in_the_unit_a_reader_would_choose(seconds, text):
    assert duration(seconds) == text


def test_a_misspelt_word_gets_the_closest_ones():
    assert suggest("hesian", ["hessian", "trace"]) == "did you mean hessian?"
    assert suggest("bloks", ["blocks", "block", "x"]) == "did you mean blocks or block?"


def test_a_word_far_from_all_gets_all_of_them_or_other_advice():
    assert suggest("zzz", ["hessian", "trace"]) == "give one of: hessian, trace"
    assert suggest("zzz", ["hessian"], instead="see the list") == "see the list"
