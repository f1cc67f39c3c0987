"""ViT-B/16 and MobileFaceNet are the same network in every layout in which they are published."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from fer.io.files import FileError
from fer.models import create_model
from fer.models.base import IMAGENET_MEAN, IMAGENET_STD
from fer.models.layers.tokens import ClassTokenTransformer, to_tokens
from fer.weights.convert import convert, published_options
from fer.weights.layouts import LAYOUTS
from fer.weights.parts import load_part, load_sources, locate
from fer.weights.published import load_published, read_published

DIM, HEADS, DEPTH, PATCH, SIZE, CLASSES = 8, 2, 2, 4, 8, 5
TOKENS = (SIZE // PATCH) ** 2


class SmallViT(nn.Module):
    """Our ViT-B/16 in small, its parts under the same names."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, DIM, PATCH, stride=PATCH)
        self.transformer = ClassTokenTransformer(TOKENS, DIM, depth=DEPTH, num_heads=HEADS)
        self.head = nn.Linear(DIM, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.transformer(to_tokens(self.patches(x))))  # type: ignore[no-any-return]


def jax_arrays(*, dim: int = DIM, heads: int = HEADS, depth: int = DEPTH, patch: int = PATCH, tokens: int = TOKENS,
               classes: int = CLASSES, meta: bool = False) -> dict[str, Tensor]:  # fmt: skip
    """A checkpoint of google-research/vision_transformer."""
    each, hidden = dim // heads, 4 * dim
    shapes: dict[str, tuple[int, ...]] = {
        "cls": (1, 1, dim),
        "embedding/kernel": (patch, patch, 3, dim),
        "embedding/bias": (dim,),
        "Transformer/posembed_input/pos_embedding": (1, tokens + 1, dim),
        "Transformer/encoder_norm/scale": (dim,),
        "Transformer/encoder_norm/bias": (dim,),
        "head/kernel": (dim, classes),
        "head/bias": (classes,),
    }
    for number in range(depth):
        block, attention = f"Transformer/encoderblock_{number}", "MultiHeadDotProductAttention_1"
        for norm in ("LayerNorm_0", "LayerNorm_2"):
            shapes |= {f"{block}/{norm}/{kind}": (dim,) for kind in ("scale", "bias")}
        for part in ("query", "key", "value"):
            shapes |= {f"{block}/{attention}/{part}/kernel": (dim, heads, each)}
            shapes |= {f"{block}/{attention}/{part}/bias": (heads, each)}
        shapes |= {f"{block}/{attention}/out/kernel": (heads, each, dim), f"{block}/{attention}/out/bias": (dim,)}
        shapes |= {f"{block}/MlpBlock_3/Dense_0/kernel": (dim, hidden), f"{block}/MlpBlock_3/Dense_0/bias": (hidden,)}
        shapes |= {f"{block}/MlpBlock_3/Dense_1/kernel": (hidden, dim), f"{block}/MlpBlock_3/Dense_1/bias": (dim,)}
    random = torch.Generator().manual_seed(1)
    return {
        key: torch.empty(shape, device="meta") if meta else torch.randn(shape, generator=random)
        for key, shape in shapes.items()
    }


def jax_logits(arrays: dict[str, Tensor], x: Tensor) -> Tensor:
    """The forward pass of that checkpoint, in its own shapes; x (B,3,H,W)."""

    def normalize(y: Tensor, name: str) -> Tensor:
        return F.layer_norm(y, (DIM,), arrays[f"{name}/scale"], arrays[f"{name}/bias"], 1e-6)

    def dense(y: Tensor, name: str, equation: str = "btd,de->bte") -> Tensor:
        return torch.einsum(equation, y, arrays[f"{name}/kernel"]) + arrays[f"{name}/bias"]

    pixels = x.permute(0, 2, 3, 1).unfold(1, PATCH, PATCH).unfold(2, PATCH, PATCH)  # (B,h,w,3,P,P)
    y = torch.einsum("bhwcij,ijcd->bhwd", pixels, arrays["embedding/kernel"]) + arrays["embedding/bias"]
    y = torch.cat([arrays["cls"].expand(len(x), 1, DIM), y.flatten(1, 2)], 1)
    y = y + arrays["Transformer/posembed_input/pos_embedding"]
    for number in range(DEPTH):
        block = f"Transformer/encoderblock_{number}"
        attention, z = f"{block}/MultiHeadDotProductAttention_1", normalize(y, f"{block}/LayerNorm_0")
        q, k, v = (dense(z, f"{attention}/{part}", "btd,dhe->bthe") for part in ("query", "key", "value"))
        weights = torch.softmax(torch.einsum("bqhe,bkhe->bhqk", q, k) * (DIM // HEADS) ** -0.5, -1)
        y = y + dense(torch.einsum("bhqk,bkhe->bqhe", weights, v), f"{attention}/out", "bthe,hed->btd")
        z = F.gelu(dense(normalize(y, f"{block}/LayerNorm_2"), f"{block}/MlpBlock_3/Dense_0"))
        y = y + dense(z, f"{block}/MlpBlock_3/Dense_1")
    return dense(normalize(y, "Transformer/encoder_norm")[:, :1], "head")[:, 0]


def ours(layout_of: str, published: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors under our names, whatever their sizes."""
    layout = LAYOUTS[layout_of].of(published)
    return {layout.our_key(key): tensor for key, tensor in layout.adapt(published).items()}


def small(published: dict[str, Tensor]) -> SmallViT:
    model = SmallViT().eval()
    model.load_state_dict(ours("vit_b16", published), strict=True)
    return model


IN_TORCHVISION = {
    "patches.": "conv_proj.", "transformer.cls_token": "class_token", "transformer.positions": "encoder.pos_embedding",
    "transformer.norm.": "encoder.ln.", "transformer.blocks.": "encoder.layers.encoder_layer_", ".norm1.": ".ln_1.",
    ".norm2.": ".ln_2.", ".attention.qkv.": ".self_attention.in_proj_", ".attention.proj.": ".self_attention.out_proj.",
    "head.": "heads.head.",
}  # fmt: skip
IN_TIMM = {
    "patches.": "patch_embed.proj.", "transformer.cls_token": "cls_token", "transformer.positions": "pos_embed",
    "transformer.": "", ".attention.": ".attn.",
}  # fmt: skip


def renamed(state: dict[str, Tensor], names: dict[str, str]) -> dict[str, Tensor]:
    """Our tensors under the names of others."""
    result = {}
    for key, tensor in state.items():
        for ours, theirs in names.items():
            key = key.replace(ours, theirs)
        result[key] = tensor
    return result


def test_googles_arrays_give_googles_logits() -> None:
    arrays, x = jax_arrays(), torch.randn(2, 3, SIZE, SIZE)
    assert torch.allclose(small(arrays)(x), jax_logits(arrays, x), atol=1e-5)


def test_timms_names_give_the_same_tensors() -> None:
    state = small(jax_arrays()).state_dict()
    published = renamed(state, IN_TIMM)
    assert {"patch_embed.proj.weight", "blocks.0.attn.qkv.weight", "norm.weight", "head.bias"} <= published.keys()
    found = ours("vit_b16", published)
    assert found.keys() == state.keys()
    assert all(torch.equal(found[key], state[key]) for key in state)


@pytest.mark.parametrize("mlp", [("linear_1", "linear_2"), ("0", "3")])
def test_torchvisions_weights_see_the_pixels_that_they_expect(mlp: tuple[str, str]) -> None:
    model = small(jax_arrays())
    names = {**IN_TORCHVISION, ".mlp.fc1.": f".mlp.{mlp[0]}.", ".mlp.fc2.": f".mlp.{mlp[1]}."}
    published = renamed(model.state_dict(), names)
    assert {"encoder.layers.encoder_layer_1.self_attention.in_proj_weight", "heads.head.weight"} <= published.keys()
    pixels = torch.rand(2, 3, SIZE, SIZE)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
    expected = model((pixels - mean) / std)
    assert torch.allclose(small(published)((pixels - 0.5) / 0.5), expected, atol=1e-4)


def test_the_full_arrays_before_and_after_fine_tuning_fit_vit_b16() -> None:
    full: dict[str, Any] = {"dim": 768, "heads": 12, "depth": 12, "patch": 16, "tokens": 196, "meta": True}
    tuned = jax_arrays(**full, classes=1000)
    assert published_options("vit_b16", tuned) == {"num_classes": 1000}
    with torch.device("meta"):
        expected = create_model("vit_b16", 1000).state_dict()
    assert convert("vit_b16", tuned).keys() == expected.keys()
    pretrained = jax_arrays(**full, classes=21843) | {
        "pre_logits/kernel": torch.empty(768, 768, device="meta"), "pre_logits/bias": torch.empty(768, device="meta")
    }  # fmt: skip
    assert published_options("vit_b16", pretrained) == {"num_classes": None}
    assert expected.keys() - convert("vit_b16", pretrained).keys() == {"head.weight", "head.bias"}
    larger = {**full, "tokens": 576}
    with pytest.raises(ValueError, match=r"pos_embedding: shape \(1, 577, 768\)"):
        convert("vit_b16", jax_arrays(**larger, classes=1000))
    del tuned["Transformer/encoderblock_3/MultiHeadDotProductAttention_1/key/bias"]
    with pytest.raises(ValueError, match=r"missing: the tensor for transformer\.blocks\.3\.attention\.qkv\.bias"):
        convert("vit_b16", tuned)


@pytest.mark.parametrize("shape", [(), (3,), (0, 2, 4)])
def test_shapes_that_cannot_be_joined_are_an_error_of_the_layout(shape: tuple[int, ...]) -> None:
    arrays = jax_arrays() | {
        "Transformer/encoderblock_0/MultiHeadDotProductAttention_1/query/kernel": torch.ones(shape)
    }
    with pytest.raises(ValueError, match="not the published layout of 'vit_b16'"):
        convert("vit_b16", arrays)


def test_a_backbone_without_its_classifier_is_read_and_is_no_model(tmp_path: Path) -> None:
    state = create_model("resnet50").state_dict()
    names = {"stem.conv.": "conv1.", "stem.bn.": "bn1.", ".reduce.conv.": ".conv1.", ".reduce.bn.": ".bn1.",
             ".spatial.conv.": ".conv2.", ".spatial.bn.": ".bn2.", ".expand.conv.": ".conv3.", ".expand.bn.": ".bn3.",
             ".shortcut.conv.": ".downsample.0.", ".shortcut.bn.": ".downsample.1.",
             **{f"stages.{stage}.": f"layer{stage + 1}." for stage in range(4)}}  # fmt: skip
    published = {key: tensor for key, tensor in renamed(state, names).items() if not key.startswith("fc.")}
    save_file(published, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"model\.safetensors: holds no head of resnet50"):
        load_published("resnet50", tmp_path / "model.safetensors")
    model = create_model("resnet50")
    assert load_sources(model, locate({"": "model.safetensors"}, tmp_path), ["a"] * 7) == ["fc.weight", "fc.bias"]
    assert torch.equal(model.stages[3][2].expand.conv.weight, state["stages.3.2.expand.conv.weight"])


# ------------------------------------------------------------------------------------------------ MobileFaceNet


def casia_features(state: dict[str, Tensor], x: Tensor) -> Tensor:
    """The published network of Xiaoccer/MobileFaceNet_Pytorch up to its head: (B,3,H,W) -> (B,512,H/16,W/16)."""

    def unit(y: Tensor, conv: str, bn: str, act: str | None, stride: int = 1, padding: int = 0) -> Tensor:
        weight = state[f"{conv}.weight"]
        y = F.conv2d(y, weight, stride=stride, padding=padding, groups=y.shape[1] if weight.shape[1] == 1 else 1)
        statistics = (state[f"{bn}.{kind}"] for kind in ("running_mean", "running_var", "weight", "bias"))
        y = F.batch_norm(y, *statistics)
        return F.prelu(y, state[f"{act}.weight"]) if act else y

    y = unit(x, "conv1.conv", "conv1.bn", "conv1.prelu", 2, 1)
    y = unit(y, "dw_conv1.conv", "dw_conv1.bn", "dw_conv1.prelu", 1, 1)
    for number in range(15):
        block, stride = f"blocks.{number}.conv", 2 if number in (0, 5, 12) else 1
        z = unit(y, f"{block}.0", f"{block}.1", f"{block}.2")
        z = unit(z, f"{block}.3", f"{block}.4", f"{block}.5", stride, 1)
        z = unit(z, f"{block}.6", f"{block}.7", None)
        y = z if stride == 2 else y + z
    return unit(y, "conv2.conv", "conv2.bn", "conv2.prelu")


def test_the_real_112x96_network_is_our_trunk(test_data: Path) -> None:
    path = test_data / "weights" / "mobilefacenet_casia" / "068.ckpt"
    state = read_published(path)
    assert state["linear7.conv.weight"].shape == (512, 1, 7, 6)
    model = create_model("mobilefacenet", 7).eval()
    kept = load_sources(model, locate({"": str(path)}, test_data), ["a"] * 7)
    assert {key.split(".")[0] for key in kept} == {"head", "fc"}
    x = torch.randn(1, 3, 112, 96)
    assert torch.allclose(model.features(x)[-1], casia_features(state, x), atol=1e-4)
    part = create_model("mobilefacenet").eval()
    [source] = locate({"features": str(path)}, test_data)
    load_part(part, source)
    assert torch.equal(part.features(x)[-1], model.features(x)[-1])
    with pytest.raises(ValueError, match="holds no head of mobilefacenet"):
        load_published("mobilefacenet", path)


def test_a_cut_off_checkpoint_is_refused(test_data: Path, tmp_path: Path) -> None:
    whole = (test_data / "weights" / "mobilefacenet_casia" / "068.ckpt").read_bytes()
    (tmp_path / "068.ckpt").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(FileError, match=r"068\.ckpt: .*cut off"):
        load_part(create_model("mobilefacenet"), locate({"features": "068.ckpt"}, tmp_path)[0])


def test_arrays_are_read_from_a_real_npz(tmp_path: Path) -> None:
    arrays = jax_arrays()
    np.savez(tmp_path / "ViT.npz", **{key: tensor.numpy() for key, tensor in arrays.items()})
    read = read_published(tmp_path / "ViT.npz")
    assert read.keys() == arrays.keys()
    with pytest.raises(ValueError, match=r"ViT\.npz: not the published layout of 'vit_b16'"):
        load_published("vit_b16", tmp_path / "ViT.npz")
