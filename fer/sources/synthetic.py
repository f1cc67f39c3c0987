"""Synthetic faces as a dataset: scenes rendered on all cores, stored as encoded images with their ground truth."""

from __future__ import annotations

import multiprocessing
import signal
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field

from fer import processes
from fer.console import progress
from fer.hashing import stable_hash
from fer.labels import LabelSpace, identities, space, to_canonical
from fer.sources.base import BLOCK_ROWS, AnnotatedFace, Block, RawSample, Reject, fetch_again
from fer.synth.config import SceneConfig, SceneOptions
from fer.synth.expressions import EXPRESSIONS
from fer.synth.identity import subject_name
from fer.synth.streams import GENERATOR_VERSION


class SyntheticConfig(SceneOptions):
    """Procedural faces; needs no network. Beside these keys it has those of `fer.synth.config.SceneOptions`."""

    source: Literal["synthetic"]
    label_space: Literal["basic7", "basic8"] = Field(default="basic7", description="basic8 adds contempt")
    labels: Literal["expression", "subject"] = Field(
        default="expression", description="subject: who it is, for face recognition; label_space says what is shown"
    )
    scenes: int = Field(default=8000, ge=1, le=100_000_000, description="images to render; an image holds 0 to 3 faces")
    train_subjects: int = Field(default=400, ge=1, le=1_000_000, description="identities of the training scenes")
    test_subjects: int = Field(
        default=100, ge=1, le=1_000_000, description="identities of the test scenes, unseen in training"
    )
    test_fraction: float = Field(default=0.2, gt=0, lt=1, description="share of test scenes; both splits are needed")
    landmark_error: float = Field(
        default=1.0,
        ge=0,
        le=5,
        description="of the landmarks, as a detector's: 1 is off by 7 % of the eye distance, 5 degrees and 6 % of size "
        "(standard deviations); 0 is exact, and much easier for a linear model",
    )

    def scene_config(self) -> SceneConfig:
        """The renderer's configuration."""
        options = {name: getattr(self, name) for name in SceneOptions.model_fields}
        return SceneConfig(num_classes=8 if self.label_space == "basic8" else 7, **options)


class SyntheticSource:
    """Reader, and maker, of the embedded default; see `fer.sources.base.Source`.

    The same seed and configuration give the same bytes on any number of cores.
    """

    generator = f"synthetic/{GENERATOR_VERSION}"

    def __init__(self, config: SyntheticConfig, seed: int) -> None:
        self.config = config
        # Pretraining sees neither the people nor the scenes that expressions are learned and tested on.
        self.seed = seed if config.labels == "expression" else stable_hash("subjects", seed, bits=32)

    @property
    def label_space(self) -> LabelSpace:
        """As configured. Of subjects: those of the training scenes, then those of the test scenes."""
        if self.config.labels == "expression":
            return space(self.config.label_space)
        return identities(list(self._subjects))

    @cached_property
    def _subjects(self) -> dict[str, int]:
        """The label of each subject, where labels are subjects."""
        pools = (("train", self.config.train_subjects), ("test", self.config.test_subjects))
        names = [subject_name(self.seed, pool, number) for pool, size in pools for number in range(size)]
        return {name: label for label, name in enumerate(names)}

    @property
    def request(self) -> dict[str, Any]:
        """Generator, seed and every option of the renderer; what the labels are, unless expressions."""
        scene = self.config.scene_config().model_dump() | {"face_size": list(self.config.face_size)}
        if self.config.labels == "subject":
            scene["labels"] = "subject"
        return {
            "source": "synthetic",
            "generator": self.generator,
            "seed": self.seed,
            "scenes": self.config.scenes,
            **scene,
        }

    def download(self, out: Path, cache: Path) -> dict[str, Any]:
        """Renders every scene; see `fer.sources.base.Source.download`."""
        blocks = self.blocks(out)
        shown = space(self.config.label_space)
        canonical = to_canonical(EXPRESSIONS[: len(shown)], shown)
        task = partial(render_block, str(out), self.seed, self.config.scene_config(), canonical)
        counts: Counter[str] = Counter()
        with progress(self.config.scenes, "render", "scene") as bar:
            for block, found in zip(blocks, _on_all_cores(task, blocks), strict=True):
                counts.update(found)
                bar.update(block.stop - block.start)
        splits = {
            split: {label: counts[f"{split}/{index}"] for index, label in enumerate(shown.labels)}
            for split in ("train", "test")
        }
        return {"counts": splits, "scenes": self.config.scenes, "blocks": [[b.file, b.start, b.stop] for b in blocks]}

    def blocks(self, raw: Path) -> list[Block]:
        """One block a file."""
        scenes = self.config.scenes
        return [
            Block(index=index, file=f"scenes-{index:05d}.parquet", start=start, stop=min(start + BLOCK_ROWS, scenes))
            for index, start in enumerate(range(0, scenes, BLOCK_ROWS))
        ]

    def read(self, raw: Path, block: Block) -> Iterator[RawSample | Reject]:
        """The scenes of one file, as encoded bytes with annotated faces."""
        from fer.shards.schema import scene_schema
        from fer.shards.table import TableReader

        for row, record in enumerate(TableReader(raw / block.file, scene_schema(), remedy=fetch_again(raw))):
            yield RawSample(
                key=f"synthetic/{record['index']:08d}",
                image=record["image"],
                split=record["split"],
                faces=tuple(self._face(face, record["index"], number) for number, face in enumerate(record["faces"])),
                is_crop=False,
                origin=f"{block.file}:{row}",
            )

    def _face(self, record: dict[str, Any], index: int, number: int) -> AnnotatedFace:
        """A stored face with its landmarks as a detector would have found them; the file keeps the true ones."""
        from fer.synth.align import misplaced

        true = np.array(record["landmarks"]).reshape(5, 2)
        found = misplaced(true, self.config.landmark_error, seed=self.seed, index=index, number=number)
        x1, y1, x2, y2 = record["box"]
        yaw, pitch, roll = record["pose"]
        label, clean_label, subject = record["label"], record["clean_label"], record["subject"]
        if self.config.labels == "subject":  # and no subject, so that folds are assigned by image
            label, clean_label, subject = self._subjects[subject], self._subjects[subject], None
        return AnnotatedFace(
            box=(x1, y1, x2, y2),
            landmarks=tuple((float(x), float(y)) for x, y in found),
            label=label,
            clean_label=clean_label,
            subject=subject,
            pose=(yaw, pitch, roll),
        )


def render_block(out: str, seed: int, config: SceneConfig, canonical: tuple[int, ...], block: Block) -> dict[str, int]:
    """Renders the scenes of one block into its file.

    Returns:
        number of faces by "split/label".
    """
    from fer import synth
    from fer.shards.schema import scene_schema
    from fer.shards.table import write_table

    counts: Counter[str] = Counter()
    rows = []
    for index in range(block.start, block.stop):
        scene = synth.render(seed, index, config)
        faces = []
        for face in scene.faces:
            label = canonical[face.label]
            counts[f"{scene.split}/{label}"] += 1
            faces.append(
                {
                    "label": label,
                    "clean_label": canonical[face.clean_label],
                    "subject": face.subject,
                    **{key: np.ravel(getattr(face, key)).tolist() for key in ("box", "landmarks", "pose", "aus")},
                }
            )
        rows.append({"index": index, "split": scene.split, "image": synth.encode(scene), "faces": faces})
    write_table(Path(out) / block.file, rows, scene_schema(), metadata={"fer.generator": SyntheticSource.generator})
    return dict(counts)


def _on_all_cores(task: Any, blocks: list[Block]) -> Iterator[dict[str, int]]:
    """Results in the order of the blocks. Processes, for rendering holds Python's lock most of the time."""
    cores = min(processes.cpus(), len(blocks))
    if cores <= 1:
        yield from map(task, blocks)
        return
    # Spawned, not forked: a fork of a process with threads (pyarrow's, OpenCV's) may wait forever for one of
    # their locks.
    others = multiprocessing.active_children()
    pool = ProcessPoolExecutor(cores, mp_context=multiprocessing.get_context("spawn"), initializer=_begin_worker)
    try:
        yield from pool.map(task, blocks)
    except BaseException:
        for child in multiprocessing.active_children():  # the scenes under way are not needed
            if child not in others:
                child.terminate()
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _begin_worker() -> None:
    """A worker ends with its parent, and leaves the terminal's Ctrl-C to it."""
    import cv2

    cv2.setNumThreads(1)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    processes.end_with_parent()
