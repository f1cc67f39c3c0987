"""The outcome of each hostile or odd file of the test data: one table, no file without a row.

Images are decoded upright, with the right size and colors, compared with the clean image that most of them were made
from, or refused for a reason; `fer.io.images` has the rules. Tables, archives and weights go through the readers of a
user's own files.
"""

import argparse
import csv
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import pytest
from builders.images import difference, memory_to_read, silence

from fer.commands import predict
from fer.faces.weights import locate
from fer.io.archives import extract
from fer.io.files import FileError, write_json
from fer.io.images import ImageError, read_image
from fer.labels import SPACES
from fer.models import create_model
from fer.sources.base import RawSample
from fer.sources.fer2013 import Fer2013Config, Fer2013Source
from fer.sources.ferplus import aggregate_votes, read_votes
from fer.sources.muxspace import MuxspaceConfig, MuxspaceSource
from fer.weights.published import read_published
from fer.weights.store import save_model

Pixels = npt.NDArray[np.uint8]

CLEAN = "png_renamed.jpg"  # 640 x 800, lossless: what most of the others were made from


@dataclass(frozen=True)
class Read:
    """An image that is decoded.

    Attributes:
        like: the expected pixels, from the folder; None where there is nothing to compare with.
        within: largest mean absolute difference of samples, of 255.
    """

    height: int
    width: int
    like: Callable[[Path], Pixels] | None = None
    within: float = 0.0


@dataclass(frozen=True)
class Refused:
    """An image that is refused."""

    reason: str


@dataclass(frozen=True)
class Checked:
    """A file of another kind, with the check of its reader."""

    check: Callable[[Path, Path], None]


# ------------------------------------------------------------------------------------------------ expected pixels


def clean(folder: Path) -> Pixels:
    image = cv2.imread(str(folder / CLEAN), cv2.IMREAD_COLOR_RGB)
    assert image is not None
    return np.asarray(image, np.uint8)


def small(folder: Path) -> Pixels:
    return np.asarray(cv2.resize(clean(folder), (160, 200), interpolation=cv2.INTER_AREA), np.uint8)


def tiny(folder: Path) -> Pixels:
    return np.asarray(cv2.resize(clean(folder), (12, 12), interpolation=cv2.INTER_AREA), np.uint8)


def gray(folder: Path) -> Pixels:
    luma = cv2.cvtColor(clean(folder), cv2.COLOR_RGB2GRAY)
    return np.asarray(cv2.cvtColor(luma, cv2.COLOR_GRAY2RGB), np.uint8)


def over_white(name: str) -> Callable[[Path], Pixels]:
    """The image blended with white by its own alpha."""

    def expected(folder: Path) -> Pixels:
        stored = cv2.imread(str(folder / name), cv2.IMREAD_UNCHANGED)
        assert stored.shape[2] == 4
        share = stored[:, :, 3:] / 255
        return np.rint(stored[:, :, 2::-1] * share + 255 * (1 - share)).astype(np.uint8)

    return expected


def black(folder: Path) -> Pixels:
    return np.zeros((200, 200, 3), np.uint8)


def drawing(folder: Path) -> Pixels:
    return read_image(folder.parent / "photos" / "pyfeat_free-mountain-vector-01.jpg")


# ------------------------------------------------------------------------------------------------ other readers


def refuses(reader: Callable[[Path, Path], object], words: str) -> Checked:
    """Refused by one line with the file's name and these words, and nothing is left in the working folder."""

    def check(path: Path, work: Path) -> None:
        with pytest.raises(FileError, match=words) as refusal:
            reader(path, work)
        (line,) = str(refusal.value).splitlines()
        assert path.name in line
        assert not [left for left in work.rglob("*") if left.is_file()]

    return Checked(check)


def fer2013(path: Path, work: Path, *, max_bad_fraction: float = 0.001) -> tuple[dict[str, int], list[RawSample]]:
    """Bad rows by kind, and the good ones, by the reader that `dvc repro` uses."""
    out, cache = work / "out", work / "cache"
    out.mkdir()
    cache.mkdir()
    config = Fer2013Config(source="fer2013", path=str(path), subset=True, max_bad_fraction=max_bad_fraction)
    source = Fer2013Source(config)
    description = source.download(out, cache)
    write_json(out / "source.json", description)
    rows = [row for block in source.blocks(out) for row in source.read(out, block)]
    return description["bad_rows"], [row for row in rows if isinstance(row, RawSample)]


def three_good_rows(path: Path, work: Path) -> None:
    bad, rows = fer2013(path, work)
    assert bad == {}
    assert [row.split for row in rows] == ["train"] * 3
    assert all(isinstance(row.image, np.ndarray) and row.image.shape == (48, 48) for row in rows)


def two_of_twelve_rows(path: Path, work: Path) -> None:
    with pytest.raises(FileError, match=rf"(?s)10 of 12 .*{path.name}:"):
        fer2013(path, work)
    for folder in work.iterdir():
        folder.rmdir()
    bad, rows = fer2013(path, work, max_bad_fraction=1.0)
    assert bad == {"columns": 1, "label": 3, "pixel_count": 2, "pixel_value": 3, "usage": 1}
    assert [row.key for row in rows] == ["fer2013/00000000", "fer2013/00000010"]  # the same image twice
    assert np.array_equal(rows[0].image, rows[1].image)


def votes_without_a_majority(path: Path, work: Path) -> None:
    counts = [vote.counts for vote in read_votes(path)]
    found = [one if isinstance(one, str) else aggregate_votes(one, "majority") for one in counts]
    assert found == ["no_agreement", "no_votes", "not_a_face", "no_agreement", "no_votes", "5 fields, expected 12"]


def old_mac_list(path: Path, work: Path) -> None:
    (work / "images").mkdir()
    (work / "data").mkdir()
    (work / "data" / path.name).write_bytes(path.read_bytes())
    lines = [line.split(",") for line in path.read_bytes().decode().split("\r") if line.strip()]
    config = MuxspaceConfig(source="muxspace", path=str(work), legend=f"data/{path.name}")
    catalogue = MuxspaceSource(config).scan(work)
    assert len(catalogue.entries) + sum(catalogue.excluded.values()) == len({name for _, name, _ in lines})


def korean_names(path: Path, work: Path) -> None:
    extract(path, work / "tree")
    images = sorted(found.relative_to(work / "tree").as_posix() for found in (work / "tree").rglob("*.jpg"))
    assert images == ["기쁨/0002_여_20_기쁨.jpg", "분노/0001_남_30_분노.jpg"]  # in NFC
    assert all(read_image(work / "tree" / name).shape == (100, 80, 3) for name in images)


def detector(path: Path, work: Path) -> Path:
    return locate("yunet", str(path), work)


def unpack(path: Path, work: Path) -> None:
    extract(path, work / "tree")


def weights(path: Path, work: Path) -> object:
    return read_published(path)


PHOTO = Read(800, 640, clean, 2.5)

TABLE: dict[str, Read | Refused | Checked] = {
    # damaged: no gray rows are made up for missing data
    "truncated_60pct.jpg": Refused("truncated"),
    "truncated_99pct.jpg": Refused("truncated"),
    "truncated_header.jpg": Refused("truncated"),
    "corrupt_scan.jpg": Refused("damaged"),
    "trailing_garbage.jpg": PHOTO,
    # not images
    "zero_bytes.jpg": Refused("empty"),
    "text_renamed.jpg": Refused("not_an_image"),
    "html_renamed.jpg": Refused("not_an_image"),
    "directory.jpg": Refused("not_a_file"),
    # bombs
    "blank_12000x12000.png": Refused("too_large"),
    "blank_20000x20000_1bit.png": Refused("too_large"),
    # kinds of samples
    "gray16.png": Read(800, 640, gray, 1.0),
    "rgb16.png": Read(800, 640, clean, 0.0),
    "float32.tiff": Read(800, 640, gray, 1.0),
    "cmyk.jpg": PHOTO,
    "grayscale.jpg": Read(800, 640, gray, 2.5),
    "rgba.png": Read(800, 640, over_white("rgba.png"), 0.6),
    "la.png": Read(800, 640, over_white("la.png"), 0.6),
    "palette.png": Read(800, 640, clean, 8.0),  # 32 colors
    "palette_transparent.png": Read(800, 640, over_white("palette_transparent.png"), 0.0),
    "onebit.png": Read(800, 640),
    "progressive.jpg": PHOTO,
    # upright by the tag
    **{f"exif_orientation_{tag}.jpg": PHOTO for tag in range(1, 9)},
    # the first of several
    "animated.gif": Read(200, 160, small, 6.0),
    "multipage.tiff": Read(200, 160, small, 3.0),
    # names do not count
    "gif_renamed.jpg": Read(200, 160, small, 6.0),
    "png_renamed.jpg": Read(800, 640, clean, 0.0),
    "webp_renamed.jpg": PHOTO,
    "uppercase.JPG": PHOTO,
    "no_extension": PHOTO,
    "공포 사진 (1).jpg": PHOTO,
    "기쁨_여_20.jpg": PHOTO,
    # odd, and for later stages to judge
    "one_pixel.png": Read(1, 1),
    "strip_4000x3.png": Read(3, 4000),
    "tiny_12x12.jpg": Read(12, 12, tiny, 15.0),
    "all_black.jpg": Read(200, 200, black, 0.0),
    "no_face.jpg": Read(1080, 1920, drawing, 0.0),
    # archives
    "cp949_names.zip": Checked(korean_names),
    "archives/fer2013_truncated.tar.gz": refuses(unpack, "cut off"),
    # tables
    "csv/fer2013_bad_rows.csv": Checked(two_of_twelve_rows),
    "csv/fer2013_bom_crlf.csv": Checked(three_good_rows),
    "csv/icml_header_spaces.csv": Checked(three_good_rows),
    "csv/fer2013_header_only.csv": refuses(fer2013, "a header and no rows"),
    "csv/fer2013_truncated.csv": refuses(fer2013, "ends in the middle of a row"),
    "csv/fer2013_lfs_pointer.csv": refuses(fer2013, "Git LFS pointer"),
    "csv/fer2013_is_html.csv": refuses(fer2013, "web page"),
    "csv/ferplus_bad_rows.csv": Checked(votes_without_a_majority),
    "csv/muxspace_500_picts_satz.csv": Checked(old_mac_list),
    # weights
    "weights/ir50_truncated.pth": refuses(weights, "cut off"),
    "weights/mobilefacenet_model_best_truncated.pth.tar": refuses(weights, "cut off"),
    "weights/yunet_lfs_pointer.onnx": refuses(detector, "Git LFS pointer"),
}


pytestmark = pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")


@pytest.fixture(scope="module")
def bad(test_data: Path) -> Path:
    return test_data / "bad"


def find(folder: Path, name: str) -> Path:
    """The file of that name, in whichever form its letters are stored."""
    expected = unicodedata.normalize("NFC", name)
    for path in (folder / name).parent.iterdir():
        if unicodedata.normalize("NFC", path.relative_to(folder).as_posix()) == expected:
            return path
    raise AssertionError(f"{name} is in the table and not in {folder}")


def test_every_hostile_file_has_a_row(bad: Path) -> None:
    with open(bad / "index.csv", encoding="utf-8", newline="") as file:
        indexed = {unicodedata.normalize("NFC", row["file"]) for row in csv.DictReader(file)}
    about = {"index.csv", "SHA256SUMS", "directory.jpg/.keep"}
    there = {
        unicodedata.normalize("NFC", path.relative_to(bad).as_posix()) for path in bad.rglob("*") if path.is_file()
    }
    assert indexed == set(TABLE)
    assert there - about == set(TABLE) - {"directory.jpg"}
    assert len(TABLE) == 58


@pytest.mark.parametrize("name", TABLE)
def test_each_hostile_file_has_its_defined_outcome(bad: Path, tmp_path: Path, name: str) -> None:
    path, outcome = find(bad, name), TABLE[name]
    if isinstance(outcome, Checked):
        outcome.check(path, tmp_path)
    elif isinstance(outcome, Refused):
        with silence(), pytest.raises(ImageError) as caught:
            read_image(path)
        assert caught.value.reason == outcome.reason
    else:
        with silence():
            image = read_image(path)
        assert image.shape == (outcome.height, outcome.width, 3)
        assert image.dtype == np.uint8
        if outcome.like is not None:
            assert difference(image, outcome.like(bad)) <= outcome.within


def test_predict_names_each_refused_image_and_its_reason_in_one_line(
    bad: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights_ = tmp_path / "nano.safetensors"
    labels = SPACES["basic7"].labels
    save_model(create_model("ddamfn_nano", len(labels)), weights_, labels, "basic7", name="ddamfn_nano")
    refused = {str(find(bad, name)): one.reason for name, one in TABLE.items() if isinstance(one, Refused)}
    del refused[str(bad / "directory.jpg")]  # a folder is searched for images, whatever its name
    parser = argparse.ArgumentParser()
    predict.add_arguments(parser)
    whole = find(bad, CLEAN)
    options = ["--detector", "whole", "--threads", "1"]
    predict.main(parser.parse_args([str(weights_), str(whole), *sorted(refused), *options]))
    printed = [line for line in capsys.readouterr().out.splitlines() if line.startswith(f"{bad}/")]
    assert len(printed) == len(refused) + 1
    for path, reason in refused.items():
        assert any(line.startswith(f"{path}  not read: {reason}: ") for line in printed), path


def test_one_bit_per_pixel_keeps_the_brightness(bad: Path) -> None:
    """Dithered: each pixel is black or white, and blocks of pixels are as bright as the image."""
    image = read_image(bad / "onebit.png")
    assert set(np.unique(image)) == {0, 255}
    blocks = cv2.resize(image, (40, 50), interpolation=cv2.INTER_AREA).astype(int)
    expected = cv2.resize(gray(bad), (40, 50), interpolation=cv2.INTER_AREA).astype(int)
    assert np.abs(blocks - expected).mean() < 5


@pytest.mark.parametrize("name", ["blank_12000x12000.png", "blank_20000x20000_1bit.png"])
def test_bombs_are_refused_within_a_few_megabytes(bad: Path, name: str) -> None:
    outcome, peak = memory_to_read(bad / name)
    assert outcome == "too_large"
    assert peak < 100, f"{peak} MiB"
