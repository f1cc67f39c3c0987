"""What the tests of datasets that users bring share: tiny images, packing a layout, reading it back."""

import unicodedata
import zipfile
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from fer.config import parse
from fer.io.files import read_json
from fer.labels import SPACES
from fer.sources.base import RawSample, Reject
from fer.sources.registry import get_source
from fer.sources.tree import TreeConfig
from fer.stages.download import download_dataset


def picture(path: Path, colour: int = 0, size: int = 6) -> Path:
    """A small image of one color, in the format of the file's name; its folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.full((size, size, 3), (colour * 37 % 256, colour * 91 % 256, 255 - colour % 256), np.uint8)
    done, data = cv2.imencode(path.suffix.lower(), pixels)
    assert done
    path.write_bytes(data.tobytes())
    return path


def text(path: Path, content: str | bytes) -> Path:
    """A file of this text; its folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def zipped(folder: Path, archive: Path, *, encoding: str = "utf-8") -> Path:
    """An archive of what a folder holds. Other encodings than UTF-8 are not marked as such, as Windows does it."""

    class Unmarked(zipfile.ZipInfo):
        def _encodeFilenameFlags(self) -> tuple[bytes, int]:  # noqa: N802
            return self.filename.encode(encoding), self.flag_bits & ~0x800

    with zipfile.ZipFile(archive, "w") as out:
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                name = unicodedata.normalize("NFC", str(path.relative_to(folder)))
                out.writestr(name if encoding == "utf-8" else Unmarked(name), path.read_bytes())
    return archive


def in_archives(plain: Path, root: Path) -> Path:
    """A folder with an archive of each folder of a layout."""
    root.mkdir()
    for folder in plain.iterdir():
        zipped(folder, root / f"{folder.name}.zip")
    return root


def fetch(root: Path, kind: type[TreeConfig], path: Path | list[Path] | None, /, **options: Any) -> Path:
    """Downloads a brought layout as the stage does, and gives the folder in data/raw."""
    name = kind.model_fields["source"].annotation.__args__[0]  # type: ignore[union-attr]
    given = [str(one) for one in path] if isinstance(path, list) else path and str(path)
    config = parse(kind, {"source": name, "path": given, "subset": True, **options}, "params.yaml", "datasets.set")
    return download_dataset("set", config, seed=0, root=root)  # type: ignore[arg-type]


def read(raw: Path, kind: type[TreeConfig], /, **options: Any) -> tuple[dict[str, RawSample], list[Reject]]:
    """What a packed layout holds: samples by key without the dataset's name, and what was refused."""
    name = kind.model_fields["source"].annotation.__args__[0]  # type: ignore[union-attr]
    source = get_source(parse(kind, {"source": name, **options}, "params.yaml"), 0)  # type: ignore[arg-type]
    found = [sample for block in source.blocks(raw) for sample in source.read(raw, block)]
    samples = {one.key.partition("/")[2]: one for one in found if isinstance(one, RawSample)}
    return samples, [one for one in found if isinstance(one, Reject)]


def labels(samples: dict[str, RawSample], names: tuple[str, ...]) -> dict[str, str]:
    """Split and class name of each sample's one face, e.g. "train happiness"."""
    return {key: f"{one.split} {names[one.faces[0].label]}" for key, one in samples.items()}


def found(root: Path, kind: type[TreeConfig], path: Path | list[Path], /, **options: Any) -> dict[str, str]:
    """Split and class name of each image of a layout, all of whose images are usable."""
    samples, rejects = read(fetch(root, kind, path, **options), kind, **options)
    assert not rejects
    return labels(samples, SPACES["basic8"].labels)


def rejected(raw: Path, kind: type[TreeConfig], /, **options: Any) -> dict[str, str]:
    """The reason of each refused row, by its sample id without the dataset's name."""
    return {one.sample_id.partition("/")[2]: one.reason for one in read(raw, kind, **options)[1]}


def about(raw: Path) -> dict[str, Any]:
    """source.json of a packed layout."""
    body: dict[str, Any] = read_json(raw / "source.json")
    return body
