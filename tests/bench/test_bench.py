"""Promises of `fer bench`."""

import json
import shlex
from pathlib import Path

import pytest

from benchmarks.__main__ import main, parse
from benchmarks.data import write_shards
from benchmarks.passes import Setting, peak_mib
from benchmarks.result import REGISTRY, BenchResult, benchmark
from fer.shards.read import ShardSet


def test_the_benchmarks_are_listed_with_what_they_measure(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--list"]) == 0
    listing = capsys.readouterr().out
    assert [line.split()[0] for line in listing.splitlines()] == sorted(REGISTRY)
    assert {"models", "reader", "ray"} <= set(REGISTRY)


def test_the_reader_is_measured_beside_the_decode_limit_of_the_same_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "reader.json"
    words = ["reader", "--size", "16", "--rows", "600", "--rounds", "1", "--threads", "1", "2", "--json", str(out)]
    monkeypatch.setattr("sys.argv", ["/somewhere/bin/fer", "bench", *words])
    assert main(words) == 0
    assert "decode limit" in capsys.readouterr().out
    report = json.loads(out.read_text())
    assert {row["threads"] for row in report["rows"]} == {1, 2}
    assert all(row["images/s"] > 0 for row in report["rows"])
    limits = [row for row in report["rows"] if row["what"] == "decode limit"]
    assert [row["% of decode limit"] for row in limits] == [100.0, 100.0]
    assert report["command"] == shlex.join(["fer", "bench", *words])
    assert "cores" in report["machine"]
    assert "torch" in report["versions"]


def test_a_model_is_measured_beside_the_published_code(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["models", "--models", "mobilefacenet", "--batch", "4", "--seconds", "0", "--threads", "1", "--no-memory"]
    result = REGISTRY["models"].run(parse(words))
    assert [row["pass"] for row in result.rows if "bf16" not in row["pass"]] == ["eval fp32", "train fp32"]
    assert len({tuple(row) for row in result.rows}) == 1
    for row in result.rows:
        assert row["published img/s"] > 0
        assert row["ratio"] > 0
        assert 0 < row["% of dense"] < 200
    assert result.table().startswith("evaluation at batch 4, forward and backward at 2, 1 threads")


@pytest.mark.slow
def test_other_runtimes_stand_beside_the_published_code() -> None:
    words = ["models", "--models", "mobilefacenet", "--batch", "4", "--seconds", "0", "--threads", "1"]
    args = parse([*words, "--passes", "eval", "--runtimes", "torch", "onnxruntime", "openvino", "--int8"])
    result = REGISTRY["models"].run(args)
    passes = [row["pass"] for row in result.rows if "bf16" not in row["pass"]]
    assert passes == ["eval fp32", "eval onnxruntime fp32", "eval openvino fp32", "eval openvino int8"]
    assert all(row["ratio"] > 0 for row in result.rows)
    assert len({tuple(row) for row in result.rows}) == 1


@pytest.mark.parametrize("words", [["--int8"], ["--runtimes", "openvino", "--device", "cuda"]])
def test_runtimes_that_cannot_be_measured_are_refused(words: list[str]) -> None:
    args = parse(["models", "--models", "mobilefacenet", *words])
    with pytest.raises(ValueError, match=r"--runtimes|--device"):
        REGISTRY["models"].run(args)


@pytest.mark.slow
def test_the_peak_memory_is_that_of_the_pass_alone() -> None:
    small, large = (
        peak_mib(Setting(network="mobilefacenet", ours=True, training=True, batch=batch, threads=1)) for batch in (2, 8)
    )
    assert 4 < small < 200  # the weights are 4 MiB
    assert large > 1.3 * small


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--models", "resnet152"], "no published code to compare with.*; known: ddamfn, mfn"),
        (["--device", "abacus"], "cpu is allowed, and cuda on a machine that has it"),
        (["--batch", "2"], "4 or more"),
    ],
)
def test_a_model_that_cannot_be_measured_is_refused(words: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        REGISTRY["models"].run(parse(["models", *words]))


def test_the_data_of_benchmarks_are_whole_shards(tmp_path: Path) -> None:
    shards = ShardSet.open(write_shards(tmp_path / "bench", rows=700, size=16, gray=True, held_out=20))
    assert [shards.split(name).rows for name in ("train", "validation", "test")] == [700, 20, 20]


def test_unchanged_data_are_measured_beside_the_first_hash(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.origin.time.sleep", lambda _: None)
    result = REGISTRY["origin"].run(parse(["origin", "--files", "20", "--rounds", "1"]))
    assert [row["source"] for row in result.rows] == ["folders", "table"]
    assert all(row["first s"] >= 0 and row["again s"] >= 0 for row in result.rows)


def test_a_table_shows_numbers_and_notes() -> None:
    rows = [{"what": "a", "images/s": 12345}, {"what": "longer", "images/s": 7}]
    table = BenchResult(title="Title", rows=rows, notes=["a note"], settings={}).table()
    assert table.splitlines()[0] == "Title"
    assert "a         12,345" in table
    assert table.endswith("- a note")


def test_a_name_is_registered_once() -> None:
    with pytest.raises(ValueError, match="'reader' is registered already"):
        benchmark("reader", help="")(lambda args: pytest.fail("not to be run"))
