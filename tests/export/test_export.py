"""Promises of `fer export`: the model's own logits in every runtime, whole folders or none, and clear refusals."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from builders.shards import LABELS, make_shards
from torch import Tensor, nn

from fer import cli
from fer.commands.export import report
from fer.export import formats
from fer.export.build import export
from fer.export.check import accuracies, parity
from fer.export.faces import Faces, drawn_faces, stored_faces
from fer.export.formats import FORMATS, FormatName, computes_bfloat16
from fer.export.graph import Graph, trace
from fer.export.store import CARD_NAME, ExportedModel
from fer.io.files import FileError
from fer.models import FerModel, Resize, create_model, list_models, register, registry
from fer.models.inference import for_inference
from fer.shards.dataset import ShardSet
from fer.shards.pixels import ModelInput, normalize
from fer.weights.store import save_model

RAW = [(format, raw) for raw in (False, True) for format in FORMATS]
"""Each format with both inputs; of the second one only is not slow."""


def build(name: str, classes: int = 7, **options: Any) -> FerModel:
    """A model whose logits differ from face to face: in a fresh one, some factors are 0 and maps all but constant."""
    torch.manual_seed(0)
    model = create_model(name, classes, **options).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() <= 1 or parameter.std() == 0:
                parameter.add_(0.2 * torch.randn_like(parameter))
        norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d)]
        for norm in norms:
            norm.reset_running_stats()
            norm.train().momentum = None  # the mean of all batches: here, of one
        model(normalize(torch.from_numpy(drawn_faces(ModelInput.of(model), 6, seed=1)), model.mean, model.std))
        for norm in norms:
            norm.eval()
    return model


@pytest.fixture(scope="module", autouse=True)
def _quick() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fer.export.build.CHECK_FACES", 6)
        patch.setattr("fer.export.check._ROUNDS", 1)
        yield


def save(path: Path, model: FerModel, labels: tuple[str, ...] = LABELS) -> Path:
    assert model.name is not None
    save_model(model, path, labels, "basic7", {"dataset": "toy"}, name=model.name, options=model.options)
    return path


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("weights") / "model.safetensors", build("ddamfn_nano"))


@pytest.fixture(scope="module")
def exported(weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """The folder of an export, each made once."""

    @cache
    def folder(format: FormatName, raw: bool) -> Path:
        out = tmp_path_factory.mktemp("exported") / "out"
        export(weights, out, format=format, raw=raw)
        return out

    return folder


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> ShardSet:
    return ShardSet.open(make_shards(tmp_path_factory.mktemp("data") / "toy"))


def expected_logits(weights_model: FerModel, levels: np.ndarray) -> np.ndarray:
    with torch.inference_mode():
        logits: np.ndarray = weights_model(
            normalize(torch.from_numpy(levels), weights_model.mean, weights_model.std)
        ).numpy()
    return logits


# ------------------------------------------------------------------------------------------------ formats


@pytest.mark.slow
@pytest.mark.parametrize("name", list_models())
def test_every_model_has_its_own_logits_in_every_format(name: str, tmp_path: Path) -> None:
    model = build(name)
    levels = drawn_faces(ModelInput.of(model), 5)
    expected = expected_logits(model, levels)
    assert np.ptp(expected, axis=0).max() > 1e-3 * np.abs(expected).max(), "the logits depend on the face"
    program = trace(Graph(for_inference(model), raw=False))
    for format in FORMATS.values():
        path = tmp_path / format.files[0]
        format.write(program, path)
        assert {one.name for one in tmp_path.iterdir()} >= set(format.files)
        run = format.load(path, 1, False)
        found = np.concatenate([run(levels[:1]), run(levels[1:])])
        np.testing.assert_allclose(found, expected, atol=1e-3 * np.abs(expected).max(), err_msg=format.runtime)


@pytest.mark.parametrize(
    ("format", "raw"),
    [pytest.param(*one, marks=[pytest.mark.slow] if one[1] and one[0] != "onnx" else []) for one in RAW],
)
def test_an_export_is_loaded_back_with_all_that_a_caller_needs(
    format: FormatName, raw: bool, exported: Callable[..., Path]
) -> None:
    folder = exported(format, raw)
    assert {path.name for path in folder.iterdir()} == {*FORMATS[format].files, CARD_NAME}
    loaded = ExportedModel(folder, threads=1)
    card = loaded.card
    assert card.parity.holds
    assert card.parity.faces == card.parity.same_label
    assert card.model.labels == LABELS
    assert card.model.extra == {"dataset": "toy"}
    assert (card.input.layout, card.input.dtype) == (("BCHW", "float32") if raw else ("BHWC", "uint8"))
    model = build("ddamfn_nano")
    assert loaded.input == ModelInput.of(model)
    levels = drawn_faces(loaded.input, 3, seed=5)
    np.testing.assert_allclose(loaded.logits(levels), expected_logits(model, levels), atol=1e-4)
    assert loaded.logits(levels[:0]).shape == (0, len(LABELS))
    for wrong in (levels.astype(np.float32), levels[0], levels[:, :-1], levels.transpose(0, 3, 1, 2)):
        with pytest.raises(ValueError, match=r"expected uint8 \(B, 64, 64, 3\)"):
            loaded.logits(wrong)


def test_a_model_of_unrounded_levels_takes_them(tmp_path: Path) -> None:
    weights = save(tmp_path / "m.safetensors", build("lhc_net_nano", truncate=True))
    card = export(weights, tmp_path / "out", format="torch-export")
    assert (card.input.layout, card.input.dtype, card.input.truncate) == ("BHWC", "float32", True)
    exported = ExportedModel(tmp_path / "out")
    assert drawn_faces(exported.input, 1).dtype == np.float32
    with pytest.raises(ValueError, match="expected float32"):
        exported.logits(drawn_faces(exported.input._replace(truncate=False), 1))


@pytest.mark.skipif(computes_bfloat16(), reason="this processor computes in bfloat16")
def test_bfloat16_is_refused_where_it_would_be_emulated(exported: Callable[..., Path]) -> None:
    with pytest.raises(ValueError, match="does not compute in bfloat16"):
        ExportedModel(exported("openvino", False), bf16=True)


@pytest.mark.parametrize("format", ["onnx", "torch-export"])
def test_bfloat16_is_openvinos_alone(format: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="--format openvino"):
        FORMATS[format].load(tmp_path / "absent", 1, True)


def test_nothing_is_reported_to_the_network() -> None:
    script = (
        "import sys\n"
        "from fer.export import compat\n"
        "compat.quiet_openvino().convert_model, compat.quiet_nncf().quantize\n"
        "assert sys.modules['openvino_telemetry'] is None\n"
        "loaded = [name for name in sys.modules if name.startswith('openvino_telemetry.')]\n"
        "sys.exit(f'loaded {loaded}' if loaded else 0)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"openvino or nncf has another way to its telemetry: {done.stderr}"


# ------------------------------------------------------------------------------------------------ checks


def test_a_wrong_graph_is_no_export(weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def load(path: Path, threads: int, bf16: bool) -> formats.Run:
        run = FORMATS["torch-export"].load(path, threads, bf16)
        return lambda images: run(images) + np.float32(0.5)

    monkeypatch.setitem(FORMATS, "onnx", replace(FORMATS["torch-export"], runtime="wrong", load=load))
    with pytest.raises(ValueError, match="wrong differs from torch"):
        export(weights, tmp_path / "out", format="onnx")
    assert list(tmp_path.iterdir()) == []


def test_parity_counts_labels_and_measures_logits() -> None:
    logits = np.array([[1, 2], [4, 3], [0, 8]], np.float32)
    table = lambda values: lambda rows: values[rows]  # noqa: E731
    found = parity(table(logits), table(logits + np.array([[0, 0.001]] * 3, np.float32)), np.arange(3), "rows")
    assert (found.faces, found.same_label, found.max_logit, found.holds) == (3, 3, 8.0, True)
    assert found.max_difference == pytest.approx(0.001, rel=1e-3)
    flipped = parity(table(logits), table(logits[:, ::-1]), np.arange(3), "rows")
    assert (flipped.same_label, flipped.max_difference, flipped.holds) == (0, 8.0, False)
    assert not parity(table(logits), table(logits * np.float32("nan")), np.arange(3), "rows").holds


def test_accuracy_is_that_of_every_face() -> None:
    batches = [Faces(np.array([0, 1]), np.array([0, 1])), Faces(np.array([1]), np.array([0]))]
    runs = {"right": lambda x: np.eye(2, dtype=np.float32)[x], "zero": lambda x: np.eye(2, dtype=np.float32)[x * 0]}
    assert accuracies(runs, batches) == ({"right": 2 / 3, "zero": 2 / 3}, 3)


def test_stored_faces_are_spread_over_the_split(shards: ShardSet) -> None:
    split, model_input = shards.split("train"), ModelInput(24, Resize())
    batches = list(stored_faces(split, model_input, 10, batch=4))
    assert [len(batch.labels) for batch in batches] == [4, 4, 2]
    assert all(batch.levels.shape[1:] == (24, 24, 3) and batch.levels.dtype == np.uint8 for batch in batches)
    rows = np.linspace(0, split.rows - 1, 10).round().astype(int)
    assert np.array_equal(np.concatenate([batch.labels for batch in batches]), split.labels()[rows])
    assert sum(len(batch.labels) for batch in stored_faces(split, model_input, 10**6)) == split.rows


def test_int8_is_calibrated_on_training_faces_and_its_loss_is_said(
    weights: Path, shards: ShardSet, tmp_path: Path
) -> None:
    read: list[str] = []
    split = ShardSet.split
    with mock.patch.object(ShardSet, "split", lambda self, name: read.append(name) or split(self, name)):
        card = export(weights, tmp_path / "out", format="openvino", calibrate=shards, check=shards)
    assert set(read) == {"train", "validation"}
    assert card.precision == "int8"
    assert card.int8 is not None
    assert (card.int8.dataset, card.int8.data_digest) == ("toy", shards.digest)
    assert (card.int8.calibration_faces, card.int8.validation_faces) == (80, 40)
    assert card.parity.of == "validation faces of toy"
    assert set(card.latency_ms) >= {"torch", "openvino", "openvino int8"}
    text = "\n".join(report(card))
    assert "points on 40 faces" in text
    assert {path.name for path in tmp_path.joinpath("out").iterdir()} == {"model.xml", "model.bin", CARD_NAME}
    exported = ExportedModel(tmp_path / "out", threads=1)
    found = accuracies({"int8": exported.logits}, stored_faces(shards.split("validation"), exported.input, 40))
    assert found == ({"int8": card.int8.accuracy_int8}, 40)
    assert "int8" in (tmp_path / "out/model.xml").read_text() or "i8" in (tmp_path / "out/model.xml").read_text()


def test_a_process_hears_signals_after_an_int8_export(weights: Path, shards: ShardSet, tmp_path: Path) -> None:
    script = (
        "import gc, signal, sys\n"
        "from pathlib import Path\n"
        "from fer.export import build\n"
        "from fer.shards.read import ShardSet\n"
        "weights, out, shards = map(Path, sys.argv[1:])\n"
        "build.export(weights, out, format='openvino', calibrate=ShardSet.open(shards))\n"
        "gc.collect()\n"
        "signal.signal(signal.SIGINT, lambda *_: print('heard'))\n"
        "signal.raise_signal(signal.SIGINT)"
    )
    command = [sys.executable, "-c", script, weights, tmp_path / "out", shards.folder]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "heard\n"), done.stderr


# ------------------------------------------------------------------------------------------------ refusals


@contextmanager
def registered(name: str, operation: Any) -> Iterator[FerModel]:
    """A model of the registry that computes this of its images."""

    class Strange(FerModel):
        def __init__(self, num_classes: int = 7) -> None:
            super().__init__(num_classes, input_size=32)
            self.head = nn.Linear(32, num_classes)

        def forward(self, x: Tensor) -> Tensor:
            logits: Tensor = self.head(operation(x))
            return logits

    register(name)(Strange)
    try:
        yield create_model(name)
    finally:
        del registry._REGISTRY[name]


@pytest.mark.parametrize(
    ("format", "operation", "said"),
    [
        ("onnx", lambda x: torch.linalg.eigvalsh(x[:, 0] + x[:, 0].mT), "linalg_eig"),
        ("openvino", lambda x: torch.linalg.eigvalsh(x[:, 0] + x[:, 0].mT), "linalg_eig"),
        ("torch-export", lambda x: x.mean((1, 2)) if x.sum() > 0 else x.amax((1, 2)), "data-dependent"),
    ],
)
def test_an_operation_without_a_form_is_named(format: FormatName, operation: Any, said: str, tmp_path: Path) -> None:
    with registered("strange", operation) as model:
        weights = save(tmp_path / "m.safetensors", model)
        with pytest.raises(ValueError, match=f"(?s){format} cannot take strange.*{said}"):
            export(weights, tmp_path / "out", format=format)
    assert {path.name for path in tmp_path.iterdir()} == {"m.safetensors"}


def test_what_exists_is_never_overwritten(weights: Path, tmp_path: Path) -> None:
    folder, file, link = tmp_path / "folder", tmp_path / "file", tmp_path / "link"
    folder.mkdir()
    file.write_text("mine")
    link.symlink_to(tmp_path / "nowhere")
    for out in (folder, file, link):
        with pytest.raises(ValueError, match=f"{out}: exists already"):
            export(weights, out, format="onnx")
    assert (list(folder.iterdir()), file.read_text(), os.readlink(link)) == ([], "mine", str(tmp_path / "nowhere"))


@pytest.mark.parametrize("package", ["onnxscript", "onnxruntime", "openvino", "nncf"])
def test_a_missing_package_is_named_with_its_extra(
    package: str, weights: Path, shards: ShardSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = formats.find_spec
    monkeypatch.setattr(formats, "find_spec", lambda name: None if name == package else found(name))
    format: FormatName = "onnx" if package.startswith("onnx") else "openvino"
    with pytest.raises(ValueError, match=rf"{package}.*pip install .* '\.\[export\]'"):
        export(weights, tmp_path / "out", format=format, calibrate=shards if format == "openvino" else None)
    assert list(tmp_path.iterdir()) == []


def test_weights_that_cannot_be_used_are_refused_before_anything_is_written(tmp_path: Path, shards: ShardSet) -> None:
    model = build("ddamfn_nano")
    with torch.no_grad():
        next(model.parameters()).fill_(float("nan"))
    nan = save(tmp_path / "nan.safetensors", model)
    other = save(tmp_path / "other.safetensors", build("ddamfn_nano", 3), ("a", "b", "c"))
    backbone = save(tmp_path / "backbone.safetensors", build("mfn_nano", 0), ())
    text = tmp_path / "text.safetensors"
    text.write_text("weights")
    before = set(tmp_path.iterdir())
    for path, options, said in (
        (nan, {}, "NaN"),
        (tmp_path / "absent.safetensors", {}, "no such file"),
        (text, {}, "no safetensors file"),
        (backbone, {}, "without a classifier"),
        (other, {"calibrate": shards}, "trained on labels a, b, c"),
    ):
        with pytest.raises(ValueError, match=said):
            export(path, tmp_path / "out", format="openvino", **options)
    with pytest.raises(ValueError, match="int8 is for --format openvino"):
        export(nan, tmp_path / "out", format="onnx", calibrate=shards)
    assert set(tmp_path.iterdir()) == before


def test_a_killed_export_leaves_nothing_that_looks_finished(weights: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    script = (
        "import os, signal, sys\n"
        "from pathlib import Path\n"
        "from fer.export import build\n"
        "build.write_json = lambda *a, **k: os.kill(os.getpid(), signal.SIGKILL)\n"
        "build.export(Path(sys.argv[1]), Path(sys.argv[2]), format='torch-export')"
    )
    done = subprocess.run([sys.executable, "-c", script, weights, out], capture_output=True, text=True, check=False)
    assert done.returncode == -9, done.stderr
    (left,) = tmp_path.iterdir()
    assert left.name.startswith(".out.tmp-")
    for folder in (left, out):
        with pytest.raises(FileError, match="no finished export"):
            ExportedModel(folder)
    export(weights, out, format="torch-export")
    assert list(tmp_path.iterdir()) == [out]


def test_an_export_that_was_altered_is_refused(exported: Callable[..., Path], tmp_path: Path) -> None:
    out = shutil.copytree(exported("torch-export", False), tmp_path / "out")
    graph, card = out / "model.pt2", out / CARD_NAME
    kept = graph.read_bytes(), card.read_text()
    graph.write_bytes(kept[0][:-1])
    with pytest.raises(FileError, match=r"model\.pt2"):
        ExportedModel(out)
    graph.unlink()
    with pytest.raises(FileError, match=r"model\.pt2"):
        ExportedModel(out)
    graph.write_bytes(kept[0])
    card.write_text(kept[1].replace("neutral", "neutrall"))
    with pytest.raises(FileError, match="altered"):
        ExportedModel(out)
    values = json.loads(kept[1])
    del values["sha256_of_the_rest"], values["parity"]
    card.write_text(json.dumps(values))
    with pytest.raises(ValueError, match="parity"):
        ExportedModel(out)


# ------------------------------------------------------------------------------------------------ command


def test_the_command_prints_parity_and_latency(
    weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["export", str(weights.parent), "--format", "torch-export", "--out", str(tmp_path / "out")]
    with pytest.raises(SystemExit) as ended:
        cli.main([*words, "--threads", "1"])
    assert ended.value.code == 0
    printed = capsys.readouterr().out
    assert "labels agree on 6 of 6" in printed
    assert f"{tmp_path / 'out'}: written" in printed


@pytest.mark.parametrize(
    "words", [["--int8"], ["--calibrate", "toy"], ["--threads", "0"], ["--check", "absent"], ["--format", "onxn"]]
)
def test_options_that_make_no_sense_are_refused(words: list[str], weights: Path, tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["export", str(weights), "--format", "openvino", "--out", str(tmp_path / "out"), *words])
    assert ended.value.code in (1, 2)
    assert list(tmp_path.iterdir()) == []
