"""The published landmark network in OpenVINO's format -> the state dict of `mobilefacenet_landmarks`.

    model = create_model("mobilefacenet_landmarks", num_classes=0)
    model.load_state_dict(landmark_state(Path("mobilefacenet.xml")))

The format (OpenVINO IR, version 10) is an XML file of layers and of edges between their ports, with a .bin file of
constants. The published file holds 16-bit weights with every 2-d BatchNorm folded: a convolution, then the addition of
a bias. The statistics are gone, so each BatchNorm gets those that make it add the bias and nothing else. In training
mode it would still normalize by the batch: such a network serves frozen, `landmark_bn="frozen"`, and `LandmarkBackbone`
refuses it otherwise.

The graph is walked along its edges from the result back to the input, beside the modules of our network; the names and
the order of the layers do not matter. Nothing is executed; a document type declaration, which entities need, is
refused. (The `openvino` package would replace `_parse` alone. It is 180 MB, accepts such declarations, and its import
writes an identifier for usage statistics into the home folder.)
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
from fer.models.layers.conv import ConvBNAct
from fer.models.mobilefacenet import DepthwiseEmbedding, InvertedResidual, MobileFaceNetFeatures

MAX_BYTES = 32 * 1024**2
"""Of either file. The published ones have 137 kB and 2 MB."""

_DTYPES = {"f16": torch.float16, "f32": torch.float32, "i64": torch.int64}


def landmark_state(xml: Path) -> dict[str, Tensor]:
    """The complete state dict of `create_model("mobilefacenet_landmarks", num_classes=0)`, float32.

    Raises:
        FileError: a file is absent (the .bin is beside the .xml), damaged, or holds another network; it says which and
            where.
    """
    walk = _Walk(xml)
    with torch.device("meta"):
        model = create_model("mobilefacenet_landmarks", num_classes=0)
    walk.op("Result")
    walk.op("Squeeze", axis=2)
    walk.head(model.get_submodule("head"))
    walk.features(model.get_submodule("features"))
    if walk.layer.kind != "Parameter":
        walk.refuse(walk.layer, "the input of the network was expected")
    for key, tensor in model.state_dict().items():
        if key.endswith("num_batches_tracked"):
            walk.state[key] = torch.zeros((), dtype=torch.int64)
        assert walk.state[key].shape == tensor.shape
    return walk.state


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

    def element(name: str, attributes: dict[str, str]) -> None:
        if name == "layer":
            if attributes["id"] in layers:
                raise FileError(f"{path}: two layers have the id {attributes['id']}")
            layers[attributes["id"]] = _Layer(attributes["id"], attributes["type"])
        elif name == "data" and layers:
            layers[next(reversed(layers))].data = attributes
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
    except FileError:
        raise
    except expat.ExpatError as error:
        raise FileError(f"{path}: no XML, or a damaged one ({error})") from None
    except (KeyError, ValueError) as error:
        raise FileError(f"{path}: no network of OpenVINO ({error!r} in a layer or an edge)") from None
    return layers


class _Walk:
    """Goes from layer to layer against the edges, and collects the constants under our names.

    state: the tensors found so far.
    at: id of the next layer.
    """

    def __init__(self, xml: Path) -> None:
        self.layers = _parse(xml)
        self.blob_path = xml.with_suffix(".bin")
        self.blob = _read(self.blob_path)
        self.refusal = f"{xml}: not the published landmark network"
        self.state: dict[str, Tensor] = {}
        results = [layer.id for layer in self.layers.values() if layer.kind == "Result"]
        if len(results) != 1:
            raise FileError(f"{self.refusal}: {len(results)} results instead of one")
        self.at = results[0]

    @property
    def layer(self) -> _Layer:
        return self.layers[self.at]

    def op(self, kind: str, *, axis: int | None = None) -> None:
        """Pass a layer without weights; `axis` is the constant that it must have."""
        layer = self.expect(kind, 1 if axis is None else 2)
        if axis is not None and self.constant(layer.inputs[1]).tolist() != [axis]:
            self.refuse(layer, f"axis {axis} was expected")
        self.at = layer.inputs[0]

    def weighted(self, kind: str, shape: tuple[int, ...], **attributes: str) -> Tensor:
        """Pass a layer of one constant, whose shape must be `shape` but for axes of size 1, with these attributes."""
        layer = self.expect(kind, 2)
        constant = [port for port in (0, 1) if self.layers[layer.inputs[port]].kind == "Const"]
        if len(constant) != 1 or (constant == [0] and kind not in ("Add", "Multiply")):
            self.refuse(layer, "one input from the network and one constant were expected")
        tensor = self.constant(layer.inputs[constant[0]])
        squeezed, expected = ([n for n in s if n != 1] for s in (tensor.shape, shape))
        if squeezed != expected:
            self.refuse(layer, f"constant of shape {tuple(tensor.shape)}, {shape} was expected")
        for attribute, value in attributes.items():
            if layer.data.get(attribute) != value:
                self.refuse(layer, f"{attribute} = {layer.data.get(attribute)!r}, {value!r} was expected")
        self.at = layer.inputs[1 - constant[0]]
        return tensor.float().reshape(shape)

    def features(self, module: nn.Module) -> None:
        assert isinstance(module, MobileFaceNetFeatures)
        for path, block in reversed(list(_blocks(module, "features."))):
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
        for part in ("project", "depthwise", "expand"):
            self.conv(getattr(block, part), f"{name}{part}.")
        if shortcut not in (None, self.at):
            self.refuse(self.layer, "the addition after it was expected to take its output too")

    def conv(self, module: ConvBNAct, name: str) -> None:
        """PReLU if any, addition of the bias, convolution."""
        conv, channels = module.conv, module.conv.out_channels
        if hasattr(module, "act"):
            self.state[f"{name}act.weight"] = self.weighted("PReLU", (channels,))
        self.batch_norm(module.bn, f"{name}bn.", bias=self.weighted("Add", (channels,)))
        kind = "Convolution" if conv.groups == 1 else "GroupConvolution"
        strides, padding = (",".join(map(str, pair)) for pair in (conv.stride, conv.padding))
        self.state[f"{name}conv.weight"] = self.weighted(
            kind, tuple(conv.weight.shape), strides=strides, pads_begin=padding, pads_end=padding, dilations="1,1"
        )

    def head(self, module: nn.Module) -> None:
        assert isinstance(module, DepthwiseEmbedding)
        width = module.bn.num_features
        bias, scale = self.weighted("Add", (width,)), self.weighted("Multiply", (width,))
        self.batch_norm(module.bn, "head.bn.", bias=bias, weight=scale)
        self.op("Unsqueeze", axis=2)
        shape = tuple(module.embed.weight.shape)
        self.state["head.embed.weight"] = self.weighted("MatMul", shape, transpose_a="False", transpose_b="True")
        self.weighted("Reshape", (2,))
        self.conv(module.pool, "head.pool.")

    def batch_norm(
        self, bn: nn.BatchNorm1d | nn.BatchNorm2d, name: str, *, bias: Tensor, weight: Tensor | None = None
    ) -> None:
        """Statistics such that in evaluation mode bn(x) = weight * x + bias, exactly."""
        self.state[f"{name}weight"] = torch.ones_like(bias) if weight is None else weight
        self.state[f"{name}bias"] = bias
        self.state[f"{name}running_mean"] = torch.zeros_like(bias)
        self.state[f"{name}running_var"] = torch.full_like(bias, 1 - bn.eps)

    def expect(self, kind: str, inputs: int) -> _Layer:
        if self.layer.kind != kind:
            self.refuse(self.layer, f"{kind} was expected")
        if sorted(self.layer.inputs) != list(range(inputs)):
            self.refuse(self.layer, f"{inputs} inputs were expected")
        return self.layer

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
            self.refuse(layer, f"a constant that cannot be read ({error!r})")
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
