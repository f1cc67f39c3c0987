"""The landmark network out of OpenVINO's files: on files made here, on broken ones, and the published one on faces."""

import random
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import cv2
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fer.faces.align import box_similarity, transform, warp
from fer.io.files import FileError
from fer.io.images import decode_image
from fer.models import create_model
from fer.models.inference import for_inference
from fer.models.mobilefacenet import PUBLISHED, InvertedResidual, LandmarkBackbone, MobileFaceNetLandmarks
from fer.weights.openvino import MAX_BYTES, landmark_state
from fer.weights.parts import branch_state

OPENVINO = "weights/landmark_mobilefacenet_openvino/mobilefacenet.xml"
YUNET = "weights/yunet/face_detection_yunet_2023mar.onnx"


# ------------------------------------------------------------------------------------------------ writing a file
class Writer:
    """OpenVINO's format, as its model optimizer writes it: BatchNorms folded, 16-bit weights."""

    def __init__(self) -> None:
        self.layers: list[ElementTree.Element] = []
        self.edges: list[dict[str, str]] = []
        self.blob = b""
        self.ids = [str(number) for number in range(1000, 2000)]
        random.Random(0).shuffle(self.ids)

    def layer(self, kind: str, *inputs: str, **data: str) -> str:
        id = self.ids.pop()
        layer = ElementTree.Element("layer", id=id, name=f"any {id}", type=kind, version="opset1")
        layer.append(ElementTree.Element("data", data))
        self.layers.append(layer)
        for port, source in enumerate(inputs):
            self.edges.append({"from-layer": source, "from-port": "9", "to-layer": id, "to-port": str(port)})
        return id

    def constant(self, tensor: Tensor, element_type: str = "f16") -> str:
        content = tensor.detach().numpy().astype({"f16": "<f2", "i64": "<i8"}[element_type]).tobytes()
        shape = ",".join(map(str, tensor.shape))
        offset, size = str(len(self.blob)), str(len(content))
        self.blob += content
        return self.layer("Const", element_type=element_type, offset=offset, size=size, shape=shape)

    def convolution(self, block: nn.Module, x: str) -> str:
        conv = block.conv if isinstance(block, nn.Sequential) else block
        assert isinstance(conv, nn.Conv2d)
        geometry = {"strides": conv.stride, "pads_begin": conv.padding, "pads_end": conv.padding, "dilations": (1, 1)}
        weight = conv.weight if conv.groups == 1 else conv.weight.unsqueeze(1)
        kind = "Convolution" if conv.groups == 1 else "GroupConvolution"
        x = self.layer(kind, x, self.constant(weight), **{k: f"{v[0]},{v[1]}" for k, v in geometry.items()})
        assert conv.bias is not None
        x = self.layer("Add", x, self.constant(conv.bias.view(1, -1, 1, 1)))
        if isinstance(block, nn.Sequential):
            assert isinstance(block.act, nn.PReLU)
            x = self.layer("PReLU", x, self.constant(block.act.weight.view(-1, 1, 1)))
        return x

    def network(self, model: MobileFaceNetLandmarks) -> None:
        x = self.layer("Parameter", element_type="f16", shape="1,3,112,112")
        for block in model.features.children():
            for part in block if isinstance(block, nn.Sequential) and not hasattr(block, "conv") else [block]:
                if isinstance(part, InvertedResidual):
                    y = x
                    for conv in part.children():
                        y = self.convolution(conv, y)
                    x = self.layer("Add", *((y, x) if len(self.layers) % 2 else (x, y))) if part.residual else y
                else:
                    x = self.convolution(part, x)
        x = self.convolution(model.head.pool, x)
        x = self.layer("Reshape", x, self.constant(torch.tensor([0, -1]), "i64"))
        x = self.layer("MatMul", x, self.constant(model.head.embed.weight), transpose_a="False", transpose_b="True")
        x = self.layer("Unsqueeze", x, self.constant(torch.tensor([2]), "i64"))
        x = self.layer("Multiply", x, self.constant(model.head.bn.weight.view(1, -1, 1)))
        x = self.layer("Add", x, self.constant(model.head.bn.bias.view(1, -1, 1)))
        self.layer("Result", self.layer("Squeeze", x, self.constant(torch.tensor([2]), "i64")))

    def write(self, path: Path) -> None:
        random.Random(1).shuffle(self.layers)
        random.Random(2).shuffle(self.edges)
        net = ElementTree.Element("net", name="any", version="10")
        ElementTree.SubElement(net, "layers").extend(self.layers)
        ElementTree.SubElement(net, "edges").extend(ElementTree.Element("edge", edge) for edge in self.edges)
        path.write_bytes(ElementTree.tostring(net, xml_declaration=True, encoding="utf-8"))
        path.with_suffix(".bin").write_bytes(self.blob)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, nn.Module]:
    """A file of random 16-bit weights, its layers and edges in random order; and the network that it was made of."""
    torch.manual_seed(0)
    model = create_model("mobilefacenet_landmarks", 0)
    assert isinstance(model, MobileFaceNetLandmarks)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.bias, -0.1, 0.1)
    model.head.bn.weight.data.uniform_(0.5, 1.5)
    model.head.bn.bias.data.uniform_(0, 1)
    model.eval()
    folded = for_inference(model)
    for parameter in folded.parameters():
        parameter.data = parameter.data.half().float()
    path = tmp_path_factory.mktemp("openvino") / "network.xml"
    writer = Writer()
    writer.network(folded)
    writer.write(path)
    return path, folded


@pytest.fixture
def damaged(written: tuple[Path, nn.Module], tmp_path: Path) -> Path:
    """A copy to damage."""
    for suffix in (".xml", ".bin"):
        shutil.copy(written[0].with_suffix(suffix), tmp_path)
    return tmp_path / written[0].name


def imported(path: Path) -> nn.Module:
    model = create_model("mobilefacenet_landmarks", 0)
    model.load_state_dict(landmark_state(path), strict=True)
    return model.eval()


def test_import_computes_what_the_file_says(written: tuple[Path, nn.Module]) -> None:
    path, folded = written
    x = torch.rand(2, 3, 112, 112)
    with torch.inference_mode():
        actual, expected = imported(path)(x), folded(x)
    assert expected.std() > 0.1
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


def test_imported_batch_norm_adds_the_bias_exactly(written: tuple[Path, nn.Module]) -> None:
    bn = imported(written[0]).get_submodule("features.stem.bn")
    assert isinstance(bn, nn.BatchNorm2d)
    x = torch.randn(2, 64, 9, 9)
    assert torch.equal(bn(x), x + bn.bias.view(1, -1, 1, 1))


def test_import_fills_the_branch_of_a_frozen_model(written: tuple[Path, nn.Module]) -> None:
    branch = LandmarkBackbone(PUBLISHED, frozen=True, bn="frozen")
    branch.load_state_dict(branch_state(branch, landmark_state(written[0])), strict=True)
    assert branch.train()(torch.rand(1, 3, 112, 112))[2].shape == (1, 512, 7, 7)


@pytest.mark.parametrize(("frozen", "bn"), [(True, "drift"), (False, "frozen")])
def test_weights_without_statistics_are_rejected_where_batch_norm_needs_them(
    written: tuple[Path, nn.Module], frozen: bool, bn: str
) -> None:
    branch = LandmarkBackbone(PUBLISHED, frozen=frozen, bn=bn)
    branch.load_state_dict(branch_state(branch, landmark_state(written[0])), strict=True)
    x = torch.rand(2, 3, 112, 112)
    with pytest.raises(ValueError, match=r"BatchNorm folded in.*landmark_frozen=True and landmark_bn='frozen'"):
        branch.train()(x)
    assert branch.eval()(x)[2].shape == (2, 512, 7, 7)


# ------------------------------------------------------------------------------------------------ broken files
def edited(edit: Callable[[ElementTree.Element], None]) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        tree = ElementTree.parse(path)
        edit(tree.getroot())
        tree.write(path)

    return damage


def replaced(old: str, new: str) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new, 1))

    return damage


def without_an_edge(root: ElementTree.Element) -> None:
    edges = root.find("edges")
    assert edges is not None
    edges.remove(edges[5])


def shortcut_elsewhere(root: ElementTree.Element) -> None:
    """The addition that ends a residual block takes the input of the network in place of the block's."""
    kinds = {layer.get("id"): layer.get("type") for layer in root.iter("layer")}
    edges = list(root.iter("edge"))
    consumers = Counter(edge.get("from-layer") for edge in edges)
    shortcut = next(e for e in edges if kinds[e.get("to-layer")] == "Add" and consumers[e.get("from-layer")] == 2)
    shortcut.set("from-layer", next(id for id, kind in kinds.items() if id and kind == "Parameter"))


ENTITIES = '<!DOCTYPE net [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;&a;">]><net>&b;</net>'


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.unlink(), r"network\.xml: no such file"),
        (lambda path: path.with_suffix(".bin").unlink(), r"network\.bin: no such file"),
        (lambda path: path.with_suffix(".bin").write_bytes(b"\0" * 9000), r"\.bin: 9000 bytes, but layer \d+ needs"),
        (lambda path: path.with_suffix(".bin").write_text("version https://git-lfs.github.com/spec/v1"), "LFS pointer"),
        (lambda path: path.write_bytes(path.read_bytes()[:5000]), r"network\.xml: no XML, or a damaged one"),
        (lambda path: path.write_text("<html><body>log in</body></html>"), "web page"),
        (lambda path: path.write_text('<?xml version="1.0"?>' + ENTITIES), "document type declaration"),
        (lambda path: path.write_text("<a>" * 100_000), "no XML, or a damaged one"),
        (lambda path: path.write_text("<net/>"), "0 results instead of one"),
        (lambda path: path.write_bytes(b"x" * (MAX_BYTES + 1)), f"no more than {MAX_BYTES} are read"),
        (replaced('type="PReLU"', 'type="ReLU"'), r"layer \d+, ReLU: PReLU was expected"),
        (replaced('strides="2,2"', 'strides="1,1"'), r"strides = '1,1', '2,2' was expected"),
        (replaced('shape="64,3,3,3"', 'shape="64,3,9"'), r"shape \(64, 3, 9\), \(64, 3, 3, 3\) was expected"),
        (replaced('shape="64,3,3,3"', 'shape="64,3,3,x"'), r"Const: a constant that cannot be read \(.*'x'"),
        (replaced('shape="64,3,3,3"', 'shape="64,3,3,4"'), r"3456 bytes at \d+ for .* \[64, 3, 3, 4\]"),
        (replaced('transpose_b="True"', 'transpose_b="False"'), "transpose_b = 'False', 'True' was expected"),
        (replaced('to-port="0"', 'to-port="zero"'), "no network of OpenVINO"),
        (replaced('from-layer="', 'from-layer="7'), "no network of OpenVINO"),
        (edited(without_an_edge), r"\d inputs were expected"),
        (edited(shortcut_elsewhere), "was expected to take its output too"),
    ],
)  # fmt: skip
def test_a_damaged_or_other_file_is_rejected_with_the_reason(
    damaged: Path, damage: Callable[[Path], None], message: str
) -> None:
    damage(damaged)
    with pytest.raises(FileError, match=message):
        landmark_state(damaged)


# ------------------------------------------------------------------------------------------------ real faces
SIDE = 640
"""Images are shrunk to it: YuNet's landmarks are coarse on faces of many hundred pixels."""

MARGIN = 0.05


def faces(test_data: Path) -> list[tuple[Tensor, np.ndarray, float]]:
    """Crops (1,3,112,112) RGB in [0, 1], YuNet's five landmarks as fractions of the crop, the distance of the eyes."""
    found = []
    detector = cv2.FaceDetectorYN.create(str(test_data / YUNET), "", (SIDE, SIDE), score_threshold=0.85)
    for path in sorted((test_data / "photos").iterdir()):
        if path.suffix == ".csv":
            continue
        image = decode_image(path.read_bytes())
        scale = min(1.0, SIDE / max(image.shape[:2]))
        resized = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
        small = np.asarray(resized, dtype=np.uint8)
        detector.setInputSize((small.shape[1], small.shape[0]))
        _, rows = detector.detect(small[:, :, ::-1])
        for row in rows if rows is not None else []:
            x, y, width, height = row[:4].tolist()
            if width < 60:
                continue
            matrix = box_similarity((x, y, x + width, y + height), 112, MARGIN)
            crop = torch.from_numpy(warp(small, matrix, 112)).permute(2, 0, 1)[None] / 255
            five = transform(matrix, row[4:14].reshape(5, 2).astype(np.float64)) / 112
            found.append((crop, five, float(np.linalg.norm(five[0] - five[1]))))
    return found


def five_of(landmarks: Tensor) -> np.ndarray:
    """(68,2) -> right eye, left eye, nose, right and left corner of the mouth (of the person)."""
    eyes = [landmarks[36:42].mean(0), landmarks[42:48].mean(0)]
    return torch.stack([*eyes, landmarks[30], landmarks[48], landmarks[54]]).numpy()


MIRRORED = [
    *range(16, -1, -1), *range(26, 16, -1), *range(27, 31), *range(35, 30, -1),
    45, 44, 43, 42, 47, 46, 39, 38, 37, 36, 41, 40,
    *range(54, 47, -1), *range(59, 54, -1), *range(64, 59, -1), 67, 66, 65,
]  # fmt: skip
"""Which landmark of the mirrored face each one is."""


def test_published_network_finds_the_landmarks_of_real_faces(test_data: Path) -> None:
    """Against YuNet's five points, and against itself on the mirrored face; in units of the distance of the eyes.

    The median is 9 % from YuNet, whose points are visibly the coarser of the two, and 5.6 % from its own mirror image.
    """
    model = imported(test_data / OPENVINO)
    torch.manual_seed(0)
    untrained = create_model("mobilefacenet_landmarks", 0).eval()
    differences: dict[str, list[float]] = {"imported": [], "random": [], "mirrored": [], "bgr": []}
    with torch.inference_mode():
        for crop, five, eyes in faces(test_data):
            landmarks = model(crop)[0]
            mirrored = model(crop.flip(3))[0][MIRRORED]
            mirrored = torch.stack([1 - mirrored[:, 0], mirrored[:, 1]], dim=1)
            points = {
                "imported": (five_of(landmarks), five),
                "random": (five_of(untrained(crop)[0]), five),
                "mirrored": (landmarks.numpy(), mirrored.numpy()),
                "bgr": (landmarks.numpy(), model(crop.flip(1))[0].numpy()),
            }
            for name, (ours, theirs) in points.items():
                differences[name].append(float(np.linalg.norm(ours - theirs, axis=1).mean() / eyes))
    median = {name: float(np.median(values)) for name, values in differences.items()}
    assert len(differences["imported"]) >= 30
    assert median["imported"] < 0.11
    assert np.quantile(differences["imported"], 0.9) < 0.16
    assert median["mirrored"] < 0.07
    assert median["bgr"] < 0.005, "the order of the channels hardly matters to it"
    assert median["random"] > 1
