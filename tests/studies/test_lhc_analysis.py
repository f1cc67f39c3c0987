"""The analysis of LHC-Net's runs and trained networks, against values computed by hand."""

from __future__ import annotations

import pytest
import torch

from fer.models import create_model
from fer.models.lhc_net import LHCBlock, LHCNet
from fer.studies.lhc_analysis import (
    break_even,
    correlations,
    head_correlation,
    is_kept,
    reinitialized,
    set_summary,
    switched_off,
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


def test_a_set_is_summarized_without_its_rejects_and_against_the_hosts_of_the_same_seeds() -> None:
    def one(seed: int, accuracy: float, loss: float) -> dict[str, float]:
        return {"seed": seed, "test_accuracy": accuracy, "train_loss": loss}

    hosts = {0: one(0, 0.70, 0.5), 1: one(1, 0.72, 0.5), 2: one(2, 0.71, 0.5)}
    line = set_summary([one(0, 0.73, 0.4), one(1, 0.20, 0.9), one(2, 0.70, 0.54), one(3, 0.75, 9.0)], hosts)
    assert line["rejected"] == [1]
    assert line["runs"] == 4
    assert line["mean"] == pytest.approx((0.73 + 0.70 + 0.75) / 3)
    assert line["Best"] == 0.75
    assert line["Top 40%"] == 0.75  # 1.2 of three runs
    assert line["differences"] == pytest.approx([0.03, -0.01])  # seed 3 has no host
    none = set_summary([one(1, 0.2, 0.9)], hosts)
    assert none["mean"] is none["Best"] is none["Top 25%"] is None


def test_heads_that_attend_alike_correlate_fully_and_opposite_ones_negatively() -> None:
    one = torch.tensor([[0.9, 0.1], [0.2, 0.8]])
    weights = torch.stack([one, 0.5 * one + 0.1, 1 - one])[None].expand(3, -1, -1, -1)
    assert correlations(weights) == pytest.approx([1.0, -1.0, -1.0])
    # by hand: (1, 0, 0, 0) and (0, 1, 0, 0), means 1/4 off: -1/4 over 3/4
    apart = torch.tensor([[[[1.0, 0.0], [0.0, 0.0]], [[0.0, 1.0], [0.0, 0.0]]]])
    assert correlations(apart) == pytest.approx([-1 / 3])


def test_the_correlation_of_heads_covers_every_block(nano: LHCNet) -> None:
    lines = head_correlation(nano, torch.randn(2, 3, 64, 64))
    assert [(line["block"], line["heads"]) for line in lines] == [(1, 8), (2, 8), (3, 4), (4, 4), (5, 1)]
    assert lines[4]["mean"] is None
    for line in lines[:4]:
        assert isinstance(line["mean"], float)
        assert isinstance(line["highest"], float)
        assert -1 <= line["mean"] <= line["highest"] <= 1


def test_the_attention_weights_of_a_query_sum_to_one(nano: LHCNet) -> None:
    block = nano.lhc[0]
    assert isinstance(block, LHCBlock)
    weights = block.weights(torch.randn(2, 16, 16, 16))
    assert weights.shape == (2, 8, 16, 16)
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 8, 16))


@torch.no_grad()
def test_blocks_are_switched_off_or_reinitialized_in_a_copy(nano: LHCNet) -> None:
    x = torch.randn(2, 3, 64, 64)
    whole = nano(x)
    host = create_model("lhc_net_nano", 7, blocks=[False] * 5).eval()
    host.load_state_dict({key: value for key, value in nano.state_dict().items() if not key.startswith("lhc.")})
    torch.testing.assert_close(switched_off(nano, (1, 2, 3, 4, 5))(x), host(x))
    assert not torch.equal(switched_off(nano, (2,))(x), whole)
    drawn = reinitialized(nano, (2,), seed=1)
    assert torch.equal(drawn(x), reinitialized(nano, (2,), seed=1)(x))
    before = nano.state_dict()
    changed = {key[:6] for key, value in drawn.state_dict().items() if not torch.equal(value, before[key])}
    assert changed == {"lhc.1."}
    assert torch.equal(nano(x), whole)


def test_break_even_is_as_printed_for_the_first_two_blocks() -> None:
    assert break_even(56, 64, 8) == pytest.approx((392 + 576) / (3136 + 576))
    assert round(break_even(56, 64, 8, 196), 2) == 0.26
    assert break_even(56, 64, 1) == 1.0  # one head attends to everything either way
    local = 2 * 64 * 3136 * 196 + 9 * 64 * 64 * 3136  # eight heads, each of an eighth of the positions
    whole = 8 * 2 * 64 * 3136 * 196 + 9 * 64 * 64 * 3136
    assert break_even(56, 64, 8) == pytest.approx(local / whole)
