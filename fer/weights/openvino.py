"""The published landmark network in OpenVINO's format -> the state dict of `mobilefacenet_landmarks`.

    model = create_model("mobilefacenet_landmarks", num_classes=0)
    model.load_state_dict(landmark_state(Path("mobilefacenet.xml")))

The format (OpenVINO IR, version 10) is an XML file of layers and of edges between their ports, and beside it a .bin
file of constants. The file at hand holds 16-bit weights with every 2-d BatchNorm folded: a convolution, then the
addition of a bias. Its statistics are gone, so each BatchNorm gets those that make it add the bias and nothing else.
In training mode it would normalise by the batch all the same: such a network serves frozen, `landmark_bn="frozen"`,
and `LandmarkBackbone` refuses it otherwise.

The graph is walked along its edges from the result back to the input, beside the modules of our network; names and
order of the layers play no part. Nothing is executed; a document type declaration, which entities need, is refused.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn
from xml.parsers import expat

import torch
from torch import Tensor, nn

from fer.io.files import FileError, refuse_impostor
from fer.models import create_model
from fer.models.backbones.mobilefacenet import InvertedResidual, MobileFaceNetFeatures
from fer.models.layers.conv import ConvBNAct
from fer.models.mobilefacenet import DepthwiseEmbedding

MAX_BYTES = 32 * 1024**2
"""Of either file. The published ones have 137 kB and 2 MB."""

_DTYPES = {"f16": torch.float16, "f32": torch.float32, "i64": torch.int64}


def landmark_state(xml: Path, weights: Path | None = None) -> dict[str, Tensor]:
    """The complete state dict of `create_model("mobilefacenet_landmarks", num_classes=0)`, float32.

    Args:
        weights: the file of constants; without it the .bin beside the .xml.

    Raises:
        FileError: a file is absent, no such file, damaged, or holds another network; it says which and where.
    """
    weights = weights or xml.with_suffix(".bin")
    walk = _Walk(_parse(xml), _read(weights), f"{xml}: not the published landmark network", weights)
    with torch.device("meta"):
        model = create_model("mobilefacenet_landmarks", num_classes=0)
    walk.op("Result")
    walk.op("Squeeze", axis=2)
    walk.head(model.get_submodule("head"), "head.")
    walk.features(model.get_submodule("features"), "features.")
    walk.end()
    for key, tensor in model.state_dict().items():
        if key.endswith("num_batches_tracked"):
            walk.state[key] = torch.zeros((), dtype=torch.int64)
        assert walk.state[key].shape == tensor.shape
    return walk.state


# ------------------------------------------------------------------------------------------------ the files
@dataclass
class _Layer:
    """One node of the graph: its kind, the attributes of its data element, and the layer that feeds each port."""

    id: str
    kind: str
    data: dict[str, str] = field(default_factory=dict)
    inputs: dict[int, str] = field(default_factory=dict)


def _read(path: Path) -> bytes:
    if not path.is_file():
        raise FileError(f"{path}: no such file")
    refuse_impostor(path, str(path))
    if path.stat().st_size > MAX_BYTES:
        raise FileError(f"{path}: {path.stat().st_size} bytes, but no more than {MAX_BYTES} are read")
    return path.read_bytes()


def _parse(path: Path) -> dict[str, _Layer]:
    layers: dict[str, _Layer] = {}
    edges: list[dict[str, str]] = []
    current: list[_Layer] = []

    def element(name: str, attributes: dict[str, str]) -> None:
        if name == "layer":
            current.append(_Layer(attributes["id"], attributes["type"]))
            if layers.setdefault(attributes["id"], current[-1]) is not current[-1]:
                raise FileError(f"{path}: two layers have the id {attributes['id']}")
        elif name == "data" and current:
            current[-1].data = attributes
        elif name == "edge":
            edges.append(attributes)

    def doctype(*_: object) -> NoReturn:
        raise FileError(f"{path}: a document type declaration; the files of OpenVINO have none")

    parser = expat.ParserCreate()
    parser.StartElementHandler = element
    parser.StartDoctypeDeclHandler = doctype
    try:
        parser.Parse(_read(path), True)
        for edge in edges:
            layers[edge["to-layer"]].inputs[int(edge["to-port"])] = layers[edge["from-layer"]].id
    except expat.ExpatError as error:
        raise FileError(f"{path}: no XML, or a damaged one ({error})") from None
    except (KeyError, ValueError) as error:
        if isinstance(error, FileError):
            raise
        raise FileError(f"{path}: no network of OpenVINO ({error!r} in a layer or an edge)") from None
    return layers


# ------------------------------------------------------------------------------------------------ the graph
class _Walk:
    """Goes from layer to layer against the edges, and takes the constants along under our names.

    state: what was found so far.
    at: id of the layer that is next.
    """

    def __init__(self, layers: dict[str, _Layer], blob: bytes, refusal: str, blob_path: Path) -> None:
        self.layers = layers
        self.blob = blob
        self.blob_path = blob_path
        self.refusal = refusal
        self.state: dict[str, Tensor] = {}
        results = [layer.id for layer in layers.values() if layer.kind == "Result"]
        if len(results) != 1:
            raise FileError(f"{refusal}: {len(results)} results instead of one")
        self.at = results[0]

    def end(self) -> None:
        layer = self.layers[self.at]
        if layer.kind != "Parameter":
            self.refuse(layer, "the input of the network was expected")

    def op(self, kind: str, *, axis: int | None = None) -> None:
        """Pass a layer without weights; `axis` is the constant that it must have."""
        layer = self.expect(kind, 1 if axis is None else 2)
        if axis is not None and self.constant(layer.inputs[1]).tolist() != [axis]:
            self.refuse(layer, f"axis {axis} was expected")
        self.at = layer.inputs[0]

    def weighted(self, kind: str, shape: tuple[int, ...]) -> tuple[_Layer, Tensor]:
        """Pass a layer of one constant, whose shape must be `shape` but for axes of size 1: the layer, the constant."""
        layer = self.expect(kind, 2)
        constant = [port for port in (0, 1) if self.layers[layer.inputs[port]].kind == "Const"]
        if len(constant) != 1 or (constant == [0] and kind not in ("Add", "Multiply")):
            self.refuse(layer, "one input from the network and one constant were expected")
        tensor = self.constant(layer.inputs[constant[0]])
        squeezed, expected = ([n for n in s if n != 1] for s in (tensor.shape, shape))
        if squeezed != expected:
            self.refuse(layer, f"constant of shape {tuple(tensor.shape)}, {shape} was expected")
        self.at = layer.inputs[1 - constant[0]]
        return layer, tensor.float().reshape(shape)

    def features(self, module: nn.Module, name: str) -> None:
        assert isinstance(module, MobileFaceNetFeatures)
        for path, block in reversed(list(_blocks(module, name))):
            if isinstance(block, ConvBNAct):
                self.conv(block, path)
            else:
                self.inverted_residual(block, path)

    def inverted_residual(self, block: InvertedResidual, name: str) -> None:
        shortcut = None
        if block.residual:
            layer = self.expect("Add", 2)
            first, second = layer.inputs[0], layer.inputs[1]
            shortcut, self.at = (first, second) if self.depends(second, first) else (second, first)
        self.conv(block.project, f"{name}project.")
        self.conv(block.depthwise, f"{name}depthwise.")
        self.conv(block.expand, f"{name}expand.")
        if shortcut not in (None, self.at):
            self.refuse(self.layers[self.at], "the addition after it was expected to take its output too")

    def conv(self, module: ConvBNAct, name: str) -> None:
        """PReLU if any, addition of the bias, convolution."""
        conv, channels = module.conv, module.conv.out_channels
        if hasattr(module, "act"):
            self.state[f"{name}act.weight"] = self.weighted("PReLU", (channels,))[1]
        self.batch_norm(module.bn, f"{name}bn.", bias=self.weighted("Add", (channels,))[1])
        kind = "Convolution" if conv.groups == 1 else "GroupConvolution"
        layer, weight = self.weighted(kind, tuple(conv.weight.shape))
        strides, padding = (",".join(map(str, pair)) for pair in (conv.stride, conv.padding))
        geometry = {"strides": strides, "pads_begin": padding, "pads_end": padding, "dilations": "1,1"}
        for attribute, value in geometry.items():
            if layer.data.get(attribute) != value:
                self.refuse(layer, f"{attribute} = {layer.data.get(attribute)!r}, {value!r} was expected")
        self.state[f"{name}conv.weight"] = weight

    def head(self, module: nn.Module, name: str) -> None:
        assert isinstance(module, DepthwiseEmbedding)
        width = module.bn.num_features
        bias, scale = self.weighted("Add", (width,))[1], self.weighted("Multiply", (width,))[1]
        self.batch_norm(module.bn, f"{name}bn.", bias=bias, weight=scale)
        self.op("Unsqueeze", axis=2)
        layer, weight = self.weighted("MatMul", tuple(module.embed.weight.shape))
        if layer.data.get("transpose_a") != "False" or layer.data.get("transpose_b") != "True":
            self.refuse(layer, "a product with the transposed weight was expected")
        self.state[f"{name}embed.weight"] = weight
        self.weighted("Reshape", (2,))
        self.conv(module.pool, f"{name}pool.")

    def batch_norm(
        self, bn: nn.BatchNorm1d | nn.BatchNorm2d, name: str, *, bias: Tensor, weight: Tensor | None = None
    ) -> None:
        """Statistics such that in evaluation mode bn(x) = weight * x + bias, exactly."""
        self.state[f"{name}weight"] = torch.ones_like(bias) if weight is None else weight
        self.state[f"{name}bias"] = bias
        self.state[f"{name}running_mean"] = torch.zeros_like(bias)
        self.state[f"{name}running_var"] = torch.full_like(bias, 1 - bn.eps)

    def expect(self, kind: str, inputs: int) -> _Layer:
        layer = self.layers[self.at]
        if layer.kind != kind:
            self.refuse(layer, f"{kind} was expected")
        if sorted(layer.inputs) != list(range(inputs)):
            self.refuse(layer, f"{inputs} inputs were expected")
        return layer

    def depends(self, later: str, earlier: str) -> bool:
        """There is a path from `earlier` to `later`."""
        seen, queue = {later}, [later]
        while queue:
            new = set(self.layers[queue.pop()].inputs.values()) - seen
            seen |= new
            queue += new
        return earlier in seen

    def constant(self, id: str) -> Tensor:
        layer = self.layers[id]
        if layer.kind != "Const":
            self.refuse(layer, "a constant was expected")
        try:
            dtype = _DTYPES[layer.data["element_type"]]
            shape = [int(size) for size in layer.data["shape"].split(",")]
            offset, size = int(layer.data["offset"]), int(layer.data["size"])
        except (KeyError, ValueError) as error:
            self.refuse(layer, f"no constant that can be read ({error!r})")
        if min(shape) < 1 or offset < 0 or size != math.prod(shape) * dtype.itemsize:
            self.refuse(layer, f"{size} bytes at {offset} for a constant of shape {shape}")
        if offset + size > len(self.blob):
            raise FileError(
                f"{self.blob_path}: {len(self.blob)} bytes, but layer {id} needs those up to {offset + size}: "
                "truncated, or the file of another network"
            )
        return torch.frombuffer(bytearray(self.blob[offset : offset + size]), dtype=dtype).reshape(shape)

    def refuse(self, layer: _Layer, reason: str) -> NoReturn:
        raise FileError(f"{self.refusal}: layer {layer.id}, {layer.kind}: {reason}")


def _blocks(module: nn.Module, name: str) -> Iterator[tuple[str, ConvBNAct | InvertedResidual]]:
    """The blocks of the network in the order of the data, each with the prefix of its tensors."""
    for key, child in module.named_children():
        if isinstance(child, ConvBNAct | InvertedResidual):
            yield f"{name}{key}.", child
        else:
            yield from _blocks(child, f"{name}{key}.")
