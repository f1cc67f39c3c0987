"""AffectNet: faces from the web, most labelled by one person (Mollahosseini, Hasani and Mahoor, "AffectNet: A Database
for Facial Expression, Valence, and Arousal Computing in the Wild", IEEE Transactions on Affective Computing, 2017).

Layouts: the first release (tables of uncropped pictures, with boxes and 68 landmarks), the release of March 2021
(crops and .npy annotations), class folders (DAN's converter), text lists (POSTER), and the part that is on Kaggle.
Numbers of expressions are 0 Neutral, Happiness, Sadness, Surprise, Fear, Disgust, Anger, 7 Contempt.

AffectNet's test set was never published: everybody reports on its validation set, which is the test split here. A
validation split is then dealt from the training faces, as for every dataset without one.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from pydantic import Field

from fer.io.files import FileError
from fer.labels import LabelSpace, named, space
from fer.shards.schema import Split
from fer.sources.affectnet_csv import CLASS_NAMES, CSV_COLUMNS, Picture, Reading, read_csv_release
from fer.sources.affectnet_folders import lists_in, read_class_folders, read_kaggle, read_lists, read_npy_release
from fer.sources.base import Reject
from fer.sources.csvfile import fold, read_header
from fer.sources.entries import hashed_split, one_face
from fer.sources.layout import PICTURE_ENDINGS, in_order, list_files, open_nested
from fer.sources.pack import Entry
from fer.sources.tree import Catalogue, TreeConfig, TreeSource

# Faces an expression of the training set, counted on the first release without the row that has no box; the release of
# March 2021 holds the same 287,651. Its validation set lacks one face of contempt.
TRAIN = (74874, 134415, 25459, 14090, 6378, 3803, 24882, 3750)
TEST = {"csv release": (500,) * 8, "folder release": (*(500,) * 7, 499)}
TEST |= dict.fromkeys(("class folders", "text lists"), TEST["folder release"])


class AffectNetConfig(TreeConfig):
    """AffectNet with seven or eight expressions (Mollahosseini et al. 2017), in any of its layouts."""

    source: Literal["affectnet"]
    classes: Literal[7, 8] = Field(default=8, description="7 drops contempt")
    folder_order: Literal["affectnet", "alphabetical"] = Field(
        default="affectnet", description="what class folders named 0 .. 7 mean; alphabetical: anger, contempt, ..."
    )
    test_fraction: float = Field(
        default=0.1, gt=0, lt=1, description="share of the pictures that are test, where the layout has no splits"
    )


class AffectNetSource(TreeSource):
    """Reader of AffectNet; see the module."""

    config: AffectNetConfig
    title = "AffectNet"
    generator = "affectnet"
    how_to_get = (
        "Ask for it at https://www.mohammadmahoor.com/pages/databases/affectnet/ (as a principal investigator, from an "
        "academic address). A folder of the first release looks like this:\n"
        "  training.csv, validation.csv             subDirectory_filePath,face_x,...,expression,valence,arousal\n"
        "  Manually_Annotated_Images/689/....jpg    the uncropped pictures\n"
        "of the release of March 2021:\n"
        "  train_set/images/0.jpg                   crops of 224 px\n"
        "  train_set/annotations/0_exp.npy          and 0_lnd.npy\n"
        "  val_set/                                 likewise\n"
        "and of what other projects make of it:\n"
        "  train/0/0.jpg, val/0/0.jpg               classes 0 .. 7, or by name\n"
        "  train_set/train_annotations_7class.txt, valid_set/valid_annotations_7class.txt"
    )

    @property
    def label_space(self) -> LabelSpace:
        """Without or with contempt."""
        return space("basic7" if self.config.classes == 7 else "basic8")

    def prepare(self, tree: Path, cache: Path) -> Path:
        """Some copies come as an archive of each set in a folder."""
        return open_nested(tree, cache)

    def scan(self, tree: Path) -> Catalogue:
        """Whichever layout it is; see `TreeSource.scan`."""
        form, reading = self._read(tree)
        excluded = reading.excluded
        entries: list[Entry | Reject] = []
        for row in reading.rows:
            if isinstance(row, Reject):
                entries.append(row)
            elif row.name in self.label_space.labels:
                entries.append(self._entry(row, is_crop=form != "csv release"))
            else:
                excluded[row.name] += 1
        return Catalogue(
            form=form,
            entries=in_order(entries),
            excluded={reason: count for reason, count in excluded.items() if count},
            notes=reading.notes,
        )

    def published(self, catalogue: Catalogue) -> Mapping[str, Mapping[str, int] | int]:
        """Of the two releases, and of what is made of the second; nothing of Kaggle's part."""
        if catalogue.form not in TEST:
            return {}
        both: dict[Split, tuple[int, ...]] = {"train": TRAIN, "test": TEST[catalogue.form]}
        classes = self.config.classes
        return {split: dict(zip(CLASS_NAMES[:classes], counts, strict=False)) for split, counts in both.items()}

    def _read(self, tree: Path) -> tuple[str, Reading]:
        subset = self.config.subset
        tables = _tables(tree)
        annotations = list_files(tree, ("_exp.npy",))
        lists = lists_in(tree)
        kaggle = [file for file in list_files(tree, ("labels.csv",)) if _has(tree / file, ("pth", "label"))]
        forms = {"csv release": tables, "folder release": annotations, "text lists": lists, "Kaggle part": kaggle}
        found = [form for form, files in forms.items() if files]
        if len(found) > 1:
            examples = ", ".join(f"{form} ({next(iter(forms[form]))})" for form in found)
            raise FileError(f"{tree}: several layouts at once: {examples}; set `path` to the folder of one")
        if tables:
            return "csv release", read_csv_release(tree, tables, subset=subset)
        if annotations:
            return "folder release", read_npy_release(tree, annotations)
        if lists:
            return "text lists", read_lists(tree, lists, subset=subset)
        if len(kaggle) > 1:
            raise FileError(f"{tree}: several labels.csv ({', '.join(kaggle)}); set `path` to the folder of one")
        if kaggle:
            return "Kaggle part", read_kaggle(tree, kaggle[0], subset=subset)
        eight = any(file.split("/")[-2:-1] == ["7"] for file in list_files(tree, PICTURE_ENDINGS))
        reading = read_class_folders(tree, lambda folder: self._meaning(folder, eight=eight))
        if not any(isinstance(row, Picture) for row in reading.rows):
            there = "pictures without labels" if list_files(tree, PICTURE_ENDINGS) else "no pictures and no tables"
            if list_files(tree, (".rar",)):
                raise FileError(f"{tree}: {there}, but RAR archives: unpack them first (`unrar x` on the first part)")
            raise FileError(f"{tree}: {there}; is it the folder above, or one further down? {self.how_to_get}")
        return "class folders", reading

    def _entry(self, picture: Picture, *, is_crop: bool) -> Entry:
        faces = one_face(self.label_space.index(picture.name), box=picture.box, landmarks=picture.landmarks)
        split = picture.split or hashed_split(picture.key, self.config.test_fraction)
        return Entry(key=picture.key, path=picture.path, split=split, faces=faces, is_crop=is_crop)

    def _meaning(self, folder: str, *, eight: bool) -> str | None:
        """The class that a folder's name or number means, where there are eight numbers or only seven."""
        if not folder.isdecimal():
            return known if (known := named(folder)) in CLASS_NAMES else None
        order = CLASS_NAMES if eight else CLASS_NAMES[:7]
        if self.config.folder_order == "alphabetical":
            order = tuple(sorted(order))
        return order[int(folder)] if int(folder) < len(order) else None


def _tables(tree: Path) -> dict[str, Split]:
    """The tables of the first release with the split of each.

    Raises:
        FileError: one whose name does not tell, or the automatically annotated part alone.
    """
    found: dict[str, Split] = {}
    automatic = ""
    for file in list_files(tree, (".csv",)):
        if not _has(tree / file, CSV_COLUMNS):
            continue
        name = file.rpartition("/")[2].lower()
        if "automatic" in name:
            automatic = file
        elif "train" in name or "valid" in name:
            found[file] = "train" if "train" in name else "test"
        else:
            raise FileError(
                f"{tree / file}: a table of AffectNet, of which split? Name it training.csv or validation.csv"
            )
    if automatic and not found:
        raise FileError(
            f"{tree / automatic}: expressions that a network gave, not people; the manually annotated part has "
            "training.csv and validation.csv"
        )
    if twice := [split for split in ("train", "test") if list(found.values()).count(split) > 1]:
        raise FileError(f"{tree}: several tables of one split ({', '.join(found)}: {twice[0]}); leave one of them")
    return found


def _has(path: Path, columns: tuple[str, ...]) -> bool:
    """Whether a table has these columns. What is no table has none, unless its name says that it should."""
    try:
        header = read_header(path, "a table of AffectNet")
    except FileError:
        if path.name.lower() in ("training.csv", "validation.csv", "labels.csv"):
            raise
        return False
    return {fold(column) for column in columns} <= {fold(name) for name in header}
