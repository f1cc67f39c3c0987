"""`fer reproduce`: every table has something that fills it, the plan says what is missing, the project is its own."""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml_text
from builders.limits import patience
from builders.projects import REPOSITORY, environment

from fer import params as parameters
from fer import published
from fer.config import ConfigError
from fer.io.files import FileError
from fer.models import create_model
from fer.models.cost import measure
from fer.params import Params
from fer.presets import list_presets, load_preset
from fer.stages import reproduce
from fer.stages.reproduce import MARKER, describe, macs, make_plan, make_project
from fer.studies import list_studies, load_study
from fer.weights.registry import cache_folder, register

PAPERS = list_presets()


@pytest.fixture
def project(tmp_path: Path) -> Params:
    """A user's project, without data and weights."""
    shutil.copy(REPOSITORY / "params.yaml", tmp_path)
    return parameters.load(tmp_path / "params.yaml")


def with_paths(params: Params, **paths: str) -> Params:
    """The same with data at these paths, by key of `datasets`."""
    file = params.root / "params.yaml"
    for key, path in paths.items():
        (params.root / path).mkdir(parents=True, exist_ok=True)
        yaml_text.edit(file, f"datasets.{key}.path", path)
    return parameters.load(file)


@pytest.fixture
def few_images(monkeypatch: pytest.MonkeyPatch) -> None:
    """No more drawn faces than a layout needs."""
    monkeypatch.setattr(reproduce, "_SMOKE_IMAGES", 64)


@pytest.fixture
def weights(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Every published file is in the cache, by name."""
    monkeypatch.setenv("FER_CACHE", str(tmp_path / "cache"))
    for name, entry in register().items():
        for file in entry.files:
            path = cache_folder() / name / file.name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()


# ------------------------------------------------------------------------------------------------ presets


def test_the_papers_are_those_of_the_ledger() -> None:
    assert set(PAPERS) == set(published.PAPERS)


@pytest.mark.parametrize("paper", PAPERS)
def test_every_printed_table_has_its_place_and_every_study_fills_one(paper: str) -> None:
    preset = load_preset(paper)
    assert {number.table for number in published.numbers(work=paper)} <= {one.name for one in preset.exhibits}
    named = {name for exhibit in preset.exhibits for name in exhibit.studies}
    studies = {name: load_study(name, Path()) for name in list_studies()}
    assert named <= studies.keys()
    assert {name for name, study in studies.items() if study.work == paper} <= named
    columns = {key for name in named for row in studies[name].rows for key in row.datasets or studies[name].datasets}
    assert columns == preset.datasets.keys()


@pytest.mark.parametrize(
    "model", ["ddamfn", "dynamic_vit_base", "lhc_net", "poster_v1_large", "poster_v2", "resnet34v2"]
)
def test_counted_operations_are_those_of_the_model(model: str) -> None:
    with torch.device("meta"):
        assert measure(create_model(model)).operations.macs == macs()[model]


# ------------------------------------------------------------------------------------------------ the plan


@pytest.mark.parametrize("paper", PAPERS)
def test_the_plan_names_what_is_missing_and_writes_nothing(project: Params, paper: str) -> None:
    plan = make_plan(project, paper)
    text = describe(plan, project.root)
    assert not plan.ready
    for key in load_preset(paper).datasets:
        assert f"datasets.{key}.path" in text
    for exhibit in plan.exhibits:
        assert exhibit.name in text
    assert sorted(path.name for path in project.root.iterdir()) == ["params.yaml"]


def test_the_plan_is_made_without_torch(project: Params) -> None:
    script = (
        "import sys\nfrom fer import cli\ncli._main(['reproduce', 'btn', '--dry-run'])\n"
        "sys.exit('imported' if {'torch', 'ray', 'mlflow', 'pyarrow'} & set(sys.modules) else 0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=project.root, env=environment(), capture_output=True, text=True,
        timeout=patience(60), check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "GPU hours" in done.stdout


@pytest.mark.usefixtures("weights")
def test_tables_whose_data_are_there_can_run(project: Params) -> None:
    plan = make_plan(with_paths(project, rafdb="faces"), "btn", tables=["5", "7"])
    assert [exhibit.name for exhibit in plan.exhibits] == ["Table 5", "Table 7"]
    assert plan.jobs["btn_components"].missing == ()
    assert plan.jobs["btn_batch_size"].columns == ("rafdb",)
    assert {name.partition(":")[0] for name in plan.jobs["btn_batch_size"].missing} == {"affectnet7", "affectnet8"}
    assert set(plan.datasets) == {"rafdb"}
    shared = plan.jobs["btn_components"].ready & plan.jobs["btn_batch_size"].ready
    assert len(shared) == 1  # the whole network of both tables, trained once


def test_rows_without_their_weights_are_left_out(project: Params) -> None:
    plan = make_plan(with_paths(project, rafdb="faces"), "btn", tables=["5"])
    assert not plan.ready
    assert any("fer weights pull ir50" in problem for problem in plan.jobs["btn_components"].missing)


def test_a_detector_without_its_weights_is_named(project: Params) -> None:
    missing = make_plan(with_paths(project, rafdb="faces"), "ddamfn", tables=["8"]).jobs["ddamfn_results"].missing
    assert any("retinaface" in problem for problem in missing)


@pytest.mark.usefixtures("weights")
def test_another_entry_of_the_same_source_gives_its_path(project: Params) -> None:
    plan = make_plan(with_paths(project, affectnet8="affectnet"), "btn", tables=["2"])
    assert plan.datasets["affectnet7"]["path"] == "affectnet"
    assert plan.datasets["affectnet7"]["classes"] == 7


def test_a_path_that_leads_nowhere_is_missing_data(project: Params) -> None:
    params = with_paths(project, rafdb="faces")
    (params.root / "faces").rmdir()
    assert any("faces" in problem for problem in make_plan(params, "btn").jobs["btn_rafdb"].missing)


@pytest.mark.parametrize(("paper", "tables", "named"), [("bnt", None, "btn"), ("btn", ["55"], "Table 5")])
def test_an_unknown_paper_or_table_is_an_error_that_lists_them(
    project: Params, paper: str, tables: list[str] | None, named: str
) -> None:
    with pytest.raises(ConfigError, match=named):
        make_plan(project, paper, tables=tables)


def test_seeds_multiply_the_runs_and_sam_doubles_their_time(project: Params) -> None:
    one, three = (make_plan(project, "poster_v2", tables=["5"], seeds=range(n)) for n in (1, 3))
    assert len(three.runs) == 3 * len(one.runs)
    assert sum(three.runs.values()) == pytest.approx(3 * sum(one.runs.values()))


# ------------------------------------------------------------------------------------------------ the project


def files(folder: Path) -> dict[str, tuple[bytes, int]]:
    found = (path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
    return {path.relative_to(folder).as_posix(): (path.read_bytes(), path.stat().st_mtime_ns) for path in found}


@pytest.mark.usefixtures("few_images")
def test_the_smoke_project_has_every_study_on_drawn_faces_and_is_made_once(project: Params) -> None:
    plan = make_plan(project, "btn", smoke=True)
    assert plan.ready.keys() == plan.runs.keys()
    before = files(project.root)
    folder = make_project(project, plan)
    made = files(project.root)
    assert {name: made[name] for name in before} == before
    own = parameters.load(folder / "params.yaml")
    assert list(own.datasets) == ["rafdb", "affectnet7", "affectnet8"]
    for entry in yaml_text.load((folder / "params.yaml").read_text())["datasets"].values():
        assert (folder / entry["path"]).is_dir()
        assert not Path(entry["path"]).is_absolute()
    stages = yaml_text.load((folder / "dvc.yaml").read_text())["stages"]
    assert {name for name in stages if name.startswith("study-")} == {f"study-{name}" for name in plan.jobs}
    make_project(project, plan)
    assert files(project.root) == made


@pytest.mark.usefixtures("weights")
def test_the_project_reads_the_users_data_where_they_are(project: Params) -> None:
    params = with_paths(project, rafdb="my faces")
    folder = make_project(params, make_plan(params, "poster_v2", tables=["8"]))
    entry = yaml_text.load((folder / "params.yaml").read_text())["datasets"]["rafdb"]
    assert (folder / entry["path"]).resolve() == params.root / "my faces"
    assert entry["subset"] is False  # the published counts hold


def test_commands_of_the_project_reach_the_shell_quoted(project: Params, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = make_plan(project, "btn", tables=["8"], smoke=True)
    job = plan.jobs["btn_losses"]
    rows = tuple(row.row for row in job.study.rows[1:])
    monkeypatch.setitem(plan.jobs, "btn_losses", replace(job, rows=rows))  # type: ignore[arg-type]
    words = shlex.split(reproduce._stages(plan)["study-btn_losses"]["cmd"])
    assert words[words.index("--rows") + 1 : words.index("--smoke")] == list(rows)


@pytest.mark.parametrize("there", [{"notes.txt": "mine"}, {MARKER: '{"format": 1, "paper": "ddamfn", "smoke": true}'}])
def test_a_folder_that_was_not_made_here_is_refused_and_left_alone(project: Params, there: dict[str, str]) -> None:
    folder = project.root / "reproductions" / "btn-smoke"
    folder.mkdir(parents=True)
    for name, content in there.items():
        (folder / name).write_text(content)
    with pytest.raises(FileError, match="reproductions/btn-smoke"):
        make_project(project, make_plan(project, "btn", smoke=True))
    assert {path.name: path.read_text() for path in folder.iterdir()} == there


def test_a_paper_that_compares_sets_of_runs_has_several_seeds_also_in_the_smoke_mode(project: Params) -> None:
    assert make_plan(project, "lhc_net").seeds == (0, 1, 2)
    assert make_plan(project, "lhc_net", smoke=True).seeds == (0, 1)
    assert make_plan(project, "lhc_net", seeds=[7]).seeds == (7,)


def test_nothing_runs_where_all_is_missing(project: Params) -> None:
    with pytest.raises(ConfigError, match="--dry-run"):
        reproduce.run(project, make_plan(project, "btn"))
    assert not (project.root / "reproductions").exists()


# ------------------------------------------------------------------------------------------------ the page


@pytest.mark.usefixtures("few_images")
def test_where_stages_fail_the_page_has_every_table_and_figure_and_every_printed_number(
    project: Params, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reproduce, "repro", lambda folder: 1)
    with pytest.raises(ValueError, match="reproductions/btn-smoke"):
        reproduce.run(project, make_plan(project, "btn", tables=["5"], smoke=True))
    page = (project.root / "reports" / "btn-smoke.html").read_text()
    for number, exhibit in enumerate(load_preset("btn").exhibits, 1):
        assert f'<h2 id="part-{number}">{exhibit.name}: ' in page
    assert "Smoke run" in page
    assert page.count('<td class="n">') >= len(list(published.numbers(work="btn")))


@pytest.mark.slow
def test_a_paper_runs_in_the_smoke_mode_resumes_and_fills_its_page(project: Params) -> None:
    command = [sys.executable, "-c", "import sys; from fer import cli; cli.main(sys.argv[1:])"]
    command += ["reproduce", "dynamic_attention", "--smoke"]

    def go() -> str:
        done = subprocess.run(
            command,
            cwd=project.root,
            env=environment(),
            capture_output=True,
            text=True,
            timeout=patience(280),
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr

    go()
    folder = project.root / "reproductions" / "dynamic_attention-smoke"
    results = json.loads((folder / "reports" / "studies" / "dynamic_routing-smoke" / "results.json").read_text())
    rows: list[dict[str, Any]] = results["rows"]
    assert {row["row"] for row in rows} == {row.row for row in load_study("dynamic_routing", Path()).rows}
    manifest = json.loads((folder / "data" / "shards" / "aihub" / "manifest.json").read_text())
    assert manifest["synthetic"] is True
    page = (project.root / "reports" / "dynamic_attention-smoke.html").read_text()
    assert "ViT-16-224" in page
    assert "nano" in page
    assert "3 cells, 3 of them done" in go()
