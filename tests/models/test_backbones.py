"""What the shared backbones and the classifiers on them promise beyond what every model does (test_registry)."""

from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fer.models import FerModel, TrainOutput, create_model
from fer.models.inference import for_inference
from fer.models.ir import IR18, IR50, IRConfig, IRFeatures, IRUnit
from fer.models.mobilefacenet import (
    PUBLISHED,
    InvertedResidual,
    LandmarkBackbone,
    MobileFaceNetConfig,
    MobileFaceNetFeatures,
    Stage,
)

SMALL_IR = IRConfig(depths=(2, 1), widths=(8, 12), stem_width=8)
SMALL_MOBILEFACENET = MobileFaceNetConfig(
    stem_width=4,
    stages=(
        Stage(width=4, down=6, depth=1, residual=6),
        Stage(width=6, down=8, depth=1, residual=8),
        Stage(width=6, down=8, depth=1, residual=8),
    ),
    out_width=10,
)


def parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def with_random_statistics(model: nn.Module) -> nn.Module:
    """BatchNorms as of a trained network, so that folding them changes something."""
    torch.manual_seed(3)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            for tensor in (module.weight.data, module.running_var):
                tensor.uniform_(0.8, 1.2)
            for tensor in (module.bias.data, module.running_mean):
                tensor.uniform_(-0.2, 0.2)
    return model


@pytest.mark.parametrize(("config", "last"), [(IR18, (1, 512, 7, 7)), (IR50, (1, 512, 7, 7))])
def test_every_stage_of_ir_halves_the_map(config: IRConfig, last: tuple[int, ...]) -> None:
    with torch.device("meta"):
        maps = IRFeatures(config)(torch.empty(1, 3, 112, 112))
    assert [tuple(x.shape) for x in maps] == [(1, 64, 56, 56), (1, 128, 28, 28), (1, 256, 14, 14), last]


def test_mobilefacenet_gives_the_maps_that_poster_reads() -> None:
    with torch.device("meta"):
        maps = MobileFaceNetFeatures(PUBLISHED)(torch.empty(2, 3, 112, 112))
    assert [tuple(x.shape) for x in maps] == [(2, 64, 28, 28), (2, 128, 14, 14), (2, 512, 7, 7)]


def test_shortcut_of_unchanged_width_is_the_published_max_pooling() -> None:
    unit, x = IRUnit(8, 8, stride=2).eval(), torch.randn(2, 8, 13, 13)
    residual = unit.project(unit.act(unit.conv(unit.bn(x))))
    assert torch.equal(unit(x), residual + nn.MaxPool2d(1, 2)(x))


@pytest.mark.parametrize(
    ("name", "options", "shape"),
    [
        ("ir50", {"stages": 3}, (2, 256)),
        ("mobilefacenet", {}, (2, 512)),
        ("mfn", {}, (2, 256)),
        ("mobilefacenet_landmarks", {}, (2, 68, 2)),
    ],
)
def test_without_classes_the_embedding_comes_out(name: str, options: dict[str, Any], shape: tuple[int, ...]) -> None:
    model = create_model(name, 0, **options)
    x = torch.randn(2, 3, 112, 112)
    with torch.inference_mode():
        output = model.train()(x)
        embedding = model.eval()(x)
    assert isinstance(output, TrainOutput)
    assert isinstance(embedding, Tensor)
    assert output.logits.shape == embedding.shape == shape
    if name != "mobilefacenet_landmarks":
        torch.testing.assert_close(embedding.norm(dim=1), torch.ones(2))


@pytest.mark.parametrize(
    "block",
    [IRUnit(6, 6, 2), IRUnit(6, 8, 2), InvertedResidual(6, 8, 6, 1), InvertedResidual(6, 8, 10, 2)],
    ids=["ir", "ir_wider", "mobilefacenet_residual", "mobilefacenet_down"],
)
def test_folded_blocks_compute_the_same_with_fewer_batch_norms(block: nn.Module) -> None:
    class Wrapped(FerModel):
        def __init__(self) -> None:
            super().__init__(1, input_size=14)
            self.block = with_random_statistics(block)

        def forward(self, x: Tensor) -> Tensor:
            return self.block(x)  # type: ignore[no-any-return]

    model = Wrapped().double().eval()
    folded = for_inference(model)
    x = torch.randn(2, 6, 14, 14, dtype=torch.float64)
    with torch.inference_mode():
        torch.testing.assert_close(folded(x), model(x), rtol=1e-12, atol=1e-12)
    left = [name for name, module in folded.named_modules() if isinstance(module, nn.BatchNorm2d)]
    assert left == (["block.bn"] if isinstance(block, IRUnit) else [])


class TestLandmarkBranch:
    """`LandmarkBackbone`, by itself and inside a model."""

    class Model(nn.Module):
        """A model around the branch, with something to train."""

        def __init__(self, *, frozen: bool = True, bn: str = "frozen") -> None:
            super().__init__()
            self.branch = LandmarkBackbone(SMALL_MOBILEFACENET, frozen=frozen, bn=bn)
            self.fc = nn.Linear(10, 2)

        def forward(self, x: Tensor) -> Tensor:
            logits: Tensor = self.fc(self.branch(x)[-1].mean((2, 3)))
            return logits

    x = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))

    def loaded(self, **options: Any) -> "TestLandmarkBranch.Model":
        model = self.Model(**options)
        model.load_state_dict(with_random_statistics(self.Model(**options)).state_dict())
        return model

    def buffers(self, model: nn.Module) -> dict[str, Tensor]:
        return {name: buffer.clone() for name, buffer in model.named_buffers()}

    def test_frozen_random_weights_are_rejected_with_both_remedies(self) -> None:
        model = self.Model()
        with pytest.raises(ValueError, match=r"fer weights pull mobilefacenet_landmarks.*landmark_frozen=False"):
            model(self.x)
        with pytest.raises(ValueError, match="frozen at random weights"):
            model.eval().train()(self.x)

    def test_evaluation_training_of_all_and_training_after_loading_are_allowed(self) -> None:
        assert self.Model().eval()(self.x).shape == self.loaded()(self.x).shape == (4, 2)
        model = self.Model()
        model.branch.load_state_dict(self.Model().branch.state_dict())
        assert model(self.x).shape == (4, 2), "the branch alone was loaded"
        model = self.Model(frozen=False)
        model(self.x).sum().backward()
        assert all(p.grad is not None for p in model.parameters())

    def test_loading_only_other_parts_does_not_allow_training(self) -> None:
        model = self.Model()
        rest = {key: tensor for key, tensor in model.state_dict().items() if not key.startswith("branch.stem.conv.")}
        model.load_state_dict(rest, strict=False)
        with pytest.raises(ValueError, match="frozen at random weights"):
            model(self.x)

    def test_a_copy_is_loaded_when_its_original_was_and_else_by_itself(self) -> None:
        assert deepcopy(self.loaded())(self.x).shape == (4, 2)
        model = self.Model()
        copy = deepcopy(model)
        copy.load_state_dict(model.state_dict())
        assert copy.branch.loaded
        assert not model.branch.loaded

    def test_frozen_means_that_training_changes_nothing_of_the_branch(self) -> None:
        model = self.loaded().train()
        assert not any(module.training for child in model.branch.children() for module in child.modules())
        before = deepcopy(model.branch.state_dict())
        optimizer = torch.optim.SGD((p for p in model.parameters() if p.requires_grad), 0.1, weight_decay=0.1)
        for _ in range(2):
            optimizer.zero_grad()
            model(self.x).square().sum().backward()
            optimizer.step()
        assert [name for name, p in model.named_parameters() if p.grad is not None] == ["fc.weight", "fc.bias"]
        assert all(torch.equal(tensor, before[name]) for name, tensor in model.branch.state_dict().items())

    def test_frozen_gives_in_training_what_it_gives_in_evaluation(self) -> None:
        model = self.loaded()
        assert torch.equal(model.train()(self.x), model.eval()(self.x))

    def test_drift_is_the_published_behavior(self) -> None:
        model = self.loaded(bn="drift").train()
        before = self.buffers(model.branch)
        in_training = model(self.x)
        after = self.buffers(model.branch)
        assert not any(p.requires_grad for p in model.branch.parameters())
        assert all(not torch.equal(after[name], before[name]) for name in before)
        assert not torch.allclose(in_training, model.eval()(self.x))

    def test_evaluation_and_back_keeps_the_mode_of_the_branch(self) -> None:
        for bn, training in (("frozen", False), ("drift", True)):
            model = self.loaded(bn=bn)
            model.eval()
            assert not any(module.training for module in model.modules())
            model.train()
            assert model.branch.stem.bn.training is training

    def test_wrong_mode_is_named_with_what_is_allowed(self) -> None:
        with pytest.raises(ValueError, match=r"landmark_bn = 'eval': one of \('frozen', 'drift'\) is allowed"):
            LandmarkBackbone(SMALL_MOBILEFACENET, frozen=True, bn="eval")


def test_a_small_ir_is_the_same_code() -> None:
    maps = IRFeatures(SMALL_IR)(torch.randn(2, 3, 16, 16))
    assert [tuple(x.shape) for x in maps] == [(2, 8, 8, 8), (2, 12, 4, 4)]
