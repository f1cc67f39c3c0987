"""The promises of the synthetic dataset."""

import argparse
import errno
import hashlib
import json
import os
import subprocess
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import cv2
import numpy as np
import pytest

from fer.commands import synth as command
from fer.config import ConfigError
from fer.synth import (
    ACTION_UNITS,
    EXPRESSIONS,
    GENERATOR_VERSION,
    Face,
    Layout,
    Scene,
    SceneConfig,
    contact_sheet,
    describe,
    encode,
    render,
)
from fer.synth.align import ARCFACE_112, aligned_crop
from fer.synth.expressions import AU_FREQUENCIES, NATURAL_COUNTS, noisy_label, sample_expression, sample_label
from fer.synth.identity import identity
from fer.synth.streams import Stream

GOLDEN = Path(__file__).parents[1] / "assets" / "synth_golden.json"


def quiet(**options: Any) -> SceneConfig:
    """One face a scene, which shows its expression and nothing else."""
    nothing = dict.fromkeys(("coarticulation", "talking_probability", "multi_face_probability", "asymmetry"), 0.0)
    return SceneConfig(**{"num_classes": 8, "no_face_probability": 0.0, **nothing, **options})


def faces(config: SceneConfig, scenes: int, seed: int = 0) -> list[Face]:
    return [face for index in range(scenes) for face in describe(seed, index, config).faces]


def fingerprint(layouts: list[Layout]) -> str:
    """Hash of labels and of geometry to 1/64 px."""
    facts = [
        (layout.index, layout.split, face.subject, face.label, face.clean_label, face.occluders, face.landmark_visible,
         [round(au, 3) for au in face.aus], [round(64 * v) for v in (*face.box, *np.ravel(face.landmarks))])
        for layout in layouts for face in layout.faces
    ]  # fmt: skip
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def image_hash(scene: Scene) -> str:
    return hashlib.sha256(scene.image.tobytes() + encode(scene)).hexdigest()


def test_a_scene_is_the_same_in_any_order_thread_and_process():
    here = [image_hash(render(3, index)) for index in range(8)]
    assert [image_hash(render(3, index)) for index in reversed(range(8))] == here[::-1]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda index: image_hash(render(3, index)), range(8))) == here
    code = (
        "import hashlib, fer.synth as s\n"
        "for i in reversed(range(8)):\n"
        "    x = s.render(3, i); print(hashlib.sha256(x.image.tobytes() + s.encode(x)).hexdigest())"
    )
    there = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert there[::-1] == here
    assert len({image_hash(render(seed, index)) for seed in range(3) for index in range(3)}) == 9


def test_import_does_not_change_cv2_or_numpy_and_does_not_import_torch():
    code = (
        "import sys, cv2, numpy as np\n"
        "before = cv2.getNumThreads(), np.random.get_state()[2]\n"
        "import fer.synth\n"
        "assert (cv2.getNumThreads(), np.random.get_state()[2]) == before\n"
        "assert not {'torch', 'sklearn', 'matplotlib'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_labels_and_geometry_are_pinned_to_the_generator_version():
    golden = json.loads(GOLDEN.read_text())
    assert golden["version"] == GENERATOR_VERSION
    for name, options in golden["configs"].items():
        config = SceneConfig(**options)
        got = fingerprint([describe(seed, index, config) for seed in (0, 7) for index in range(40)])
        assert got == golden["geometry"][name], f"{name}: raise GENERATOR_VERSION when scenes are meant to change"


def test_pixels_are_pinned_to_the_generator_version_within_a_gray_level():
    """A tolerance, as the polygons and the blur are cv2's and may round otherwise in another build."""
    golden = json.loads(GOLDEN.read_text())["pixels"]
    for index, (mean, deviation) in enumerate(golden):
        image = render(0, index).image
        assert image.mean() == pytest.approx(mean, abs=1.0)
        assert image.std() == pytest.approx(deviation, abs=1.0)


def test_describe_gives_the_faces_that_render_paints():
    for index in range(20):
        scene, layout = render(1, index), describe(1, index)
        assert (scene.faces, scene.split, scene.index) == (layout.faces, layout.split, layout.index)
        assert scene.image.shape == (160, 160, 3)
        assert scene.image.dtype == np.uint8


def test_test_scenes_are_a_fifth_and_show_unseen_identities():
    layouts = [describe(0, index, SceneConfig(train_subjects=12, test_subjects=5)) for index in range(600)]
    assert np.mean([layout.split == "test" for layout in layouts]) == pytest.approx(0.2, abs=0.06)
    subjects = {
        split: {face.subject for layout in layouts if layout.split == split for face in layout.faces}
        for split in ("train", "test")
    }
    assert not subjects["train"] & subjects["test"]
    assert (len(subjects["train"]), len(subjects["test"])) == (12, 5)
    assert replace(identity(0, "train", 1), subject="") != replace(identity(0, "test", 1), subject="")


@pytest.mark.parametrize("name", EXPRESSIONS)
def test_action_units_have_their_published_frequencies(name: str):
    label, trials = EXPRESSIONS.index(name), 1500
    vectors = [sample_expression(Stream(0, trial, name), label, quiet()).aus for trial in range(trials)]
    expected = np.array([AU_FREQUENCIES[name].get(unit, 0.0) for unit in ACTION_UNITS])
    error = np.sqrt(expected * (1 - expected) / trials)
    assert (np.abs((np.array(vectors) > 0).mean(axis=0) - expected) <= 4 * error).all()
    assert set(np.unique(vectors)) <= {0.0, 0.2, 0.4, 0.6, 0.8, 1.0}


def test_a_face_shows_the_action_units_of_its_expression():
    for face in faces(quiet(), 60):
        shown = {unit for unit, au in zip(ACTION_UNITS, face.aus, strict=True) if au > 0}
        table = AU_FREQUENCIES[EXPRESSIONS[face.clean_label]]
        assert {unit for unit, share in table.items() if share == 1.0} <= shown <= set(table)


@pytest.mark.parametrize("weights", ["balanced", "natural"])
def test_classes_are_balanced_or_as_imbalanced_as_a_real_dataset(weights: str):
    config = quiet(class_weights=weights)
    labels = [sample_label(Stream(0, trial), config) for trial in range(4000)]
    expected = np.full(8, 1 / 8) if weights == "balanced" else np.array(NATURAL_COUNTS) / sum(NATURAL_COUNTS)
    assert np.bincount(labels, minlength=8) / 4000 == pytest.approx(expected, abs=0.03)


def test_seven_classes_have_no_contempt():
    assert {face.label for face in faces(SceneConfig(), 100)} == set(range(7))


def test_strength_scales_every_action_unit():
    for weak, full in zip(faces(quiet(strength=0.5), 30), faces(quiet(), 30), strict=True):
        assert np.array(weak.aus) == pytest.approx(0.5 * np.array(full.aus), abs=1e-3)


def test_the_box_holds_the_landmarks():
    for face in faces(SceneConfig(), 150, seed=2):
        left, top, right, bottom = face.box
        assert (np.array(face.landmarks) >= (left, top)).all()
        assert (np.array(face.landmarks) <= (right, bottom)).all()
        assert min(right - left, bottom - top) > 10


def test_landmarks_are_the_persons_right_side_first_and_geometry_is_on_the_grid():
    for face in faces(quiet(yaw_range=0.0, pitch_range=0.0, roll_range=0.0), 50):
        right_eye, left_eye, nose, right_mouth, left_mouth = face.landmarks
        assert right_eye[0] < nose[0] < left_eye[0]
        assert right_mouth[0] < left_mouth[0]
        assert max(right_eye[1], left_eye[1]) < nose[1] < min(right_mouth[1], left_mouth[1])
        assert all(float(1024 * value).is_integer() for value in (*face.box, *np.ravel(face.landmarks)))


def test_the_signs_of_the_pose_are_as_documented():
    shown = faces(quiet(), 150)
    eyes = np.array([face.landmarks[:2] for face in shown])
    pose = np.array([face.pose for face in shown])
    tilt = np.degrees(np.arctan2(*(eyes[:, 1] - eyes[:, 0]).T[::-1]))
    assert np.corrcoef(tilt, pose[:, 2])[0, 1] > 0.9
    upright = np.abs(pose[:, 2]) < 6
    nose = np.array([face.landmarks[2] for face in shown]) - eyes.mean(axis=1)
    assert np.corrcoef(nose[upright, 0], pose[upright, 0])[0, 1] > 0.8


def test_an_aligned_crop_puts_the_landmarks_where_the_template_has_them():
    scene = render(0, 1, quiet(yaw_range=0.0, pitch_range=0.0))
    face = scene.faces[0]
    for number, (x, y) in enumerate(face.landmarks):
        dot = np.zeros_like(scene.image)
        cv2.circle(dot, (round(x - 0.5), round(y - 0.5)), 2, (255, 255, 255), -1)
        crop = aligned_crop(dot, np.array(face.landmarks))[..., 0].astype(float)
        rows, columns = np.mgrid[:112, :112] + 0.5
        found = np.array([(columns * crop).sum(), (rows * crop).sum()]) / crop.sum()
        assert np.abs(found - ARCFACE_112[number]).max() < 9, "proportions differ between people, not more than this"


def test_every_occluder_occurs_and_hides_its_landmarks():
    hidden: dict[str, list[tuple[bool, ...]]] = {}
    for face in faces(quiet(occlusion_probability=1.0, yaw_range=0.0, pitch_range=0.0), 100):
        hidden.setdefault(face.occluders[0], []).append(face.landmark_visible)
    assert set(hidden) == {"sunglasses", "mask", "hand", "border"}
    assert all(visible[:2] == (False, False) for visible in hidden["sunglasses"])
    assert all(visible[3:] == (False, False) for visible in hidden["mask"])
    assert not np.all(hidden["border"])
    assert not np.all(hidden["hand"])


def test_several_faces_and_no_face_have_their_probabilities():
    config = SceneConfig(multi_face_probability=0.3, no_face_probability=0.2)
    counts = Counter(len(describe(0, index, config).faces) for index in range(400))
    assert set(counts) == {0, 1, 2, 3}
    assert counts[0] / 400 == pytest.approx(0.2, abs=0.08)
    assert (counts[2] + counts[3]) / 400 == pytest.approx(0.3, abs=0.08)


@pytest.mark.parametrize("kind", ["symmetric", "confusion"])
@pytest.mark.parametrize("classes", [7, 8])
def test_label_noise_has_its_rate_in_train_alone_and_keeps_the_clean_label(kind: str, classes: int):
    config = quiet(num_classes=classes, label_noise=0.3, label_noise_kind=kind)
    clean = config.model_copy(update={"label_noise": 0.0})
    for index in range(60):
        noisy, truth = describe(0, index, config), describe(0, index, clean)
        assert [face.clean_label for face in noisy.faces] == [face.label for face in truth.faces]
        if noisy.split == "test":
            assert noisy == truth
    for label in range(classes):
        written = [noisy_label(Stream(0, trial), label, config) for trial in range(1000)]
        assert np.mean(np.array(written) != label) == pytest.approx(0.3, abs=0.06)
        assert len(set(written)) == (classes if kind == "symmetric" else 2)
        assert set(written) <= set(range(classes))


def test_stored_scenes_decode_and_gray_ones_have_one_channel():
    config = SceneConfig(grey_probability=0.5)
    for index in range(20):
        scene = render(0, index, config)
        data = np.frombuffer(encode(scene), np.uint8)
        stored = cv2.imdecode(data, cv2.IMREAD_UNCHANGED)
        assert stored.ndim == (2 if scene.gray else 3)
        decoded = cv2.cvtColor(cv2.imdecode(data, cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)
        assert np.abs(decoded.astype(float) - scene.image).mean() < 12
        assert 70 <= scene.quality <= 95


def test_broken_files_are_opt_in_and_do_not_decode():
    assert not any(render(0, index).broken for index in range(20))
    scenes = [render(0, index, SceneConfig(broken_fraction=0.5)) for index in range(40)]
    assert 8 < sum(scene.broken for scene in scenes) < 32
    for scene in scenes:
        data = np.frombuffer(encode(scene), np.uint8)
        assert (len(data) == 0 or cv2.imdecode(data, cv2.IMREAD_COLOR) is None) == scene.broken


def test_a_studio_scene_is_plainer_than_a_wild_one():
    wild, studio = faces(SceneConfig(), 100), faces(SceneConfig(domain="studio"), 100)
    assert np.mean([abs(face.pose[0]) for face in studio]) < 0.5 * np.mean([abs(face.pose[0]) for face in wild])
    assert not any(face.occluders for face in studio)


def test_tiny_and_large_scenes_render():
    small = render(0, 0, SceneConfig(scene_size=32, face_size=(10.0, 12.0)))
    large = render(0, 0, SceneConfig(scene_size=640, face_size=(300.0, 300.0)))
    assert (small.image.shape, large.image.shape) == ((32, 32, 3), (640, 640, 3))


def parsed(*args: object) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    return parser.parse_args([str(arg) for arg in args])


def test_a_contact_sheet_has_a_cell_a_face():
    assert contact_sheet(0, SceneConfig(), 2, 3, labelled=False).shape == (256, 384, 3)
    assert contact_sheet(0, SceneConfig(), 7, 2, labelled=True).shape[1] == 256


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("num_classes", 6), ("class_weights", "even"), ("domain", "lab"), ("scene_size", 16), ("scene_size", 160.0),
        ("face_size", (5.0, 60.0)), ("face_size", (90.0, 60.0)), ("face_size", [60.0, 90.0]), ("train_subjects", 0),
        ("test_fraction", 1.5), ("strength", 0.0), ("yaw_range", -1.0), ("label_noise", 1.1),
        ("label_noise_kind", "pairs"), ("broken_fraction", -0.1), ("no_face_probability", 0.99),
        ("light_contrast", float("nan")), ("distractors", True),
    ],
)  # fmt: skip
def test_wrong_scene_option_is_refused_by_name(field: str, value: object):
    with pytest.raises(ValueError, match=rf"SceneConfig\n.*{field}"):
        SceneConfig(**{field: value})


def test_wrong_option_of_the_command_is_refused_in_one_line():
    args = parsed("sheet", "x.png", "--strength", "9")
    with pytest.raises(ConfigError, match=r"^fer synth: strength = 9\.0: [^\n]*$"):
        command.main(args)


def test_a_sheet_that_cannot_be_written_names_the_file_and_leaves_the_old_one(tmp_path, monkeypatch):
    out, key = tmp_path / "sheet.png", tmp_path / "key.csv"
    args = parsed("sheet", out, "--rows", "1", "--columns", "2", "--cell", "32", "--unlabelled", "--key", key)
    command.main(args)
    assert cv2.imread(str(out)).shape == (32, 64, 3)
    number, expression, subject, *_ = key.read_text().splitlines()[1].split(",")
    first = faces(SceneConfig(), 1)[0]
    assert (number, expression, subject) == ("0", EXPRESSIONS[first.clean_label], first.subject)
    before = out.read_bytes()
    monkeypatch.setattr(os, "fsync", mock.Mock(side_effect=OSError(errno.ENOSPC, "full")))
    with pytest.raises(OSError, match=r"sheet\.png"):
        command.main(args)
    assert out.read_bytes() == before
    assert sorted(tmp_path.iterdir()) == [key, out]
