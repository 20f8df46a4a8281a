import numpy as np
import pytest

from samovar.data.draws import Plan, Purpose, _mix, hashes, order, uniforms


def test_streams_never_change_silently():
    # Golden values: a change here changes every run anyone has ever made.
    assert hashes((0, Purpose.FLIP), np.arange(2), 2).tolist() == [
        [7542512935913773580, 9982758901033627941],
        [1550797431926224875, 5246105923995273335],
    ]
    assert order(0, 0, 8).tolist() == [5, 7, 4, 0, 2, 6, 3, 1]
    assert order(1, 2, 8).tolist() != order(0, 0, 8).tolist()


def test_the_mixer_is_the_published_splitmix64():
    state = np.array([1234567], np.uint64) + np.arange(1, 3, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    assert _mix(state).tolist() == [6457827717110365317, 3203168211198807973]  # Vigna's splitmix64.c


def test_draws_are_uniform_and_positions_columns_and_purposes_are_independent():
    n = 20_000
    flips = uniforms(0, Purpose.FLIP, np.arange(n), 2)
    pads = uniforms(0, Purpose.PAD, np.arange(n), 1)
    other_seed = uniforms(1, Purpose.FLIP, np.arange(n), 1)
    retry = uniforms(0, Purpose.FLIP, np.arange(n), 1, attempt=1)
    assert flips.min() >= 0
    assert flips.max() < 1
    counts = np.histogram(flips, 64, (0, 1))[0]
    assert ((counts - 2 * n / 64) ** 2 / (2 * n / 64)).sum() < 120  # chi-square, 63 degrees: p about 1e-5
    columns = [flips[:, 0], flips[:, 1], pads[:, 0], other_seed[:, 0], retry[:, 0], np.roll(flips[:, 0], 1)]
    correlations = np.corrcoef(columns) - np.eye(len(columns))
    assert abs(correlations).max() < 5 / n**0.5  # five standard errors


def test_neighbouring_words_share_no_bits():
    words = hashes((3, Purpose.ORDER), np.arange(4000), 1)[:, 0]
    flipped_bits = np.unpackbits((words[1:] ^ words[:-1]).view(np.uint8)).reshape(-1, 64).sum(1)
    assert abs(flipped_bits.mean() - 32) < 5 * 4 / 4000**0.5  # 64 fair coins: mean 32, standard deviation 4


def test_no_two_purposes_share_their_draws():
    assert len(set(Purpose)) == len(Purpose.__members__)  # a number given twice would make one an alias of the other


def test_any_integer_is_a_seed():
    for seed in (-1, 2**64 - 1, 2**80):
        assert uniforms(seed, Purpose.FLIP, np.arange(3), 1).shape == (3, 1)
    assert np.array_equal(hashes((-1,), np.arange(3), 1), hashes((2**64 - 1,), np.arange(3), 1))


def test_a_cached_order_cannot_be_written():
    with pytest.raises(ValueError, match="read-only"):
        order(0, 0, 4)[0] = 1


def test_a_view_is_a_position_and_one_view_is_the_plain_stream():
    plain, twice = Plan(0, 10, 6, 1, 2), Plan(0, 10, 6, 1, 2, views=2)
    assert plain.positions(3).tolist() == [21, 22, 23]
    assert twice.positions(3).tolist() == [42, 43, 44, 45, 46, 47]
    assert twice.images(twice.positions(3)).tolist() == np.repeat(plain.images(plain.positions(3)), 2).tolist()


def test_a_batch_must_divide_over_the_ranks():
    with pytest.raises(ValueError, match=r"--data.batch-size 6 does not divide over 4 ranks; pick a multiple of 4"):
        Plan(0, 10, 6, world_size=4)
    with pytest.raises(ValueError, match="no training images"):
        Plan(0, 0, 6)
