"""Promises of the sample order."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fer.shards.order import balanced_weights, draw_multiplicities, epoch_order, occurrences, rank_slice

sizes = st.lists(st.integers(1, 12), min_size=1, max_size=12)
seeds = st.integers(0, 2**63)
settings.register_profile("order", deadline=None, max_examples=60)
settings.load_profile("order")


@given(sizes, seeds, st.integers(0, 500), st.integers(1, 6))
def test_every_row_occurs_exactly_once_an_epoch(group_sizes, seed, epoch, window):
    order = epoch_order(group_sizes, seed=seed, epoch=epoch, window_groups=window)
    assert order.dtype == np.int64
    assert sorted(order) == list(range(sum(group_sizes)))


@given(sizes, seeds, st.integers(1, 6))
def test_window_draws_from_no_more_groups_than_configured(group_sizes, seed, window):
    group_of = np.repeat(np.arange(len(group_sizes)), group_sizes)
    met = group_of[epoch_order(group_sizes, seed=seed, epoch=3, window_groups=window)]
    first = {group: int(np.flatnonzero(met == group)[0]) for group in range(len(group_sizes))}
    last = {group: int(np.flatnonzero(met == group)[-1]) for group in range(len(group_sizes))}
    for position in range(len(met)):
        assert sum(first[group] <= position <= last[group] for group in first) <= window


@given(sizes, seeds, st.integers(1, 6), st.data())
def test_weighted_epochs_hold_as_many_rows_and_only_those_of_positive_weight(group_sizes, seed, window, data):
    total = sum(group_sizes)
    weights = np.array(data.draw(st.lists(st.sampled_from([0.0, 0.1, 1.0, 7.0]), min_size=total, max_size=total)))
    weights[data.draw(st.integers(0, total - 1))] = 1.0
    order = epoch_order(group_sizes, seed=seed, epoch=1, window_groups=window, weights=weights)
    counts = np.bincount(order, minlength=total)
    assert len(order) == total
    assert not counts[weights == 0].any()
    assert (counts == draw_multiplicities(weights, total, seed=seed, epoch=1)).all()


@given(st.integers(1, 64), st.integers(1, 64))
def test_ranks_split_a_batch_without_gap_or_overlap(batch, world):
    if world > batch:
        return
    parts = [range(batch)[rank_slice(batch, rank, world)] for rank in range(world)]
    assert [index for part in parts for index in part] == list(range(batch))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


@given(st.lists(st.integers(0, 5), max_size=40))
def test_occurrences_count_earlier_occurrences_of_a_row(rows):
    expected = [rows[:position].count(row) for position, row in enumerate(rows)]
    assert occurrences(np.array(rows, np.int64)).tolist() == expected


def test_the_order_is_the_same_on_every_platform_and_release():
    # Written down once: a change here changes every training that was or will be resumed.
    assert epoch_order([3, 2, 4], seed=1, epoch=0, window_groups=2).tolist() == GOLDEN_PLAIN
    weights = balanced_weights(np.array([0, 0, 0, 0, 0, 0, 1, 1, 2]))
    assert epoch_order([3, 2, 4], seed=1, epoch=0, window_groups=2, weights=weights).tolist() == GOLDEN_WEIGHTED


def test_epochs_and_seeds_differ():
    orders = {tuple(epoch_order([8] * 6, seed=s, epoch=e, window_groups=3)) for s in range(5) for e in range(5)}
    assert len(orders) == 25


def test_shuffling_is_uniform_within_a_window():
    first = np.array([epoch_order([5, 5], seed=s, epoch=0, window_groups=2)[0] for s in range(4000)])
    counts = np.bincount(first, minlength=10)
    assert ((counts - 400) ** 2 / 400).sum() < 27.9  # chi-square, 9 degrees of freedom, p = 0.001


def test_balanced_sampling_makes_classes_equally_frequent():
    labels = np.repeat([0, 1, 2], [900, 90, 10])
    weights = balanced_weights(labels)
    counts = sum(
        np.bincount(labels[epoch_order([100] * 10, seed=0, epoch=e, weights=weights)], minlength=3) for e in range(30)
    )
    assert np.allclose(counts / 30_000, 1 / 3, atol=0.01)


@pytest.mark.parametrize("weights", [[1.0], [1.0, -1.0], [0.0, 0.0], [1.0, np.inf], [1.0, np.nan]])
def test_invalid_weights_are_rejected(weights):
    with pytest.raises(ValueError, match="weights"):
        epoch_order([2], seed=0, epoch=0, weights=np.array(weights))


def test_no_rows_make_an_empty_epoch():
    assert epoch_order([], seed=0, epoch=0).tolist() == []
    assert balanced_weights(np.zeros(0, np.int64)).size == 0


GOLDEN_PLAIN = [0, 1, 2, 3, 4, 7, 6, 8, 5]
GOLDEN_WEIGHTED = [1, 2, 2, 3, 8, 7, 7, 7, 5]
