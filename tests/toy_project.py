"""A project in a folder with a tiny sharded dataset and a published training, made in a second."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import torch

from fer import params as parameters
from fer.io.files import sha256, write_json
from fer.labels import SPACES
from fer.models import create_model
from fer.shards.manifest import Manifest, Part
from fer.shards.schema import SCHEMA_VERSION, shard_schema
from fer.shards.table import write_table
from fer.weights.store import save_model

LABELS = SPACES["basic7"].labels
PARAMS = """
seed: 0
run: {{datasets: [{dataset}], models: [nano, other]}}
datasets: {{{dataset}: {{source: synthetic}}}}
models: {{nano: {{recipe: ddamfn/nano}}, other: {{recipe: ddamfn/nano}}}}
crop: {{}}
shard: {{}}
train: {{}}
evaluate: {{bootstrap_samples: 100, batch_size: 8, threads: 1}}
report: {{}}
cluster: {{}}
tracking: {{enabled: false}}
tune: {{}}
"""


def make_project(root: Path, *, dataset: str = "toy", test_rows: int = 45, synthetic: bool = True) -> parameters.Params:
    """params.yaml and data/shards/<dataset> with 14 train, 7 validation and `test_rows` test rows in two parts."""
    (root / "params.yaml").write_text(PARAMS.format(dataset=dataset))
    folder = root / "data" / "shards" / dataset
    folder.mkdir(parents=True)
    parts: list[Part] = []
    first = test_rows * 2 // 3
    plan = (("train-f1-0", "train", 0, 14), ("train-f0-0", "validation", 14, 21), ("test-0", "test", 21, 21 + first))
    for name, split, start, stop in (*plan, ("test-1", "test", 21 + first, 21 + test_rows)):
        path = folder / f"{name}.parquet"
        told = {"fer.schema": str(SCHEMA_VERSION), "fer.labels": json.dumps(LABELS), "fer.color": "RGB"}
        rows = [_row(row) for row in range(start, stop)]
        write_table(path, rows, shard_schema(), metadata=told, rows_per_group=16)
        sizes = tuple(min(16, stop - row) for row in range(start, stop, 16))
        counts = np.bincount([row % 7 for row in range(start, stop)], minlength=7).tolist()
        parts.append(
            Part(
                file=path.name, split=split, fold=None, rows=stop - start, bytes=path.stat().st_size,
                sha256=sha256(path), row_groups=sizes, class_histogram=tuple(counts),
            )  # type: ignore[arg-type]
        )  # fmt: skip
    splits = {split: [part for part in parts if part.split == split] for split in ("train", "validation", "test")}
    Manifest(
        schema_version=SCHEMA_VERSION,
        dataset=dataset,
        label_space="basic7",
        labels=LABELS,
        colour="RGB",
        image_size=(20, 20),
        generator="synthetic/1" if synthetic else dataset,
        synthetic=synthetic,
        source_digest="0" * 64,
        seed=0,
        folds=10,
        parts=tuple(parts),
        splits={split: tuple(part.file for part in members) for split, members in splits.items()},  # type: ignore[misc]
        class_histogram={
            split: tuple(np.sum([part.class_histogram for part in members], axis=0).tolist())
            for split, members in splits.items()
        },  # type: ignore[misc]
        mean=(0.5, 0.5, 0.5),
        std=(0.25, 0.25, 0.25),
        rejects={"no_face": 3, "truncated": 1},
        validation_source="fold 0",
        shared_pictures={},
    ).save(folder)
    return parameters.load(root / "params.yaml")


def publish_training(
    params: parameters.Params,
    dataset: str = "toy",
    key: str = "nano",
    *,
    mlflow_run_id: str | None = None,
    old: bool = False,
    **facts: object,
) -> Path:
    """trained/<dataset>/<key>: untrained weights, with the files that a training leaves; `old`: without run.json."""
    folder = params.root / "trained" / dataset / key
    folder.mkdir(parents=True)
    torch.manual_seed(0)
    model = create_model("ddamfn_nano", len(LABELS))
    save_model(model, folder / "model.safetensors", LABELS, "basic7", name="ddamfn_nano")
    head = "epoch,learning_rate,train_loss,train_accuracy,val_loss,val_accuracy,val_balanced_accuracy"
    rows = [
        f"{e},{0.01 / e},{2 / e},{1 - 0.7 / e},{1.9 / e + 0.05 * e},{0.9 - 0.6 / e},{0.88 - 0.6 / e}"
        for e in range(1, 9)
    ]
    (folder / "history.csv").write_text("\n".join([head, *rows]) + "\n")
    write_json(
        folder / "val.json", {"best_epoch": 7, "val_loss": 0.62, "val_accuracy": 0.81, "val_balanced_accuracy": 0.79}
    )
    manifest = params.root / "data" / "shards" / dataset / "manifest.json"
    told = {
        "dataset": dataset, "model": "ddamfn_nano", "parameters": sum(p.numel() for p in model.parameters()),
        "labels": list(LABELS), "label_space": "basic7", "fingerprint": "f" * 64, "data_digest": sha256(manifest),
        "code_digest": "c" * 64, "recipe": json.loads(params.recipe(key).model_dump_json()), "seed": 0,
        "best_epoch": 7,
    }  # fmt: skip
    circumstances = {
        "train": params.train.model_dump(), "seconds": 73.4, "images_per_second": 812.5, "resumes": 1,
        "versions": {"python": "3.11.9", "torch": "2.13.0", "ray": "2.60.0"}, "hardware": "Some CPU, 2 cores, Linux",
        "git_commit": "0123456789abcdef0123456789abcdef01234567", "git_dirty": "true",
        "mlflow_run_id": mlflow_run_id,
    }  # fmt: skip
    write_json(folder / "train.json", told | facts | (circumstances if old else {}))
    if not old:
        write_json(folder / "run.json", circumstances)
    return folder


def publish_training_chosen_on_test(params: parameters.Params, dataset: str = "toy", key: str = "nano") -> Path:
    """The same with `protocol: published`: test would choose epoch 7, at 0.8, and validation epoch 8, at 0.6."""
    recipe = json.loads(params.recipe(key).model_dump_json()) | {"protocol": "published"}
    folder = publish_training(params, dataset, key, recipe=recipe)
    head, *rows = (folder / "history.csv").read_text().splitlines()
    accuracies = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.6)
    rows = [f"{row},{2 - value},{value},{value - 0.1}" for row, value in zip(rows, accuracies, strict=True)]
    head += ",test_loss,test_accuracy,test_balanced_accuracy"
    (folder / "history.csv").write_text("\n".join([head, *rows]) + "\n")
    return folder


def _row(row: int) -> dict[str, object]:
    image = np.random.default_rng(row).integers(0, 256, (20, 20, 3), dtype=np.uint8)
    return {
        "sample_id": f"toy/{row:04d}",
        "image": cv2.imencode(".png", image)[1].tobytes(),
        "label": row % 7,
        "clean_label": row % 7 if row % 10 else (row + 1) % 7,
        "subject": f"s{row % 5}",
        "pose": [float(row % 50 - 25), 0.0, 0.0],
    }
