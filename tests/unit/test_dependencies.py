"""What a stage computes with stands in its lists: in dvc.yaml, and in the digest of code that it resumes by."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Mapping
from pathlib import Path

import pytest
import yaml_text

from fer.stages import crop as dataset
from fer.stages import train

OBSERVERS = {
    "fer/__init__.py": "holds the version alone",
    "fer/cluster": "where work runs; the same bits on any number of workers",
    "fer/config.py": "parses params, which DVC compares by value",
    "fer/console.py": "tells people",
    "fer/io/disk.py": "looks at the room on a disk",
    "fer/io/files.py": "writes bytes as they are given",
    "fer/lineage.py": "tells where a result comes from",
    "fer/names.py": "refuses names, and changes none",
    "fer/outputs.py": "places results, whole",
    "fer/params.py": "reads params, which DVC compares by value",
    "fer/processes.py": "locks, signals, exit codes",
    "fer/tracking": "tells MLflow",
    "fer/io/yaml12.py": "reads params, which DVC compares by value",
}
FETCHED = dict.fromkeys(("fer/io/archives", "fer/io/transfer"), "brings files, whose digests are compared")
DETECTOR = {
    "fer/models": "other networks than detectors",
    "fer/weights": "but for what is listed: files of other networks, and their names",
}
REMOTE = {
    "fer/shards/remote.py": "brings shards, whose digests are compared",
    "fer/shards/verify.py": "refuses damaged shards, and changes none",
}
LEFT_OUT: Mapping[str, Mapping[str, str]] = {
    "download": {},
    "crop": FETCHED | DETECTOR,
    "shard": {},
    "train": FETCHED | REMOTE,
    "evaluate": FETCHED
    | REMOTE
    | dict.fromkeys(("fer/transforms/reference.py", "fer/transforms"), "only a training augments")
    | {
        "fer/training": "but for recipes: trains",
        "fer/weights": "but for the project's own files: imports published ones",
    },
    "report": {"fer/faces": "but for the names of its reasons to refuse a face", "fer/sources": "words of select.py"},
}
"""Modules beyond `OBSERVERS` that decide nothing in a stage that imports them; what its list names is not left out."""

COMPUTATIONS = {
    "download": "fer/sources/download.py",
    "crop": "fer/stages/crop.py",
    "shard": "fer/shards/write.py",
    "train": "fer/training/loop.py",
    "evaluate": "fer/stages/evaluate.py",
    "report": "fer/report/page.py",
}


@pytest.mark.parametrize("stage", COMPUTATIONS)
def test_every_module_that_a_stage_computes_with_is_among_its_dependencies(stage: str, repo_root: Path) -> None:
    deps = yaml_text.load((repo_root / "dvc.yaml").read_text())["stages"][stage]["deps"]
    assert unlisted(repo_root, COMPUTATIONS[stage], deps, stage) == {}


@pytest.mark.parametrize(
    ("stage", "start", "listed"),
    [("train", "fer/training/loop.py", train._CODE), ("crop", "fer/faces/blocks.py", dataset._CODE)],
)
def test_every_module_that_decides_a_resumed_result_is_in_the_digest_of_its_code(
    stage: str, start: str, listed: tuple[str, ...], repo_root: Path
) -> None:
    assert unlisted(repo_root, start, [f"fer/{one}" for one in listed], stage) == {}
    assert [one for one in listed if not (repo_root / "fer" / one).exists()] == []


def test_no_stage_depends_on_the_circumstances_of_a_training(repo_root: Path) -> None:
    stages = yaml_text.load((repo_root / "dvc.yaml").read_text())["stages"]
    (run,) = (out for out in stages["train"]["outs"] if out.endswith("/run.json"))
    assert [name for name, stage in stages.items() if run in stage.get("deps", ())] == []


def test_a_module_that_no_list_names_is_found_through_lazy_imports(tmp_path: Path) -> None:
    (tmp_path / "fer/models").mkdir(parents=True)
    (tmp_path / "fer/start.py").write_text("def f():\n    from fer.models import net\n")
    (tmp_path / "fer/models/__init__.py").write_text("")
    (tmp_path / "fer/models/net.py").write_text("import fer.seeds\nfrom fer import console\n")
    for name in ("seeds", "console"):
        (tmp_path / f"fer/{name}.py").write_text("")
    assert unlisted(tmp_path, "fer/start.py", ["fer/start.py", "fer/models"], "train") == {
        "fer/seeds.py": "fer/models/net.py"
    }


def unlisted(root: Path, start: str, listed: Iterable[str], stage: str) -> dict[str, str]:
    """Modules reached from `start` that neither are listed nor may be left out, each with what imports it."""
    listed, left_out = list(listed), [*OBSERVERS, *LEFT_OUT[stage]]
    seen, waiting, found = {start}, [start], {}
    while waiting:
        importer = waiting.pop()
        for module in sorted(imported(root, importer) - seen):
            if below(module, listed) or not below(module, left_out):
                seen.add(module)
                waiting.append(module)
                found |= {} if below(module, listed) else {module: importer}
    return found


def below(module: str, entries: Iterable[str]) -> bool:
    return any(module == entry or module.startswith(f"{entry}/") for entry in entries)


def imported(root: Path, module: str) -> set[str]:
    """Files of the package that a module imports, wherever in it, with the packages they lie in."""
    names: set[str] = set()
    for node in ast.walk(ast.parse((root / module).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.module is not None, f"{module}: a relative import"
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    parts = {tuple(name.split(".")[:end]) for name in names for end in range(1, name.count(".") + 2)}
    files = {Path(*one) for one in parts if one[0] == "fer"}
    candidates = {path for one in files for path in (one.with_suffix(".py"), one / "__init__.py")}
    return {path.as_posix() for path in candidates if (root / path).is_file() and says_something(root / path)}


def says_something(path: Path) -> bool:
    """Not so an `__init__.py` with a docstring alone."""
    return path.name != "__init__.py" or len(ast.parse(path.read_text(encoding="utf-8")).body) > 1
