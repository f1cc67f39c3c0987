"""Drawn faces in the folder layouts of the published datasets: what a user's data must look like, and data to try all
of the pipeline on without them.

    write("rafdb", Path("drawn"), images=140, seed=0)  # {"source": "rafdb", "path": "drawn", "subset": True}

They hold none of the published images. `DRAWN` lies beside them, by which readers call what they find synthetic.
"""

from __future__ import annotations

import csv
import hashlib
import io
import itertools
import json
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from fer.io.files import FileError, publish_directory
from fer.labels import DATASET_LABELS, SPELLINGS
from fer.sources.affectnet import FIVE_OF_68
from fer.sources.base import DRAWN
from fer.sources.fer2013_rows import SIDE
from fer.sources.ferplus import CHOICES, VOTES_FILE
from fer.synth.align import aligned_crop
from fer.synth.config import SceneConfig
from fer.synth.expressions import CONFUSED_WITH, EXPRESSIONS
from fer.synth.scene import Face, Scene, describe, render

IMAGES = 160
"""Images of a layout, unless asked otherwise: 20 to 22 a class, a quarter of them test."""

_TEST_EVERY = 4  # of the images of a class, every fourth is test
_NOTE = "Drawn faces, made by `fer synth dataset`. They say nothing about accuracy on people.\n"
_KOREAN = {name: SPELLINGS[name][-1] for name in DATASET_LABELS["aihub82"]}
# Three of AI-Hub's classes are no basic expression; these are drawn in their place.
_SHOWN_AS = {"surprise": "panic", "fear": "anxiety", "disgust": "hurt"}

Image = NDArray[np.uint8]


@dataclass(frozen=True)
class Drawn:
    """An image of one face.

    Attributes:
        number: of the image, from 0 on within its split.
        turn: how many images of its class came before.
        name: of the expression.
    """

    number: int
    turn: int
    name: str
    scene: Scene

    @property
    def test(self) -> bool:
        """Whether it belongs to the test split."""
        return _is_test(self.turn)

    @property
    def face(self) -> Face:
        """The one face."""
        return self.scene.faces[0]

    @property
    def split(self) -> str:
        """As most layouts name it: train or test."""
        return "test" if self.test else "train"

    @property
    def box(self) -> tuple[int, int, int, int]:
        """x1, y1, x2, y2 of the face in whole px, within the image."""
        side = self.scene.image.shape[0]
        x1, y1, x2, y2 = (min(max(round(value), 0), side) for value in self.face.box)
        return x1, y1, x2, y2

    def square(self, side: int) -> tuple[Image, NDArray[np.float64]]:
        """The face in a square (side, side, 3), a quarter larger than its box, and its five landmarks there, (5, 2)."""
        x1, y1, x2, y2 = self.face.box
        zoom = side / (1.25 * max(x2 - x1, y2 - y1))
        corner = np.array([x1 + x2, y1 + y2]) / 2 - side / zoom / 2
        matrix = np.column_stack([zoom * np.eye(2), -zoom * corner])
        image = cv2.warpAffine(self.scene.image, matrix, (side, side), flags=cv2.INTER_LINEAR)
        return np.asarray(image, np.uint8), zoom * (np.array(self.face.landmarks) - corner)


def write(layout: str, out: Path, *, images: int = IMAGES, seed: int = 0) -> dict[str, Any]:
    """Writes drawn faces in a layout of `LAYOUTS`, complete or not at all; the same arguments give the same bytes.

    Args:
        out: a folder that is not there, or is empty.
        images: altogether, equally many of each class; at least eight a class.

    Returns:
        the entry under `datasets` in params.yaml that reads it.

    Raises:
        FileError: `out` holds something.
        ValueError: too few images.
    """
    classes, writer = LAYOUTS[layout]
    if images < 2 * _TEST_EVERY * classes:
        raise ValueError(f"{images} images: {layout} needs at least {2 * _TEST_EVERY * classes}, eight of each class")
    if out.is_symlink() or (out.exists() and not (out.is_dir() and not any(out.iterdir()))):
        raise FileError(f"{out}: is there already, and is not empty; name another folder")
    with publish_directory(out, many_files=True) as folder:
        entry = writer(folder, draw(images, classes, seed))
        (folder / DRAWN).write_text(_NOTE)
    paths = {key: str(out / value) for key, value in entry.items() if key in ("path", "boxes", "votes")}
    return {**entry, **paths, "subset": True}


def draw(images: int, classes: Literal[7, 8], seed: int) -> Iterable[Drawn]:
    """Images of the classes by turns, of other people in test than in training."""
    config = SceneConfig(
        num_classes=classes, multi_face_probability=0.0, no_face_probability=0.0, test_fraction=1 / _TEST_EVERY
    )
    scenes: defaultdict[tuple[bool, int], list[int]] = defaultdict(list)
    unseen = itertools.count()
    numbers = {False: itertools.count(), True: itertools.count()}
    for turn, label in ((number // classes, number % classes) for number in range(images)):
        test = _is_test(turn)
        while not scenes[test, label]:
            index = next(unseen)
            found = describe(seed, index, config)
            scenes[found.split == "test", found.faces[0].label].append(index)
        scene = render(seed, scenes[test, label].pop(0), config)
        yield Drawn(next(numbers[test]), turn, EXPRESSIONS[label], scene)


def _is_test(turn: int) -> bool:
    return turn % _TEST_EVERY == _TEST_EVERY - 1


# ------------------------------------------------------------------------------------------------ one layout each


def _rafdb(out: Path, faces: Iterable[Drawn]) -> dict[str, Any]:
    """The folder basic/: the published crops, the whole images, boxes and landmarks."""
    lines = []
    for one in faces:
        name = f"test_{one.number + 1:04d}" if one.test else f"train_{one.number + 1:05d}"
        points = np.array(one.face.landmarks)
        lines.append(f"{name}.jpg {DATASET_LABELS['rafdb'].index(one.name) + 1}")
        _image(out / "Image" / "aligned" / f"{name}_aligned.jpg", aligned_crop(one.scene.image, points, 100))
        _image(out / "Image" / "original" / f"{name}.jpg", one.scene.image)
        box = " ".join(f"{value:.6f}" for value in one.box)
        _text(out / "Annotation" / "boundingbox" / f"{name}_boundingbox.txt", f"{box}\n")
        five = "".join(f"{x:.2f}\t{y:.2f}\n" for x, y in points)
        _text(out / "Annotation" / "manual" / f"{name}_manu_attri.txt", f"{five}0\n0\n2\n")  # gender, race, age
    _text(out / "EmoLabel" / "list_patition_label.txt", "\n".join(lines) + "\n")
    return {"source": "rafdb", "path": ""}


def _affectnet(out: Path, faces: Iterable[Drawn]) -> dict[str, Any]:
    """The release of March 2021: crops of 224 px, and .npy files with numbers as text."""
    for one in faces:
        folder = out / ("val_set" if one.test else "train_set")
        image, five = one.square(224)
        _image(folder / "images" / f"{one.number}.jpg", image)
        (folder / "annotations").mkdir(exist_ok=True)
        values = {"exp": str(DATASET_LABELS["affectnet8"].index(one.name)), "val": "0.0", "aro": "0.0"}
        for kind, value in (*values.items(), ("lnd", landmarks68(five).ravel())):
            np.save(folder / "annotations" / f"{one.number}_{kind}.npy", np.array(value))
    return {"source": "affectnet", "path": "", "classes": 8}


def landmarks68(five: NDArray[np.float64]) -> NDArray[np.float64]:
    """(68, 2) points in iBUG's order that lead to these five, (5, 2): eyes, nose, mouth corners. The others are made
    up: they lie on the nose."""
    points = np.tile(five[2], (68, 1))
    ring = np.array([(-2, 0), (-1, -1), (1, -1), (2, 0), (1, 1), (-1, 1)])
    for place, point in zip(FIVE_OF_68, five, strict=True):
        points[list(place)] = point + ring if len(place) == len(ring) else point
    return points


def _caers(out: Path, faces: Iterable[Drawn]) -> dict[str, Any]:
    """Whole scenes in class folders, and the lists of boxes, which write train/Angry beside test/Anger."""
    folders = {name: SPELLINGS[name][0].capitalize() for name in ("happiness", "sadness")}
    boxes: defaultdict[str, list[str]] = defaultdict(list)
    for one in faces:
        order = DATASET_LABELS["caers"].index(one.name)
        folder = folders.get(one.name, one.name.capitalize())
        _image(out / one.split / folder / f"{one.number + 1:04d}.png", one.scene.image)
        listed = "Angry" if (one.split, folder) == ("train", "Anger") else folder
        place = ",".join(map(str, one.box))
        boxes[one.split].append(f"{one.split}/{listed}/{one.number + 1:04d}.png,{order},{place}\n")
    for split, lines in boxes.items():
        _text(out / "boxes" / f"{split}.txt", "".join(lines))
    return {"source": "caers", "path": "", "boxes": "boxes"}


def _aihub(out: Path, faces: Iterable[Drawn]) -> dict[str, Any]:
    """Folders of photos and of JSON records by emotion, with three annotators who agree."""
    records: defaultdict[tuple[bool, str], list[dict[str, Any]]] = defaultdict(list)
    for one in faces:
        emotion = _KOREAN[_SHOWN_AS.get(one.name, one.name)]
        person = hashlib.sha256(one.face.subject.encode()).hexdigest()
        file = f"{person}_여_20_{emotion}_숙박 및 거주공간_20210126165538-010-{one.number:03d}.jpg"
        photos = f"[원천]EMOIMG_{emotion}_VALID" if one.test else f"[원천]EMOIMG_{emotion}_TRAIN_01"
        _image(out / ("Validation" if one.test else "Training") / photos / file, one.scene.image)
        corners = zip(("minX", "minY", "maxX", "maxY"), map(float, one.box), strict=True)
        annotation = {"boxes": dict(corners), "faceExp": emotion}
        about = {"filename": file, "gender": "여", "age": 20, "faceExp_uploader": emotion}
        about |= {"bg_uploader": "숙박 및 거주공간", **{f"annot_{letter}": annotation for letter in "ABC"}}
        records[one.test, emotion].append(about)
    for (test, emotion), listed in records.items():
        folder, kind, name = ("Validation", "VALID", "validation") if test else ("Training", "TRAIN", "training")
        path = out / folder / f"[라벨]EMOIMG_{emotion}_{kind}" / f"img_emotion_{name}_data({emotion}).json"
        _text(path, json.dumps(listed, ensure_ascii=False, indent=1))
    return {"source": "aihub", "path": ""}


def _fer2013(out: Path, faces: Iterable[Drawn]) -> dict[str, Any]:
    """fer2013.csv: a line an image, 48 x 48 gray values. Contempt, which it lacks, is written as happiness."""
    lines = []
    for one in faces:
        order = DATASET_LABELS["fer2013"]
        label = order.index(one.name if one.name in order else CONFUSED_WITH[one.name][0])
        gray = cv2.cvtColor(one.square(SIDE)[0], cv2.COLOR_RGB2GRAY)
        lines.append([label, " ".join(map(str, gray.ravel())), usage(one)])
    _table(out / "fer2013.csv", ["emotion", "pixels", "Usage"], lines)
    return {"source": "fer2013", "path": "fer2013.csv"}


def _ferplus(out: Path, faces: Iterable[Drawn]) -> dict[str, Any]:
    """FER2013's file, and line by line ten people's votes, two of them for what is easily confused."""
    faces = list(faces)
    _fer2013(out, faces)
    lines = []
    for number, one in enumerate(faces):
        votes = {one.name: 8, CONFUSED_WITH[one.name][0]: 2}
        lines.append([usage(one), f"fer{number:07d}.png", *(votes.get(choice, 0) for choice in CHOICES)])
    _table(out / VOTES_FILE, ["Usage", "Image name", *CHOICES], lines)
    return {"source": "ferplus", "path": "fer2013.csv", "votes": VOTES_FILE}


def usage(one: Drawn) -> str:
    """FER2013's name of the split: the test images are shared out between PublicTest and PrivateTest."""
    return "Training" if not one.test else ("PublicTest", "PrivateTest")[one.turn // _TEST_EVERY % 2]


def _folders(out: Path, faces: Iterable[Drawn]) -> dict[str, Any]:
    """Class folders of crops of 112 px: train/happiness/0.png."""
    for one in faces:
        _image(out / one.split / one.name / f"{one.number}.png", one.square(112)[0])
    return {"source": "folders", "path": ""}


LAYOUTS: dict[str, tuple[Literal[7, 8], Callable[[Path, Iterable[Drawn]], dict[str, Any]]]] = {
    "rafdb": (7, _rafdb),
    "affectnet": (8, _affectnet),
    "caers": (7, _caers),
    "aihub": (7, _aihub),
    "ferplus": (8, _ferplus),
    "fer2013": (7, _fer2013),
    "folders": (7, _folders),
}
"""Number of classes and writer of each layout. A writer returns the entry of params.yaml, paths relative to its
folder."""


# ------------------------------------------------------------------------------------------------ files


def _image(path: Path, rgb: Image) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(cv2.imencode(path.suffix, cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR))[1].tobytes())


def _text(path: Path, content: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode())


def _table(path: Path, header: list[str], lines: Iterable[list[Any]]) -> None:
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerows([header, *lines])
    _text(path, buffer.getvalue())
