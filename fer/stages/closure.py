"""What code a result depends on: computed from the imports. By hand stands only what is left out, and why.

The closure of a stage starts at its script in `pipelines/` and follows imports, those inside functions too, file by
file. A name that a package re-exports leads to the file that defines it. A registry knows everything of its kind: its
imports are not followed, but the file of what the item names is (its model, its dataset's reader, its detector). The
same holds for plugins: the files that register what the item names count, with what they import beside them.

The digest is taken over the text of these files without comments, docstrings and blank lines, so that an explanation
re-trains nothing. It is text, not a syntax tree, so that every version of Python finds the same digest.
"""

from __future__ import annotations

import ast
import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import fer
from fer import plugins
from fer.training.recipe import Recipe

ROOT = Path(fer.__file__).resolve().parents[1]
"""Folder that holds `fer` and `pipelines`."""

STARTS = {"tune": "fer/training/loop.py", "study": "fer/studies/cell.py"}
"""Where the code of what is no DVC stage starts; that of a stage starts at its script."""

_READS = "reads parameters, whose values are compared"
_FETCHES = "fetches or unpacks files, whose digests are compared"
LEFT_OUT: Mapping[str, Mapping[str, str]] = {
    "": {
        "fer/__init__.py": "holds the version, and `load` for other programs",
        "fer/cluster": "where work runs; the result is the same on any number of workers",
        "fer/config.py": _READS,
        "fer/console.py": "tells people",
        "fer/environment.py": "reads environment variables, which say where things are",
        "fer/faces/weights.py": "finds a file, whose digest is compared",
        "fer/io/cache.py": _FETCHES,
        "fer/io/files.py": "writes bytes as they are given",
        "fer/io/storage.py": "writes bytes as they are given",
        "fer/io/yaml12.py": _READS,
        "fer/lease.py": "which of several projects works",
        "fer/lineage.py": "tells where a result comes from",
        "fer/names.py": "refuses names, and changes none",
        "fer/outputs.py": "places results, whole",
        "fer/params.py": _READS,
        "fer/plugins.py": "imports plugins; those that register what the item names are followed",
        "fer/processes.py": "locks, signals, exit codes",
        "fer/recipes": "the values of an item's recipe are compared",
        "fer/shards/remote.py": _FETCHES,
        "fer/shards/verify.py": "refuses damaged shards, and changes none",
        "fer/sources/registry.py": "names the readers; that of the item is followed",
        "fer/stages/__init__.py": "reads the command line",
        "fer/stages/closure.py": "says what code counts; the digest that it gives is compared",
        "fer/stages/record.py": "tells MLflow",
        "fer/tracking": "tells MLflow",
        "fer/weights/registry.py": "finds files, whose digests are compared",
        "pipelines/__init__.py": "reads the command line",
    },
    "crop": {
        "fer/io/archive_tree.py": _FETCHES,
        "fer/io/archives.py": _FETCHES,
        "fer/io/remote.py": _FETCHES,
        "fer/io/transfer.py": _FETCHES,
        "fer/sources/archives.py": _FETCHES,
        "fer/sources/origin.py": "looks for changed data, for the download",
    },
    "evaluate": {
        "fer/evaluation/speed.py": "counts and times a forward pass, for run.json alone",
        "fer/transforms": "only a run of training augments",
    },
    "explain": {
        "fer/stages/evaluate.py": "opens shards, refuses weights of other data, and reads no result",
        "fer/transforms": "only a run of training augments",
    },
    "report": {
        "fer/training": "trains; the report shows what is left of it",
        "fer/transforms": "augments; the report shows the values of recipes",
        "fer/weights": "loads weights, of which the report shows none",
    },
    "study": {
        "fer/studies/__init__.py": "reads a study; the values of its rows' recipes are compared",
    },
}
"""Files and folders that decide no result, each with its reason: in any stage (""), or in one."""

REGISTRIES: Mapping[str, str] = {
    "fer/explain/attention.py": "model of the recipe",
    "fer/explain/layers.py": "model of the recipe",
    "fer/faces/detect.py": "crop.detector",
    "fer/studies/lhc_analysis.py": "model of the recipe",
    "fer/weights/layouts/__init__.py": "pretrained and start_from of the recipe",
    "fer/weights/parts.py": "pretrained and start_from of the recipe",
}
"""Files that count, and whose imports are not followed, with what names the one that is."""


@dataclass(frozen=True)
class _File:
    """What one file of code says.

    Attributes:
        imports: (module, name or "") of every import that may run.
        exports: name -> (module, name), where a package's `__init__` passes it on.
        data: packages whose files beside the code are read.
        names: what it registers: models, layouts, classes.
        digest: of its text without comments, docstrings and blank lines.
        computes: whether it holds more than a docstring and imports.
    """

    imports: frozenset[tuple[str, str]]
    exports: Mapping[str, tuple[str, str]]
    data: frozenset[str]
    names: frozenset[str]
    digest: str
    computes: bool


class Code:
    """The code under a folder that holds `fer` and `pipelines`. A file of code is read once, whatever becomes of it."""

    def __init__(self, root: Path = ROOT) -> None:
        self.root = root
        self._files: dict[str, _File] = {}

    def digest(
        self, stage: str, *, reader: str = "", detector: str = "annotated", recipes: Sequence[Recipe] = ()
    ) -> str:
        """Hex SHA-256 of the code that decides a result; the arguments are those of `closure`."""
        found = self.closure(stage, reader=reader, detector=detector, recipes=recipes)
        lines = [f"{path} {self._digest_of(path)}\n" for path in sorted(found)]
        return hashlib.sha256("".join(lines).encode()).hexdigest()

    def closure(
        self, stage: str, *, reader: str = "", detector: str = "annotated", recipes: Sequence[Recipe] = ()
    ) -> dict[str, str]:
        """The files that decide a result, relative to the root, each with the one that leads to it.

        Args:
            stage: of the pipeline, or a key of `STARTS`.
            reader: module of the dataset's reader.
            detector: of the crop stage.
            recipes: of what is trained or evaluated.
        """
        start = STARTS.get(stage, f"pipelines/{stage}.py")
        named = self._named(reader, detector, recipes, trains=stage not in ("evaluate", "explain", "report"))
        entries = [path for path in sorted(set(named)) if not left_out(path, stage)]
        return self._reached({start: "", **dict.fromkeys(entries, "named by the item")}, stage)

    def _reached(self, found: dict[str, str], stage: str) -> dict[str, str]:
        """These files and all that they lead to."""
        waiting = list(found)
        while waiting:
            importer = waiting.pop()
            for path in sorted(self._followed(importer)):
                if path not in found and not left_out(path, stage):
                    found[path] = importer
                    waiting.append(path)
        return found

    def forget(self, path: str) -> None:
        """Reads a file again the next time, relative to the root."""
        self._files.pop(path, None)

    def _named(self, reader: str, detector: str, recipes: Iterable[Recipe], *, trains: bool) -> Iterator[str]:
        """The files of what an item names, which registries do not lead to."""
        yield from self._of_module(reader)
        yield from [path for path in [f"fer/faces/{detector}.py"] if (self.root / path).is_file()]
        parts = [part for recipe in recipes for part in recipe.in_stages]
        yield from self._of_models({part.model for part in parts})
        if trains and any(part.sources for part in parts):
            donors = {name for part in parts if part.start_from for name in (part.model, _model_of(part.start_from))}
            donors |= self._file("fer/weights/parts.py").names if any(part.pretrained for part in parts) else set()
            yield from self._of_models(donors)
            yield from self._registering("fer/weights/layouts", donors)
            yield "fer/weights/published.py"

    def _of_models(self, names: set[str]) -> Iterator[str]:
        """The files that register these models; where a plugin computes their names, all files of the plugins."""
        ours = self._registering("fer/models", names)
        yield from ours
        if (missing := names - {name for path in ours for name in self._file(path).names}) and plugins.loaded():
            entries = [path for module in plugins.loaded() for path in self._of_module(module)]
            files = [path for path in self._reached(dict.fromkeys(entries, ""), "") if not path.startswith("fer/")]
            known = {name for path in files for name in self._file(path).names}
            yield from (path for path in files if missing - known or self._file(path).names & missing)

    def _registering(self, folder: str, names: Iterable[str]) -> list[str]:
        paths = [path.relative_to(self.root).as_posix() for path in (self.root / folder).glob("*.py")]
        return [path for path in paths if self._file(path).names & set(names)]

    def _followed(self, path: str) -> set[str]:
        """The files that a file of code leads to."""
        if path in REGISTRIES or not path.endswith(".py"):
            return set()
        file = self._file(path)
        found = {one for module, name in file.imports for one in self._of_import(module, name)}
        for package in file.data:
            base = self._base(package)
            folder = base.joinpath(*package.split("."))
            data = (one for one in folder.rglob("*") if one.is_file() and one.suffix not in (".py", ".pyc"))
            found |= {one.relative_to(base).as_posix() for one in data}
        return found - {path}

    def _of_import(self, module: str, name: str) -> list[str]:
        """The file that an import leads to, after those of the packages around it that compute something."""
        inner = self._of_module(f"{module}.{name}") if name else []
        if inner or not (files := self._of_module(module)):
            return inner
        *packages, path = files
        if path.endswith("/__init__.py") and (passed_on := self._file(path).exports.get(name)):
            return [*packages, *self._of_import(*passed_on)]
        return files

    def _of_module(self, module: str) -> list[str]:
        """The same of a module's name; nothing where it is neither ours nor a plugin's."""
        *packages, _ = parts = module.split(".")
        if parts[0] != "fer" and plugins.home(module) is None:
            return []
        base = self._base(module)
        for path in ("/".join(parts) + ".py", "/".join([*parts, "__init__.py"])):
            if (base / path).is_file():
                around = ("/".join([*packages[:end], "__init__.py"]) for end in range(1, len(packages) + 1))
                return [*(one for one in around if (base / one).is_file() and self._file(one).computes), path]
        return []

    def _base(self, name: str) -> Path:
        """The folder that a module's name or a file's path is relative to: the root, or for a plugin where it lies."""
        top = name.partition("/")[0].removesuffix(".py").partition(".")[0]
        return self.root if top in ("fer", "pipelines") else plugins.home(top) or self.root

    def _digest_of(self, path: str) -> str:
        if path.endswith(".py"):
            return self._file(path).digest
        return hashlib.sha256((self._base(path) / path).read_bytes()).hexdigest()

    def _file(self, path: str) -> _File:
        if path not in self._files:
            self._files[path] = _read((self._base(path) / path).read_text(encoding="utf-8"), path)
        return self._files[path]


def _model_of(source: str) -> str:
    """The model of weights in the register; none of any others, whose layout is that of the recipe's model."""
    from fer.weights.registry import register  # imports torch, which takes seconds

    return register()[source].model if source in register() else ""


@cache
def code() -> Code:
    """The code that runs, as it was when this was first called."""
    return Code()


def left_out(path: str, stage: str) -> str | None:
    """Why a file counts for nothing in a stage; None where it counts."""
    for entry, reason in (*LEFT_OUT[""].items(), *LEFT_OUT.get(stage, {}).items()):
        if path == entry or path.startswith(f"{entry}/"):
            return reason
    return None


# ------------------------------------------------------------------------------------------------ one file


def _read(text: str, path: str) -> _File:
    tree = ast.parse(text)
    visitor = _Visitor(path)
    visitor.visit(tree)
    body = [node for node in tree.body if not _is_text(node)]
    passed_on = [node for node in body if isinstance(node, ast.ImportFrom)]
    return _File(
        imports=frozenset(visitor.imports),
        exports={
            alias.asname or alias.name: (_module(node, path), alias.name) for node in passed_on for alias in node.names
        }
        if path.endswith("/__init__.py")
        else {},
        data=frozenset(visitor.data),
        names=frozenset(visitor.names),
        digest=hashlib.sha256(_without_words(text, visitor.texts).encode()).hexdigest(),
        computes=not all(isinstance(node, ast.Import | ast.ImportFrom) or _is_all(node) for node in body),
    )


def _module(node: ast.ImportFrom, path: str) -> str:
    """The whole name of the module that an import in a file reads from."""
    around = path.split("/")[: -node.level] if node.level else []
    return ".".join([*around, *([node.module] if node.module else [])])


class _Visitor(ast.NodeVisitor):
    """Collects what `_File` holds; what is imported for type checkers alone never runs."""

    def __init__(self, path: str) -> None:
        self._path = path
        self.imports: set[tuple[str, str]] = set()
        self.data: set[str] = set()
        self.names: set[str] = set()
        self.texts: list[ast.stmt] = []
        """Docstrings, and other statements that are a text alone."""

    def visit_Import(self, node: ast.Import) -> None:
        self.imports |= {(alias.name, "") for alias in node.names}

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        self.imports |= {(_module(node, self._path), alias.name) for alias in node.names}

    def visit_If(self, node: ast.If) -> None:
        if isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            return
        self.generic_visit(node)

    def visit_Expr(self, node: ast.Expr) -> None:
        if _is_text(node):
            self.texts.append(node)
        else:
            self.generic_visit(node)

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        self.names.add(node.name)
        self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> None:
        function = node.func
        called = function.id if isinstance(function, ast.Name) else getattr(function, "attr", "")
        given = node.args[0].value if node.args and isinstance(node.args[0], ast.Constant) else None
        if called in ("import_module", "__import__"):
            if not isinstance(given, str):
                raise ValueError(f"{self._path}:{node.lineno}: an import of a computed name cannot be followed")
            self.imports.add((given, ""))
        elif called in ("files", "PackageLoader") and isinstance(given, str):
            self.data.add(given)
        elif called == "register" and isinstance(given, str):
            self.names.add(given)
        self.generic_visit(node)

    def visit_Assign(self, node: ast.Assign) -> None:
        self._take_names(node.targets[0], node.value)
        self.generic_visit(node)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        self._take_names(node.target, node.value)
        self.generic_visit(node)

    def _take_names(self, target: ast.expr, value: ast.expr | None) -> None:
        """The keys of LAYOUTS, by which a layout is known, and the models of DONORS, whose layouts fill parts."""
        if isinstance(target, ast.Name) and isinstance(value, ast.Dict):
            named = ast.walk(value) if target.id in ("LAYOUTS", "DONORS") else ()
            self.names |= {str(one.value) for one in named if isinstance(one, ast.Constant)}


def _is_text(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def _is_all(node: ast.stmt) -> bool:
    return isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and node.targets[0].id == "__all__"


_TEXT = r'"""(?:\\.|[^\\])*?"""' + r"|'''(?:\\.|[^\\])*?'''" + r'|"(?:\\.|[^"\\\n])*"' + r"|'(?:\\.|[^'\\\n])*'"
_COMMENT = re.compile(rf"({_TEXT})|[ \t]*#[^\n]*", re.DOTALL)
_BLANK = re.compile(rf"({_TEXT})|[ \t]*\n\s*?(?=[ \t]*\S|\Z)", re.DOTALL)


def _without_words(text: str, texts: Iterable[ast.stmt]) -> str:
    """Python code without what changes nothing that it does."""
    lines = text.split("\n")
    for node in texts:
        assert node.end_lineno is not None
        if not lines[node.lineno - 1][: node.col_offset].strip():
            lines[node.lineno - 1 : node.end_lineno] = [""] * (node.end_lineno - node.lineno + 1)
    bare = _COMMENT.sub(lambda match: match[1] or "", "\n".join(lines))
    return _BLANK.sub(lambda match: match[1] or "\n", bare).strip("\n")
