"""The output folders of the stages: their place in the project, and how they are distinguished from a user's files.

Neither this project nor DVC, which removes the outputs of a stage before it runs, may touch anything else.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from fer.io.files import FileError, publish_directory
from fer.names import check_name

BEGUN = "begun"
"""A file in the work folder of a run that trains: it has its places on the cluster."""


@dataclass(frozen=True)
class Output:
    """One kind of output: a folder for each dataset, or for each dataset and model.

    Attributes:
        parent: folder of the project that holds all of this kind.
        names: how many names its path has below `parent`: dataset, or dataset and model.
        marker: file that identifies an output of this project.
        members: pattern of the names of its files; others are the user's. None: any name is ours.
        tracked_whole: whether DVC tracks the folder, and so removes everything in it, or only single files.
    """

    parent: str
    names: int
    marker: str
    members: str | None = None
    tracked_whole: bool = True

    def folder(self, root: Path, *names: str) -> Path:
        """The path of the output of this dataset (and model) in the project at `root`.

        Raises:
            ConfigError: a name that cannot name a folder.
            FileError: it is a link elsewhere, or holds files that are not this project's to replace.
        """
        assert len(names) == self.names
        parent = root / self.parent
        final = parent.joinpath(*(check_name(name, str(parent)) for name in names))
        if final.resolve() != parent.resolve().joinpath(*names):
            raise FileError(f"{final}: is a link to {final.resolve()}, and no output is written through one; remove it")
        self._refuse_user_files(final)
        return final

    @contextmanager
    def publish(self, final: Path) -> Iterator[Path]:
        """A folder that appears complete at `final`, in place of an earlier one; see `publish_directory`.

        Args:
            final: as returned by `folder`. The user's files in it are kept.

        Raises:
            FileError: it now holds files that are not this project's to replace.
        """
        with publish_directory(final, keep=self._others) as out:
            yield out
            self._refuse_user_files(final)

    def _refuse_user_files(self, final: Path) -> None:
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
        """The files in an output that this project did not make."""
        return sorted(path for path in final.iterdir() if self.members and not re.fullmatch(self.members, path.name))

    def _is_locked(self, final: Path) -> bool:
        """Whether DVC knows the folder, or a file in it, as the output of a stage."""
        root = final.parents[len(Path(self.parent).parts) + self.names - 1]
        lock = root / "dvc.lock"
        path = re.escape(final.relative_to(root).as_posix())  # of characters that YAML does not quote
        return lock.is_file() and bool(re.search(f"^ *- path: {path}(/.*)?$", lock.read_text(), re.MULTILINE))


PLAN = Output("data/plan", 0, "report.json", r"download|crop|shard|train|evaluate|explain|report\.json")
RAW = Output("data/raw", 1, "source.json")
FACES = Output("data/faces", 1, "faces.json", r"faces(-.*\.parquet|\.json)|rejects\.parquet")
SHARDS = Output("data/shards", 1, "manifest.json", r".*\.parquet|manifest\.json")
STATISTICS = Output(
    "data/statistics", 1, "statistics.json", r"(classes|dropped|duplicates)\.csv|statistics\.json|samples\.png", False
)
TRAINED = Output("trained", 2, "train.json", r"model\.safetensors|history\.csv|(val|train|run)\.json", False)
EVALUATED = Output("evaluated", 2, "test.json", r"(test|run)\.json|predictions\.parquet|confusion\.csv|figures", False)
EXPLAINED = Output("explained", 2, "explain.json", r"explain\.json|maps\.npz|faces\.png", False)
EVALUATIONS = Output("reports/evaluations", 2, EVALUATED.marker, EVALUATED.members, False)
MATRIX = Output("reports/matrix", 0, "matrix.json", r"matrix\.(json|csv|md)", False)
EXPLORED = Output(
    "reports/explored", 2, "explored.json",
    r"explored\.json|(features|hard_cases|mistakes|action_units)\.(csv|svg|png)", False,
)  # fmt: skip
AUDITED = Output(
    "reports/audited", 2, "audit.json", r"audit\.json|(suspects|joint)\.(csv|png)|out_of_fold\.parquet", False
)
