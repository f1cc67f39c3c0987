"""The cost of a model: parameters and arithmetic, under the conventions of the papers' numbers.

    with torch.device("meta"):
        model = create_model("poster_v2")
    cost = measure(model)
    cost.operations.macs  # 8.59e9

Counted on the operations for one image in evaluation mode, on the reference path with attention written out.
On the meta device nothing is computed and no weights are needed; a model takes a fraction of a second.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import flop_registry

from fer.models.base import FerModel
from fer.models.compat import BatchNorm, DispatchMode
from fer.models.layers.attention import countable


@dataclass(frozen=True, kw_only=True)
class Operations:
    """The operations for one image, by kind.

    convolution, linear, matmul: multiply-accumulates, as torch.utils.flop_counter counts them; a linear layer is a
        product with one matrix for the whole batch, `matmul` (of attention) one with a matrix for each sample.
    conv_bias: outputs of the convolutions that have a bias.
    map_norm, norm: elements normalized by BatchNorms of maps; by every BatchNorm and LayerNorm.
    prelu, relu: their elements; `relu` includes the ReLU6 within a hardswish.
    """

    convolution: int = 0
    linear: int = 0
    matmul: int = 0
    conv_bias: int = 0
    map_norm: int = 0
    norm: int = 0
    prelu: int = 0
    relu: int = 0

    @property
    def macs(self) -> int:
        """The zoo's own convention: multiply-accumulates of convolutions, linear layers and matrix products."""
        return self.convolution + self.linear + self.matmul

    @property
    def torchstat(self) -> int:
        """The "Flops" of torchstat 0.0.7: bias, normalization and activation of maps beside the MACs.

        It counts no matrix product of attention, and of the normalizations only BatchNorm2d.
        """
        return self.convolution + self.linear + self.conv_bias + 2 * self.map_norm + self.prelu + self.relu

    @property
    def thop(self) -> int:
        """The "MACs" of thop 0.1.1: it counts layers, and so no matrix product of attention."""
        return self.convolution + self.linear + 4 * self.norm + self.prelu


@dataclass(frozen=True, kw_only=True)
class Cost:
    """The cost of one of our models.

    parameters: all; the logits depend on every one.
    statistics: running means and variances of the BatchNorms, which Keras counts as weights.
    loose: those that are not the weight or bias of a layer (positions, class tokens, factors); thop ignores them.
    """

    parameters: int
    statistics: int
    loose: int
    operations: Operations


def measure(model: FerModel) -> Cost:
    """The cost for one image of `model.input_size`. The model may be on the meta device; its mode is not changed."""
    device = next(model.parameters()).device
    image = torch.empty(1, 3, model.input_size, model.input_size, device=device)
    training = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with _Counter() as counter, countable(), torch.no_grad():
            model(image)
    finally:
        for module, mode in training.items():
            module.training = mode
    return Cost(
        parameters=_count(model.parameters()),
        statistics=_count(buffer for name, buffer in model.named_buffers() if name.endswith(_STATISTICS)),
        loose=_count(
            parameter
            for module in model.modules()
            for name, parameter in module.named_parameters(recurse=False)
            if not _of_layer(module, name)
        ),
        operations=Operations(**counter.counts),
    )


def kept_for_backward(model: FerModel, images: Tensor) -> int:
    """Bytes that a training step on images (B,3,S,S) keeps for its backward pass: activations, without the parameters.

    What training takes in memory beside them, on any device; on the meta device attention is counted as written out.
    The model is left in training mode, its BatchNorm statistics updated.
    """
    own = {tensor.untyped_storage()._cdata for tensor in (*model.parameters(), *model.buffers())}
    kept: dict[int, Tensor] = {}  # by storage, which views share; held, so that none is reused

    def keep(tensor: Tensor) -> Tensor:
        if (storage := tensor.untyped_storage()._cdata) not in own:
            kept[storage] = tensor
        return tensor

    model.train()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output = model(images)  # its graph is what holds the tensors
    size = sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
    del output
    return size


_STATISTICS = ("running_mean", "running_var")
_LAYERS = (nn.Linear, nn.modules.conv._ConvNd, BatchNorm, nn.LayerNorm, nn.PReLU)


def _of_layer(module: nn.Module, parameter: str) -> bool:
    return isinstance(module, _LAYERS) and parameter in ("weight", "bias")


def _count(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() for tensor in tensors)


class _Counter(DispatchMode):  # type: ignore[no-untyped-call]
    """Counts the operations within it, by the kinds of `Operations`."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.counts = {field.name: 0 for field in fields(Operations)}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        name = func._overloadpacket.__name__
        if func._overloadpacket in flop_registry:
            kind = {"convolution": "convolution", "mm": "linear", "addmm": "linear"}.get(name, "matmul")
            self.counts[kind] += flop_registry[func._overloadpacket](*args, **(kwargs or {}), out_val=out) // 2
        if name == "convolution" and args[2] is not None:
            self.counts["conv_bias"] += out.numel()
        elif name in _NORMS:
            self.counts["norm"] += args[0].numel()
            if args[0].dim() == 4 and name != "native_layer_norm":
                self.counts["map_norm"] += args[0].numel()
        elif name in _ELEMENTWISE:
            self.counts[_ELEMENTWISE[name]] += args[0].numel()
        return out


_NORMS = ("native_batch_norm", "native_layer_norm")
_ELEMENTWISE = {
    "_prelu_kernel": "prelu",
    "relu": "relu",
    "relu_": "relu",
    "hardswish": "relu",
}
