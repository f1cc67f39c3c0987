"""Class activation maps of every model, and what they are where the answer follows from the formula."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fer.explain.cam import METHODS, attribute, enlarged, grad_cam, score_cam
from fer.explain.layers import as_map, default_layer, map_layers
from fer.models import FerModel, create_model, list_models, registry
from fer.models.inference import for_inference

SMALL = (
    "btn_nano", "ddamfn_nano", "dynamic_vit_nano", "ir_nano", "lhc_net_nano", "mfn_arcface_nano", "mfn_nano",
    "mobilefacenet_nano", "poster_v1_nano", "poster_v2_nano", "resnet34v2_medium",
)  # fmt: skip

LAYERS = {
    "btn": ("poster.vit.blocks.1.norm1", 7),
    "btn_nano": ("poster.vit.blocks.1.norm1", 3),
    "ddamfn_nano": ("features", 4),
    "ddamfn": ("features", 7),
    "dynamic_vit_base": ("stages.3", 7),
    "dynamic_vit_nano": ("stages.2", 4),
    "ir50": ("features", 7),
    "lhc_net": ("lhc.4", 7),
    "lhc_net_nano": ("lhc.3", 4),
    "poster_v1_nano": ("image", 6),
    "poster_v2_nano": ("vit.blocks.1.norm1", 3),
    "resnet34v2_medium": ("stages.2", 6),
    "resnet50": ("stages", 7),
    "vit_b16": ("transformer.blocks.11.norm1", 14),
}

MODELS = [name for name in list_models() if registry._entry(name).builder.__module__.startswith("fer.")]


def made(name: str, **options: object) -> FerModel:
    torch.manual_seed(0)
    return create_model(name, **options).eval()


def images_of(model: FerModel, count: int = 2) -> torch.Tensor:
    return torch.randn(count, 3, model.input_size, model.input_size, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", MODELS)
def test_every_model_has_a_default_layer_whose_output_is_a_map(name: str) -> None:
    with torch.device("meta"):
        model = create_model(name).eval()
    layer = default_layer(model)
    side = map_layers(model)[layer]
    assert side >= 3
    if name in LAYERS:
        assert (layer, side) == LAYERS[name]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", SMALL)
def test_maps_are_of_the_images_size_and_lie_between_0_and_1(name: str, method: str) -> None:
    model = made(name)
    images = images_of(model)
    found = attribute(model, images, method)  # type: ignore[arg-type]
    assert found.maps.shape == images[:, 0].shape
    assert found.maps.dtype == found.raw.dtype == torch.float32
    assert found.maps.min() >= 0
    assert found.maps.max() <= 1
    assert (found.raw >= 0).all()
    assert torch.equal(found.target, model(images).argmax(1))
    assert not found.maps.requires_grad


@pytest.mark.parametrize("name", SMALL)
def test_looking_at_any_map_changes_no_logit(name: str) -> None:
    model = made(name)
    images = images_of(model, 3)
    with torch.no_grad():
        logits = model(images)
        for layer in list(map_layers(model))[::7]:
            with as_map(model, layer):
                assert torch.equal(model(images), logits), layer
        assert torch.equal(model(images), logits), "nothing is left on the model"


class Averaged(FerModel):
    """A convolution, the mean of its map, a linear layer: its Grad-CAM is known."""

    def __init__(self, num_classes: int = 3) -> None:
        super().__init__(num_classes, input_size=8)
        self.conv = nn.Conv2d(3, 5, 3, 2, 1)
        self.fc = nn.Linear(5, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.conv(x).mean((2, 3)))  # type: ignore[no-any-return]


def test_grad_cam_of_a_mean_and_a_linear_layer_is_the_class_activation_map() -> None:
    torch.manual_seed(0)
    model = Averaged().eval()
    images, target = torch.randn(2, 3, 8, 8), torch.tensor([2, 0])
    channels = model.conv(images)
    expected = torch.einsum("bc,bchw->bhw", model.fc.weight[target], channels).relu() / channels[0, 0].numel()
    assert torch.allclose(grad_cam(model, images, target, "conv"), expected, atol=1e-6)
    assert default_layer(model) == "conv", "where no module of several layers has a map"


def test_score_cam_is_algorithm_1_of_its_paper() -> None:
    torch.manual_seed(0)
    model = Averaged().eval()
    images = torch.randn(1, 3, 8, 8)
    channels = model.conv(images)[0]
    scores = []
    for channel in channels:
        mask = F.interpolate(channel[None, None], (8, 8), mode="bilinear", align_corners=False)
        mask = (mask - mask.min()) / (mask.max() - mask.min())
        scores.append((model(images * mask) - model(torch.zeros_like(images)))[0, 1])
    expected = (torch.stack(scores).softmax(0)[:, None, None] * channels).sum(0).relu()
    assert torch.allclose(score_cam(model, images, torch.tensor([1]), "conv")[0], expected, atol=1e-6)


def test_tokens_of_several_levels_are_added_up_place_by_place() -> None:
    model = made("poster_v2_nano")
    images, target = images_of(model), torch.tensor([0, 1])
    kept: list[torch.Tensor] = []
    block = model.get_submodule("vit.blocks.1.norm1")
    handle = block.register_forward_hook(lambda module, inputs, output: kept.append(output))
    score = model(images.requires_grad_()).gather(1, target[:, None]).sum()
    handle.remove()
    (gradient,) = torch.autograd.grad(score, kept)
    tokens, gradient = kept[0][:, 1:], gradient[:, 1:]  # without the class token
    expected = (tokens * gradient.mean(1, keepdim=True)).sum(2).view(2, 3, 3, 3).sum(1).relu()
    assert torch.allclose(grad_cam(model, images, target, "vit.blocks.1.norm1"), expected, atol=1e-6)


def test_a_map_that_is_the_same_everywhere_shows_nothing() -> None:
    assert (enlarged(torch.full((1, 4, 4), 3.0), 8) == 0).all()


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"layer": "fusions.7"}, r"'fusions\.7' .*did you mean 'fusions\.2'\?"),
        ({"layer": "head"}, r"'head' .* no map; its default is 'vit\.blocks\.1\.norm1'"),
        ({"method": "lime"}, r"'lime': one of grad_cam, score_cam"),
        ({"target": 7}, r"\[7, 7\]: the model has classes 0 to 6"),
    ],
)
def test_a_wrong_argument_is_refused_by_name(arguments: dict[str, object], told: str) -> None:
    model = made("poster_v2_nano")
    with pytest.raises(ValueError, match=told):
        attribute(model, images_of(model), **arguments)  # type: ignore[arg-type]


def test_tokens_that_are_no_places_are_refused() -> None:
    model = made("poster_v1_nano")
    with pytest.raises(ValueError, match=r"no map; its default is 'image'"):
        attribute(model, images_of(model), layer="blocks.0.levels.0")


@pytest.mark.parametrize("change", [lambda model: model.train(), for_inference])
def test_a_model_that_cannot_be_explained_is_refused(change) -> None:  # type: ignore[no-untyped-def]
    model = made("ddamfn_nano")
    with pytest.raises(ValueError, match="training mode or a copy for inference"):
        attribute(change(model), images_of(model))
