"""The fast forms give the images of albumentations for the same draws, and draw from its distributions."""

import random
from collections.abc import Iterator
from typing import Any

import albumentations
import cv2
import numpy as np
import pytest

from fer.transforms.draws import philox, sample_keys, uniforms
from fer.transforms.forms import FORMS
from fer.transforms.pipeline import _Leaf, _Sequential
from fer.transforms.reference import Augmenter, AugmentSpec

SIZE = 40
KEYS = sample_keys(3, 1, np.arange(48), np.zeros(48, np.int64))


def spec(name: str, **options: Any) -> AugmentSpec:
    inner = tuple(options.pop("transforms", ()))
    return AugmentSpec(name=name, p=options.pop("p", None), options=options, transforms=inner)


def smooth_image(size: int = SIZE, seed: int = 0) -> np.ndarray:
    """Smooth shades with some noise, so that neither interpolation nor rounding can hide."""
    draws = np.random.default_rng(seed)
    coarse = draws.integers(0, 256, (6, 6, 3), dtype=np.uint8)
    smooth = cv2.resize(coarse, (size, size), interpolation=cv2.INTER_CUBIC).astype(int)
    return np.clip(smooth + draws.integers(-9, 10, smooth.shape), 0, 255).astype(np.uint8)


class Scripted:
    """Stands for Python's and numpy's generators in albumentations: gives out numbers that were drawn before."""

    def __init__(self, numbers: np.ndarray) -> None:
        self._numbers: Iterator[float] = iter(numbers.tolist())

    def random(self) -> float:
        return next(self._numbers)

    def uniform(self, low: float, high: float) -> float:
        return low + (high - low) * self.random()

    def randint(self, low: int, high: int) -> int:
        return low + int(self.random() * (high - low + 1))

    def integers(self, low: int, high: int) -> int:
        return low if high > 2**31 else low + int(self.random() * (high - low))  # seeds of a fill are not drawn


def script(node: Any, reference: Any, numbers: np.ndarray) -> None:
    """Gives an object of albumentations, and those inside it, the numbers that its fast form is given."""
    skip = 1 if isinstance(node, _Leaf) and not 0 < reference.p < 1 else 0  # no number is drawn for p = 1
    reference.random_generator = reference.py_random = Scripted(numbers[node.place + skip :])
    if isinstance(node, _Sequential):
        for inner, member in zip(node.inner, reference.transforms, strict=True):
            script(inner, member, numbers)


def both(specs: list[AugmentSpec], image: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """For each of KEYS: the image made by the fast forms, and that of albumentations fed with the same numbers."""
    from fer.transforms.reference import _build

    size = len(image)
    augment = Augmenter(specs, size)
    assert augment.fast
    pipeline = augment._pipeline
    apply = augment.plan(KEYS)
    numbers = uniforms(KEYS, pipeline._blocks)
    for position in range(len(KEYS)):
        before, out = image.copy(), np.empty_like(image)
        apply(position, image, out)
        assert (image == before).all(), "the input was written to"
        data = {"image": image.copy()}
        for node, one in zip(pipeline._nodes, specs, strict=True):
            reference = _build(one, size)
            script(node, reference, numbers[position])
            data = reference(**data)
        yield out, data["image"]


CASES = {
    "HorizontalFlip": [{}],
    "Rotate": [
        {"limit": [-10, 10], "p": 1.0},
        {"limit": [-180, 180], "border_mode": "reflect_101"},
        {"limit": 30, "border_mode": "replicate", "fill": 255},
        {"limit": 30, "fill": [10, 20, 30], "p": 1.0},
        {"limit": 20, "interpolation": "bicubic", "border_mode": "wrap"},
        {"limit": 20, "interpolation": "nearest", "fill": 7},
        {"limit": 0, "p": 1.0},
    ],
    "Affine": [
        {"rotate": [-15, 15], "scale": [0.85, 1.15], "translate_percent": [-0.1, 0.1], "p": 1.0},
        {"translate_px": {"x": [-4, 5], "y": 0}, "shear": {"x": [-9, 9], "y": [0, 3]}, "fill": 128},
        {"scale": {"x": [0.5, 2.0], "y": [0.5, 2.0]}, "keep_ratio": True, "border_mode": "reflect", "p": 1.0},
        {"translate_percent": {"x": [-0.2, 0.2]}, "border_mode": "replicate"},
    ],
    "RandomBrightnessContrast": [{"p": 1.0}, {"brightness_limit": 0.9, "contrast_limit": [-0.9, 0.9]}],
    "Erasing": [
        {"p": 1.0},
        {"scale": [0.02, 0.25], "ratio": [0.3, 3.3], "fill": [124, 116, 104]},
        {"scale": [0.0, 1.0], "ratio": [0.6, 1.7], "p": 1.0},
        {"scale": [0.1, 0.1], "ratio": [1.0, 1.0], "p": 1.0},
    ],
    "RandomResizedCrop": [{}, {"scale": [0.9, 1.0], "ratio": [0.2, 5.0]}, {"ratio": [4.0, 5.0], "scale": [0.9, 1.0]}],
    "RandomCrop": [{}],
    "Pad": [{"padding": 0}],
}


@pytest.mark.parametrize("name", FORMS)
def test_fast_form_gives_the_images_of_albumentations_for_the_same_draws(name: str) -> None:
    for options in CASES[name]:
        changed = 0
        for number, (fast, reference) in enumerate(both([spec(name, **options)], smooth_image())):
            assert (fast == reference).all(), (options, number)
            changed += bool((fast != smooth_image()).any())
        idle = options in ({"padding": 0}, {"limit": 0, "p": 1.0}) or name == "RandomCrop"
        assert bool(changed) != idle, options


@pytest.mark.parametrize("size", [33, 48, 112])
def test_bilinear_warp_through_four_channels_is_that_of_three(size: int) -> None:
    recipe = [spec("Affine", rotate=[-40, 40], scale=[0.6, 1.6], translate_percent=[-0.3, 0.3], fill=[3, 90, 201], p=1)]
    for fast, reference in both(recipe, np.random.default_rng(1).integers(0, 256, (size, size, 3), dtype=np.uint8)):
        assert (fast == reference).all()


RECIPES = {
    "published DDAMFN": [
        spec("HorizontalFlip", p=0.5),
        spec(
            "Sequential",
            p=0.5,
            transforms=[
                spec("Rotate", limit=[-5, 5], p=1.0),
                spec("Pad", padding=8, p=1.0),
                spec("RandomCrop", p=1.0),
            ],
        ),
        spec("Erasing", scale=[0.02, 0.25], ratio=[0.3, 3.3], fill=[124, 116, 104], p=0.5),
    ],
    "nested": [
        spec(
            "Sequential",
            p=0.8,
            transforms=[
                spec("RandomBrightnessContrast", p=0.2),
                spec("Sequential", p=0.5, transforms=[spec("Rotate", limit=9), spec("Erasing", p=0.9)]),
            ],
        ),
        spec("RandomCrop"),
        spec("HorizontalFlip"),
        spec("Erasing"),
    ],
}


@pytest.mark.parametrize("name", RECIPES)
def test_whole_recipe_gives_the_images_of_albumentations_for_the_same_draws(name: str) -> None:
    results = list(both(RECIPES[name], smooth_image()))
    assert all((fast == reference).all() for fast, reference in results)
    assert len({fast.tobytes() for fast, _ in results}) > len(KEYS) / 2


def test_transforms_without_a_fast_form_are_done_by_albumentations() -> None:
    crop = spec("RandomCrop")
    for without in (
        [spec("GaussNoise")],
        [spec("HorizontalFlip"), spec("CLAHE")],
        [spec("Rotate", crop_border=True), spec("RandomResizedCrop")],
        [spec("Affine", balanced_scale=True)],
        [spec("Erasing", fill="random")],
        [spec("RandomBrightnessContrast", brightness_by_max=False)],
        [spec("OneOf", transforms=[spec("HorizontalFlip"), spec("Erasing")])],
        [spec("RandomResizedCrop", interpolation="bilinear"), spec("ToGray")],
        [spec("RandomCrop", pad_if_needed=True)],
        [spec("Pad", padding=4, p=0.5), crop],  # the crop would meet two sizes
    ):
        assert not Augmenter(without, SIZE).fast
    assert Augmenter([spec("Pad", padding=4), crop], SIZE).fast
    assert not Augmenter([spec("HorizontalFlip")], SIZE, reference=True).fast


DISTRIBUTIONS: dict[str, dict[str, Any]] = {
    "Rotate": {"limit": [-10, 10]},
    "Affine": {"rotate": [-15, 15], "scale": [0.8, 1.2], "translate_percent": [-0.2, 0.1], "shear": [-5, 9]},
    "RandomResizedCrop": {"scale": [0.3, 1.0]},
    "RandomCrop": {"height": 30, "width": 25},
    "Erasing": {"scale": [0.02, 0.33]},
    "RandomBrightnessContrast": {},
}


def drawn_by_albumentations(reference: Any) -> list[float]:
    """One draw of a transform's parameters by its own code, as a flat list of numbers."""
    parameters = reference.get_params()
    reference_data = {"image": smooth_image()}
    parameters |= reference.get_params_dependent_on_data({"shape": (SIZE, SIZE, 3), **parameters}, reference_data)
    if "matrix" in parameters:
        return list(parameters["matrix"][:2].ravel())
    if "crop_coords" in parameters:
        return list(parameters["crop_coords"])
    if "holes" in parameters:
        return list(np.asarray(parameters["holes"]).ravel())
    return list(np.clip(np.arange(256) * parameters["alpha"] + parameters["beta"], 0, 255).astype(int)[[64, 192]])


def drawn_by_the_fast_form(name: str, parameter: Any) -> list[float]:
    if name in ("Rotate", "Affine"):
        return list((np.eye(3)[:2] if parameter is None else parameter).ravel())
    return list(parameter[[64, 192]] if name == "RandomBrightnessContrast" else parameter)


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_parameters_are_distributed_as_those_of_albumentations(name: str) -> None:
    # Two-sample Kolmogorov-Smirnov distance of every number of the parameters; both generators have fixed seeds.
    count = 4000
    reference = getattr(albumentations, name)(**_arguments(name), p=1.0)
    reference.set_random_state(np.random.default_rng(0), random.Random(0))
    theirs = np.array([drawn_by_albumentations(reference) for _ in range(count)], float)
    form = FORMS[name](reference)
    keys = sample_keys(0, 0, np.arange(count), np.zeros(count, np.int64))
    blocks = np.array([(0, block) for block in range(-(-form.draws // 4))])
    drawn = form.parameters(uniforms(keys, blocks)[:, : form.draws], (SIZE, SIZE))
    ours = np.array([drawn_by_the_fast_form(name, one) for one in drawn], float)
    assert ours.shape == theirs.shape
    for column in range(ours.shape[1]):
        grid = np.sort(np.concatenate([ours[:, column], theirs[:, column]]))
        shares = [np.searchsorted(np.sort(x[:, column]), grid, side="right") / count for x in (ours, theirs)]
        assert np.abs(shares[0] - shares[1]).max() < 1.95 * np.sqrt(2 / count), column  # p = 0.001


def _arguments(name: str) -> dict[str, Any]:
    options = {key: tuple(value) if isinstance(value, list) else value for key, value in DISTRIBUTIONS[name].items()}
    return options | ({"size": (SIZE, SIZE)} if name == "RandomResizedCrop" else {})


@pytest.mark.parametrize(("p", "reference"), [(0.0, False), (0.2, False), (1.0, False), (0.5, True)])
def test_transforms_are_applied_as_often_as_p_says_and_independently(p: float, reference: bool) -> None:
    # One seed for all transforms would apply all those of p = 0.5 together, or none.
    count = 3000
    darken = spec("RandomBrightnessContrast", brightness_limit=[0, 0], contrast_limit=[-0.5, -0.5], p=0.5)
    augment = Augmenter([spec("HorizontalFlip", p=p), darken], 8, reference=reference)
    apply = augment.plan(sample_keys(0, 0, np.arange(count), np.zeros(count, np.int64)))
    image, out = smooth_image(8), np.empty((8, 8, 3), np.uint8)
    seen = np.zeros((2, 2))
    for position in range(count):
        apply(position, image, out)
        for darkened, plain in enumerate((image, image // 2)):
            for flipped, expected in enumerate((plain, plain[:, ::-1])):
                seen[darkened, flipped] += bool((out == expected).all())
    assert seen.sum() == count
    assert np.abs(seen / count - np.outer([0.5, 0.5], [1 - p, p])).max() < 0.035  # four standard deviations


def test_philox_gives_the_published_words() -> None:
    # The known answers of Random123, the generator's reference implementation.
    ones = 0xFFFFFFFF
    assert [int(w) for w in philox((0, 0, 0, 0), 0)] == [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]
    assert [int(w) for w in philox((ones,) * 4, 2**64 - 1)] == [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]
    pi = (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344)
    key = 0x299F31D0 << 32 | 0xA4093822
    assert [int(w) for w in philox(pi, key)] == [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1]


def test_draws_are_a_function_of_seed_epoch_row_repeat_transform_and_nothing_else() -> None:
    rows = np.arange(20)
    zeros = np.zeros(20, np.int64)
    whole = sample_keys(1, 2, rows, zeros)
    assert (sample_keys(1, 2, rows[7:9], zeros[7:9]) == whole[7:9]).all()
    others = [sample_keys(*place, rows, zeros) for place in ((1, 3), (2, 2))] + [sample_keys(1, 2, rows, zeros + 1)]
    assert len(np.unique(np.concatenate([whole, *others]))) == 80
    numbers = uniforms(whole, np.array([[0, 0], [0, 1], [1, 0]]))
    assert numbers.shape == (20, 12)
    assert ((numbers >= 0) & (numbers < 1)).all()
    assert len(np.unique(numbers)) == 240
    assert (uniforms(whole[3:4], np.array([[1, 0]])) == numbers[3:4, 8:]).all()


def test_the_draws_are_the_same_on_every_platform_and_release() -> None:
    # Written down once: a change here changes every training that was or will be resumed.
    assert sample_keys(0, 0, np.array([0, 1]), np.array([0, 0])).tolist() == GOLDEN_KEYS


GOLDEN_KEYS = [8209103697625826502, 9801503391135883537]
