"""The analysis of LHC-Net's runs and trained networks, against values computed by hand."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch

from fer.models import create_model
from fer.models.lhc_net import LHCBlock, LHCNet
from fer.studies.lhc_analysis import (
    averaged_runs,
    correlations,
    detrained,
    efficiency,
    global_head,
    head_correlation,
    is_kept,
    local_heads,
    sections,
    set_summary,
    size,
    switched_off,
    threshold,
    top_mean,
)

TEN = [0.70, 0.71, 0.72, 0.73, 0.74, 0.75, 0.76, 0.77, 0.78, 0.79]


@pytest.fixture
def nano() -> LHCNet:
    torch.manual_seed(0)
    model = create_model("lhc_net_nano", 7).eval()
    assert isinstance(model, LHCNet)
    return model


def test_the_best_runs_are_averaged_with_and_without_the_very_best() -> None:
    assert top_mean(TEN, 0.40) == pytest.approx((0.79 + 0.78 + 0.77 + 0.76) / 4)
    assert top_mean(TEN, 0.40, with_best=False) == pytest.approx((0.78 + 0.77 + 0.76) / 3)
    assert top_mean(TEN, 0.25) == pytest.approx((0.79 + 0.78 + 0.77) / 3)  # 2.5 runs are three
    assert top_mean([0.5], 0.25) == 0.5
    assert top_mean([0.5], 0.25, with_best=False) is None


def test_a_run_is_left_out_where_its_training_loss_exceeds_its_hosts_by_ten_percent() -> None:
    assert is_kept(1.09, 1.0)
    assert not is_kept(1.1, 1.0)
    assert not is_kept(float("nan"), 1.0)


def test_a_set_is_summarized_without_its_rejects_and_compared_seed_by_seed() -> None:
    def one(row: str, seed: int, accuracy: float, loss: float = 0.4) -> dict[str, Any]:
        return {"row": row, "seed": seed, "test_accuracy": accuracy, "train_loss": loss}

    base = [one("A", 0, 0.70), one("A", 1, 0.72), one("A", 2, 0.71, 9.0)]
    runs = [one("B", 0, 0.73), one("B'", 0, 0.75, 0.549), one("C", 1, 0.20, 0.55), one("C", 2, 0.74)]
    line = set_summary(runs, 0.5, base)
    assert line["rejected"] == ["C, seed 1"]
    assert line["runs"] == 4
    assert line["mean"] == pytest.approx((0.73 + 0.75 + 0.74) / 3)
    assert line["Best"] == 0.75
    assert line["Top 40%"] == 0.75  # 1.2 of three runs
    assert line["differences"] == pytest.approx([0.04]), "the mean of seed 0's runs; seed 2's base was left out"
    none = set_summary([one("C", 1, 0.2, 0.9)], 0.5, base)
    assert none["mean"] is none["Best"] is none["Top 25%"] is None
    assert none["differences"] == []


@pytest.mark.parametrize(
    ("printed", "runs"),
    [
        ((72.69, 72.65, 72.81), (3, 5)), ((72.75, 72.69, 72.81), (2, 2)),
        ((72.89, 72.77, 73.39), (5, 5)), ((73.02, 72.83, 73.39), (3, 3)),
        ((73.04, 72.79, 73.53), (3, 3)), ((73.21, 72.89, 73.53), (2, 2)),
    ],
)  # fmt: skip
def test_the_printed_means_tell_how_many_runs_they_are_of(
    printed: tuple[float, float, float], runs: tuple[int, int]
) -> None:
    """Results 1: with the best run, without it, and that run alone; k runs of mean m: (k m - best) / (k - 1)."""
    assert averaged_runs(*printed) == runs
    mean, without, best = printed
    assert any(abs((k * mean - best) / (k - 1) - without) <= 0.02 for k in range(runs[0], runs[1] + 1))


def test_size_is_what_results_2_prints() -> None:
    with torch.device("meta"):
        found = {name: size(create_model(name)) for name in ("resnet34v2", "lhc_net", "lhc_netc")}
    assert {name: round(one["keras_parameters"] / 1e6, 1) for name, one in found.items()} == {
        "resnet34v2": 27.6, "lhc_net": 32.4, "lhc_netc": 32.4
    }  # fmt: skip
    assert found["resnet34v2"]["attention_share"] == 0
    assert round(100 * found["lhc_net"]["attention_share"], 1) == 14.8


def test_heads_with_equal_outputs_correlate_fully_and_opposite_ones_negatively() -> None:
    one = torch.tensor([[0.9, 0.1], [0.2, 0.8]])
    outputs = torch.stack([one, 0.5 * one + 0.1, 1 - one])[None].expand(3, -1, -1, -1)
    assert correlations(outputs) == pytest.approx([1.0, -1.0, -1.0])
    # by hand: (1, 0, 0, 0) and (0, 1, 0, 0), means 1/4 off: -1/4 over 3/4
    apart = torch.tensor([[[[1.0, 0.0], [0.0, 0.0]], [[0.0, 1.0], [0.0, 0.0]]]])
    assert correlations(apart) == pytest.approx([-1 / 3])


@torch.no_grad()
def test_the_correlation_is_of_the_heads_outputs_of_every_block(nano: LHCNet) -> None:
    x = torch.randn(2, 3, 64, 64)
    lines = head_correlation(nano, x)
    assert [(line["block"], line["heads"]) for line in lines] == [(1, 8), (2, 8), (3, 4), (4, 4), (5, 1)]
    assert [len(line["correlations"]) for line in lines] == [28, 28, 6, 6, 0]
    assert all(-1 <= value <= 1 for line in lines for value in line["correlations"])
    block, entering = nano.lhc[0], nano.stem(x)
    assert isinstance(block, LHCBlock)
    bands = block.attention(entering).unflatten(2, (8, 2)).permute(0, 2, 3, 4, 1)  # (B,n,H/n,W,C): a band a head
    one, other = (bands[:, head].flatten(1).numpy() for head in (0, 1))
    expected = np.mean([np.corrcoef(*pair)[0, 1] for pair in zip(one, other, strict=True)])
    assert lines[0]["correlations"][0] == pytest.approx(expected, abs=1e-6)


def test_the_attention_weights_of_a_query_sum_to_one(nano: LHCNet) -> None:
    block = nano.lhc[0]
    assert isinstance(block, LHCBlock)
    weights = block.weights(torch.randn(2, 16, 16, 16))
    assert weights.shape == (2, 8, 16, 16)
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 8, 16))


@torch.no_grad()
def test_blocks_are_switched_off_or_detrained_in_a_copy(nano: LHCNet) -> None:
    x = torch.randn(2, 3, 64, 64)
    whole = nano(x)
    host = create_model("lhc_net_nano", 7, blocks=[False] * 5).eval()
    host.load_state_dict({key: value for key, value in nano.state_dict().items() if not key.startswith("lhc.")})
    torch.testing.assert_close(switched_off(nano, (1, 2, 3, 4, 5))(x), host(x))
    assert not torch.equal(switched_off(nano, (2,))(x), whole)
    torch.manual_seed(1)
    first = create_model("lhc_net_nano", 7)
    assert isinstance(first, LHCNet)
    found, before, initial = detrained(nano, first, (2,)).state_dict(), nano.state_dict(), first.state_dict()
    for key, value in found.items():
        assert torch.equal(value, (initial if key.startswith("lhc.1.") else before)[key]), key
    assert any(not torch.equal(found[key], before[key]) for key in found)
    assert torch.equal(nano(x), whole)


# ------------------------------------------------------------------------------------------------ equations 21 to 26

POSITIONS, DIM, HEADS = 56 * 56, 196, 8
"""Of the first two blocks: HW, d = HW / 2n, n."""


def test_of_the_pairs_without_empty_sections_two_favor_the_global_head_as_printed() -> None:
    whole = global_head(POSITIONS, DIM).by_dimension
    favors = {
        (a, b): local_heads(POSITIONS, DIM, HEADS, a, b).by_dimension > whole for a, b in ((a, 8 - a) for a in range(9))
    }
    assert [pair for pair, local in favors.items() if not local] == [(0, 8), (1, 7)]


def test_local_heads_win_exactly_where_a_exceeds_0_26_b() -> None:
    ratio = threshold(POSITIONS, DIM, HEADS)
    assert ratio == Fraction(7, 27)
    assert round(float(ratio), 2) == 0.26
    whole = global_head(POSITIONS, DIM).by_dimension
    for a, b, _ in sections(HEADS):
        wins = local_heads(POSITIONS, DIM, HEADS, a, b).by_dimension > whole
        assert wins == (a > ratio * b) == (3 * a + b > Fraction(144, 102) * (a + b)), (a, b)


def test_by_relationship_local_heads_are_never_worse_and_equal_only_without_one_sided_sections() -> None:
    whole = global_head(POSITIONS, DIM).by_relationship
    assert whole == Fraction(1, 6)
    for a, b, _ in sections(HEADS):
        local = local_heads(POSITIONS, DIM, HEADS, a, b).by_relationship
        assert local >= whole
        assert (local == whole) == (a == 0)


def test_one_local_head_that_sees_everything_is_the_global_head() -> None:
    assert local_heads(POSITIONS, DIM, 1, 0, 1) == global_head(POSITIONS, DIM)
    assert threshold(POSITIONS, DIM, 1) == 0


def test_values_by_hand() -> None:
    """HW = 8, d = 1, n = 4: sections of 2. G1 = 8 / 54; L1 of A = 1, B = 1: (2 / 6 + 2 / 18) / 2."""
    assert global_head(8, 1).by_dimension == Fraction(8, 54)
    assert local_heads(8, 1, 4, 1, 1).by_dimension == (Fraction(2, 6) + Fraction(2, 18)) / 2
    assert local_heads(8, 1, 4, 1, 1).by_relationship == (Fraction(1, 2) + Fraction(1, 6)) / 2
    for a, b in ((0, 0), (3, 2), (-1, 2)):
        with pytest.raises(ValueError, match=f"A = {a}, B = {b}"):
            local_heads(8, 1, 4, a, b)


def test_over_all_combinations_the_global_head_wins_more_often_than_printed() -> None:
    found = efficiency()
    assert (found["combinations"], found["global_wins"]) == (44, 12)
    assert [pair["local"] for pair in found["pairs"]] == [False, False, *[True] * 7]
    assert [round(one["threshold"], 2) for one in found["blocks"]] == [0.26, 0.26, 0.25, 0.25, 0.0]
