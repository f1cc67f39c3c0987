"""What POSTER V1 promises besides the contract of every model."""

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fer.models import TrainOutput, create_model
from fer.models.ir import IRConfig
from fer.models.mobilefacenet import MobileFaceNetConfig, Stage
from fer.models.poster_v1 import STREAMS, TINY, PosterV1

LITTLE = replace(
    TINY,
    input_size=64,
    inner_size=32,
    image=IRConfig(depths=(1, 1, 1), widths=(4, 8, 8), stem_width=4),
    landmarks=MobileFaceNetConfig(
        stem_width=4,
        stages=(
            Stage(width=4, down=8, depth=0, residual=8),
            Stage(width=8, down=8, depth=0, residual=8),
            Stage(width=8, down=8, depth=0, residual=8),
        ),
        out_width=32,
    ),
    dim=32,
    num_heads=2,
    depth=2,
)


def little(**options: Any) -> PosterV1:
    torch.manual_seed(0)
    return PosterV1(7, config=LITTLE, landmark_frozen=False, **options)


def faces(batch: int = 3) -> Tensor:
    return torch.randn(batch, 3, 64, 64, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("streams", STREAMS)
@pytest.mark.parametrize("pyramid", [True, False])
@pytest.mark.parametrize("token_mixing", [True, False])
def test_no_variant_has_an_unused_parameter(streams: str, pyramid: bool, token_mixing: bool) -> None:
    model = little(streams=streams, pyramid=pyramid, token_mixing=token_mixing, drop_path_rate=0.0).train()
    model.loss(model(faces(4)), torch.tensor([0, 1, 2, 3])).backward()  # type: ignore[no-untyped-call]
    without = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    # A level's LayerNorm takes away again what the token mixing's bias adds: that gradient is rounding alone.
    assert [name for name in without if not name.endswith("mix.bias")] == []


def test_loss_is_two_smoothed_and_one_plain_cross_entropy() -> None:
    model = little()
    logits = torch.randn(4, 7, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    hard = torch.tensor([0, 6, 3, 3])
    expected = 2 * F.cross_entropy(logits, hard, label_smoothing=0.2) + F.cross_entropy(logits, hard)
    for targets in (hard, F.one_hot(hard, 7).double()):
        torch.testing.assert_close(model.loss(TrainOutput(logits, {}), targets), expected)


def test_streams_left_out_take_their_parameters_with_them() -> None:
    counts = {streams: sum(p.numel() for p in little(streams=streams).parameters()) for streams in STREAMS}
    assert counts["both"] > counts["landmark_to_image"] == counts["image_to_landmark"]


def test_without_streams_no_landmark_is_seen_and_the_image_tokens_attend_to_themselves() -> None:
    model = little(streams="none", pyramid=False).eval()
    assert not [name for name, _ in model.named_parameters() if name.startswith("landmarks")]
    block = model.blocks[0].levels[0]
    tokens = torch.randn(2, 5, 32, generator=torch.Generator().manual_seed(3))
    with torch.inference_mode():
        torch.testing.assert_close(block(tokens), block.mix(block.image(tokens, tokens)))


@pytest.mark.parametrize("streams", ["both", "landmark_to_image", "image_to_landmark"])
def test_without_token_mixing_a_left_out_stream_changes_nothing(streams: str) -> None:
    model = little(streams=streams, token_mixing=False, pyramid=False).eval()
    x = torch.randn(2, 10, 32, generator=torch.Generator().manual_seed(3))
    with torch.inference_mode():
        fused = model.blocks[0]([x])[0]
    assert torch.equal(fused[:, :5], x[:, :5]) == (streams == "image_to_landmark")
    assert torch.equal(fused[:, 5:], x[:, 5:]) == (streams == "landmark_to_image")


def test_stochastic_depth_grows_from_none_to_the_given_rate() -> None:
    with torch.device("meta"):
        model = create_model("poster_v1_small", drop_path_rate=0.5)
    rates = {round(module.rate, 4) for name, module in model.named_modules() if name.endswith("drop_path")}
    assert rates == {0.0, 0.1, 0.2, 0.3, 0.4, 0.5}
