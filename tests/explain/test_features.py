"""Features are what the classifier reads; distances are exact over all pairs; equal seeds project to equal bits."""

import numpy as np
import pytest
import torch
from builders.shards import write_split
from sklearn.metrics.pairwise import cosine_distances

from fer.explain.features import distances, draw, embed, embed_split, projections, unit
from fer.models import create_model

NANO = ("btn_nano", "ddamfn_nano", "dynamic_vit_nano", "ir_nano", "lhc_net_nano", "mfn_nano", "mobilefacenet_nano",
        "poster_v1_nano", "poster_v2_nano")  # fmt: skip
LABELS = np.array([0] * 20 + [1] * 10 + [2] + [3] * 9)


@pytest.fixture(scope="module")
def features() -> np.ndarray:
    """40 faces of length 1; class 4 has none, class 2 one."""
    random = np.random.default_rng(0)
    return unit(random.normal(size=(5, 16))[LABELS] + random.normal(size=(40, 16)))


@pytest.mark.parametrize("name", NANO)
def test_features_are_what_the_last_linear_layer_of_each_model_turns_into_logits(name: str) -> None:
    torch.manual_seed(0)
    model = create_model(name, 7).eval()
    images = torch.rand(2, 3, model.input_size, model.input_size)
    found = embed(model, images)
    with torch.inference_mode():
        logits = model(images)
        made = [m(found) for m in model.modules() if isinstance(m, torch.nn.Linear) and m.out_features == 7
                and m.in_features == found.shape[1]]  # fmt: skip
    assert any(torch.allclose(one, logits, atol=1e-5) for one in made)


def test_a_model_without_such_a_layer_is_named() -> None:
    model = create_model("mfn_arcface_nano", 7).eval()
    with pytest.raises(ValueError, match="mfn_arcface_nano"):
        embed(model, torch.rand(2, 3, model.input_size, model.input_size))


def test_a_split_is_embedded_in_its_order_in_any_batches(tmp_path) -> None:  # type: ignore[no-untyped-def]
    split = write_split(tmp_path, rows=30)
    torch.manual_seed(0)
    model = create_model("ddamfn_nano", 7).eval()
    one, other = (embed_split(model, split, batch_size=size) for size in (7, 30))
    assert one.shape[0] == 30
    np.testing.assert_allclose(np.linalg.norm(one, axis=1), 1)
    np.testing.assert_allclose(one, other, atol=1e-6)


def test_distances_are_the_means_over_all_pairs(features: np.ndarray) -> None:
    found = distances(features, LABELS, 5)
    every = cosine_distances(features)
    members = [np.flatnonzero(k == LABELS) for k in range(4)]
    for a in range(4):
        for b in range(4):
            pairs = every[np.ix_(members[a], members[b])]
            if a == b:
                pairs = pairs[~np.eye(len(pairs), dtype=bool)]
            expected = pairs.mean() if pairs.size else np.nan
            np.testing.assert_allclose(found.between[a, b], expected, atol=1e-12)
    assert np.isnan(found.between[4]).all(), "a class without faces"
    assert found.to_dict()["between"][4] == [None] * 5, "JSON has no NaN"
    assert found.intra == pytest.approx(np.mean([found.between[k, k] for k in (0, 1, 3)]))
    assert found.inter == pytest.approx(np.mean([found.between[a, b] for a in range(4) for b in range(4) if a != b]))
    assert found.ratio < 1, "the classes have centers of their own"


def test_faces_without_classes_have_a_ratio_of_one() -> None:
    random = np.random.default_rng(1)
    noise = unit(random.normal(size=(4000, 8)))
    assert distances(noise, random.integers(0, 7, 4000), 7).ratio == pytest.approx(1, abs=0.01)


def test_equal_seeds_project_to_equal_bits(features: np.ndarray) -> None:
    one, other = (projections(features, seed=3) for _ in range(2))
    for name in ("t-SNE", "PCA"):
        assert one[name].shape == (40, 2)
        np.testing.assert_array_equal(one[name], other[name])


def test_each_panel_of_the_figure_shows_every_face_and_the_distances_of_its_model(features: np.ndarray) -> None:
    found, places = distances(features, LABELS, 5), {"PCA": features[:, :2], "t-SNE": features[:, 2:4]}
    figure = draw({"one": places, "other": places}, {"one": found, "other": found}, LABELS, list("abcde"), "test")
    assert len(figure.axes) == 4
    for panel in figure.axes:
        assert sum(len(points.get_offsets()) for points in panel.collections) == len(LABELS)
    assert [axes.get_title("left").splitlines()[0] for axes in figure.axes[:2]] == ["one", "other"]
    assert f"{found.intra:.3f}" in figure.axes[0].get_title("left")
