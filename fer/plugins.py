"""Models, datasets and recipes of your own, without a change to this package.

A plugin is a module that registers what it defines when it is imported: `fer.models.register`,
`fer.sources.registry.register`, `fer.training.recipe.register_recipes`. It is named in `plugins` of params.yaml, where
it is a file in the project's folder or installed, or by an installed package, as an entry point of `fer.plugins`.
"""

import sys
import traceback
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path

GROUP = "fer.plugins"
"""Entry points that name modules of installed packages."""

_loaded: dict[str, Path] = {}
_folders: list[Path] = []


class PluginError(ValueError):
    """A plugin cannot be imported, or registers a name that is taken; the message names module, file and line."""


def load(modules: Iterable[str], folders: Sequence[Path], where: str) -> None:
    """Imports plugins; one that is imported already is left as it is.

    Args:
        modules: dotted names, from `plugins` of params.yaml.
        folders: where they are looked for, after the installed packages: the project's folder.
        where: what names them, for the error.

    Raises:
        PluginError: see there.
    """
    for name in modules:
        for folder in folders:
            if folder not in _folders:
                _folders.append(folder)
            if str(folder) not in sys.path:
                sys.path.append(str(folder))
        if name not in _loaded:
            _import(name, where)
        own = _place(name.partition(".")[0], folders)
        if own is not None and not _loaded[name].is_relative_to(own):
            raise PluginError(f"{where}: {name!r} is {_loaded[name]}, not in {own}: give yours another name")


@cache
def load_installed() -> None:
    """Imports the plugins of installed packages; PluginError names the package of one that fails."""
    for point in entry_points(group=GROUP):
        _import(point.value, f"entry point {point.name!r} of {point.dist.name if point.dist else GROUP}")


def loaded() -> dict[str, Path]:
    """Every plugin that was imported, and its file."""
    return dict(_loaded)


def home(module: str) -> Path | None:
    """The folder where a module's name starts, if the module belongs to a plugin: is beside it, or in its package."""
    top = module.partition(".")[0]
    installed = (
        file.parents[name.count(".") + (file.name == "__init__.py")]
        for name, file in _loaded.items()
        if name.partition(".")[0] == top
    )
    return _place(top, _folders) or next(installed, None)


def worker_setup() -> Callable[[], None] | None:
    """What another process calls to have the plugins that this one has; None where it has none."""
    if not _loaded:
        return None
    names, folders = tuple(_loaded), tuple(_folders)
    return lambda: load(names, folders, "a worker's plugins")


def _place(top: str, folders: Sequence[Path]) -> Path | None:
    """The first of these folders that holds a module or package of that name."""
    places = (folder for folder in folders if (folder / f"{top}.py").is_file() or (folder / top).is_dir())
    return next(places, None)


def _import(name: str, where: str) -> None:
    try:
        module = import_module(name)
    except Exception as error:
        ours = str(Path(__file__).parent)
        own = [
            f" ({frame.filename}:{frame.lineno})"
            for frame in traceback.extract_tb(error.__traceback__)
            if not frame.filename.startswith((ours, "<frozen importlib")) and "/importlib/" not in frame.filename
        ]
        place = own[-1] if own else ""
        raise PluginError(f"{where}: plugin {name!r}{place}: {type(error).__name__}: {error}") from error
    file = getattr(module, "__file__", None)
    if file is None:
        raise PluginError(f"{where}: plugin {name!r}: is no file of Python; name the module that registers something")
    _loaded[name] = Path(file).resolve()
