"""Published weights as files of this project, whatever order of channels they were trained on."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path

import pytest
import torch

from fer.labels import DATASET_LABELS
from fer.models import create_model
from fer.shards.read import normalize
from fer.weights import imports, registry
from fer.weights.store import load_model


def test_weights_that_were_trained_on_bgr_give_the_same_logits_for_rgb(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, out = tmp_path / "rafdb_best.pth", tmp_path / "ours.safetensors"
    file.write_bytes(b"published")
    torch.manual_seed(0)
    published = create_model("poster_v1_nano", 7).eval()
    monkeypatch.setattr(imports, "find_weights", lambda _: (file, registry.entry("poster_v1_rafdb")))
    monkeypatch.setattr(imports, "load_published", lambda *_: deepcopy(published))
    imports.import_weights("poster_v1_rafdb", out, model="poster_v1_nano", ask="")
    ours, _ = load_model(out)
    side = published.input_size
    images_BHWC = torch.randint(0, 256, (2, side, side, 3), dtype=torch.uint8)
    with torch.inference_mode():
        expected = published(normalize(images_BHWC.flip(-1), published.mean, published.std))
        found = ours(normalize(images_BHWC, ours.mean, ours.std))
        as_rgb = published(normalize(images_BHWC, published.mean, published.std))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(as_rgb, expected, rtol=1e-4, atol=1e-5)


def test_a_checkpoint_that_is_a_folder_is_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    monkeypatch.setattr(imports, "load_published", lambda *_: create_model("ddamfn_nano", 7))
    labels = DATASET_LABELS["rafdb"]
    info = imports.import_weights(
        str(folder), tmp_path / "ours.safetensors", model="ddamfn_nano", labels=labels, ask=""
    )
    assert info.labels == labels
    assert info.extra["file"] == "checkpoint"
