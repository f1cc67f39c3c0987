"""muxspace/facial_expressions: one label per image, nobody in train and test at once."""

from collections import Counter
from pathlib import Path

import pytest
from builders.layouts import about, fetch, labels, picture, read, text

from fer.io.files import FileError
from fer.labels import SPACES
from fer.sources.muxspace import MuxspaceConfig, person

NAMES = SPACES["basic8"].labels


def layout(root: Path, rows: list[str], header: str = "user.id,image,emotion\n", end: str = "\n") -> Path:
    text(root / "data" / "legend.csv", header + "".join(f"{row}{end}" for row in rows))
    for index, name in enumerate(sorted({row.split(",")[1] for row in rows if row.count(",") == 2})):
        picture(root / "images" / name, index)
    return root


@pytest.mark.parametrize(("header", "end"), [("user.id,image,emotion\n", "\n"), ("", "\r")])
def test_labels_in_any_case_and_spelling_with_or_without_header_are_read(tmp_path: Path, header: str, end: str) -> None:
    rows = ["1,A_0001.jpg,ANGER", "1,B_0001.jpg,happiness", "2,C_0001.jpg,surprised", "2,D_0001.jpg, Sad"]
    raw = fetch(tmp_path, MuxspaceConfig, layout(tmp_path / "in", rows, header, end))
    samples, rejects = read(raw, MuxspaceConfig)
    found = {key: name.split()[1] for key, name in labels(samples, NAMES).items()}
    expected = ("anger", "happiness", "surprise", "sadness")
    assert found == {f"{letter}_0001.jpg": name for letter, name in zip("ABCD", expected, strict=True)}
    assert not rejects
    assert all(one.is_crop and one.faces[0].box is None for one in samples.values())


def test_nobody_is_in_train_and_test(tmp_path: Path) -> None:
    rows = [f"1,P{who}_{shot:04d}.jpg,neutral" for who in range(30) for shot in range(3)]
    samples, _ = read(fetch(tmp_path, MuxspaceConfig, layout(tmp_path / "in", rows), test_fraction=0.4), MuxspaceConfig)
    splits = {(one.faces[0].subject, one.split) for one in samples.values()}
    assert len(splits) == 30
    assert 5 <= Counter(split for _, split in splits)["test"] <= 20


@pytest.mark.parametrize(
    ("name", "who"),
    [("Al_Gore_0003.jpg", "Al_Gore"), ("KatrinaKaif_12.jpg", "KatrinaKaif"), ("facial-expressions_2868588k.jpg", None)],
)
def test_the_person_is_in_the_file_name(name: str, who: str | None) -> None:
    assert person(name) == who


def test_several_votes_give_a_distribution_and_the_majority_label(tmp_path: Path) -> None:
    rows = ["1,A_1.jpg,fear", "2,A_1.jpg,surprise", "3,A_1.jpg,surprise", "1,B_1.jpg,fear", "2,B_1.jpg,anger"]
    raw = fetch(tmp_path, MuxspaceConfig, layout(tmp_path / "in", [*rows, "1,C_1.jpg,fear", "1,C_1.jpg,fear"]))
    samples, _ = read(raw, MuxspaceConfig)
    assert sorted(samples) == ["A_1.jpg", "C_1.jpg"]
    face = samples["A_1.jpg"].faces[0]
    assert NAMES[face.label] == "surprise"
    assert face.distribution == pytest.approx([0, 0, 0, 2 / 3, 1 / 3, 0, 0, 0])
    assert samples["C_1.jpg"].faces[0].distribution is None
    assert about(raw)["excluded"] == {"no_majority": 1}


def test_basic7_leaves_contempt_out_and_counts_it(tmp_path: Path) -> None:
    rows = ["1,A_1.jpg,contempt", "1,B_1.jpg,fear"]
    raw = fetch(tmp_path, MuxspaceConfig, layout(tmp_path / "in", rows), label_space="basic7")
    assert list(read(raw, MuxspaceConfig, label_space="basic7")[0]) == ["B_1.jpg"]
    assert about(raw)["excluded"] == {"contempt_not_in_basic7": 1}


def test_unusable_lines_are_counted_and_may_be_left_out(tmp_path: Path) -> None:
    source = layout(tmp_path / "in", ["1,A_1.jpg,sleepy", "1,../B_1.jpg,fear", "1,fear", "1,C_1.jpg,fear"])
    legend = source / "data" / "legend.csv"
    text(legend, legend.read_text() + "1,gone_1.jpg,fear\n")
    with pytest.raises(FileError, match=r"(?s)bad_row 2, missing_file 1, unknown_label 1.*'sleepy'.*max_bad_fraction"):
        fetch(tmp_path, MuxspaceConfig, source)
    samples, rejects = read(fetch(tmp_path, MuxspaceConfig, source, max_bad_fraction=1.0), MuxspaceConfig)
    assert list(samples) == ["C_1.jpg"]
    assert sorted(one.reason for one in rejects) == ["bad_row", "bad_row", "missing_file", "unknown_label"]


@pytest.mark.parametrize("content", ["a,b\n1,2\n", "1,2,3\n", "x\n", None])
def test_another_table_or_layout_is_refused_by_name(tmp_path: Path, content: str | None) -> None:
    picture(tmp_path / "in" / "images" / "A_1.jpg")
    if content is not None:
        text(tmp_path / "in" / "data" / "legend.csv", content)
    layout_missing = r"in: .*found images/.*github.com/muxspace.*data/legend\.csv"
    with pytest.raises(FileError, match=r"data/legend\.csv: .*muxspace" if content else layout_missing):
        fetch(tmp_path, MuxspaceConfig, tmp_path / "in")


def test_the_real_lists_are_read(tmp_path: Path, test_data: Path) -> None:
    raw = fetch(tmp_path, MuxspaceConfig, test_data / "muxspace")
    found = sum(map(Counter, about(raw)["counts"].values()), Counter[str]())
    assert found.total() == 976
    assert (found["happiness"], found["surprise"], found["contempt"], found["fear"]) == (260, 212, 2, 12)
    old_mac = tmp_path / "odd"
    text(old_mac / "data" / "legend.csv", (test_data / "bad" / "csv" / "muxspace_500_picts_satz.csv").read_bytes())
    (old_mac / "images").symlink_to(test_data / "muxspace" / "images")
    raw = fetch(tmp_path / "second", MuxspaceConfig, old_mac, max_bad_fraction=1.0)
    assert about(raw)["rejects"] == {"missing_file": 469}  # of 500 images 31 are among those of the test data
