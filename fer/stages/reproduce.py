"""`fer reproduce PAPER`: a plan of what its tables and figures take, then the runs, then the page.

    reproductions/<paper>/            a DVC project of its own, whose stages download, crop, shard and train the studies
    reproductions/<paper>/reproduction.json  says that it was made here; another folder of that name is refused
    reports/<paper>.html              each table and figure of the paper: printed, and ours

The smoke mode has a project and a page of its own, `<paper>-smoke`: drawn faces in the published layouts, the small
models of the studies. Nothing of the user's is edited; stopped at any moment, the same command resumes.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Collection, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from functools import cache
from importlib import resources
from itertools import product
from pathlib import Path
from typing import Any

from fer import params as parameters
from fer.config import ConfigError, parse, read_yaml
from fer.console import log
from fer.faces.weights import PUBLISHED as DETECTORS
from fer.io import yaml12
from fer.io.files import FileError, read_object, write_atomic, write_json
from fer.params import Params
from fer.presets import Exhibit, Preset, load_preset
from fer.processes import Interrupted, lock, set_environment
from fer.sources.origin import missing_paths
from fer.stages.closure import ROOT
from fer.studies import Study, StudyOptions, load_study, row_recipe
from fer.training.recipe import Recipe
from fer.weights.registry import missing_weights

MARKER = "reproduction.json"
_FORMAT = 1
_DATA_STAGES = ("plan", "download", "crop", "shard")
_SECTIONS = ("shard", "train", "evaluate", "report", "cluster", "tracking")
"""Of the user's params.yaml, taken over as they are."""
_IGNORED = "/data/\n/drawn/\n/.work/\n/mlflow.db*\n/mlartifacts/\n/downloads\n/pipelines\n"
_SMOKE_CROP = {"detector": "annotated", "size": 64}
_SMOKE_IMAGES = 480
"""Of a layout: enough training images for a batch of 256, the largest of a table."""

GPU = "NVIDIA A100"
FLOPS, DEPTHWISE_FLOPS = 2e13, 4e12
"""Operations a second that training is assumed to reach on `GPU`, in fp32 with TF32: a ResNet-50 of 4.1 G MACs at 800
images a second; less where most convolutions are depthwise, which wait for memory."""
_DEPTHWISE = ("ddamfn", "mfn", "mobilefacenet")


@dataclass(frozen=True, kw_only=True)
class Job:
    """A study of the paper, as far as its data and weights are there.

    Attributes:
        columns: datasets to train on; rows: of the table; both empty where nothing can run.
        missing: what stops the rest, in words.
        runs: all training runs by an identity that studies share, with the seconds that each takes on `GPU`.
        ready: those of them that can run.
    """

    name: str
    study: Study
    columns: tuple[str, ...]
    rows: tuple[str, ...]
    missing: tuple[str, ...]
    runs: Mapping[str, float]
    ready: Set[str]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a paper takes.

    Attributes:
        exhibits: the chosen tables and figures. jobs: their studies, by name.
        datasets: entries of params.yaml, without those that are missing.
    """

    paper: str
    preset: Preset
    smoke: bool
    seeds: tuple[int, ...]
    exhibits: Sequence[Exhibit]
    jobs: Mapping[str, Job]
    datasets: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Of the folder and of the page."""
        return f"{self.paper}-smoke" if self.smoke else self.paper

    @property
    def runs(self) -> dict[str, float]:
        """Seconds of each run on `GPU`; one that several tables share counts once."""
        return {key: cost for job in self.jobs.values() for key, cost in job.runs.items()}

    @property
    def ready(self) -> dict[str, float]:
        """The same of the runs whose data and weights are there."""
        return {key: job.runs[key] for job in self.jobs.values() for key in job.ready}


# ------------------------------------------------------------------------------------------------ the plan


def make_plan(
    params: Params,
    paper: str,
    *,
    tables: list[str] | None = None,
    smoke: bool = False,
    seeds: Sequence[int] | None = None,
) -> Plan:
    """What the tables and figures of a paper take, and what of it is missing. Nothing is written.

    Args:
        seeds: None: those of the preset, in the smoke mode its first two.

    Raises:
        ConfigError: an unknown paper, table or figure.
    """
    preset = load_preset(paper)
    exhibits = preset.chosen(tables)
    seeds = tuple(preset.seeds[: 2 if smoke else None] if seeds is None else seeds)
    datasets: dict[str, Any] = {}
    absent: dict[str, str] = {}
    for key in preset.datasets:
        entry, problem = ({}, "") if smoke else _user_entry(params, preset, key)
        if problem:
            absent[key] = problem
        else:
            datasets[key] = entry
    names = dict.fromkeys(name for exhibit in exhibits for name in exhibit.studies)
    jobs = {name: _job(params, preset, name, smoke, seeds, absent) for name in names}
    used = {column for job in jobs.values() for column in job.columns}
    return Plan(
        paper=paper, preset=preset, smoke=smoke, seeds=seeds, exhibits=exhibits, jobs=jobs,
        datasets={key: entry for key, entry in datasets.items() if key in used},
    )  # fmt: skip


def _user_entry(params: Params, preset: Preset, key: str) -> tuple[dict[str, Any], str]:
    """The entry of a dataset with the user's paths, those of the same key or else of the same source; or why not."""
    own = preset.datasets[key].entry
    known = sorted(params.datasets.items(), key=lambda item: item[0] != key)
    for _, config in known:
        if config.source == own["source"] and getattr(config, "path", None) is not None:
            if gone := next(missing_paths(config, params.root), None):
                return {}, f"{gone} is not there: correct datasets.{key} in {parameters.FILE_NAME}"
            return {**config.model_dump(mode="json", exclude_unset=True), **own}, _no_detector(preset, key)
    return {}, f"set datasets.{key}.path in {parameters.FILE_NAME} to your copy (docs/datasets.md)"


def _no_detector(preset: Preset, key: str) -> str:
    """What is missing to find the faces of a dataset; "" where nothing is, or they need not be found."""
    detector = preset.crop.get("detector", "annotated")
    if preset.datasets[key].detect and detector != "annotated":
        return next(missing_weights([DETECTORS[detector]], Path()), "")
    return ""


def _job(
    params: Params, preset: Preset, name: str, smoke: bool, seeds: tuple[int, ...], absent: Mapping[str, str]
) -> Job:
    study = load_study(name, params.root)
    own = {column for row in study.rows for column in row.datasets or study.datasets}
    dataset = [key for key in preset.datasets if key in own]
    options = parse(StudyOptions, {"smoke": smoke, "seeds": list(seeds), "dataset": dataset}, "fer reproduce")
    rows: dict[str, None] = {}
    columns: dict[str, None] = {}
    missing: dict[str, None] = {}
    runs: dict[str, float] = {}
    ready: set[str] = set()
    complete: set[tuple[str, str]] = set()
    for row in study.rows:  # what a row needs stands above it
        recipes = {key: row_recipe(study, row, options, params.root, key) for key in options.columns(study, row)}
        sources = dict.fromkeys(source for recipe in recipes.values() for source in recipe.sources.values())
        weights = list(missing_weights(sources, params.root))
        missing |= dict.fromkeys([*weights, *(f"{key}: {absent[key]}" for key in recipes if key in absent)])
        for key, recipe in recipes.items():
            cost = seconds(recipe, _SMOKE_IMAGES if smoke else preset.datasets[key].train)
            shared = f"{key} {recipe.model_dump_json()} {row.start} {row.recipe_of}"
            each = product(options.seeds_of(row), range(study.folds or 1))
            own_runs = {f"{shared} {seed} {fold}": cost for seed, fold in each}
            runs |= own_runs
            if not weights and key not in absent and complete.issuperset((other, key) for other in row.needs):
                complete.add((row.row, key))
                rows[row.row], columns[key] = None, None
                ready |= own_runs.keys()
    return Job(
        name=name, study=study, columns=tuple(columns), rows=tuple(rows), missing=tuple(missing), runs=runs, ready=ready
    )  # fmt: skip


def seconds(recipe: Recipe, images: int) -> float:
    """An estimate for a whole run on `GPU`: a forward pass, twice that backward, both twice with SAM.

    Multiply-accumulates of the model at its own input size, whatever its options; all epochs, though `patience` may end
    it earlier; validation and test are not counted.
    """
    return sum(
        stage.epochs * images * 6 * macs()[stage.model] * (2 if stage.sam else 1)
        / (DEPTHWISE_FLOPS if stage.model.startswith(_DEPTHWISE) else FLOPS)
        for stage in recipe.in_stages
    )  # fmt: skip


@cache
def macs() -> dict[str, float]:
    """Multiply-accumulates of each model for an image, as `fer models --cost` counts them, which needs torch."""
    return dict(json.loads(resources.files("fer.presets").joinpath("macs.json").read_text()))


def describe(plan: Plan, root: Path) -> str:
    """The plan for people."""
    seeds = f"seed{'s' * (len(plan.seeds) > 1)} {', '.join(map(str, plan.seeds))}"
    lines = [f"{plan.preset.title}", f"in {_folder(root, plan).relative_to(root)}, {seeds}", ""]
    width = max(len(exhibit.name) for exhibit in plan.exhibits) + 2
    for exhibit in plan.exhibits:
        head = f"{exhibit.name:<{width}}"
        if exhibit.omitted:
            lines.append(f"{head}not reproduced: {exhibit.omitted}")
        for name in exhibit.studies:
            lines.append(f"{head}fer study {name}: {_amount(plan.jobs[name].runs, plan.jobs[name].ready, plan.smoke)}")
            head = " " * width
        if exhibit.ledger:
            lines.append(f"{head}fer ledger: compared without training")
    wanting: dict[str, list[str]] = {}
    for exhibit in plan.exhibits:
        for problem in (problem for name in exhibit.studies for problem in plan.jobs[name].missing):
            if exhibit.name not in wanting.setdefault(problem, []):
                wanting[problem].append(exhibit.name)
    if wanting:
        lines += ["", "Missing:", *(f"  {problem}\n    for {', '.join(names)}" for problem, names in wanting.items())]
    lines += ["", f"Together, what several tables share once: {_amount(plan.runs, plan.ready, plan.smoke)}"]
    if plan.smoke:
        lines.append("Smoke: small models, drawn faces. It shows that every row runs, and nothing else.")
    else:
        lines.append(
            f"GPU hours: of one {GPU}, all epochs, from counted operations at an assumed {FLOPS / 1e12:g} TFLOP/s "
            f"({DEPTHWISE_FLOPS / 1e12:g} for depthwise networks)"
        )
    return "\n".join(lines)


def _amount(runs: Mapping[str, float], ready: Collection[str], smoke: bool) -> str:
    """How many runs and hours, and how many of them can be made now."""
    hours = "" if smoke else f", {sum(runs.values()) / 3600:,.1f} GPU hours"
    state = "" if len(ready) == len(runs) else f"; {len(ready) or 'none'} can run now"
    return f"{len(runs)} run{'' if len(runs) == 1 else 's'}{hours}{state}"


# ------------------------------------------------------------------------------------------------ the project


def _folder(root: Path, plan: Plan) -> Path:
    return root / "reproductions" / plan.name


def make_project(params: Params, plan: Plan) -> Path:
    """Writes the DVC project of a paper, or brings it up to date; what is the same is left as it is.

    Raises:
        FileError: the folder is there, and was not made here.
    """
    folder = _folder(params.root, plan)
    about = {"format": _FORMAT, "paper": plan.paper, "smoke": plan.smoke}
    if folder.exists() and any(folder.iterdir()):
        remedy = "it was not made by `fer reproduce`: move it away"
        if not (folder / MARKER).is_file():
            raise FileError(f"{folder}: holds no {MARKER}; {remedy}")
        if read_object(folder / MARKER, {"paper": str, "smoke": bool}, remedy) != about:
            raise FileError(f"{folder / MARKER}: of another paper, mode or version; {remedy}")
    else:
        write_json(folder / MARKER, about)
    entries = _drawn(plan, folder) if plan.smoke else {key: _moved(entry) for key, entry in plan.datasets.items()}
    document = read_yaml(params.root / parameters.FILE_NAME)
    first = next(job for job in plan.jobs.values() if job.ready).study
    own = {
        "seed": document["seed"],
        "run": {"datasets": list(entries), "models": ["first"]},
        "datasets": entries,
        "models": {"first": {"recipe": first.smoke.recipe if plan.smoke else next(iter(first.datasets.values()))}},
        "crop": _SMOKE_CROP if plan.smoke else plan.preset.crop,
        **{section: document[section] for section in _SECTIONS},
        "tune": {},
    }
    own["train"] = {**own["train"], "workers": 0}  # each cell of a study is trained by one process
    if plan.smoke:
        own |= {"train": {"workers": 0, "threads": 1}, "cluster": {"crop_workers": 0}}  # Ray takes longer than the runs
        own["tracking"] = {**own["tracking"], "log_model": False}
    write_project(params.root, folder, own, _stages(plan))
    return folder


def write_project(root: Path, folder: Path, settings: Mapping[str, Any], stages: Mapping[str, Any]) -> None:
    """Writes a DVC project below the user's, which shares its cache; what is the same is left as it is.

    Args:
        root: of the user's project.
        settings: params.yaml.
        stages: those of dvc.yaml.

    Raises:
        ConfigError: wrong settings.
    """
    _update(folder / parameters.FILE_NAME, yaml12.dump(settings))
    _update(folder / "dvc.yaml", yaml12.dump({**read_yaml(ROOT / "dvc.yaml"), "stages": stages}))
    _update(folder / ".gitignore", _IGNORED)
    _update(folder / ".dvc" / "config", f"[core]\n    no_scm = true\n{_shared_cache(root)}")
    for name, target in (("pipelines", ROOT / "pipelines"), ("downloads", root / "downloads")):
        if target.is_dir() and not (folder / name).is_symlink():
            (folder / name).symlink_to(os.path.relpath(target, folder), target_is_directory=True)
    parameters.load(folder / parameters.FILE_NAME)  # a mistake is named before anything runs


def _update(path: Path, content: str) -> None:
    if not path.is_file() or path.read_text(encoding="utf-8") != content:
        write_atomic(path, content)


def _drawn(plan: Plan, folder: Path) -> dict[str, Any]:
    """Drawn faces in the layouts of the datasets, each written once."""
    from fer.sources.drawn import write

    entries = {}
    for key in plan.datasets:
        preset = plan.preset.datasets[key]
        out = folder / "drawn" / preset.layout
        facts = out.with_suffix(".json")
        if not facts.is_file():
            shutil.rmtree(out, ignore_errors=True)  # of a stopped run
            log.info("drawing %d faces in the layout of %s", _SMOKE_IMAGES, preset.layout)
            write_json(facts, write(preset.layout, out, images=_SMOKE_IMAGES))
        entry = {**read_object(facts, {"source": str}, "remove it"), **preset.entry}
        entry.pop("per_class", None)  # of the published numbers
        for name in ("path", "boxes", "votes"):
            if name in entry:
                entry[name] = os.path.relpath(entry[name], folder)
        entries[key] = entry
    return entries


def _moved(entry: Mapping[str, Any]) -> dict[str, Any]:
    """An entry whose relative paths start two folders further down."""

    def moved(path: str) -> str:
        is_relative = "://" not in path and not path.startswith("~") and not os.path.isabs(path)  # noqa: PTH117
        return f"../../{path}" if is_relative else path

    found = dict(entry)
    for name in ("path", "boxes", "votes", "root", "legend"):
        if isinstance(value := found.get(name), str):
            found[name] = moved(value)
        elif isinstance(value, list):
            found[name] = [moved(one) for one in value]
    return found


def _stages(plan: Plan) -> dict[str, Any]:
    """The data stages of this repository, and a stage for each study."""
    stages = {name: stage for name, stage in read_yaml(ROOT / "dvc.yaml")["stages"].items() if name in _DATA_STAGES}
    for name, job in plan.jobs.items():
        if job.ready:
            words = ["fer", "study", name, "--dataset", *job.columns, "--seeds", *map(str, plan.seeds)]
            words += ["--rows", *job.rows] if len(job.rows) < len(job.study.rows) else []
            words += ["--smoke", "--workers", "0"] if plan.smoke else []
            results = f"reports/studies/{name}{'-smoke' if plan.smoke else ''}/results.json"
            stages[f"study-{name}"] = {
                "desc": job.study.source,
                "cmd": shlex.join(words),
                # `fer study` knows by itself which cells have to run again, and is quick where none has.
                "always_changed": True,
                "deps": [f"data/shards/{column}" for column in job.columns],
                "outs": [{results: {"cache": False, "persist": True}}],
            }
    return stages


def _shared_cache(root: Path) -> str:
    """The cache of the user's project, so that no data lies on the disk twice; "" where that is no DVC project."""
    if not (root / ".dvc").is_dir():
        return ""
    done = subprocess.run(
        [sys.executable, "-m", "dvc", "cache", "dir"], cwd=root, capture_output=True, text=True, check=False
    )
    return f"[cache]\n    dir = {done.stdout.strip()}\n" if done.returncode == 0 else ""


# ------------------------------------------------------------------------------------------------ the runs


def run(params: Params, plan: Plan) -> Path:
    """Makes or resumes the runs of a plan, and writes the page of what there is; returns the page.

    Raises:
        ConfigError: nothing of the plan can run.
        FileError: the folder of the project was not made here.
        ValueError: some runs failed; the page is written all the same.
    """
    if not plan.ready:
        raise ConfigError(
            f"fer reproduce {plan.paper}: nothing can run; `--dry-run` says what is missing, `--smoke` needs nothing"
        )
    folder = _folder(params.root, plan)
    with lock(folder.with_name(f".{plan.name}.lock")):
        make_project(params, plan)
        code = repro(folder)
        page = write_page(params, make_plan(params, plan.paper, smoke=plan.smoke, seeds=plan.seeds))
    log.info("-> %s", page.relative_to(params.root))
    if code:
        raise ValueError(
            f"{folder.relative_to(params.root)}: some stages failed, see above; the page has the rest, and the same "
            "command resumes"
        )
    return page


def repro(folder: Path) -> int:
    """`dvc repro` in the project, which continues with other studies where one fails; its exit code."""
    own = Path(sys.executable).parent  # `python` and `fer` of this environment, whatever is active
    set_environment("PATH", os.pathsep.join([str(own), *os.get_exec_path()]))
    command = [sys.executable, "-m", "dvc", "repro", "--keep-going"]
    with subprocess.Popen(command, cwd=folder) as child:
        try:
            return child.wait()
        except Interrupted:
            child.terminate()
            child.wait()
            raise


def write_page(params: Params, plan: Plan) -> Path:
    """Writes reports/<name>.html of the tables and figures of a plan; returns its path."""
    from fer.ledger import build
    from fer.ledger.page import values
    from fer.report.paper import Section, render
    from fer.report.studies import collect_studies

    own = parameters.load(_folder(params.root, plan) / parameters.FILE_NAME)
    folder = os.path.relpath(own.root / "reports", params.root / "reports")
    results = {
        result.name.removesuffix("-smoke"): replace(
            result, links=tuple((name, f"{folder}/{address}") for name, address in result.links)
        )
        for result in collect_studies(own).results
    }
    lines = build(own, [plan.paper]).lines
    shown: dict[str, str] = {}
    sections = []
    for exhibit in plan.exhibits:
        first = [name for name in exhibit.studies if name not in shown]
        sections.append(
            Section(
                name=exhibit.name,
                title=exhibit.title,
                lines=[values(line) for line in lines if line.number.table == exhibit.name],
                studies=[results[name] for name in first if name in results],
                above={name: shown[name] for name in exhibit.studies if name in shown},
                missing=list(dict.fromkeys(problem for name in first for problem in plan.jobs[name].missing)),
                omitted=exhibit.omitted,
            )
        )
        shown |= dict.fromkeys(first, exhibit.name)
    page = params.root / "reports" / f"{plan.name}.html"
    write_atomic(page, render(plan.paper, plan.preset.title, plan.preset.note, sections, smoke=plan.smoke))
    return page
