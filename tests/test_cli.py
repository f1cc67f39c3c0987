"""The command line: a mistyped name is rejected with the nearest one that exists; no advice names what does not."""

import shutil
from pathlib import Path

import pytest
from builders.shards import make_shards

from benchmarks import __main__ as benchmarks
from fer import cli


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the shipped params.yaml, in a folder of its own."""
    shutil.copy(Path(cli.__file__).parents[1] / "params.yaml", tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(line: str) -> None:
    """A `fer` command; a benchmark without a process of its own."""
    command, *words = line.split()
    if command == "bench":
        benchmarks.main(words)
    else:
        cli._main([command, *words])


@pytest.mark.parametrize(
    ("line", "nearest"),
    [
        ("predit", "predict"),
        ("wieghts list", "weights"),
        ("weights pul", "pull"),
        ("weights import x --dataset ferpuls --out y", "ferplus"),
        ("predict w p --detector yunnet", "yunet"),
        ("predict w p --tta flop", "flip"),
        ("submit trian", "train"),
        ("bench model", "models"),
        ("synth shet", "sheet"),
        ("study noise --tta flop", "flip"),
    ],
)
def test_mistyped_choice_is_rejected_with_the_nearest(
    line: str, nearest: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        run(line)
    assert caught.value.code == 2
    assert capsys.readouterr().err.endswith(f" - did you mean {nearest!r}?\n")


@pytest.mark.parametrize(
    ("line", "nearest"),
    [
        ("shards synthetik", "synthetic"),
        ("study nois", "noise"),
        ("study poster_v2_components --rows POSTERV2", "POSTER V2"),
        ("tune --dataset syntetic --model ddamfn_nano", "synthetic"),
        ("tune --dataset synthetic --model ddamfn_nan", "ddamfn_nano"),
        ("explore synthetic ddamfn_nan", "ddamfn_nano"),
        ("audit synthetic --model ddamfn_nan", "ddamfn_nano"),
        ("submit train --dataset synthetic --model ddamfn_nan", "ddamfn_nano"),
        ("bench models --models ddamfm", "ddamfn"),
        ("bench train --model ddamfn_nan", "ddamfn_nano"),
        ("bench crop --detectors yunte", "yunet"),
        ("weights pull poster_v2_rafbd", "poster_v2_rafdb"),
        ("weights list ir5", "ir50"),
    ],
)
@pytest.mark.usefixtures("project")
def test_mistyped_name_is_rejected_with_the_nearest(line: str, nearest: str) -> None:
    with pytest.raises(ValueError, match=f"did you mean '{nearest}'"):
        run(line)


def test_shards_advises_only_stages_that_exist(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match="no dataset 'synthetik'") as caught:
        cli._main(["shards", "synthetik"])
    assert "dvc repro" not in str(caught.value)
    with pytest.raises(ValueError, match=r"data/shards/synthetic: no shards yet; run `dvc repro shard@synthetic`"):
        cli._main(["shards", "synthetic"])
    with pytest.raises(ValueError, match=r"fer2013: no shards yet; add it to run\.datasets in params\.yaml, then"):
        cli._main(["shards", "fer2013"])
    with pytest.raises(ValueError, match=r"no dataset '\.\./shards/tiny'"):
        cli._main(["shards", "../shards/tiny"])
    make_shards(project / "data" / "shards" / "tiny")  # of a dataset that params.yaml no longer names
    cli._main(["shards", "tiny"])
    assert capsys.readouterr().out.startswith("tiny: 128 faces")
