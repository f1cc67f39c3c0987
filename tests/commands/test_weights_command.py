"""`fer weights`: its output, and that an unknown order of classes must be given."""

from pathlib import Path

import pytest
from builders.published import write_ddamfn

from fer import cli
from fer.labels import DATASET_LABELS
from fer.weights import registry
from fer.weights.store import load_model, read_info

RAFDB = DATASET_LABELS["rafdb"]


def run(*arguments: str | Path) -> int | None:
    return cli._main(["weights", *map(str, arguments)])


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FER_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "weights"


@pytest.fixture(scope="module")
def ddamfn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_ddamfn(tmp_path_factory.mktemp("published"))


def test_list_shows_every_entry_and_one_in_full(capsys: pytest.CaptureFixture[str]) -> None:
    run("list")
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1 + len(registry.register())
    assert any(line.startswith("poster_v2_affectnet7") and "unknown" in line for line in lines)
    run("list", "ddamfn_rafdb")
    shown = capsys.readouterr().out
    assert "accuracy: 92.04" in shown
    assert "licence: none stated" in shown


def test_pull_prints_paths_and_verify_finds_corrupt_files(
    ddamfn: Path, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run("pull", "ddamfn_rafdb", "--from", ddamfn.parent)
    assert capsys.readouterr().out.strip() == str(cache / "ddamfn_rafdb" / ddamfn.name)
    run("list")
    assert "yes" in next(line for line in capsys.readouterr().out.splitlines() if line.startswith("ddamfn_rafdb"))
    assert run("verify") == 0
    assert capsys.readouterr().out.startswith("as fetched")
    (cache / "ddamfn_rafdb" / ddamfn.name).write_bytes(b"no longer")
    assert run("verify") == 1
    assert capsys.readouterr().out.startswith("corrupt")


def test_verify_of_an_empty_cache_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("verify") == 0
    assert "no weights" in capsys.readouterr().out


def test_import_of_pulled_weights_knows_model_and_order(ddamfn: Path, tmp_path: Path) -> None:
    out = tmp_path / "ours.safetensors"
    with pytest.raises(ValueError, match="run `fer weights pull ddamfn_rafdb`"):
        run("import", "ddamfn_rafdb", "--out", out)
    run("pull", "ddamfn_rafdb", "--from", ddamfn)
    run("import", "ddamfn_rafdb", "--out", out)
    model, info = load_model(out)
    assert (info.model, info.options, info.label_space) == ("ddamfn", {"num_heads": 2}, "basic7")
    assert info.labels == DATASET_LABELS["affectnet7"]
    assert info.extra["published"] == "ddamfn_rafdb"
    assert model.num_classes == 7
    with pytest.raises(ValueError, match="by the register of weights"):
        run("import", "ddamfn_rafdb", "--dataset", "rafdb", "--out", tmp_path / "other.safetensors")


def test_an_unknown_class_order_is_rejected_never_guessed(ddamfn: Path, tmp_path: Path) -> None:
    out = tmp_path / "ours.safetensors"
    with pytest.raises(ValueError, match=r"7 classes in an unknown order\. Give it with --labels"):
        run("import", ddamfn, "--model", "ddamfn", "--out", out)
    assert not out.exists()
    run("import", ddamfn, "--model", "ddamfn", "--dataset", "rafdb", "--out", out)
    assert read_info(out).labels == RAFDB
    out = tmp_path / "reversed.safetensors"
    run("import", ddamfn, "--model", "ddamfn", "--labels", ", ".join(reversed(RAFDB)), "--out", out)
    assert read_info(out).labels == tuple(reversed(RAFDB))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "--model"),
        (("--model", "ddamfn", "--labels", "joy,neutral"), "not an order of the classes"),
        (("--model", "ddamfn", "--dataset", "affectnet8"), "has 7 classes; 8 labels"),
        (("--model", "mfn", "--dataset", "rafdb"), "not the published layout of 'mfn'"),
        (("--model", "nothing"), "no published layout is known for 'nothing'"),
    ],
)
def test_import_rejects_missing_and_wrong_arguments(
    arguments: tuple[str, ...], message: str, ddamfn: Path, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        run("import", ddamfn, *arguments, "--out", tmp_path / "ours.safetensors")


def test_import_of_missing_weights_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no published weights 'absent'"):
        run("import", "absent", "--out", tmp_path / "ours.safetensors")
    with pytest.raises(ValueError, match="no such file"):
        run("import", tmp_path / "absent.pth", "--model", "ddamfn", "--out", tmp_path / "ours.safetensors")


def test_the_landmark_network_is_imported_without_classes(test_data: Path, tmp_path: Path) -> None:
    run("pull", "mobilefacenet_landmarks", "--from", test_data / "weights")
    run("import", "mobilefacenet_landmarks", "--out", tmp_path / "landmarks.safetensors")
    model, info = load_model(tmp_path / "landmarks.safetensors")
    assert (info.labels, model.num_classes, model.name) == ((), 0, "mobilefacenet_landmarks")


def test_import_overwrites_no_file(tmp_path: Path) -> None:
    source = tmp_path / "mine.pth"
    source.write_bytes(b"mine")
    with pytest.raises(ValueError, match=r"mine\.pth: exists already, and is not overwritten"):
        run("import", str(source), "--model", "ddamfn", "--out", str(source))
    assert source.read_bytes() == b"mine"
