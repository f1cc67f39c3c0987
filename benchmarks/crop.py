"""`fer bench crop`: the crop stage beside a hand-written loop, and what a second worker brings."""

from __future__ import annotations

import argparse
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cache, partial
from itertools import cycle, islice
from pathlib import Path
from typing import Any

from benchmarks.result import BenchResult, benchmark, options
from fer.io.files import FileError
from fer.labels import LabelSpace, space
from fer.sources.base import AnnotatedFace, Block, RawSample, Reject

_ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
_BLOCK = 16  # images; small, so that the workers of a short measurement are busy to its end
_SCENE_SIDE = 640


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--photos", type=Path, metavar="FOLDER", help="images to crop (drawn scenes)")
    parser.add_argument("--weights", metavar="FOLDER", help="where the detectors' weights are (`fer weights pull`)")
    parser.add_argument("--detectors", nargs="+", metavar="NAME", default=["retinaface", "yunet"], help="(both)")
    parser.add_argument("--images", "--pictures", type=int, default=64, help="of one round; fewer are repeated (64)")
    parser.add_argument("--rounds", type=int, default=5, help="of stage and loop in turn (5)")
    parser.add_argument("--no-ray", action="store_true", help="leave out what a second worker brings")


@benchmark("crop", help="images/s of the crop stage beside plain loops, with one worker and two", arguments=_arguments)
def run(args: argparse.Namespace) -> BenchResult:
    """A row for each detector and comparison; ValueError for what cannot be read."""
    import cv2
    import torch

    from fer.faces.weights import locate

    weights = {name: str(locate(name, args.weights, Path.cwd()).resolve()) for name in args.detectors}
    cv2.setNumThreads(1)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    try:
        with tempfile.TemporaryDirectory(prefix="fer-bench-") as folder:
            files = list(islice(cycle(_images(args.photos, Path(folder))), args.images))
            for detector in args.detectors:
                stage = partial(stage_block, files, detector, weights[detector], folder)
                loop = partial(loop_block, files, detector, weights[detector])
                rows.append(_beside(detector, stage, loop, args))
                if not args.no_ray:
                    rows += _second_worker(detector, stage, loop, args)
    finally:
        torch.set_num_threads(threads)
    return BenchResult(
        title=f"crops of {args.images} images a round, {args.photos or f'drawn, {_SCENE_SIDE} px'}",
        rows=rows,
        notes=[
            "stage: fer.faces.blocks.crop_block whole: files read, decoded, searched, aligned, encoded, written as "
            "Parquet, with all checks of untrusted files; every process has one thread, and it is the processor's time "
            "that counts",
            "loop of retinaface: cv2.imread, the published network unfolded, its post-processing in Python image by "
            "image (benchmarks.reference.retinaface), warpAffine, imencode",
            "loop of yunet: cv2.imread, resize, cv2.FaceDetectorYN, warpAffine, imencode",
            "two workers: images/s while all are at work, of two over one; the loop's in plain processes shows what "
            "the machine itself gives a second process",
        ],
        settings=options(args, ("images", "rounds", "detectors")) | {"photos": str(args.photos or "drawn")},
    )


def _images(photos: Path | None, folder: Path) -> list[Path]:
    """The files to crop; drawn into `folder` where there are none."""
    if photos is not None:
        found = sorted(path.resolve() for path in photos.glob("*") if path.suffix.lower() in _ENDINGS)
        if not found:
            raise FileError(f"{photos}: no image in it ({', '.join(_ENDINGS)})")
        return found
    import cv2

    from fer.synth import SceneConfig, render

    config = SceneConfig(scene_size=_SCENE_SIDE, face_size=(120.0, 320.0))
    drawn = []
    for index in range(16):
        path = folder / f"scene-{index:02d}.jpg"
        cv2.imwrite(str(path), cv2.cvtColor(render(0, index, config).image, cv2.COLOR_RGB2BGR))
        drawn.append(path)
    return drawn


# ------------------------------------------------------------------------------------------------ what is measured


@dataclass(frozen=True)
class Timed:
    """A block of work: which process did it, when (seconds of the machine's monotonic clock), what came out.

    Attributes:
        cpu: seconds that the process had a processor to itself, which is all of them on an idle machine.
    """

    process: int
    start: float
    stop: float
    cpu: float
    images: int
    faces: int


@dataclass(frozen=True)
class FileSource:
    """Image files as a dataset whose labels have no box; see `fer.sources.base.Source`."""

    files: Sequence[Path]
    generator: str = "bench"

    @property
    def label_space(self) -> LabelSpace:
        """Any."""
        return space("basic7")

    @property
    def request(self) -> dict[str, Any]:
        """Nothing."""
        return {}

    def download(self, out: Path, cache: Path) -> dict[str, Any]:
        """The files are there."""
        return {}

    def blocks(self, raw: Path) -> list[Block]:
        """Sixteen images each."""
        starts = range(0, len(self.files), _BLOCK)
        return [
            Block(index=index, file="", start=start, stop=min(start + _BLOCK, len(self.files)))
            for index, start in enumerate(starts)
        ]

    def read(self, raw: Path, block: Block) -> Iterator[RawSample | Reject]:
        """The files of a block."""
        face = AnnotatedFace(box=None, landmarks=None, label=0, clean_label=0)
        for index in range(block.start, block.stop):
            path = self.files[index]
            yield RawSample(
                key=f"{index}", image=path.read_bytes(), split="train", faces=(face,), is_crop=False, origin=path.name
            )


def stage_block(files: Sequence[Path], detector: Any, weights: str, folder: str, block: Block) -> Timed:
    """The crop stage on one block."""
    from fer.faces.blocks import crop_block
    from fer.faces.config import CropConfig

    config = CropConfig(detector=detector, faces="all")
    start, cpu = time.monotonic(), time.process_time()
    with tempfile.TemporaryDirectory(dir=folder) as out:
        result = crop_block(FileSource(files), config, weights, 1, folder, out, block)
    return _timed(start, cpu, block, result.rows)


def loop_block(files: Sequence[Path], detector: str, weights: str, block: Block) -> Timed:
    """A hand-written loop, on one block."""
    import cv2
    import numpy as np

    from fer.faces import align
    from fer.faces.config import CropConfig

    cv2.setNumThreads(1)
    config = CropConfig()
    find = _by_hand(detector, weights)
    template = align.template(config.size).astype(np.float32) - 0.5
    options = [
        cv2.IMWRITE_JPEG_QUALITY, config.jpeg_quality,
        cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444,
    ]  # fmt: skip
    start, cpu, crops = time.monotonic(), time.process_time(), []
    for path in files[block.start : block.stop]:
        image = cv2.imread(str(path))
        assert image is not None
        for points in find(image):
            matrix, _ = cv2.estimateAffinePartial2D(points, template, method=cv2.LMEDS)
            crop = cv2.warpAffine(image, matrix, (config.size, config.size))
            crops.append(cv2.imencode(".jpg", crop, options)[1].tobytes())
    return _timed(start, cpu, block, len(crops))


def _timed(start: float, cpu: float, block: Block, faces: int) -> Timed:
    stop = time.monotonic()
    return Timed(os.getpid(), start, stop, time.process_time() - cpu, block.stop - block.start, faces)


@cache
def _by_hand(detector: str, weights: str) -> Callable[[Any], Any]:
    """BGR image -> (N, 5, 2) landmarks of its faces."""
    import cv2
    import numpy as np

    from fer.faces.detect import DEFAULTS

    defaults = DEFAULTS[detector]
    if detector == "yunet":
        network = cv2.FaceDetectorYN.create(weights, "", (320, 320), defaults.min_score)

        def find(image: Any) -> Any:
            scale = min(1.0, defaults.longest_side / max(image.shape[:2]))
            small = image if scale == 1 else cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
            network.setInputSize((small.shape[1], small.shape[0]))
            _, found = network.detect(small)
            rows = np.zeros((0, 15), np.float32) if found is None else np.asarray(found, np.float32)
            return rows[:, 4:14].reshape(-1, 5, 2) / scale

        return find
    import torch

    from benchmarks.reference import retinaface
    from fer.weights.published import read_published

    tensors = read_published(Path(weights))
    torch.set_num_threads(1)

    def search(image: Any) -> Any:
        rgb = np.asarray(cv2.cvtColor(image, cv2.COLOR_BGR2RGB), np.uint8)
        found = retinaface.detect(
            tensors, rgb, longest_side=defaults.longest_side, min_score=defaults.min_score, interpolation=cv2.INTER_AREA
        )
        return found.landmarks.reshape(-1, 5, 2)

    return search


# ------------------------------------------------------------------------------------------------ comparing


def _beside(
    detector: str, stage: Callable[[Block], Timed], loop: Callable[[Block], Timed], args: argparse.Namespace
) -> dict[str, Any]:
    """Stage and loop in turn in this process."""
    blocks = FileSource([Path()] * args.images).blocks(Path())
    for task in (stage, loop):
        task(blocks[0])  # the first call makes the detector
    seconds: dict[str, list[float]] = {"stage": [], "loop": []}
    faces = {}
    for _ in range(args.rounds):
        for name, task in (("stage", stage), ("loop", loop)):
            done = [task(block) for block in blocks]
            seconds[name].append(sum(one.cpu for one in done))
            faces[name] = sum(one.faces for one in done)
    ratio = statistics.median(b / a for a, b in zip(seconds["stage"], seconds["loop"], strict=True))
    return _row(
        f"{detector}: stage beside the plain loop",
        args.images / statistics.median(seconds["stage"]),
        args.images / statistics.median(seconds["loop"]),
        ratio,
        "2 or more" if detector == "retinaface" else "0.83 or more",
        f"{faces['stage']} / {faces['loop']}",
    )


def _second_worker(
    detector: str, stage: Callable[[Block], Timed], loop: Callable[[Block], Timed], args: argparse.Namespace
) -> list[dict[str, Any]]:
    """Two workers beside one: of the stage by Ray, and of the loop in plain processes."""
    from fer.cluster.config import ClusterConfig
    from fer.cluster.map import map_blocks

    blocks = FileSource([Path()] * args.images).blocks(Path()) * args.rounds
    cluster = ClusterConfig(cpus=2, object_store_mb=100)
    actors = {n: rate(list(map_blocks(stage, blocks, workers=n, cluster=cluster))) for n in (1, 2)}
    plain = {}
    for workers in (1, 2):
        with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
            plain[workers] = rate(list(pool.map(loop, blocks)))
    return [
        _row(f"{detector}: stage, two actors beside one", actors[2], actors[1], actors[2] / actors[1], "1.7 or more"),
        _row(f"{detector}: loop, two processes beside one", plain[2], plain[1], plain[2] / plain[1], "(the machine)"),
    ]


def rate(done: Sequence[Timed]) -> float:
    """Images a second while all processes were at work: from the last one's first block to the first one's end."""
    first = {one.process: min(x.stop for x in done if x.process == one.process) for one in done}
    last = {one.process: max(x.stop for x in done if x.process == one.process) for one in done}
    start, stop = max(first.values()), min(last.values())
    if stop <= start:
        raise ValueError("too few images to keep the workers busy: raise --images or --rounds")
    inside = [max(0.0, min(one.stop, stop) - max(one.start, start)) for one in done]
    return sum(one.images * part / (one.stop - one.start) for one, part in zip(done, inside, strict=True)) / (
        stop - start
    )


def _row(what: str, ours: float, other: float, ratio: float, goal: str, faces: str = "") -> dict[str, Any]:
    return {
        "comparison": what,
        "images/s": round(ours, 2),
        "beside": round(other, 2),
        "ratio": round(ratio, 2),
        "goal": goal,
        "faces": faces,
    }
