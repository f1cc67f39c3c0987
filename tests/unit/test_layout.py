"""The rules that keep the flow visible: who may import what."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

FER = Path(__file__).resolve().parents[2] / "fer"

# library -> the places under fer/ that may import it
HOMES = {
    "ray": ["cluster/"],
    "mlflow": ["tracking/"],
    "albumentations": ["augment.py"],
    "pyarrow": ["shards/"],
}


def _imports(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module)
    return names


FILES = sorted(FER.rglob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(FER)))
def test_each_library_lives_in_its_one_place(path: Path) -> None:
    relative = str(path.relative_to(FER))
    roots = {name.split(".")[0] for name in _imports(path)}
    assert "pipelines" not in roots
    for library, homes in HOMES.items():
        if library in roots:
            assert any(relative.startswith(home) for home in homes), f"{relative} imports {library}"


def test_models_import_only_torch() -> None:
    for path in (FER / "models").rglob("*.py"):
        foreign = {
            name
            for name in _imports(path)
            if name.split(".")[0] not in {*sys.stdlib_module_names, "torch"} and not name.startswith("fer.models")
        }
        assert not foreign, f"{path.name} imports {foreign}"


def test_only_params_reads_the_environment() -> None:
    for path in FILES:
        if path.name in ("params.py", "processes.py"):
            continue
        attributes = [node.attr for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Attribute)]
        assert "environ" not in attributes, path
        assert "getenv" not in attributes, path


def test_help_is_quick_because_it_imports_nothing_heavy() -> None:
    script = (
        "import sys; from fer import cli\n"
        "try: cli.main(['--help'])\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'ray', 'mlflow', 'albumentations', 'pyarrow', 'matplotlib'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
