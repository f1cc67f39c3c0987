"""Any folder of class folders: `train/`, `val/` and `test/` with class folders each, or class folders alone.

A folder's class follows from the usual spellings of `fer.labels.SPELLINGS`, or from `classes` where it has another
name; a number alone is never guessed. Images may be deeper inside a class folder. Hidden files, Thumbs.db and the like
are passed over, links are followed, files that are not images are counted. Where there is no test folder, a hash of
each image's path assigns `test_fraction` of the training images to test.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from fer.config import nearest
from fer.console import log
from fer.io.files import FileError
from fer.labels import named, space
from fer.shards.schema import Split
from fer.sources.base import Entry, LabelSpaceName, Reject, hashed_split, nfc, one_face
from fer.sources.layout import IMAGE_ENDINGS, folders, list_files, split_named
from fer.sources.tree import Catalogue, TreeConfig, TreeSource

LEFT_OUT = "none"
"""In `classes`: the folder is left out."""


class FoldersConfig(TreeConfig):
    """Any folder of class folders."""

    source: Literal["folders"]
    label_space: LabelSpaceName = Field(default="basic7", description="the labels that the folders are mapped onto")
    classes: dict[str, str] | None = Field(
        default=None,
        min_length=1,
        description="label of each class folder by its name, or none to leave it out; null: by the usual spellings",
    )
    crops: bool = Field(default=True, description="images of one face each; false: the face has to be found")
    test_fraction: float = Field(
        default=0.2, ge=0, lt=1, description="share of the images that are test where there is no test folder"
    )

    @model_validator(mode="after")
    def _labels_exist(self) -> FoldersConfig:
        known = (*space(self.label_space).labels, LEFT_OUT)
        for folder, label in (self.classes or {}).items():
            if label not in known:
                raise ValueError(
                    f"classes: folder {folder!r} has label {label!r}{nearest(label, known)}; label space "
                    f"{self.label_space} has {', '.join(known[:-1])}; {LEFT_OUT!r} leaves a folder out"
                )
        return self


class FoldersSource(TreeSource):
    """Reader of class folders; see the module."""

    config: FoldersConfig
    title = "class folders"
    generator = "folders"
    how_to_get = (
        "Expected train/<class>/, test/<class>/ and perhaps val/<class>/ with images, or <class>/ alone, where a "
        "class of `label_space` has its usual name or is explained by the key `classes`."
    )

    def scan(self, tree: Path) -> Catalogue:
        """One entry an image; see `TreeSource.scan`."""

        def holds_classes(folder: Path) -> bool:
            return any(self._means(one) is not None for one in folders(folder))

        def is_layout(folder: Path) -> bool:
            splits = [one for one in folders(folder) if split_named(one.name)]
            return holds_classes(folder) or any(holds_classes(one) for one in splits)

        root = self.root_of(tree, is_layout)
        splits: dict[str, Split] = {"": "train"} if holds_classes(root) else self._splits(root)
        by_hash = "test" not in splits.values()
        entries: list[Entry | Reject] = []
        used: set[str] = set()
        other_files = 0
        for folder, split in [(folder, split) for inside, split in splits.items() for folder in folders(root / inside)]:
            label = self._label(folder)
            used.add(nfc(folder.name))
            if label == LEFT_OUT:
                continue
            faces = one_face(self.label_space.index(label))
            names = list_files(folder, IMAGE_ENDINGS)
            for name in names:
                self._refuse_class_within(folder, name, label)
                key = nfc((folder / name).relative_to(root).as_posix())
                own = hashed_split(key, self.config.test_fraction) if by_hash and split == "train" else split
                path = (folder / name).relative_to(tree).as_posix()
                entries.append(Entry(key=key, path=path, split=own, faces=faces, is_crop=self.config.crops))
            other_files += len(list_files(folder, ("",))) - len(names)
            if not names:
                log.warning("%s: not one image in it", folder)
        if unused := {nfc(name) for name in self.config.classes or {}} - used:
            raise FileError(f"{root}: `classes` names {', '.join(sorted(unused))}, and there is no such folder")
        form = "class folders" if "" in splits else ", ".join(f"{inside}/" for inside in splits)
        return Catalogue(form=form, entries=entries, notes={"test_by_hash": by_hash, "other_files": other_files})

    def _splits(self, root: Path) -> dict[str, Split]:
        """The split folders of `root`, by their names."""
        found: dict[str, Split] = {}
        for folder in folders(root):
            split = split_named(folder.name)
            if split is None:
                log.warning("%s: passed over: neither a split (train, val, test) nor a class", folder)
            elif split in found.values():
                twin = next(one for one, other in found.items() if other == split)
                raise FileError(f"{root}: {twin}/ and {folder.name}/ are the same split; join them, or remove one")
            else:
                found[folder.name] = split
        return found

    def _means(self, folder: Path) -> str | None:
        """What a folder's name means: a label of the label space, LEFT_OUT, or None for no class."""
        if self.config.classes is not None:
            return {nfc(name): label for name, label in self.config.classes.items()}.get(nfc(folder.name))
        label = named(folder.name)
        return label if label in self.label_space.labels else None

    def _label(self, folder: Path) -> str:
        label = self._means(folder)
        if label is None:
            raise FileError(
                f"{folder}: {folder.name!r} is not a class of label space {self.label_space.name} "
                f"({', '.join(self.label_space.labels)}); say what it means under the key `classes` of this dataset, "
                f"e.g. classes: {{{folder.name}: {self.label_space.labels[0]}}} for every folder, or {LEFT_OUT!r} to "
                "leave it out"
            )
        return label

    def _refuse_class_within(self, folder: Path, name: str, label: str) -> None:
        for part in Path(name).parts[:-1]:
            inner = self._means(Path(part))
            if inner not in (None, label):
                raise FileError(f"{folder / name}: a folder of {inner} inside one of {label}; which of them is it?")
