"""The rules that keep the flow visible: who may import what. Imports inside functions count as others do."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

ROOMS = (
    "__main__", "cli", "commands", "stages", "ledger", "report", "params", "__init__", "locate", "cluster", "tracking",
    "studies", "service", "inference", "explain", "export", "evaluation", "training", "faces", "sources", "synth",
    "shards", "weights", "models", "transforms", "recipes", "presets", "published", "outputs", "names", "lineage",
    "lease", "processes", "config", "io", "labels", "hashing", "environment", "plugins", "console",
)  # fmt: skip
"""Files and folders of `fer`, top to bottom: each imports only what stands to its right."""

HOMES = {
    "ray": "cluster/", "mlflow": "tracking/", "albumentations": "transforms/reference.py", "pyarrow": "shards/",
    "captum": "explain/",
    "onnxruntime": "export/", "openvino": "export/", "nncf": "export/",
}  # fmt: skip
"""Library -> the only place under `fer` that imports it."""

FILES = sorted((ROOT / "fer").rglob("*.py"))


@cache
def nodes(path: Path) -> list[ast.AST]:
    return list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))


def imported_names(path: Path) -> Iterator[str]:
    """Dotted names, each `from a import b` as a.b."""
    for node in nodes(path):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.module is not None, f"{path}: a relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def module_file(name: str) -> Path | None:
    """The file of this project that a dotted name, or what holds it, lies in."""
    for one in (name, name.rpartition(".")[0]):
        base = ROOT.joinpath(*one.split("."))
        for path in (base.with_suffix(".py"), base / "__init__.py"):
            if one and path.is_file():
                return path
    return None


def room(path: Path) -> str:
    return path.relative_to(ROOT / "fer").parts[0].removesuffix(".py")


@cache
def graph() -> dict[Path, set[Path]]:
    """File -> the files of this project that it imports."""
    return {path: {file for name in imported_names(path) if (file := module_file(name))} - {path} for path in FILES}


def test_no_files_import_each_other_in_a_circle() -> None:
    try:
        TopologicalSorter(graph()).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(str(path.relative_to(ROOT)) for path in error.args[1]))


def test_every_import_points_down() -> None:
    order = {name: number for number, name in enumerate(ROOMS)}
    assert {room(path) for path in FILES} <= set(ROOMS)
    upward = [
        f"{importer.relative_to(ROOT)} -> {path.relative_to(ROOT)}"
        for importer, paths in graph().items()
        for path in paths
        if ROOT / "fer" in path.parents and order[room(importer)] > order[room(path)]
    ]
    assert upward == []
    outside = [path for paths in graph().values() for path in paths if ROOT / "fer" not in path.parents]
    assert outside == [], "the package imports neither pipelines nor benchmarks nor tests"


@pytest.mark.parametrize("library", HOMES)
def test_each_library_lives_in_its_one_place(library: str) -> None:
    importers = {
        path.relative_to(ROOT / "fer").as_posix()
        for path in FILES
        if library in {name.split(".")[0] for name in imported_names(path)}
    }
    assert importers
    assert {path for path in importers if not path.startswith(HOMES[library])} == set()


def test_models_import_only_torch() -> None:
    for path in (ROOT / "fer/models").rglob("*.py"):
        external = {
            name
            for name in imported_names(path)
            if name.split(".")[0] not in {*sys.stdlib_module_names, "torch"} and not name.startswith("fer.models")
        }
        assert not external, f"{path.name} imports {external}"


def test_only_one_file_reads_the_environment() -> None:
    readers = {
        path.relative_to(ROOT / "fer").as_posix()
        for path in FILES
        for node in nodes(path)
        if isinstance(node, ast.Attribute) and node.attr in ("environ", "getenv")
    }
    # What `processes` writes libraries read; `fer bench` hands all of it on.
    assert readers == {"environment.py", "processes.py", "commands/bench.py"}


def test_help_is_quick_because_it_imports_nothing_heavy() -> None:
    script = (
        "import sys; from fer import cli\n"
        "try: cli.main(['--help'])\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'ray', 'mlflow', 'albumentations', 'pyarrow', 'matplotlib', 'captum', 'openvino'}\n"
        "heavy &= set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
