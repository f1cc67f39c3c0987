"""The detector RetinaFace: faces with five landmarks.

An image is shrunk to the longest side and put at the upper left of a canvas of the mean color, with sides that are
multiples of 32; canvases of one size go through the network together. Anchors (Deng et al., section 3.2; `PriorBox` in
the published code) whose center is outside the image are left out, so that the rim of the canvas has no faces.

Departures from the published code, and why:
- scores are compared before the softmax, and only anchors above the threshold are decoded: the same faces for a
  hundredth of the work;
- boxes are half-open: the published suppression counts a pixel more on each side;
- overlaps of boxes of at most 40 % are allowed, as in its test_widerface.py (0.3 to 0.4 elsewhere in it).
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor

from fer.faces.detection import Detection, Image, Shrunk, detections, shrink, shrunk_size
from fer.faces.retinaface_network import ANCHOR_SIDES, MEAN_RGB, STRIDES, FoldedNetwork, Network
from fer.io.files import FileError
from fer.weights.published import read_published
from fer.weights.store import usable

VARIANCES = (0.1, 0.2)
"""Offsets of centers and landmarks are in units of 0.1 anchor sides, logarithms of sides in units of 0.2."""

MOST_OVERLAP = 0.4
MOST_CANDIDATES = 1024
"""The best anchors of one image, which go into suppression; bounds its memory."""

_MEAN = np.array((*MEAN_RGB, 0.0))  # a color has four numbers in OpenCV
_CANVAS = 32  # px; the coarsest stride
_BATCH_PIXELS = 640 * 640
"""Of one pass through the network. Larger batches are slower: a layer's maps then leave the cache."""


class RetinaFace:
    """See `fer.faces.detection.Detector`. On the CPU, with as many threads as torch has been given."""

    def __init__(self, weights: Path, *, min_score: float, longest_side: int) -> None:
        self._network = FoldedNetwork(load_network(weights))
        self._min_margin = math.log(min_score / (1 - min_score))
        self._longest_side = longest_side

    def detect(self, images: Sequence[Image]) -> list[list[Detection]]:
        """See `Detector.detect`."""
        found: list[list[Detection]] = [[] for _ in images]
        groups: dict[tuple[int, int], list[int]] = defaultdict(list)
        for index, image in enumerate(images):
            height, width = shrunk_size(image.shape[0], image.shape[1], self._longest_side)
            groups[_ceil(height, _CANVAS), _ceil(width, _CANVAS)].append(index)
        for canvas, members in groups.items():
            most = max(1, _BATCH_PIXELS // (canvas[0] * canvas[1]))
            for start in range(0, len(members), most):
                part = members[start : start + most]
                faces = self._detect_equal([shrink(images[index], self._longest_side) for index in part], canvas)
                for index, its in zip(part, faces, strict=True):
                    found[index] = its
        return found

    @torch.inference_mode()
    def _detect_equal(self, images: Sequence[Shrunk], canvas: tuple[int, int]) -> list[list[Detection]]:
        """The faces of images on canvases of one size."""
        pixels = np.zeros((len(images), *canvas, 3), dtype=np.float32)
        for target, (image, _) in zip(pixels, images, strict=True):
            place = target[: image.shape[0], : image.shape[1]]
            cv2.subtract(image, _MEAN, dst=place, dtype=cv2.CV_32F)  # a tenth of NumPy's time
        raw = self._network(torch.from_numpy(pixels).permute(0, 3, 1, 2))
        anchors = anchors_of(*canvas)
        limits = torch.tensor([image.shape[1::-1] for image, _ in images], dtype=torch.float32)
        margin_BA = (raw.scores[..., 1] - raw.scores[..., 0]).flatten(1)
        margin_BA.masked_fill_((anchors[:, :2] >= limits[:, None]).any(dim=2), -math.inf)

        most = int((margin_BA > self._min_margin).sum(dim=1).max())
        if not most:
            return [[] for _ in images]
        best = margin_BA.topk(min(most, MOST_CANDIDATES), dim=1)
        place_BK = torch.arange(len(images))[:, None], best.indices // 2, best.indices % 2
        boxes, landmarks = decode(raw.boxes[place_BK], raw.landmarks[place_BK], anchors[best.indices])
        keep_BK = suppress(boxes, best.values > self._min_margin, MOST_OVERLAP)
        scores = best.values.double().sigmoid()
        return [
            detections(
                (boxes[number][keep].view(-1, 2, 2).double().numpy() * back).reshape(-1, 4),
                landmarks[number][keep].double().numpy() * back,
                scores[number][keep].numpy(),
            )
            for number, ((_, back), keep) in enumerate(zip(images, keep_BK, strict=True))
        ]


def load_network(weights: Path) -> Network:
    """The published network with the weights of a published file, in evaluation mode.

    Raises:
        FileError: no such file, or not this network's weights.
    """
    network = Network()
    try:
        network.load_state_dict(usable(weights, read_published(weights), network.state_dict()))
    except RuntimeError:
        raise FileError(
            f"{weights}: not the weights of RetinaFace with MobileNet-0.25; "
            "`fer weights pull retinaface_mobilenet025` downloads them"
        ) from None
    return network.eval()


@lru_cache(maxsize=64)
def anchors_of(height: int, width: int) -> Tensor:
    """(A, 4) float32: center x, y and sides of every anchor of an image of this size, in px, in the order of `Raw`."""
    levels = []
    for stride, sides in zip(STRIDES, ANCHOR_SIDES, strict=True):
        y = (torch.arange(math.ceil(height / stride), dtype=torch.float32) + 0.5) * stride
        x = (torch.arange(math.ceil(width / stride), dtype=torch.float32) + 0.5) * stride
        rows, columns, side = torch.meshgrid(y, x, torch.tensor(sides), indexing="ij")
        levels.append(torch.stack([columns, rows, side, side], dim=-1).reshape(-1, 4))
    return torch.cat(levels)


def decode(boxes: Tensor, landmarks: Tensor, anchors: Tensor) -> tuple[Tensor, Tensor]:
    """The network's output for anchors, in px.

    Args:
        boxes, landmarks: (..., 4) and (..., 10), as in `Raw`.
        anchors: (..., 4), as `anchors_of` gives them.

    Returns:
        (..., 4) x1, y1, x2, y2 and (..., 5, 2) points.
    """
    center, side = anchors[..., :2], anchors[..., 2:]
    middle = center + boxes[..., :2] * VARIANCES[0] * side
    half = side * torch.exp(boxes[..., 2:] * VARIANCES[1]) / 2
    points = center.unsqueeze(-2) + landmarks.reshape(*landmarks.shape[:-1], 5, 2) * VARIANCES[0] * side.unsqueeze(-2)
    return torch.cat([middle - half, middle + half], dim=-1), points


def suppress(boxes_BK4: Tensor, valid_BK: Tensor, most_overlap: float) -> Tensor:
    """Greedy non-maximum suppression in all images at once, without a loop over faces.

    A box is dropped if a kept box before it in its image overlaps it by more than `most_overlap` of their union. The
    kept boxes are the only fixed point of that rule, because box i depends on boxes before i alone. So the rule is
    applied to "all are kept" until nothing changes: after n times the first n boxes are right, and in practice all are
    after two or three.

    Args:
        boxes_BK4: x1, y1, x2, y2; in each image the best first.
        valid_BK: whether there is a box at this place at all.
        most_overlap: intersection over union, 0..1.

    Returns:
        (B, K) bool.
    """
    corner, opposite = boxes_BK4[..., :2], boxes_BK4[..., 2:]
    sides = (
        torch.minimum(opposite[:, :, None], opposite[:, None]) - torch.maximum(corner[:, :, None], corner[:, None])
    ).clamp_(min=0)
    shared_BKK = sides[..., 0] * sides[..., 1]
    area_BK = (opposite - corner).clamp(min=0).prod(dim=2)
    together_BKK = area_BK[:, :, None] + area_BK[:, None] - shared_BKK
    # [b, i, j]: box j is before i and overlaps it.
    rivals_BKK = (shared_BKK > most_overlap * together_BKK).tril(diagonal=-1).float()
    keep = valid_BK
    while True:
        beaten = torch.bmm(rivals_BKK, keep[:, :, None].float())[..., 0] > 0
        again = valid_BK & ~beaten
        if torch.equal(again, keep):
            return keep
        keep = again


def _ceil(value: int, step: int) -> int:
    return -(-value // step) * step
