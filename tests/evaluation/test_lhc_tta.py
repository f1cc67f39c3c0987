"""The views of LHC-Net's test-time augmentation are the published code's, in its order and with its pixels."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from builders.conformance import load

from fer.evaluation.tta import View, predict_views, views

LHC = load("lhc_tta")


def image() -> torch.Tensor:
    yy, xx = np.mgrid[0:64, 0:64].astype(np.float64)
    channels = [
        127.5 + 60 * np.sin(xx / 7) + 50 * np.cos(yy / 5 + 0.3 * xx / 9),
        255.0 * ((xx // 8 + yy // 8) % 2),
        2 * xx + yy,
    ]
    return torch.from_numpy(np.stack(channels).astype(np.float32))[None]


@pytest.mark.parametrize("case", LHC["cases"], ids=lambda case: str(list(case["params"].values())))
def test_each_view_is_the_published_one(case: dict) -> None:
    params = case["params"]
    view = View(
        zoom=params["zoom"],
        rotation=params["rot"],
        right=params["shift_h"],
        down=params["shift_v"],
        flip=params["flip"],
    )
    found = view(image())[0].permute(1, 2, 0).numpy()
    np.testing.assert_allclose(found[20, :, 0], case["row 20, channel 0"], rtol=0, atol=5e-4)
    stats = case["stats"]
    assert found.mean() == pytest.approx(stats["mean"], abs=2e-5)
    assert found.std() == pytest.approx(stats["std"], abs=2e-5)
    np.testing.assert_allclose(found.reshape(-1)[:8], stats["first8"], rtol=0, atol=5e-4)
    np.testing.assert_allclose(found.reshape(-1)[-4:], stats["last4"], rtol=0, atol=5e-4)


def test_the_views_come_in_the_published_order_and_the_image_itself_counts_three_times() -> None:
    ours = views("lhc", 224)
    published = LHC["views_in_order [zoom,rot_rad,shift_h_px,shift_v_px,flip]"]
    assert [[v.zoom, v.rotation, v.right, v.down, v.flip] for v, _ in ours[1:]] == published
    assert len(published) == LHC["n_views"]
    assert ours[0] == (View(), 3)
    assert sum(weight for _, weight in ours) == 62


def test_the_views_of_the_text_differ_from_the_codes_in_the_rotation_of_the_zoomed_ones() -> None:
    code, text = views("lhc", 224), views("lhc_paper", 224)
    assert text[:54] == code[:54]
    zoomed = [(v.zoom, v.rotation, v.flip, weight) for v, weight in text[54:]]
    assert zoomed == [(0.9, rotation, flip, 1) for rotation in (0, 0.4, -0.4) for flip in (False, True)]


def test_shifts_are_the_same_share_of_any_size() -> None:
    assert {abs(view.right) for view, _ in views("lhc", 112)} == {0, 5}


def test_the_mean_is_of_probabilities_and_the_plain_logits_come_with_it() -> None:
    torch.manual_seed(0)
    weight = torch.randn(5, 3 * 8 * 8)
    x = torch.randn(2, 3, 8, 8)

    def model(x: torch.Tensor) -> torch.Tensor:
        return x.flatten(1) @ weight.T

    plain, together = predict_views(model, x, views("flip", 8))
    assert torch.equal(plain, model(x))
    expected = (model(x).softmax(1) + model(x.flip(-1)).softmax(1)) / 2
    torch.testing.assert_close(together.exp(), expected)
    torch.testing.assert_close(together.exp().sum(1), torch.ones(2))
    alone, same = predict_views(model, x, views("none", 8))
    torch.testing.assert_close(same, alone.log_softmax(1))


def test_a_quarter_turn_is_exact_and_goes_against_the_clock() -> None:
    x = torch.arange(9.0).reshape(1, 1, 3, 3)
    torch.testing.assert_close(View(rotation=math.pi / 2)(x), x.rot90(1, (2, 3)))
