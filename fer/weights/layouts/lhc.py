"""ResNet34v2, LHC-Net and LHC-NetC as their TensorFlow checkpoints name them, in the shapes of Keras."""

import re
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from fer.weights.layouts.base import Layout, channels_first

DEPTHS = (3, 4, 6, 3)
"""Units of each stage; the published code has an LHC block at the end of the stem and of each stage."""

_KERAS_RENAME = (
    (r"/(gamma|kernel)$", ".weight"),
    (r"/(beta|bias)$", ".bias"),
    (r"/moving_mean$", ".running_mean"),
    (r"/moving_variance$", ".running_var"),
    (r"/", "."),
)

_EMBEDDING = re.compile(r"(.*/Wqk)/(\d+)/(kernel|bias)")


def _adapt(published: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Kernels in PyTorch's shape; the embeddings of all heads in one tensor."""
    adapted: dict[str, Tensor] = {}
    heads: defaultdict[str, dict[int, Tensor]] = defaultdict(dict)
    for key, tensor in published.items():
        if key.endswith("/kernel"):
            tensor = channels_first(tensor)
        if match := _EMBEDDING.fullmatch(key):
            heads[f"{match[1]}/{match[3]}"][int(match[2])] = tensor
        adapted[key] = tensor
    for stacked, tensors in heads.items():
        ordered = [tensors[head] for head in sorted(tensors)]
        # Heads that are not alike, or not numbered from 0, stay as they are, so that the error names them.
        if sorted(tensors) == list(range(len(tensors))) and len({tensor.shape for tensor in ordered}) == 1:
            module, kind = stacked.rsplit("/", 1)
            for head in tensors:
                del adapted[f"{module}/{head}/{kind}"]
            adapted[stacked] = torch.stack(ordered)
    return adapted


def _adapt_host(published: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """As `_adapt`. The one linear layer of image-classifiers' own head, for ImageNet, has no place in ours."""
    if "fc3/kernel" not in published:
        published = {key: tensor for key, tensor in published.items() if not key.startswith("fc1/")}
    return _adapt(published)


def _resnet_options(published: Mapping[str, Tensor]) -> dict[str, Any]:
    return {"num_classes": published["fc3/kernel"].shape[1]}


def _host_options(published: Mapping[str, Tensor]) -> dict[str, Any]:
    return _resnet_options(published) if "fc3/kernel" in published else {"num_classes": None}


def _lhc_options(published: Mapping[str, Tensor]) -> dict[str, Any]:
    blocks = ["conv1", *(f"conv{stage}_{depth}" for stage, depth in enumerate(DEPTHS, 2))]
    modules = [f"{block}/LHC_Module/Wqk" for block in blocks]
    return _resnet_options(published) | {
        "num_heads": tuple(
            len({key.split("/")[3] for key in published if key.startswith(f"{module}/")}) for module in modules
        ),
        "head_dims": tuple(published[f"{module}/0/kernel"].shape[1] for module in modules),
    }


RESNET34V2 = Layout(
    rename=(
        (r"^bn_data/", "stem/norm/"),
        (r"^conv0/", "stem/conv/"),
        (r"^bn0/", "stem/bn/"),
        *(
            (rf"^stage{stage}_unit{unit}_", f"stages/{stage - 1}/{unit - 1}/")
            for stage, depth in enumerate(DEPTHS, 1)
            for unit in range(1, depth + 1)
        ),
        (r"/sc/", "/shortcut/"),
        (r"^(bn1|fc\d)/", r"head/\1/"),
        (r"^head/bn1/", "head/bn/"),
        *_KERAS_RENAME,
    ),
    adapt=_adapt_host,
    options=_host_options,
    head=(r"head\.fc\d\..*",),
)
"""Also of `resnet34` of image-classifiers 1.0.0, whose weights for ImageNet the published training starts from: the
names of its Keras files are those of the checkpoints."""

LHC_NET = Layout(
    rename=(
        (r"^conv1/LHC_Module/", "lhc/0/"),
        *((rf"^conv{block + 1}_{depth}/LHC_Module/", f"lhc/{block}/") for block, depth in enumerate(DEPTHS, 1)),
        *((rf"^controller{block}/", f"lhc/{block - 1}/") for block in range(1, len(DEPTHS) + 2)),
        (r"/Wqk/", "/embed/"),
        (r"/Wp/", "/temperature/"),
        (r"/Wv/", "/value/"),
        (r"^conv1/bn1/", "stem/norm/"),
        (r"^conv1/conv1/", "stem/conv/"),
        (r"^conv1/bn2/", "stem/bn/"),
        *(
            (rf"^conv{stage + 1}_{unit}/", f"stages/{stage - 1}/{unit - 1}/")
            for stage, depth in enumerate(DEPTHS, 1)
            for unit in range(1, depth + 1)
        ),
        (r"/convId/", "/shortcut/"),
        (r"^(bn|fc\d)/", r"head/\1/"),
        *_KERAS_RENAME,
    ),
    adapt=_adapt,
    options=_lhc_options,
)

LAYOUTS = {"lhc_net": LHC_NET, "lhc_netc": LHC_NET, "resnet34v2": RESNET34V2}
