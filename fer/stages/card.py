"""`fer card RUN`: what a trained model is, for whoever uses it, from its run and its evaluation alone.

fer card trained/ferplus/mine                 prints the card
fer card trained/ferplus/mine --out FOLDER    a folder to pass on: model.safetensors, card.json, README.md
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fer.evaluation.metrics import wilson
from fer.evaluation.output import facts_in, read
from fer.io.files import FileError, publish_directory, sha256, write_atomic, write_json
from fer.lineage import training_facts
from fer.outputs import EVALUATED, TRAINED
from fer.weights.store import WEIGHTS_NAME, read_info

FILE_NAME = "card.json"
_FILES = {WEIGHTS_NAME, FILE_NAME, "README.md"}
_FEW_ROWS, _LOW_RECALL = 50, 0.5
_USE = "Research on facial expression recognition. Not for decisions about people."
_LIMITS = (
    "It names the expression that annotators see in a face, not what the person feels.",
    "Accuracy by age, sex and skin is not known: the data do not label them.",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The run, and where to."""
    parser.add_argument("run", type=Path, metavar="RUN", help="trained/<dataset>/<model> of an evaluated model")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="also write the card and the weights here")


def main(args: argparse.Namespace) -> None:
    """Prints the card, and writes the folder."""
    run = args.run.resolve()
    print(as_markdown(card(run) if args.out is None else package(run, args.out)), end="")
    if args.out is not None:
        print(f"-> {args.out}; fer.load({str(args.out)!r}) reads it")


def card(trained: Path) -> dict[str, Any]:
    """The model card.

    Args:
        trained: trained/<dataset>/<model>; its evaluation lies in evaluated/<dataset>/<model> of the same project.

    Raises:
        FileError: there is no run, no evaluation, or one of other weights.
    """
    dataset, model = trained.parent.name, trained.name
    root, weights = trained.parents[2], trained / WEIGHTS_NAME
    if trained.parents[1].name != TRAINED.parent or not weights.is_file():
        raise FileError(f"{trained}: no run; name a folder {TRAINED.parent}/<dataset>/<model> with {WEIGHTS_NAME}")
    info, train = read_info(weights), training_facts(trained)
    evaluated, digest = root / EVALUATED.parent / dataset / model, sha256(weights)
    test = read(evaluated)
    if facts_in(test).get("weights_sha256") != digest:
        raise FileError(
            f"{evaluated}: no evaluation of these weights; `dvc repro evaluate@{dataset}-{model}` makes one"
        )
    confidence = test["intervals"][0]["confidence"]
    classes = [
        {
            "class": line["class"],
            "rows": line["rows"],
            "recall": line["recall"],
            **(vars(wilson(row[index], line["rows"], confidence)) if line["rows"] else {}),
            "precision": line["precision"],
        }
        for index, (line, row) in enumerate(zip(test["per_class"], test["confusion"], strict=True))
    ]
    measured = ("accuracy", "balanced_accuracy", "macro_f1", "ece", "nll", "intervals", "calibration")
    return {
        "model": info.model,
        "parameters": train.get("parameters"),
        "labels": list(info.labels),
        "weights_sha256": digest,
        "use": _USE,
        "limits": [*_LIMITS, *_limits(info.extra.get("crop") or {}, info.synthetic, test, classes)],
        "input": {"size": info.input_size, "colour": info.colour, "crop": info.extra.get("crop")},
        "data": {"dataset": dataset, "synthetic": info.synthetic, "data_digest": train["data_digest"]},
        "test": {"rows": test["rows"], **{name: test[name] for name in measured}, "classes": classes},
        "without_duplicates": test.get("without_duplicates"),
        "tta": test.get("tta"),
        "training": {
            name: train.get(name)
            for name in ("recipe", "seed", "best_epoch", "train", "versions", "fingerprint", "git_commit")
        },
    }


def _limits(
    crop: Mapping[str, Any], synthetic: bool, test: Mapping[str, Any], classes: list[dict[str, Any]]
) -> list[str]:
    found = []
    if synthetic:
        found.append("It was trained on drawn faces: its predictions say nothing about people.")
    if crop.get("color") == "gray":
        found.append("It was trained on gray faces; the color of a photo is discarded.")
    weak = [
        f"{line['class']} (recall {_percent(line, 'recall')} %, {_percent(line, 'low')} to {_percent(line, 'high')}, "
        f"{line['rows']} rows)"
        for line in classes
        if line["rows"] and (line["rows"] < _FEW_ROWS or line["recall"] < _LOW_RECALL)
    ]
    if weak:
        found.append(f"Few test rows, or low recall: {', '.join(weak)}.")
    unseen = test.get("without_duplicates", {})
    if unseen.get("rows", test["rows"]) != test["rows"]:
        found.append(
            f"{test['rows'] - unseen['rows']} of the {test['rows']} test rows show a photo that training or validation "
            f"contains too; without them the accuracy is {_percent(unseen, 'accuracy')} %."
        )
    return found


def _percent(values: Mapping[str, Any], name: str) -> str:
    return f"{100 * values[name]:.1f}" if values.get(name) is not None else "–"


def as_markdown(card: Mapping[str, Any]) -> str:
    """The card for people."""
    test, data, run = card["test"], card["data"], card["training"]
    ends = {one["metric"]: one for one in test["intervals"]}
    lines = [
        f"# {card['model']} on {data['dataset']}",
        "",
        f"{card['parameters']:,} parameters, {card['input']['size']} px. {card['use']}",
        "",
        "| test split | % | interval |",
        "|---|---|---|",
        *(
            f"| {name.replace('_', ' ')} | {_percent(test, name)} | "
            + (f"{_percent(ends[name], 'low')} to {_percent(ends[name], 'high')} |" if name in ends else "|")
            for name in ("accuracy", "balanced_accuracy", "macro_f1", "ece")
        ),
        "",
        "| class | rows | recall % | interval | precision % |",
        "|---|---|---|---|---|",
        *(
            f"| {line['class']} | {line['rows']} | {_percent(line, 'recall')} | "
            f"{_percent(line, 'low')} to {_percent(line, 'high')} | {_percent(line, 'precision')} |"
            for line in test["classes"]
        ),
        "",
        f"{test['rows']} rows; intervals of {ends['accuracy']['confidence']:.0%}. Limits:",
        "",
        *(f"- {limit}" for limit in card["limits"]),
        "",
        f"Weights {card['weights_sha256'][:12]}, data {data['data_digest'][:12]}, seed {run['seed']}, epoch "
        f"{run['best_epoch']} of {run['recipe']['epochs']}.",
    ]
    return "\n".join(lines) + "\n"


def package(trained: Path, out: Path) -> dict[str, Any]:
    """Writes the weights and the card as one folder, which appears complete, in place of an earlier one.

    Returns:
        the card.

    Raises:
        FileError: as `card`; or `out` is there and holds anything else.
    """
    content = card(trained)
    if out.exists() and (not out.is_dir() or {path.name for path in out.iterdir()} - _FILES):
        raise FileError(f"{out}: exists, and holds more than a model and its card; name another folder")
    with publish_directory(out) as folder:
        (folder / WEIGHTS_NAME).write_bytes((trained / WEIGHTS_NAME).read_bytes())
        write_json(folder / FILE_NAME, content)
        write_atomic(folder / "README.md", as_markdown(content))
    return content
