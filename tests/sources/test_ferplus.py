"""FERPlus: labels from votes by the published rule, joined to FER2013's rows by their lines alone."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from builders.layouts import about, fetch, labels, picture, read, text
from small_fer2013 import USAGES, csv_file, parquet_file, pixels

from fer.io.files import FileError
from fer.labels import DATASET_LABELS, SPACES
from fer.sources.ferplus import CHOICES, EXPRESSIONS, KEPT, FerPlusConfig, Mode, VoteLabel, aggregate_votes, read_votes

NAMES = SPACES["basic8"].labels


def counts(**votes: int) -> tuple[int, ...]:
    return tuple(votes.get(choice, 0) for choice in CHOICES)


@pytest.mark.parametrize(
    ("mode", "votes", "expected"),
    [
        ("majority", {"anger": 6, "fear": 4}, {"anger": 1}),
        ("majority", {"anger": 5, "fear": 5}, "no_agreement"),
        ("majority", {"anger": 4, "fear": 2, "sadness": 1, "neutral": 1, "disgust": 1, "NF": 1}, {"anger": 1}),
        ("majority", {"anger": 1, "fear": 1, "sadness": 1}, "no_votes"),
        ("majority", {}, "no_votes"),
        ("majority", {"unknown": 6, "fear": 4}, "unknown"),
        ("majority", {"NF": 10}, "not_a_face"),
        ("probability", {"anger": 8, "fear": 2}, {"anger": 1}),
        ("probability", {"anger": 6, "fear": 4}, {"anger": 0.6, "fear": 0.4}),
        ("probability", {"fear": 4, "anger": 4, "sadness": 2}, {"anger": 0.5, "fear": 0.5}),
        # the second step brings three at once
        ("probability", {"anger": 4, "fear": 2, "sadness": 2, "neutral": 2}, "no_agreement"),
        # unknown ends the list: 5 of 10 is not more than half
        ("probability", {"anger": 5, "unknown": 3, "fear": 2}, "no_agreement"),
        ("probability", {"anger": 6, "unknown": 2, "fear": 2}, {"anger": 0.75, "fear": 0.25}),
        ("probability", {"unknown": 6, "anger": 4}, "unknown"),
        ("multi_target", {"anger": 5, "fear": 3, "sadness": 2}, {"anger": 0.5, "fear": 0.5}),
        ("multi_target", {"anger": 6, "unknown": 4}, {"anger": 1}),
        ("multi_target", {"anger": 3, "unknown": 4, "fear": 3}, "unknown"),
        ("multi_target", {"anger": 3, "fear": 2, "sadness": 2, "neutral": 2}, "no_agreement"),
        ("soft", {"anger": 4, "fear": 2, "sadness": 1, "unknown": 3}, {"anger": 0.6667, "fear": 0.3333}),
        ("soft", {"anger": 3, "unknown": 4, "fear": 3}, "unknown"),
        ("soft", {"fear": 3, "anger": 3}, {"anger": 0.5, "fear": 0.5}),
    ],
)
def test_votes_give_the_label_of_the_published_rule(mode: Mode, votes: dict[str, int], expected: object) -> None:
    found = aggregate_votes(counts(**votes), mode)
    if isinstance(found, str):
        assert found == expected
    else:
        assert EXPRESSIONS[found.label] == "anger"  # of equal choices the first in FERPlus's order
        shares = zip(EXPRESSIONS, found.distribution, strict=True)
        assert {name: round(share, 4) for name, share in shares if share} == expected


@pytest.mark.parametrize("mode", list(KEPT))
def test_each_rule_keeps_the_published_number_of_images(test_data: Path, mode: Mode) -> None:
    votes = read_votes(test_data / "ferplus" / "fer2013new.csv")
    assert len(votes) == 35887
    kept = Counter(
        vote.usage
        for vote in votes
        if vote.name and isinstance(aggregate_votes(vote.counts, mode), VoteLabel)  # type: ignore[arg-type]
    )
    assert tuple(kept[usage] for usage in USAGES) == KEPT[mode]


def test_votes_join_by_line_and_not_by_the_number_in_the_name(test_data: Path) -> None:
    votes = read_votes(test_data / "ferplus" / "fer2013new.csv")
    table = pq.read_table(test_data / "fer2013" / "fer2013.parquet", columns=["label", "row"])
    own = dict(zip(table["row"].to_pylist(), table["label"].to_pylist(), strict=True))

    def agreement(position_of: Any) -> float:
        clear = equal = 0
        for line, vote in enumerate(votes):
            position = position_of(line, vote)
            if position in own and max(vote.counts) > 5:
                clear += 1
                choice = vote.counts.index(max(vote.counts))  # type: ignore[union-attr]
                equal += CHOICES[choice] == DATASET_LABELS["fer2013"][own[position]]
        return equal / clear

    assert agreement(lambda line, _: line) == pytest.approx(0.718, abs=0.005)
    assert agreement(lambda _, vote: int(vote.name[3:10]) if vote.name else -2) == pytest.approx(0.189, abs=0.01)


# ------------------------------------------------------------------------------------------------ files of rows


def votes_file(path: Path, rows: list[str]) -> str:
    return str(text(path, "\n".join(["Usage,Image name," + ",".join(CHOICES), *rows]) + "\n"))


def vote(row: int, name: str | None = None, **votes: int) -> str:
    name = f"fer{row + 5:07d}.png" if name is None else name
    return f"{USAGES[row % 3]},{name},{','.join(map(str, counts(**votes)))}"


ROWS = [
    vote(0, anger=8, fear=2),
    vote(1, neutral=6, sadness=4),
    vote(2, contempt=6, fear=4),
    vote(3, anger=5, fear=5),
    vote(4, "", NF=10),
    vote(5, unknown=9),
]


def test_rows_and_votes_are_joined_by_their_lines(tmp_path: Path) -> None:
    votes = votes_file(tmp_path / "v.csv", ROWS)
    raw = fetch(tmp_path, FerPlusConfig, csv_file(tmp_path / "fer2013.csv", 6), votes=votes)
    samples, rejects = read(raw, FerPlusConfig)
    expected = {"00000000": "train anger", "00000001": "validation neutral", "00000002": "test contempt"}
    assert labels(samples, NAMES) == expected
    assert (np.asarray(samples["00000002"].image) == pixels(2)).all()
    assert not rejects
    assert about(raw)["excluded"] == {"no_agreement": 1, "unknown": 1, "unnamed": 1}
    assert samples["00000000"].faces[0].distribution is None


def test_soft_labels_are_for_training_and_the_test_labels_stay_the_published_ones(tmp_path: Path) -> None:
    votes = votes_file(tmp_path / "v.csv", ROWS)
    raw = fetch(tmp_path, FerPlusConfig, csv_file(tmp_path / "f.csv", 6), votes=votes, mode="soft")
    samples, _ = read(raw, FerPlusConfig, mode="soft")
    assert sorted(samples) == ["00000000", "00000001", "00000002", "00000003"]
    distribution = samples["00000000"].faces[0].distribution
    assert distribution is not None
    assert dict(zip(NAMES, distribution, strict=True)) == {**dict.fromkeys(NAMES, 0.0), "anger": 0.8, "fear": 0.2}
    assert samples["00000002"].faces[0].distribution is None
    same, _ = read(raw, FerPlusConfig, mode="soft", evaluation_mode="same")
    assert same["00000002"].faces[0].distribution is not None


def test_parquet_gives_its_positions_and_a_row_without_one_is_left_out(tmp_path: Path) -> None:
    votes = votes_file(tmp_path / "v.csv", ROWS)
    raw = fetch(tmp_path, FerPlusConfig, parquet_file(tmp_path / "f.parquet", [2, -1, 0]), votes=votes)
    samples, _ = read(raw, FerPlusConfig)
    assert sorted(samples) == ["00000000", "00000002"]
    assert (np.asarray(samples["00000002"].image) == pixels(2)).all()
    assert about(raw)["excluded"] == {"no_position": 1}
    with pytest.raises(FileError, match="position 2 occurs twice"):
        fetch(tmp_path, FerPlusConfig, parquet_file(tmp_path / "g.parquet", [2, 2]), votes=votes)


def test_rows_that_disagree_with_their_votes_are_refused(tmp_path: Path) -> None:
    names = DATASET_LABELS["fer2013"]
    right, wrong = (
        votes_file(tmp_path / f"{shift}.csv", [vote(row, **{names[(row + shift) % 7]: 9}) for row in range(63)])
        for shift in (0, 1)
    )
    path = csv_file(tmp_path / "f.csv", 63)
    assert about(fetch(tmp_path, FerPlusConfig, path, votes=right))["agreement_with_fer2013"] == 1
    with pytest.raises(FileError, match=r"f\.csv: .*0\.0% .*fer2013new\.csv"):
        fetch(tmp_path, FerPlusConfig, path, votes=wrong)


def test_bad_lines_of_votes_keep_their_place_and_are_counted(tmp_path: Path) -> None:
    rows = [*ROWS[:2], "PrivateTest,fer.png,1,2", vote(3, anger=9).replace(",9,", ",-9,"), *ROWS[4:]]
    votes, path = votes_file(tmp_path / "v.csv", rows), csv_file(tmp_path / "f.csv", 6)
    message = r"(?s)2 of 6 .*row_votes 2.*line 4 of fer2013new\.csv: 4 fields.*line 5 of fer2013new\.csv: '-9' .*anger"
    with pytest.raises(FileError, match=message):
        fetch(tmp_path, FerPlusConfig, path, votes=votes)
    samples, rejects = read(fetch(tmp_path, FerPlusConfig, path, votes=votes, max_bad_fraction=0.5), FerPlusConfig)
    assert sorted(samples) == ["00000000", "00000001"]
    bad = [(one.sample_id, one.reason) for one in rejects]
    assert bad == [("ferplus/00000002", "row_votes"), ("ferplus/00000003", "row_votes")]


@pytest.mark.parametrize(
    ("rows", "votes", "options", "message"),
    [
        (3, None, {}, r"f\.csv: .*set `votes` to fer2013new\.csv"),
        (3, None, {"votes": "gone.csv"}, r"gone\.csv: no such file"),
        (3, None, {"votes": "f.csv"}, r"fer2013new\.csv: not FERPlus's votes.*'Image name'"),
        (5, ROWS[1:], {}, r"row 0 is of the train split .* 'PublicTest' in line 2 of fer2013new\.csv"),
        (6, ROWS[:5], {}, r"row 5 has no line in fer2013new\.csv"),
        (6, ROWS, {"subset": False}, r"(?s)25060.*subset: true"),
    ],
)
def test_missing_or_unmatched_files_are_refused_by_file_and_key(
    tmp_path: Path, rows: int, votes: list[str] | None, options: dict[str, Any], message: str
) -> None:
    path = csv_file(tmp_path / "f.csv", rows)
    if "votes" in options:
        options = {"votes": str(tmp_path / options["votes"])}
    elif votes is not None:
        options = {"votes": votes_file(tmp_path / "v.csv", votes), **options}
    with pytest.raises(FileError, match=message):
        fetch(tmp_path, FerPlusConfig, path, **options)


def test_real_rows_match_their_votes(tmp_path: Path, test_data: Path) -> None:
    table = pq.read_table(test_data / "fer2013" / "fer2013.parquet").slice(3000, 600)
    pq.write_table(table, tmp_path / "part.parquet")
    raw = fetch(tmp_path, FerPlusConfig, tmp_path / "part.parquet", votes=str(test_data / "ferplus/fer2013new.csv"))
    assert about(raw)["agreement_with_fer2013"] > 0.65
    samples, rejects = read(raw, FerPlusConfig)
    assert 400 < len(samples) < 600
    assert not rejects


@pytest.mark.slow
def test_all_real_rows_match_their_votes(tmp_path: Path, test_data: Path) -> None:
    votes = str(test_data / "ferplus" / "fer2013new.csv")
    raw = fetch(tmp_path, FerPlusConfig, test_data / "fer2013" / "fer2013.parquet", votes=votes, mode="soft")
    totals = {split: sum(found.values()) for split, found in about(raw)["counts"].items()}
    assert totals == {"train": 23646, "validation": 2655, "test": 2632}
    assert about(raw)["agreement_with_fer2013"] == pytest.approx(0.718, abs=0.005)


# ------------------------------------------------------------------------------------------------ FERPlus's folders


def folder(root: Path, *, labels: bool = True) -> Path:
    files = {"FER2013Train": ["a.png", "b.png", "b.png"], "FER2013Valid": ["c.png"], "FER2013Test": ["d.png"]}
    for name, images in files.items():
        lines = []
        for index, image in enumerate(images):
            picture(root / "data" / name / image, index)
            votes = ",".join(map(str, counts(fear=9) if index == 2 else counts(anger=9, fear=1)))
            lines.append(f'{image},"(0, 0, 48, 48)",{votes}')
        if labels:
            text(root / "data" / name / "label.csv", "\n".join(lines) + "\n")
    return root


def test_ferplus_folders_are_read_and_the_last_of_two_lines_counts(tmp_path: Path) -> None:
    samples, _ = read(fetch(tmp_path, FerPlusConfig, folder(tmp_path / "in")), FerPlusConfig)
    assert labels(samples, NAMES) == {
        "FER2013Train/a.png": "train anger",
        "FER2013Train/b.png": "train fear",
        "FER2013Valid/c.png": "validation anger",
        "FER2013Test/d.png": "test anger",
    }


def test_folders_without_label_csv_take_the_votes_by_name(tmp_path: Path) -> None:
    source = folder(tmp_path / "in", labels=False)
    with pytest.raises(FileError, match=r"FER2013Train: no label\.csv.*`votes`"):
        fetch(tmp_path, FerPlusConfig, source)
    rows = [vote(0, "a.png", sadness=9), vote(2, "d.png", neutral=9), vote(0, "gone.png", neutral=9)]
    raw = fetch(tmp_path, FerPlusConfig, source, votes=votes_file(tmp_path / "v.csv", rows))
    expected = {"FER2013Train/a.png": "train sadness", "FER2013Test/d.png": "test neutral"}
    assert labels(read(raw, FerPlusConfig)[0], NAMES) == expected


def test_real_folders_are_read(tmp_path: Path, test_data: Path) -> None:
    raw = fetch(tmp_path, FerPlusConfig, test_data / "fer2013" / "ferplus_layout")
    totals = {split: sum(found.values()) for split, found in about(raw)["counts"].items()}
    assert totals == {"train": 353, "validation": 72, "test": 71}
    assert about(raw)["excluded"] == {"no_agreement": 60, "unknown": 4}
