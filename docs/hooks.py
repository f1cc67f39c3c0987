"""The pages of the site that are made of code and of files outside docs/, at each build, so that none is out of date.

index.md, contributing.md and changes.md are README.md, CONTRIBUTING.md and CHANGELOG.md; zoo/<file>.md is the card of
each file of fer/models: its docstring, what its models cost, recipes, published weights, printed and measured numbers.
"""

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
COPIES = {"index.md": "README.md", "contributing.md": "CONTRIBUTING.md", "changes.md": "CHANGELOG.md"}


def on_config(config: Any) -> Any:
    """The models' cards in the navigation, where `zoo/` stands."""
    for section in config.nav:
        pages = next(iter(section.values()))
        if isinstance(pages, list) and "zoo/" in pages:
            place = pages.index("zoo/")
            pages[place : place + 1] = [{title: f"zoo/{name}.md"} for name, title in cards().items()]
    return config


def on_files(files: Files, config: Any) -> Files:
    """Adds the pages that are in no file of docs/."""
    pages = {page: relinked((ROOT / name).read_text("utf-8")) for page, name in COPIES.items()}
    pages |= {f"zoo/{name}.md": card(name, title) for name, title in cards().items()}
    for page, text in pages.items():
        files.append(File.generated(config, page, content=text))
    return files


def relinked(text: str) -> str:
    """Links of a file beside docs/ as they are inside it; those to code, which is not part of the site, as text."""
    text = re.sub(r"\]\(docs/", "](", text)
    for page, name in COPIES.items():
        text = text.replace(f"]({name}", f"]({page}")
    return re.sub(r"\[([^\]]+)\]\((?:fer|tests|infra|pipelines|benchmarks)/[^)]*\)", r"\1", text)


# ------------------------------------------------------------------------------------------------ the models' cards


def models() -> dict[str, list[str]]:
    """File of fer/models -> the names that it registers."""
    from fer.models.registry import _entry, list_models

    found: dict[str, list[str]] = {}
    for name in list_models():
        module = _entry(name).builder.__module__
        if module.startswith("fer.models."):
            found.setdefault(module.rpartition(".")[2], []).append(name)
    return found


def cards() -> dict[str, str]:
    """File of fer/models -> the title of its card."""
    return {name: document(name).split("\n")[0].rstrip(".").split(":")[0] for name in models()}


def document(name: str) -> str:
    return sys.modules[f"fer.models.{name}"].__doc__ or name


def card(name: str, title: str) -> str:
    """The page of a file of fer/models."""
    names = models()[name]
    first, _, rest = document(name).partition("\n")
    intro = as_markdown(rest).strip() if first.rstrip(".") == title else f"{first}\n{as_markdown(rest)}"
    parts = [f"# {title}", intro, *costs(names), *recipes(names), *weights(names)]
    return "\n\n".join([*parts, *printed(name, names), *measured(names)]) + "\n"


def as_markdown(text: str) -> str:
    """A docstring: one `Key: value` a line stays one a line, indented code is code."""
    text = re.sub(r"^((?:Paper|Authors|Venue|Original repository|Shapes)[^\n]*)$", r"\1<br>", text, flags=re.MULTILINE)
    return re.sub(r"(?<=[^\n])\n(\*) ", r"\n\n\1 ", text)


def table(header: list[str], rows: list[list[object]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines)


def costs(names: list[str]) -> Iterator[str]:
    import torch

    from fer.models import create_model, model_loss, model_options
    from fer.models.cost import measure
    from fer.studies.published_costs import published_costs

    rows, options = [], []
    for name in names:
        with torch.device("meta"):
            model = create_model(name)
        cost = measure(model)
        paper = published_costs(name, cost)
        print_ = "; ".join(f"{one.printed} ({one.where})" for one in paper.numbers) if paper else ""
        macs = f"{cost.operations.macs / 1e9:.3f}"
        rows.append([f"`{name}`", f"{model.input_size} px", f"{cost.parameters:,}", macs, print_, model_loss(name)])
        options.append([f"`{name}`", ", ".join(f"`{key}={value!r}`" for key, value in model_options(name).items())])
    yield "## Cost\n\nFor 7 classes, as `fer models --cost` prints it; GMACs: 10^9 multiply-accumulates."
    yield table(["name", "input", "parameters", "GMACs", "printed", "loss"], rows)
    yield "## Options\n\nWhat `options` of a recipe may set, with the defaults."
    yield table(["name", "options"], options)


def recipes(names: list[str]) -> Iterator[str]:
    from fer.training.recipe import list_recipes, load_recipe

    found = [(name, load_recipe({"recipe": name}, ROOT, name)) for name in list_recipes()]
    rows = [
        [
            f"`{name}`",
            f"`{recipe.last.model}`",
            recipe.epochs,
            recipe.batch_size,
            recipe.optimizer,
            recipe.learning_rate,
        ]
        for name, recipe in found
        if {part.model for part in recipe.in_stages} & set(names)
    ]
    if rows:
        yield "## Recipes\n\n`fer check` prints one that `params.yaml` names in full."
        yield table(["recipe", "model", "epochs", "batch", "optimizer", "learning rate"], rows)


def weights(names: list[str]) -> Iterator[str]:
    from fer.weights.registry import register

    rows = [
        [f"`{name}`", entry.model, entry.dataset, f"{entry.accuracy:.2f} %" if entry.accuracy else "", entry.licence]
        for name, entry in register().items()
        if entry.model in names
    ]
    if rows:
        yield "## Published weights\n\n`fer weights pull NAME`, then [import](../weights.md)."
        yield table(["weights", "model", "dataset", "accuracy as published", "license"], rows)


def printed(name: str, names: list[str]) -> Iterator[str]:
    from fer.published import WORKS, numbers

    def bare(text: str) -> str:
        return re.sub(r"[^a-z0-9]", "", text.lower().partition("(")[0].replace("++", "v2"))

    ours = {bare(one) for one in names}
    rows = [
        [WORKS[one.work], one.table, one.row, one.dataset, one.setting, f"{one.printed} {one.unit}", one.note]
        for one in numbers(metric="accuracy")
        if bare(one.row) in ours and one.dataset
    ]
    if rows:
        yield "## Printed results\n\nFrom `fer/published/numbers.csv`; each is checked in [the ledger](../papers.md)."
        yield table(["work", "where", "row", "dataset", "setting", "accuracy", "note"], rows)


def measured(names: list[str]) -> Iterator[str]:
    """The rows of the tables in results.md that name a model of the file."""
    found: dict[str, list[str]] = {}
    section, header = "", ""
    lines = (ROOT / "docs" / "results.md").read_text("utf-8").splitlines()
    for line, after in zip(lines, [*lines[1:], ""], strict=True):
        if line.startswith("#"):
            section = line.lstrip("# ")
        elif line.startswith("|") and after.startswith("|--"):
            header = f"{line}\n{after}"
        elif line.startswith("|") and any(f"`{name}`" in line for name in names):
            found.setdefault(f"**{section}**\n\n{header}", []).append(line)
    if found:
        yield "## Measured here\n\nThe rows of [the results](../results.md) that name these models."
        yield from ("\n".join([head, *rows]) for head, rows in found.items())
