"""A project to evaluate and report on: a small dataset and a published run, made in a second."""

import json
from pathlib import Path

import torch
from builders.conformance import load, published_state
from builders.projects import write_params
from builders.shards import LABELS, write_people

from fer import params as parameters
from fer.io.files import sha256, write_json
from fer.models import create_model
from fer.weights.store import save_model


def write_ddamfn(folder: Path) -> Path:
    """A published file of DDAMFN's form, 7 classes, 2 heads, under its authors' name."""
    path = folder / "rafdb_epoch20_acc0.9204_bacc0.8617.pth"
    state = {key: torch.from_numpy(value) for key, value in published_state(load("ddamfn_7cls")).items()}
    torch.save({"iter": 20, "model_state_dict": state}, path)
    return path


def make_project(root: Path, *, dataset: str = "toy", test_rows: int = 45, synthetic: bool = True) -> parameters.Params:
    """params.yaml with models nano and other, and data/shards/<dataset> with `test_rows` rows of test."""
    sections = {
        "evaluate": {"bootstrap_samples": 100, "batch_size": 8, "threads": 1},
        "tracking": {"enabled": False},
    }
    write_params(root, dataset, {key: {"recipe": "ddamfn/nano"} for key in ("nano", "other")}, **sections)
    write_people(
        root / "data" / "shards" / dataset,
        test=test_rows,
        generator="synthetic/1" if synthetic else dataset,
        synthetic=synthetic,
        rejects={"no_face": 3, "truncated": 1},
    )
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
    """trained/<dataset>/<key>: untrained weights, with the files that a run leaves; `old`: without run.json."""
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
        "train": params.train.model_dump() | {"workers": 2}, "seconds": 73.4, "images_per_second": 812.5, "resumes": 1,
        "versions": {"python": "3.11.9", "torch": "2.13.0", "ray": "2.60.0"}, "hardware": "Some CPU, 2 cores, Linux",
        "git_commit": "0123456789abcdef0123456789abcdef01234567", "git_dirty": "true",
        "mlflow_run_id": mlflow_run_id,
    }  # fmt: skip
    write_json(folder / "train.json", told | facts | (circumstances if old else {}))
    if not old:
        write_json(folder / "run.json", circumstances)
    return folder


def publish_training_chosen_on_test(
    params: parameters.Params, dataset: str = "toy", key: str = "nano", selection: str = "refit"
) -> Path:
    """The same with `protocol: published`: of its eight epochs on all rows test chooses the seventh, at 0.8.

    With `selection: refit` eight epochs on the training rows came before, of which validation chose the last: 0.6.
    """
    recipe = json.loads(params.recipe(key).model_dump_json()) | {"protocol": "published", "selection": selection}
    before = 8 if selection == "refit" else 0
    folder = publish_training(params, dataset, key, recipe=recipe, best_epoch=before + 7, chosen_epochs=[8])
    head, *rows = (folder / "history.csv").read_text().splitlines()
    accuracies = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.6)
    last = [
        f"{before + epoch},0.01,1.0,0.5,nan,nan,nan,{2 - value},{value},{value - 0.1},{1 + bool(before)}"
        for epoch, value in enumerate(accuracies, start=1)
    ]
    head += ",test_loss,test_accuracy,test_balanced_accuracy,stage"
    first = [f"{row},nan,nan,nan,1" for row in rows[:before]]
    (folder / "history.csv").write_text("\n".join([head, *first, *last]) + "\n")
    return folder
