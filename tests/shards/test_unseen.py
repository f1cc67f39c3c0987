"""Test rows that show no photograph of training or validation, by the files of the shard stage."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from fer.io.files import FileError
from fer.shards.unseen import unseen_rows

Pairs = Sequence[tuple[str, str]]
SPLIT = {"t": "test", "r": "train", "v": "validation"}
"""By the first letter of a sample's id."""
IDS = ("t1", "t2", "t3", "t4")


def statistics(root: Path, pairs: Pairs = (), dropped: Sequence[str] = ()) -> Path:
    """data/statistics/toy with these pairs of duplicates and dropped rows."""
    folder = root / "data" / "statistics" / "toy"
    folder.mkdir(parents=True, exist_ok=True)
    lines = [f"{a},{b},{SPLIT[a[0]]},{SPLIT[b[0]]},anger,anger,near,0.9\n" for a, b in pairs]
    head = "first,second,first_split,second_split,first_label,second_label,kind,agreement\n"
    (folder / "duplicates.csv").write_text(head + "".join(lines))
    rows = [f"{row},duplicate_of_test,t1\n" for row in dropped]
    (folder / "dropped.csv").write_text("sample_id,reason,kept\n" + "".join(rows))
    return folder


@pytest.mark.parametrize(
    ("pairs", "dropped", "seen"),
    [
        ((), (), set()),
        ((("r1", "t1"), ("t3", "v1")), (), {"t1", "t3"}),
        ((("r1", "r2"), ("t1", "t2")), (), set()),
        ((("t1", "t2"), ("r1", "t2")), (), {"t1", "t2"}),
        ((("r1", "t2"),), ("r1",), set()),
        ((("r1", "t2"), ("r1", "r2")), ("r1",), {"t2"}),
        ((("t1", "t4"), ("t4", "v2"), ("r9", "t1")), ("r9",), {"t1", "t4"}),
    ],
    ids=["none", "in train and validation", "within a split", "duplicate of a duplicate", "dropped", "one dropped",
         "long chain"],
)  # fmt: skip
def test_rows_whose_photograph_is_in_training_or_validation_are_seen(
    pairs: Pairs, dropped: Sequence[str], seen: set[str], tmp_path: Path
) -> None:
    found = unseen_rows(statistics(tmp_path, pairs, dropped), IDS)
    assert {row for row, unseen in zip(IDS, found, strict=True) if not unseen} == seen


def test_test_rows_that_the_shards_lack_are_rejected(tmp_path: Path) -> None:
    with pytest.raises(FileError, match=r"duplicates\.csv: .*: dvc repro -sf shard@toy"):
        unseen_rows(statistics(tmp_path, [("r1", "t9")]), IDS)


@pytest.mark.parametrize("name", ["duplicates.csv", "dropped.csv"])
@pytest.mark.parametrize("text", [None, "a,b\n1,2\n", b"\xff\xfe\x00"])
def test_a_file_that_no_stage_wrote_is_rejected_with_the_remedy(name: str, text: str | bytes, tmp_path: Path) -> None:
    folder = statistics(tmp_path, [("r1", "t1")])
    if text is None:
        (folder / name).unlink()
    else:
        (folder / name).write_bytes(text.encode() if isinstance(text, str) else text)
    with pytest.raises(FileError, match=rf"{name}: .*: dvc repro -sf shard@toy"):
        unseen_rows(folder, IDS)
