"""A whole checkpoint as a start: every tensor finds its place, the classifier only where it is that of the data."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from builders.conformance import load, published_state
from builders.runs import elsewhere, make_job
from builders.shards import LABELS

from fer.config import ConfigError
from fer.io.files import FileError
from fer.models import FerModel, create_model
from fer.params import Params
from fer.stages.closure import Code
from fer.stages.plan import plan
from fer.training.job import fingerprint
from fer.training.loop import build_model, not_loaded, train
from fer.training.recipe import Recipe
from fer.weights.parts import WHOLE, PartSource, load_sources, locate
from fer.weights.store import save_model

OTHER_ORDER = LABELS[::-1]


def saved(path: Path, name: str = "toy", labels: tuple[str, ...] = LABELS, space: str = "basic7") -> FerModel:
    torch.manual_seed(1)
    model = create_model(name, len(labels))
    path.parent.mkdir(parents=True, exist_ok=True)
    save_model(model, path, labels, space, name=name)
    return model


def started(path: Path, name: str = "toy", labels: tuple[str, ...] = LABELS) -> tuple[FerModel, list[str]]:
    """A model that started from the file, and what is left random of it."""
    torch.manual_seed(2)
    model = create_model(name, len(labels))
    return model, load_sources(model, locate({WHOLE: str(path)}, path.parent), labels)


def test_the_same_classes_take_over_everything(tmp_path: Path) -> None:
    given = saved(tmp_path / "a.safetensors").state_dict()
    model, random = started(tmp_path / "a.safetensors")
    assert random == []
    assert all(torch.equal(tensor, given[key]) for key, tensor in model.state_dict().items())


def test_the_classifier_is_put_into_the_order_of_the_data(tmp_path: Path) -> None:
    given = saved(tmp_path / "a.safetensors", labels=OTHER_ORDER)
    model, random = started(tmp_path / "a.safetensors")
    assert random == []
    x = torch.randn(2, 3, 16, 16)
    assert torch.allclose(model.eval()(x), given.eval()(x)[:, [OTHER_ORDER.index(label) for label in LABELS]])


@pytest.mark.parametrize("classes", [8, "people"])
def test_a_classifier_of_others_stays_random(classes: int | str, tmp_path: Path) -> None:
    from fer.labels import SPACES, identities

    if classes == "people":
        space = identities([f"person {number}" for number in range(7)])
        saved(tmp_path / "a.safetensors", labels=space.labels, space=space.name)
    else:
        saved(tmp_path / "a.safetensors", labels=SPACES["basic8"].labels, space="basic8")
    model, random = started(tmp_path / "a.safetensors")
    assert random == ["fc.weight", "fc.bias"]
    torch.manual_seed(2)
    assert torch.equal(model.fc.weight, create_model("toy").fc.weight)


def test_authors_classes_in_an_unknown_order_stay_random(tmp_path: Path) -> None:
    state = {key: torch.from_numpy(value) for key, value in published_state(load("ddamfn_7cls")).items()}
    torch.save({"model_state_dict": state}, tmp_path / "rafdb.pth")
    _, random = started(tmp_path / "rafdb.pth", "ddamfn")
    assert random == ["fc.weight", "fc.bias"]
    [source] = locate({WHOLE: "rafdb.pth"}, tmp_path)
    model = create_model("ddamfn")
    order = ("anger", *(label for label in LABELS if label != "anger"))
    assert load_sources(model, [replace(source, model="ddamfn", labels=order)], LABELS) == []
    assert torch.equal(model.fc.weight, state["fc.weight"][[order.index(label) for label in LABELS]])


def test_a_transformer_for_expressions_starts_from_biformers_file(tmp_path: Path) -> None:
    state = {key: torch.from_numpy(array) for key, array in published_state(load("biformer_tiny_224_default")).items()}
    state |= {"head.weight": torch.zeros(1000, 512), "head.bias": torch.zeros(1000)}
    torch.save({"model": state, "epoch": 299}, tmp_path / "biformer_tiny_in1k.pth")
    model, random = started(tmp_path / "biformer_tiny_in1k.pth", "dynamic_vit_tiny")
    assert random == ["head.weight", "head.bias"]
    assert torch.equal(model.stem[0].conv.weight, state["downsample_layers.0.0.weight"])
    assert torch.equal(model.stages[3][1].mlp.fc2.bias, state["stages.3.1.mlp.3.bias"])


def test_the_register_tells_model_and_label_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FER_CACHE", str(tmp_path))
    folder = tmp_path / "weights" / "ddamfn_rafdb"
    folder.mkdir(parents=True)
    (folder / "rafdb_epoch20_acc0.9204_bacc0.8617.pth").write_bytes(b"x")
    [source] = locate({WHOLE: "ddamfn_rafdb"}, tmp_path)
    assert (source.model, source.labels[:2]) == ("ddamfn", ("neutral", "happiness"))


def test_what_only_the_model_has_stays_random_and_what_only_the_file_has_is_refused(tmp_path: Path) -> None:
    saved(tmp_path / "host.safetensors", "lhc_net_nano")
    torch.manual_seed(2)
    host = create_model("lhc_net_nano", blocks=[False] * 5)
    with pytest.raises(ValueError, match=r"host\.safetensors: .*lhc_net_nano can start from(?s:.*)unexpected: lhc\.0"):
        load_sources(host, locate({WHOLE: "host.safetensors"}, tmp_path), LABELS)
    torch.manual_seed(1)
    save_model(host, tmp_path / "b.safetensors", LABELS, "basic7", name="lhc_net_nano", options={"blocks": [False] * 5})
    _, random = started(tmp_path / "b.safetensors", "lhc_net_nano")
    assert {key.split(".")[0] for key in random} == {"lhc"}


def test_another_model_or_size_is_refused_by_tensor(tmp_path: Path) -> None:
    saved(tmp_path / "a.safetensors", "ddamfn_nano")
    with pytest.raises(ValueError, match=r"a\.safetensors: not weights that toy can start from(?s:.*)unexpected: "):
        started(tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match=r"features\.\S+: shape \(.*\), ddamfn_small has"):
        started(tmp_path / "a.safetensors", "ddamfn_small")


def test_parts_have_the_last_word(tmp_path: Path) -> None:
    saved(tmp_path / "whole.safetensors", "ddamfn_nano")
    torch.manual_seed(5)
    part = create_model("ddamfn_nano")
    save_model(part, tmp_path / "part.safetensors", LABELS, "basic7", name="ddamfn_nano")
    model = create_model("ddamfn_nano")
    sources = locate({"features": "part.safetensors", WHOLE: "whole.safetensors"}, tmp_path)
    assert load_sources(model, sources, LABELS) == []
    for key, tensor in part.state_dict().items():
        if tensor.ndim > 1:
            assert torch.equal(model.state_dict()[key], tensor) == key.startswith("features."), key


def test_a_missing_file_is_refused_by_key_and_value(tmp_path: Path) -> None:
    with pytest.raises(FileError, match=r"start_from = 'absent\.pth': neither a file .* nor a name in `fer weights"):
        locate({WHOLE: "absent.pth"}, tmp_path)


def test_weights_of_bgr_images_are_imported_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FER_CACHE", str(tmp_path))
    folder = tmp_path / "weights" / "poster_v1_rafdb"
    folder.mkdir(parents=True)
    (folder / "rafdb_best.pth").write_bytes(b"x")
    with pytest.raises(FileError, match=r"start_from = 'poster_v1_rafdb': .*`fer weights import poster_v1_rafdb"):
        locate({WHOLE: "poster_v1_rafdb"}, tmp_path)


def test_weights_of_other_pixels_are_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    torch.manual_seed(1)
    model = create_model("toy")
    model.mean, model.std = model.mean[::-1], model.std[::-1]
    save_model(model, tmp_path / "a.safetensors", LABELS, "basic7", name="toy")
    started(tmp_path / "a.safetensors")
    assert f"expects pixels normalized by mean {model.mean}" in caplog.text


# ------------------------------------------------------------------------------------------------ in a run


def test_only_the_first_stage_starts_from_it(tmp_path: Path) -> None:
    given = saved(tmp_path / "a.safetensors").state_dict()
    job = make_job(tmp_path, start_from="a.safetensors", stages=[{}, {"optimizer": "sgd"}])
    job = replace(job, pretrained=locate(job.recipe.sources, tmp_path))
    assert not_loaded(job) == []
    assert torch.equal(build_model(job, 0).fc.weight, given["fc.weight"])
    assert not torch.equal(build_model(job, 1).fc.weight, given["fc.weight"])
    with pytest.raises(ValueError, match=r"stages\[1\]: start_from holds for all stages alike"):
        make_job(tmp_path, stages=[{"start_from": "a.safetensors"}])


def test_a_run_that_is_continued_starts_where_the_first_ended(tmp_path: Path) -> None:
    first = train(make_job(tmp_path, epochs=2))
    model = create_model("toy")
    save_model(model, tmp_path / "a.safetensors", LABELS, "basic7", name="toy", weights=first.best_model)
    job = make_job(tmp_path, epochs=1, start_from="a.safetensors", learning_rate=1e-9, augment=[], weight_decay=0.0)
    job = elsewhere(replace(job, pretrained=locate(job.recipe.sources, tmp_path)), tmp_path / "second")
    [row] = train(job).history
    best = first.history[first.best_epoch - 1]
    assert row["train_loss"] < first.history[0]["train_loss"]
    assert torch.allclose(train(job).model["fc.weight"], first.best_model["fc.weight"], atol=1e-6)
    assert best["val_accuracy"] > 0


def test_identity_is_the_content_the_model_and_the_label_order() -> None:
    base = PartSource("", "a", "digest", "ddamfn", LABELS)
    recipe = Recipe(model="ddamfn_nano", epochs=1, batch_size=8, learning_rate=0.1, start_from="a")
    others = [replace(base, digest="b"), replace(base, model="mfn"), replace(base, labels=OTHER_ORDER)]
    prints = {fingerprint("data", recipe, 0, "code", [source]) for source in (base, *others)}
    assert len(prints) == 4
    assert fingerprint("data", recipe, 0, "code", [replace(base, path="there")]) in prints


def project(root: Path, **entry: object) -> Params:
    from builders.projects import TOY, make_project

    from fer.params import load as load_params

    return load_params(make_project(root, epochs=1, recipe={**TOY, **entry}) / "params.yaml")


def planned(params: Params) -> dict[str, object]:
    return dict(plan(params, [("train", "tiny", "toy")], Code()))["train", "tiny", "toy"]


def test_the_plan_changes_with_the_file(tmp_path: Path) -> None:
    params = project(tmp_path, start_from="a.safetensors")
    assert planned(params)["pretrained"] is None
    saved(tmp_path / "a.safetensors")
    first = planned(params)
    assert planned(params) == first
    saved(tmp_path / "a.safetensors", labels=OTHER_ORDER)
    assert planned(params)["pretrained"] != first["pretrained"]


def test_a_run_cannot_start_from_its_own_result(tmp_path: Path) -> None:
    params = project(tmp_path, start_from="trained/tiny/toy/model.safetensors")
    with pytest.raises(ConfigError, match=r"start_from = 'trained/tiny/toy/model\.safetensors': the run would replace"):
        planned(params)


def test_the_code_that_reads_the_start_counts() -> None:
    recipe = Recipe(model="dynamic_vit_base", epochs=1, batch_size=8, learning_rate=0.1)
    plain = set(Code().closure("train", recipes=[recipe]))
    reads = {"fer/weights/published.py", "fer/weights/keras.py", "fer/weights/layouts/backbones.py"}
    assert not reads & plain
    assert reads <= set(Code().closure("train", recipes=[recipe.model_copy(update={"start_from": "biformer_base"})]))
    lhc = recipe.model_copy(update={"model": "lhc_net", "start_from": "resnet34v2_imagenet"})
    found = set(Code().closure("train", recipes=[lhc]))
    assert {"fer/weights/layouts/lhc.py", "fer/models/resnet34v2.py"} <= found
    assert "fer/weights/layouts/backbones.py" not in found
