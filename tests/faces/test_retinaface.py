"""RetinaFace: parity of network, anchors and decoding with the published code, and properties of the detector."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from torch import nn

from benchmarks.detect import overlap
from benchmarks.reference import Published
from benchmarks.reference import retinaface as published
from fer.faces.detect import create_detector
from fer.faces.detection import Image, shrink
from fer.faces.retinaface import RetinaFace, anchors_of, decode, load_network, suppress
from fer.faces.retinaface_network import MEAN_RGB, FoldedNetwork, Network, Raw
from fer.io.files import FileError
from fer.io.images import decode_image

WEIGHTS = "weights/retinaface/mobilenet0.25_Final.pth"


def random_network() -> Network:
    """With weights and running statistics that keep every layer active."""
    torch.manual_seed(0)
    network = Network().eval()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            nn.init.normal_(module.running_mean, std=0.3)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.3)
    return network


def outputs(network: Network, pixels: torch.Tensor) -> tuple[Raw, Raw, tuple[torch.Tensor, ...]]:
    """Ours, ours folded, and the transcription's, of (B,3,H,W) BGR less the mean."""
    with torch.inference_mode():
        theirs = published.network(Published(network.state_dict()), pixels)
        folded = FoldedNetwork(network)(pixels.flip(1).contiguous(memory_format=torch.channels_last))
        return network(pixels), folded, theirs


def assert_equal_to_the_published(network: Network, pixels: torch.Tensor) -> None:
    ours, folded, (location, logits, points) = outputs(network, pixels)
    height, width = pixels.shape[2:]
    priors, anchors = published.anchors(height, width), anchors_of(height, width)
    assert (anchors / torch.tensor([width, height] * 2) - priors).abs().max() < 1e-6
    for raw in (ours, folded):
        assert (raw.scores.flatten(1, 2).softmax(-1) - logits.softmax(-1)).abs().max() < 1e-5
        boxes, landmarks = decode(raw.boxes.flatten(1, 2), raw.landmarks.flatten(1, 2), anchors)
        for number in range(len(pixels)):
            share = torch.tensor([width, height] * 5)
            assert (boxes[number] / share[:4] - published.decode(location[number], priors)).abs().max() < 1e-5
            reference = published.decode_landmarks(points[number], priors)
            assert (landmarks[number].flatten(1) / share - reference).abs().max() < 1e-5


@pytest.fixture(scope="session")
def weights(test_data: Path) -> Path:
    return test_data / WEIGHTS


@pytest.fixture(scope="session")
def network(weights: Path) -> Network:
    return load_network(weights)


@pytest.fixture(scope="session")
def detector(weights: Path) -> RetinaFace:
    return RetinaFace(weights, min_score=0.6, longest_side=640)


def photo(test_data: Path, name: str) -> Image:
    return decode_image((test_data / "photos" / name).read_bytes())


# ------------------------------------------------------------------------------------------------ the network


@pytest.mark.parametrize("size", [(96, 128), (75, 101), (33, 40)], ids=str)
def test_network_anchors_and_decoding_equal_the_published_on_any_size(size: tuple[int, int]) -> None:
    assert_equal_to_the_published(random_network(), torch.randn(2, 3, *size) * 60)


def test_with_the_published_weights_it_equals_the_published_on_photos(network: Network, test_data: Path) -> None:
    image = shrink(photo(test_data, "pyfeat_multi_face.jpg"), 320).image
    pixels = torch.from_numpy(image[..., ::-1].astype(np.float32) - np.float32(MEAN_RGB[::-1]))
    assert_equal_to_the_published(network, pixels.permute(2, 0, 1)[None].contiguous())


def test_weights_with_missing_or_extra_tensors_are_refused(network: Network, weights: Path, tmp_path: Path) -> None:
    state = network.state_dict()
    assert len(state) == 300
    broken = {key: tensor for key, tensor in state.items() if key != "fpn.merge1.0.weight"}
    torch.save(broken, tmp_path / "less.pth")
    torch.save(state | {"another": torch.zeros(1)}, tmp_path / "more.pth")
    for name in ("less.pth", "more.pth"):
        with pytest.raises(FileError, match=rf"{name}: not the weights of RetinaFace.*fer weights pull"):
            load_network(tmp_path / name)


def test_folding_does_not_change_the_network() -> None:
    network = random_network()
    before = {key: tensor.clone() for key, tensor in network.state_dict().items()}
    FoldedNetwork(network)
    assert all(torch.equal(tensor, before[key]) for key, tensor in network.state_dict().items())


# ------------------------------------------------------------------------------------------------ suppression


def test_suppression_of_a_batch_is_the_greedy_one_of_each_image() -> None:
    random = np.random.default_rng(0)
    counts = [0, 1, 7, 60]
    boxes = np.zeros((len(counts), max(counts), 4), dtype=np.float32)
    valid = np.zeros((len(counts), max(counts)), dtype=bool)
    for row, count in enumerate(counts):
        corner = random.uniform(0, 60, (count, 2))
        boxes[row, :count] = np.hstack([corner, corner + random.uniform(5, 40, (count, 2))])
        valid[row, :count] = True
    kept = suppress(torch.from_numpy(boxes), torch.from_numpy(valid), 0.4)
    for row, count in enumerate(counts):
        greedy: list[int] = []
        for index in range(count):
            if all(overlap(boxes[row, index], boxes[row, other]) <= 0.4 for other in greedy):
                greedy.append(index)
        assert kept[row].nonzero()[:, 0].tolist() == greedy
    assert kept.sum() < sum(counts)


def test_chain_of_boxes_keeps_every_other_one() -> None:
    starts = torch.arange(9.0)
    boxes = torch.stack([starts, torch.zeros(9), starts + 2.5, torch.ones(9)], dim=1)[None]
    assert suppress(boxes, torch.ones(1, 9, dtype=torch.bool), 0.4)[0].tolist() == [True, False] * 4 + [True]


# ------------------------------------------------------------------------------------------------ the detector


@pytest.mark.parametrize("name", ["pyfeat_multi_face.jpg", "biubug6_test.jpg", "deepface_selfie-many-people.jpg"])
def test_detector_finds_the_faces_of_the_published_detector(
    name: str, detector: RetinaFace, network: Network, test_data: Path
) -> None:
    image = cv2.resize(photo(test_data, name), (640, 416), interpolation=cv2.INTER_AREA)  # whole canvas: no rim
    theirs = published.detect(network.state_dict(), image, longest_side=640, min_score=0.6)
    (ours,) = detector.detect([image])
    assert len(ours) == len(theirs.scores) > 4
    order = np.lexsort((theirs.boxes[:, 0], -theirs.scores.round(4)))
    for face, index in zip(ours, order, strict=True):
        assert face.score == pytest.approx(theirs.scores[index], abs=1e-4)
        assert face.box == pytest.approx(theirs.boxes[index], abs=0.05)
        assert face.landmarks is not None
        assert np.ravel(face.landmarks) == pytest.approx(theirs.landmarks[index], abs=0.05)


def test_faces_do_not_depend_on_the_batch(detector: RetinaFace, test_data: Path) -> None:
    one = photo(test_data, "pyfeat_multi_face.jpg")
    images = [cv2.resize(one, size) for size in ((320, 224), (300, 200), (320, 224), (160, 96), (318, 210))]
    images += [np.ascontiguousarray(images[0][:, ::-1]), np.zeros((224, 320, 3), np.uint8)]
    alone = [detector.detect([image])[0] for image in images]
    assert sum(map(len, alone)) > 10
    assert detector.detect(images) == alone
    assert detector.detect(images[::-1])[::-1] == alone
    assert detector.detect([]) == []


def test_face_at_the_rim_of_the_image_is_found_and_none_in_the_canvas(detector: RetinaFace, test_data: Path) -> None:
    image = photo(test_data, "ageitgey_tests_test_images_obama_partial_face.jpg")
    (faces,) = detector.detect([image])
    assert len(faces) == 1
    assert faces[0].box[0] < 10
    for width in (33, 65, 97):  # most of the canvas is not image
        for face in detector.detect([cv2.resize(image, (width, 128))])[0]:
            assert (face.box[0] + face.box[2]) / 2 < width


def test_coordinates_are_those_of_the_image_at_any_longest_side(weights: Path, test_data: Path) -> None:
    image = photo(test_data, "deepface_img13.jpg")[:1363, :2047]  # odd sides, 3 to 6 times shrunk
    (expected,) = RetinaFace(weights, min_score=0.6, longest_side=640).detect([image])
    for side in (320, 450, 1024):
        (found,) = RetinaFace(weights, min_score=0.6, longest_side=side).detect([image])
        assert len(found) == len(expected) == 1
        assert overlap(found[0].box, expected[0].box) > 0.9
        assert found[0].landmarks is not None
        assert expected[0].landmarks is not None
        assert np.abs(np.subtract(found[0].landmarks, expected[0].landmarks)).max() < 20  # of a face of 400 x 600 px


def test_gray_image_equals_the_color_image_of_equal_channels(detector: RetinaFace, test_data: Path) -> None:
    gray = cv2.cvtColor(photo(test_data, "pyfeat_single_face.jpg"), cv2.COLOR_RGB2GRAY)
    assert detector.detect([gray]) == detector.detect([np.repeat(gray[:, :, None], 3, axis=2)])
    assert len(detector.detect([gray])[0]) == 1


def test_lower_score_finds_the_same_faces_and_more(detector: RetinaFace, weights: Path, test_data: Path) -> None:
    image = photo(test_data, "biubug6_test.jpg")
    (more,) = create_detector("retinaface", weights=weights, min_score=0.1).detect([image])
    (less,) = detector.detect([image])
    assert more[: len(less)] == less
    assert len(more) > len(less)
