"""Augmentation is a function of (image, key), and mistakes are reported before the first epoch."""

import inspect
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from fer.config import Config, ConfigError, parse
from fer.transforms.forms import FORMS
from fer.transforms.reference import TRANSFORMS, Augmenter, AugmentSpec

SIZE = 24
IMAGE = np.random.default_rng(0).integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)


class Recipe(Config):
    augment: tuple[AugmentSpec, ...] = ()


def once(augment: Augmenter, image: np.ndarray, key: int) -> np.ndarray:
    """One image in a batch of one."""
    out = np.empty_like(image)
    augment.plan(np.array([key], np.uint64))(0, image, out)
    return out


def specs(*entries: dict[str, object]) -> tuple[AugmentSpec, ...]:
    return parse(Recipe, {"augment": list(entries)}, "recipes/x.yaml").augment


# Every transform of the table with p = 1, and what it needs to give the size it got.
ALL = [
    {"name": name, "p": 1.0, **({"padding": 0} if name == "Pad" else {})}
    for name in TRANSFORMS
    if name != "PadIfNeeded"
]


@pytest.mark.parametrize(
    ("entry", "reference"),
    [(entry, True) for entry in ALL] + [(entry, False) for entry in ALL if entry["name"] in FORMS],
    ids=lambda value: "albumentations" if value is True else "fast" if value is False else str(value["name"]),
)
def test_same_key_gives_the_same_image_on_any_thread_after_any_history(
    entry: dict[str, object], reference: bool
) -> None:
    augment = Augmenter(specs(entry), SIZE, reference=reference)
    assert augment.fast != reference
    before = IMAGE.copy()
    expected = {key: once(augment, IMAGE, key).tobytes() for key in (1, 2, 2**64 - 1)}
    with ThreadPoolExecutor(2) as pool:
        keys = [2, 5, 1, 2**64 - 1, 2, 9, 1] * 3
        for key, result in zip(keys, pool.map(lambda key: once(augment, IMAGE, key).tobytes(), keys), strict=True):
            assert expected.get(key, result) == result
    assert once(Augmenter(specs(entry), SIZE, reference=reference), IMAGE, 2).tobytes() == expected[2]
    batch = augment.plan(np.array([9, 2**64 - 1, 1], np.uint64))
    out = np.empty_like(IMAGE)
    for position, key in ((2, 1), (1, 2**64 - 1), (2, 1)):
        batch(position, IMAGE, out)
        assert out.tobytes() == expected[key]
    assert (before == IMAGE).all(), "the input was written to"


def test_same_key_gives_the_same_image_in_another_process() -> None:
    code = (
        "from fer.processes import quiet_libraries; quiet_libraries()\n"
        "import numpy as np; from fer.transforms.reference import *\n"
        "turn = AugmentSpec(name='Affine', options={'rotate': [-20, 20]}, p=1.0)\n"
        f"a = Augmenter([turn, AugmentSpec(name='Erasing')], {SIZE})\n"
        f"i = np.random.default_rng(0).integers(0, 256, ({SIZE}, {SIZE}, 3), dtype=np.uint8)\n"
        "o = np.empty_like(i); a.plan(np.array([7], np.uint64))(0, i, o); print(o.tobytes().hex())"
    )
    recipe = specs({"name": "Affine", "rotate": [-20, 20], "p": 1.0}, {"name": "Erasing"})
    here = once(Augmenter(recipe, SIZE), IMAGE, 7)
    there = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert there.stdout.strip() == here.tobytes().hex()


def test_crops_have_the_models_size_and_containers_nest() -> None:
    recipe = specs(
        {
            "name": "Sequential",
            "p": 0.5,
            "transforms": [
                {"name": "Rotate", "limit": [-5, 5], "p": 1},
                {"name": "Pad", "padding": 4},
                {"name": "RandomCrop"},
            ],
        },
        {
            "name": "OneOf",
            "p": 1,
            "transforms": [{"name": "ToGray", "p": 0.5}, {"name": "RandomResizedCrop", "p": 0.5}],
        },
    )
    augment = Augmenter(recipe, SIZE)
    assert len({once(augment, IMAGE, key).tobytes() for key in range(50)}) > 20


def test_recipe_survives_dumping_and_parsing() -> None:
    recipe = Recipe(augment=specs({"name": "OneOf", "transforms": [{"name": "Affine", "scale": [0.9, 1.1], "p": 0.3}]}))
    assert parse(Recipe, recipe.model_dump(mode="json"), "again") == recipe


@pytest.mark.parametrize("name", TRANSFORMS)
def test_table_of_arguments_is_that_of_albumentations(name: str) -> None:
    import albumentations

    assert {*TRANSFORMS[name], "p"} <= set(inspect.signature(getattr(albumentations, name).__init__).parameters)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"name": "HorizontalFlop"}, r"augment\.0.*did you mean 'HorizontalFlip'\?.*allowed: Affine"),
        ({"name": "Affine", "rotat": 3}, r"Affine has no argument 'rotat'.*'rotate'.*allowed: p, scale"),
        ({"name": "CoarseDropout", "max_holes": 3}, "no argument 'max_holes'"),
        ({"name": "Affine", "border_mode": "reflekt"}, "did you mean 'reflect'"),
        ({"name": "Erasing", "p": 1.5}, r"augment\.0\.p = 1\.5"),
        ({"name": "OneOf"}, "needs a list"),
        ({"name": "Erasing", "transforms": [{"name": "ToGray"}]}, "takes no `transforms`"),
        ({"name": "OneOf", "transforms": [{"name": "Erasing", "scal": 1}]}, r"augment\.0\.transforms\.0.*'scale'"),
    ],
)
def test_unknown_names_are_rejected_with_the_nearest_when_the_recipe_is_read(
    entry: dict[str, object], message: str
) -> None:
    with pytest.raises(ConfigError, match=rf"(?s)recipes/x\.yaml.*{message}"):
        specs(entry)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"name": "CoarseDropout", "num_holes_range": [3, 1]}, "CoarseDropout.*num_holes_range"),
        ({"name": "Erasing", "scale": "big", "p": 0.001}, "Erasing.*scale"),
        ({"name": "RandomCrop", "height": 500, "p": 0.001}, "RandomCrop.*500"),
        ({"name": "Pad", "padding": 8}, r"Pad make \(40, 40, 3\).*end with a crop"),
    ],
)
def test_wrong_values_are_rejected_when_the_augmenter_is_built(entry: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Augmenter(specs(entry), SIZE)


def test_reading_a_recipe_does_not_import_albumentations() -> None:
    code = "import sys; from fer.transforms.reference import AugmentSpec; AugmentSpec(name='ToGray'); "
    code += "sys.exit('albumentations' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
