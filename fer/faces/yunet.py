"""The detector YuNet (Wu, Peng, Yu, "YuNet: A Tiny Millisecond-level Face Detector", MIR 2023), run by OpenCV."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from fer.faces.detection import Detection, Image, detections, shrink
from fer.io.files import FileError, refuse_impostor

MOST_OVERLAP = 0.3
MOST_CANDIDATES = 5000
"""OpenCV's own values."""


class YuNet:
    """See `fer.faces.detection.Detector`. Threads may share it: each has its own network."""

    def __init__(self, weights: Path, *, min_score: float, longest_side: int) -> None:
        if not weights.is_file():
            raise FileError(f"{weights}: no such file; `fer weights pull yunet_2023mar` downloads it")
        refuse_impostor(weights, str(weights))
        self._weights, self._min_score, self._longest_side = weights, min_score, longest_side
        self._model = np.fromfile(weights, dtype=np.uint8)
        self._own = threading.local()
        self._network()  # an invalid file fails here and not on the first image

    def detect(self, images: Sequence[Image]) -> list[list[Detection]]:
        """See `Detector.detect`."""
        return [self._detect(image) for image in images]

    def _detect(self, image: Image) -> list[Detection]:
        shrunk, back = shrink(image, self._longest_side)
        network = self._network()
        network.setInputSize((shrunk.shape[1], shrunk.shape[0]))
        _, rows = network.detect(cv2.cvtColor(shrunk, cv2.COLOR_RGB2BGR))
        if rows is None:
            return []
        # x, y, width, height; right eye, left eye, nose, right and left mouth corner of the person; score.
        faces = np.asarray(rows, dtype=np.float64)
        corners = np.stack([faces[:, 0:2], faces[:, 0:2] + faces[:, 2:4]], axis=1) * back
        return detections(corners, faces[:, 4:14].reshape(-1, 5, 2) * back, faces[:, 14])

    def _network(self) -> Any:
        """This thread's network."""
        network = getattr(self._own, "network", None)
        if network is None:
            level = cv2.utils.logging.getLogLevel()
            cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_ERROR)  # it warns of its own default target
            try:
                network = cv2.FaceDetectorYN.create(
                    framework="onnx",
                    bufferModel=self._model,
                    bufferConfig=np.zeros(0, np.uint8),
                    input_size=(320, 320),
                    score_threshold=self._min_score,
                    nms_threshold=MOST_OVERLAP,
                    top_k=MOST_CANDIDATES,
                )
            except cv2.error as error:
                raise FileError(
                    f"{self._weights}: not a YuNet that OpenCV can load ({error.err}); "
                    "`fer weights pull yunet_2023mar` downloads it"
                ) from None
            finally:
                cv2.utils.logging.setLogLevel(level)
            self._own.network = network
        return network
