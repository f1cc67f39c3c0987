"""FERPlus: labels from votes by the published rule, joined to FER2013's rows by their lines alone."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from builders.layouts import about, fetch, picture, read, text

from fer.io.files import FileError
from fer.labels import SPACES
from fer.sources.ferplus import KEPT, FerPlusConfig
from fer.sources.ferplus_votes import ANSWERS, EXPRESSIONS, Mode, Verdict, judge, read_votes

NAMES = SPACES["basic8"].labels
HEADER = "Usage,Image name," + ",".join(ANSWERS)
USAGES = ("Training", "PublicTest", "PrivateTest")


def counts(**votes: int) -> tuple[int, ...]:
    return tuple(votes.get(answer, 0) for answer in ANSWERS)


def verdict(mode: Mode, **votes: int) -> tuple[str, dict[str, float]] | str:
    found = judge(counts(**votes), mode)
    if isinstance(found, str):
        return found
    shares = {name: round(share, 4) for name, share in zip(EXPRESSIONS, found.distribution, strict=True) if share}
    return EXPRESSIONS[found.label], shares


@pytest.mark.parametrize(
    ("votes", "want"),
    [
        ({"anger": 6, "fear": 4}, ("anger", {"anger": 1})),
        ({"anger": 5, "fear": 5}, "no_agreement"),
        ({"anger": 4, "fear": 2, "sadness": 1, "neutral": 1, "disgust": 1, "NF": 1}, ("anger", {"anger": 1})),
        ({"anger": 1, "fear": 1, "sadness": 1}, "no_votes"),
        ({}, "no_votes"),
        ({"unknown": 6, "fear": 4}, "unknown"),
        ({"NF": 10}, "not_a_face"),
    ],
)
def test_majority_is_more_than_half_of_what_single_votes_leave(votes: dict[str, int], want: object) -> None:
    assert verdict("majority", **votes) == want


@pytest.mark.parametrize(
    ("votes", "want"),
    [
        ({"anger": 8, "fear": 2}, ("anger", {"anger": 1})),
        ({"anger": 6, "fear": 4}, ("anger", {"anger": 0.6, "fear": 0.4})),
        ({"fear": 4, "anger": 4, "sadness": 2}, ("anger", {"anger": 0.5, "fear": 0.5})),
        ({"anger": 4, "fear": 2, "sadness": 2, "neutral": 2}, "no_agreement"),  # the second step brings three at once
        ({"anger": 5, "unknown": 3, "fear": 2}, "no_agreement"),  # unknown ends the list: 5 of 10 is not more than half
        ({"anger": 6, "unknown": 2, "fear": 2}, ("anger", {"anger": 0.75, "fear": 0.25})),
        ({"unknown": 6, "anger": 4}, "unknown"),
    ],
)
def test_probability_takes_the_leading_answers_up_to_three_quarters(votes: dict[str, int], want: object) -> None:
    assert verdict("probability", **votes) == want


@pytest.mark.parametrize(
    ("votes", "want"),
    [
        ({"anger": 5, "fear": 3, "sadness": 2}, ("anger", {"anger": 0.5, "fear": 0.5})),
        ({"anger": 6, "unknown": 4}, ("anger", {"anger": 1})),
        ({"anger": 3, "unknown": 4, "fear": 3}, "unknown"),
        ({"anger": 3, "fear": 2, "sadness": 2, "neutral": 2}, "no_agreement"),
    ],
)
def test_multi_target_takes_every_answer_of_thirty_percent(votes: dict[str, int], want: object) -> None:
    assert verdict("multi_target", **votes) == want


def test_soft_keeps_all_votes_but_single_ones_and_those_of_no_expression() -> None:
    got = verdict("soft", anger=4, fear=2, sadness=1, unknown=3)
    assert got == ("anger", {"anger": 0.6667, "fear": 0.3333})
    assert verdict("soft", anger=3, unknown=4, fear=3) == "unknown"
    assert verdict("soft", fear=3, anger=3) == ("anger", {"anger": 0.5, "fear": 0.5})  # the first in FERPlus's order


@pytest.mark.parametrize("mode", list(KEPT))
def test_each_rule_leaves_the_published_number_of_pictures(test_data: Path, mode: Mode) -> None:
    votes = read_votes(test_data / "ferplus" / "fer2013new.csv")
    assert len(votes) == 35887
    kept = Counter(
        vote.usage
        for vote in votes
        if vote.name and isinstance(judge(vote.counts, mode), Verdict)  # type: ignore[arg-type]
    )
    assert tuple(kept[usage] for usage in USAGES) == KEPT[mode]


def test_votes_join_by_line_and_not_by_the_number_in_the_name(test_data: Path) -> None:
    votes = read_votes(test_data / "ferplus" / "fer2013new.csv")
    table = pq.read_table(test_data / "fer2013" / "fer2013.parquet", columns=["label", "row"])
    fer2013 = ("anger", "disgust", "fear", "happiness", "sadness", "surprise", "neutral")
    labels = dict(zip(table["row"].to_pylist(), table["label"].to_pylist(), strict=True))

    def agreement(position_of: Any) -> float:
        clear = equal = 0
        for line, vote in enumerate(votes):
            position = position_of(line, vote)
            if position in labels and max(vote.counts) > 5:
                clear += 1
                equal += ANSWERS[vote.counts.index(max(vote.counts))] == fer2013[labels[position]]  # type: ignore[union-attr]
        return equal / clear

    assert agreement(lambda line, _: line) == pytest.approx(0.718, abs=0.005)
    assert agreement(lambda _, vote: int(vote.name[3:10]) if vote.name else -2) == pytest.approx(0.189, abs=0.01)


# ------------------------------------------------------------------------------------------------ files of rows


def votes_file(path: Path, rows: list[str]) -> Path:
    return text(path, "\n".join([HEADER, *rows]) + "\n")


def vote(row: int, name: str | None = None, **votes: int) -> str:
    name = f"fer{row + 5:07d}.png" if name is None else name
    return f"{USAGES[row % 3]},{name},{','.join(map(str, counts(**votes)))}"


def pixels(row: int) -> np.ndarray:
    return np.random.default_rng(row).integers(0, 256, (48, 48), dtype=np.uint8)


def csv_file(path: Path, rows: int) -> Path:
    lines = [f"{row % 7},{' '.join(map(str, pixels(row).ravel()))},{USAGES[row % 3]}" for row in range(rows)]
    return text(path, "\n".join(["emotion,pixels,Usage", *lines]) + "\n")


def parquet_file(path: Path, positions: list[int]) -> Path:
    rows = [max(position, 0) for position in positions]
    columns = {
        "image": [cv2.imencode(".png", pixels(row))[1].tobytes() for row in rows],
        "label": [row % 7 for row in rows],
        "usage": [USAGES[row % 3] for row in rows],
        "row": positions,
    }
    pq.write_table(pa.table(columns), path)
    return path


ROWS = [
    vote(0, anger=8, fear=2),
    vote(1, neutral=6, sadness=4),
    vote(2, contempt=6, fear=4),
    vote(3, anger=5, fear=5),
    vote(4, "", NF=10),
    vote(5, unknown=9),
]


def test_rows_and_votes_meet_on_their_lines(tmp_path: Path) -> None:
    votes = votes_file(tmp_path / "v.csv", ROWS)
    raw = fetch(tmp_path, FerPlusConfig, csv_file(tmp_path / "fer2013.csv", 6), votes=str(votes))
    samples, rejects = read(raw, FerPlusConfig)
    got = {key: (one.split, NAMES[one.faces[0].label]) for key, one in samples.items()}
    assert got == {
        "00000000": ("train", "anger"),
        "00000001": ("validation", "neutral"),
        "00000002": ("test", "contempt"),
    }
    assert (np.asarray(samples["00000002"].image) == pixels(2)).all()
    assert not rejects
    assert about(raw)["excluded"] == {"no_agreement": 1, "unknown": 1, "unnamed": 1}
    assert samples["00000000"].faces[0].distribution is None


def test_soft_labels_are_for_training_and_the_test_stays_the_published_one(tmp_path: Path) -> None:
    votes = votes_file(tmp_path / "v.csv", ROWS)
    raw = fetch(tmp_path, FerPlusConfig, csv_file(tmp_path / "f.csv", 6), votes=str(votes), mode="soft")
    samples, _ = read(raw, FerPlusConfig, mode="soft")
    assert sorted(samples) == ["00000000", "00000001", "00000002", "00000003"]
    shares = samples["00000000"].faces[0].distribution
    assert shares is not None
    assert dict(zip(NAMES, shares, strict=True)) == {**dict.fromkeys(NAMES, 0.0), "anger": 0.8, "fear": 0.2}
    assert samples["00000002"].faces[0].distribution is None
    same, _ = read(raw, FerPlusConfig, mode="soft", evaluation_mode="same")
    assert same["00000002"].faces[0].distribution is not None


def test_parquet_says_its_positions_and_a_row_without_one_is_left_out(tmp_path: Path) -> None:
    votes = votes_file(tmp_path / "v.csv", ROWS)
    raw = fetch(tmp_path, FerPlusConfig, parquet_file(tmp_path / "f.parquet", [2, -1, 0]), votes=str(votes))
    samples, _ = read(raw, FerPlusConfig)
    assert sorted(samples) == ["00000000", "00000002"]
    assert (np.asarray(samples["00000002"].image) == pixels(2)).all()
    assert about(raw)["excluded"] == {"no_position": 1}
    with pytest.raises(FileError, match="position 2 occurs twice"):
        fetch(tmp_path, FerPlusConfig, parquet_file(tmp_path / "g.parquet", [2, 2]), votes=str(votes))


def test_rows_in_another_order_are_refused(tmp_path: Path) -> None:
    votes = votes_file(tmp_path / "v.csv", ROWS[1:])
    with pytest.raises(FileError, match="not in the same order"):
        fetch(tmp_path, FerPlusConfig, csv_file(tmp_path / "f.csv", 5), votes=str(votes))
    with pytest.raises(FileError, match="row 5 has no line"):
        fetch(tmp_path, FerPlusConfig, csv_file(tmp_path / "f.csv", 6), votes=str(votes_file(votes, ROWS[:5])))


def test_rows_that_disagree_with_their_votes_are_refused(tmp_path: Path) -> None:
    names = ("anger", "disgust", "fear", "happiness", "sadness", "surprise", "neutral")
    right = [vote(row, **{names[row % 7]: 9}) for row in range(63)]
    wrong = [vote(row, **{names[(row + 1) % 7]: 9}) for row in range(63)]
    path = csv_file(tmp_path / "f.csv", 63)
    raw = fetch(tmp_path, FerPlusConfig, path, votes=str(votes_file(tmp_path / "v.csv", right)))
    assert about(raw)["agreement_with_fer2013"] == 1
    with pytest.raises(FileError, match=r"agree with only 0\.0% of the clear votes"):
        fetch(tmp_path, FerPlusConfig, path, votes=str(votes_file(tmp_path / "w.csv", wrong)))


def test_bad_lines_of_votes_keep_their_place_and_are_counted(tmp_path: Path) -> None:
    rows = [*ROWS[:2], "PrivateTest,fer.png,1,2", vote(3, anger=9).replace(",9,", ",-9,"), *ROWS[4:]]
    votes = str(votes_file(tmp_path / "v.csv", rows))
    path = csv_file(tmp_path / "f.csv", 6)
    with pytest.raises(
        FileError, match=r"2 of 6 rows are corrupt \(votes 2\)[\s\S]*line 4 of fer2013new\.csv: 4 fields"
    ):
        fetch(tmp_path, FerPlusConfig, path, votes=votes)
    samples, rejects = read(fetch(tmp_path, FerPlusConfig, path, votes=votes, max_bad_fraction=0.5), FerPlusConfig)
    assert sorted(samples) == ["00000000", "00000001"]
    assert [(one.sample_id, one.reason) for one in rejects] == [
        ("ferplus/00000002", "row_votes"),
        ("ferplus/00000003", "row_votes"),
    ]


def test_the_hostile_votes_met_in_the_wild_have_a_defined_outcome(tmp_path: Path, test_data: Path) -> None:
    votes = read_votes(test_data / "bad" / "csv" / "ferplus_bad_rows.csv")
    assert [one.counts if isinstance(one.counts, str) else judge(one.counts, "majority") for one in votes] == [
        "no_agreement",
        "no_votes",
        "not_a_face",
        "no_agreement",
        "no_votes",
        "5 fields, expected 12",
    ]
    assert not votes[2].name


@pytest.mark.parametrize(
    ("path", "votes", "said"),
    [
        (None, None, r"github\.com/microsoft/FERPlus.*`path` and `votes`"),
        ("fer2013.csv", None, r"set `votes` to fer2013new\.csv"),
        ("fer2013.csv", "gone.csv", r"gone\.csv: no such file"),
        ("fer2013.csv", "fer2013.csv", r"not FERPlus's votes"),
    ],
)
def test_what_is_missing_is_said(tmp_path: Path, path: str | None, votes: str | None, said: str) -> None:
    csv_file(tmp_path / "fer2013.csv", 3)
    given = {"votes": str(tmp_path / votes)} if votes else {}
    with pytest.raises(FileError, match=said):
        fetch(tmp_path, FerPlusConfig, tmp_path / path if path else None, **given)


def test_other_counts_than_the_published_ones_need_the_users_word(tmp_path: Path) -> None:
    votes = votes_file(tmp_path / "v.csv", ROWS)
    with pytest.raises(FileError, match=r"25060[\s\S]*subset: true"):
        fetch(tmp_path, FerPlusConfig, csv_file(tmp_path / "f.csv", 6), votes=str(votes), subset=False)


def test_real_rows_meet_their_votes(tmp_path: Path, test_data: Path) -> None:
    table = pq.read_table(test_data / "fer2013" / "fer2013.parquet").slice(3000, 600)
    pq.write_table(table, tmp_path / "part.parquet")
    raw = fetch(tmp_path, FerPlusConfig, tmp_path / "part.parquet", votes=str(test_data / "ferplus/fer2013new.csv"))
    assert about(raw)["agreement_with_fer2013"] > 0.65
    samples, rejects = read(raw, FerPlusConfig)
    assert 400 < len(samples) < 600
    assert not rejects


@pytest.mark.slow
def test_all_real_rows_meet_their_votes(tmp_path: Path, test_data: Path) -> None:
    votes = str(test_data / "ferplus" / "fer2013new.csv")
    raw = fetch(tmp_path, FerPlusConfig, test_data / "fer2013" / "fer2013.parquet", votes=votes, mode="soft")
    body = about(raw)
    totals = {split: sum(found.values()) for split, found in body["counts"].items()}
    assert totals == {"train": 23646, "validation": 2655, "test": 2632}
    assert body["agreement_with_fer2013"] == pytest.approx(0.718, abs=0.005)


# ------------------------------------------------------------------------------------------------ FERPlus's folders


def folder(root: Path, *, labels: bool = True) -> Path:
    rows = {
        "FER2013Train": ["a.png", "b.png", "b.png"],
        "FER2013Valid": ["c.png"],
        "FER2013Test": ["d.png"],
    }
    for name, files in rows.items():
        lines = []
        for index, file in enumerate(files):
            picture(root / "data" / name / file, index)
            votes = ",".join(map(str, counts(fear=9) if index == 2 else counts(anger=9, fear=1)))
            lines.append(f'{file},"(0, 0, 48, 48)",{votes}')
        if labels:
            text(root / "data" / name / "label.csv", "\n".join(lines) + "\n")
    return root


def test_ferplus_s_folders_are_read_and_the_last_of_two_lines_wins(tmp_path: Path) -> None:
    samples, _ = read(fetch(tmp_path, FerPlusConfig, folder(tmp_path / "in")), FerPlusConfig)
    got = {key: (one.split, NAMES[one.faces[0].label]) for key, one in samples.items()}
    assert got == {
        "FER2013Train/a.png": ("train", "anger"),
        "FER2013Train/b.png": ("train", "fear"),
        "FER2013Valid/c.png": ("validation", "anger"),
        "FER2013Test/d.png": ("test", "anger"),
    }


def test_folders_without_label_csv_take_the_votes_by_name(tmp_path: Path) -> None:
    source = folder(tmp_path / "in", labels=False)
    with pytest.raises(FileError, match=r"no label\.csv in it.*set `votes`"):
        fetch(tmp_path, FerPlusConfig, source)
    rows = [vote(0, "a.png", sadness=9), vote(2, "d.png", neutral=9), vote(0, "gone.png", neutral=9)]
    raw = fetch(tmp_path, FerPlusConfig, source, votes=str(votes_file(tmp_path / "v.csv", rows)))
    samples, _ = read(raw, FerPlusConfig)
    assert {key: NAMES[one.faces[0].label] for key, one in samples.items()} == {
        "FER2013Train/a.png": "sadness",
        "FER2013Test/d.png": "neutral",
    }


def test_the_real_folders_are_read(tmp_path: Path, test_data: Path) -> None:
    raw = fetch(tmp_path, FerPlusConfig, test_data / "fer2013" / "ferplus_layout")
    totals = {split: sum(found.values()) for split, found in about(raw)["counts"].items()}
    assert totals == {"train": 353, "validation": 72, "test": 71}
    assert about(raw)["excluded"] == {"no_agreement": 60, "unknown": 4}
