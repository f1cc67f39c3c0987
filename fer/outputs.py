"""The folders that stages make: where they lie in the project, and how they are told from what others made.

Neither we nor DVC, which removes the outputs of a stage before it runs, may touch anything else.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from fer.io.files import FileError, publish_directory
from fer.names import check_name


@dataclass(frozen=True)
class Output:
    """One kind of output folder, one of its kind for each dataset, or each dataset and model.

    Attributes:
        parent: folder of the project that all of this kind lie in.
        names: how many names lead from there to one of them: dataset, or dataset and model.
        marker: file inside by which one that we made is known.
        members: pattern of the names that we give inside; others are not ours. None: any name is.
        tracked_whole: whether DVC tracks the folder, and so removes whatever lies in it, or single files of it.
    """

    parent: str
    names: int
    marker: str
    members: str | None = None
    tracked_whole: bool = True

    def folder(self, root: Path, *names: str) -> Path:
        """Where the output of this dataset (and model) lies in the project at `root`.

        Raises:
            ConfigError: a name that cannot name a folder.
            FileError: a link leads elsewhere, or what lies there is not ours to replace.
        """
        assert len(names) == self.names
        parent = root / self.parent
        final = parent.joinpath(*(check_name(name, str(parent)) for name in names))
        if final.resolve() != parent.resolve().joinpath(*names):
            raise FileError(f"{final}: is a link to {final.resolve()}, and no output is written through one; remove it")
        self._refuse_foreign(final)
        return final

    @contextmanager
    def publish(self, final: Path) -> Iterator[Path]:
        """A folder that appears complete at `final`, in place of an earlier one; see `publish_directory`.

        Args:
            final: as `folder` gave it. Files in it that are not ours are kept.

        Raises:
            FileError: what lies there by now is not ours to replace.
        """
        with publish_directory(final, keep=self._others) as out:
            yield out
            self._refuse_foreign(final)

    def _refuse_foreign(self, final: Path) -> None:
        if not final.is_dir():
            if final.exists():
                raise FileError(f"{final}: is a file, where a folder of this project belongs; move it away")
            return
        others, known = self._others(final), (final / self.marker).is_file()
        if self.tracked_whole and known and others:
            raise FileError(f"{others[0]}: was not made by this project, and dvc would remove it; move it away")
        replaced = set(final.iterdir()) - set(() if self.tracked_whole else others)
        if replaced and not known and not self._is_locked(final):
            raise FileError(
                f"{final}: was not made by this project (it has no {self.marker}), and would be replaced; move it away"
            )

    def _others(self, final: Path) -> list[Path]:
        """What lies in an output and was not made by us."""
        return sorted(path for path in final.iterdir() if self.members and not re.fullmatch(self.members, path.name))

    def _is_locked(self, final: Path) -> bool:
        """Whether DVC knows the folder, or a file in it, as the output of a stage."""
        root = final.parents[len(Path(self.parent).parts) + self.names - 1]
        lock = root / "dvc.lock"
        path = re.escape(final.relative_to(root).as_posix())  # of letters that YAML leaves as they are
        return lock.is_file() and bool(re.search(f"^ *- path: {path}(/.*)?$", lock.read_text(), re.MULTILINE))


PLAN = Output("data/plan", 0, "report.json", r"download|crop|shard|train|evaluate|report\.json")
RAW = Output("data/raw", 1, "source.json")
FACES = Output("data/faces", 1, "faces.json", r"faces(-.*\.parquet|\.json)|rejects\.parquet")
SHARDS = Output("data/shards", 1, "manifest.json", r".*\.parquet|manifest\.json")
STATISTICS = Output(
    "data/statistics", 1, "statistics.json", r"(classes|dropped|duplicates)\.csv|statistics\.json|samples\.png", False
)
TRAINED = Output("trained", 2, "train.json", r"model\.safetensors|history\.csv|(val|train|run)\.json", False)
EVALUATED = Output("evaluated", 2, "test.json", r"test\.json|predictions\.parquet|confusion\.csv|figures", False)
