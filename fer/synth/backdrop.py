"""What is around a face, and what the camera does to the image."""

from functools import lru_cache
from math import cos, radians, sin

import cv2
import numpy as np
from numpy.typing import NDArray

from fer.synth.brush import OVERSAMPLE, Canvas, fill, place, plane
from fer.synth.config import SceneConfig
from fer.synth.geometry import FIXED, FaceGeometry
from fer.synth.identity import SKIN_TONES, Identity, mix
from fer.synth.streams import Stream

_SHOULDERS = np.array([
    [-0.60, 1.95], [-0.72, 2.10], [-1.50, 2.32], [-2.10, 2.60], [-2.35, 3.20], [-2.45, 5.50], [2.45, 5.50],
    [2.35, 3.20], [2.10, 2.60], [1.50, 2.32], [0.72, 2.10], [0.60, 1.95], [0.30, 2.16], [0.0, 2.22], [-0.30, 2.16],
])  # fmt: skip
_NECK_TOP, _NECK_FOOT = np.array([[-0.66, 0.75], [0.66, 0.75]]), np.array([[0.74, 2.3], [-0.74, 2.3]])


def backdrop(stream: Stream, config: SceneConfig) -> Canvas:
    """A canvas (2 S, 2 S, 3) RGB with a soft backdrop, clutter, and featureless ellipses the color of skin."""
    side, size = config.scene_size * OVERSAMPLE, config.scene_size
    cells = 2 if config.domain == "studio" else 4
    # Every cell is lighter or darker than the wall by one draw, and tinted by one a channel.
    spread, draws = 30 if config.domain == "studio" else 75, stream.units(cells, cells, 4) - 0.5
    coarse = _paint_color(stream) + spread * (1.6 * draws[..., :1] + 0.6 * draws[..., 1:])
    soft = cv2.resize(np.clip(coarse, 0, 255).astype(np.uint8), (side, side), interpolation=cv2.INTER_LINEAR)
    canvas = np.asarray(soft, np.uint8)
    if config.domain == "studio":
        return canvas
    for _ in range(stream.integer(6)):  # furniture, windows, signs
        x, y, w, h = (stream.uniform(-0.1, 1) * size, stream.uniform(-0.1, 1) * size,
                      stream.uniform(0.05, 0.5) * size, stream.uniform(0.05, 0.5) * size)  # fmt: skip
        lean = stream.bell(0.2)
        corners = np.array([[x, y], [x + w, y + lean * w], [x + w - lean * h, y + h], [x - lean * h, y + h - lean * w]])
        fill(canvas, np.rint(corners * FIXED).astype(np.int32), _paint_color(stream))
    for _ in range(stream.integer(config.distractors + 1)):
        tone = stream.uniform(0, len(SKIN_TONES) - 1.001)
        skin = mix(SKIN_TONES[int(tone)], SKIN_TONES[int(tone) + 1], tone % 1)
        radius, turn = stream.uniform(0.05, 0.16) * size, stream.uniform(-0.6, 0.6)
        angle = np.arange(24) * np.pi / 12
        ring = np.stack([radius * np.cos(angle), 1.3 * radius * np.sin(angle)], axis=1)
        ring = ring @ np.array([[cos(turn), sin(turn)], [-sin(turn), cos(turn)]])
        center = np.array([stream.unit() * size, stream.unit() * size])
        fill(canvas, np.rint((center + ring) * FIXED).astype(np.int32), skin)
    return canvas


def _paint_color(stream: Stream) -> tuple[float, float, float]:
    """A muted color: rooms and clothes are grayer than a random triple."""
    tone, spread = stream.uniform(30, 215), 15 + 45 * stream.unit() ** 2
    r, g, b = (min(max(tone + stream.uniform(-spread, spread), 8.0), 245.0) for _ in range(3))
    return r, g, b


def paint_body(canvas: Canvas, face: FaceGeometry, who: Identity, stream: Stream) -> None:
    """Shoulders, which stay nearly upright, and the neck that joins them to the head."""
    pose = face.pose
    lean = radians(0.3 * pose.roll)
    upright = pose.scale * np.array([[cos(lean), sin(lean)], [-sin(lean), cos(lean)]])
    pivot = np.rint(np.array([pose.x, pose.y]) * FIXED).astype(np.int32)
    foot, top = place(pivot, _NECK_FOOT, upright), place(pivot, _NECK_TOP, plane(pose))
    fill(canvas, np.concatenate([top, foot]), mix(who.skin, (40, 14, 8), 0.24))
    fill(canvas, place(pivot, _SHOULDERS, upright), _paint_color(stream))


@lru_cache(maxsize=2)
def _noise_tile(side: int) -> NDArray[np.int16]:
    """(side, side, 3) bell-shaped noise with standard deviation 64, the same for every scene; scenes take a window of
    it."""
    random = np.random.Generator(np.random.Philox(key=side))
    tile = sum(random.integers(-64, 65, (side, side, 3), dtype=np.int16) for _ in range(3))
    return np.asarray(tile, np.int16)


def finish(canvas: Canvas, stream: Stream, config: SceneConfig, *, gray: bool) -> Canvas:
    """Canvas -> scene (S, S, 3): lens, exposure and sensor."""
    size = config.scene_size
    image = cv2.resize(canvas, (size, size), interpolation=cv2.INTER_AREA)
    blurred, defocus, amount = stream.chance(config.blur_probability), stream.chance(0.5), stream.unit()
    if blurred and config.blur_sigma > 0:
        sigma = amount * config.blur_sigma
        if defocus:
            image = cv2.GaussianBlur(image, (0, 0), max(sigma, 0.3))
        else:  # lost resolution: a box as wide as the Gaussian
            small = max(8, round(size / (1 + 1.5 * sigma)))
            image = cv2.resize(cv2.resize(image, (small, small), interpolation=cv2.INTER_AREA), (size, size),
                               interpolation=cv2.INTER_LINEAR)  # fmt: skip
    wild = 0.3 if config.domain == "studio" else 1.0
    gain, lift, tint = 1 + stream.bell(0.35) * wild, stream.bell(30) * wild, stream.bell(0.12) * wild
    levels = np.arange(256.0)[:, None] * gain * np.array([1 + tint, 1.0, 1 - tint]) + lift
    image = cv2.LUT(image, np.clip(levels, 0, 255).astype(np.uint8)[None])
    sigma, x, y = stream.unit() * config.noise * wild, stream.integer(97), stream.integer(97)
    window = _noise_tile(size + 97)[y : y + size, x : x + size]
    grain = cv2.multiply(window, sigma / 64)  # type: ignore[call-overload]  # the stub has no scalars
    image = cv2.add(image, grain, dtype=cv2.CV_8U)
    if gray:
        image = cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    return np.asarray(image, np.uint8)
