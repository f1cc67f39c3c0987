"""Augmentation: what a recipe lists, as a pure function of (image, key).

    augment:
      - {name: HorizontalFlip, p: 0.5}
      - name: Sequential
        p: 0.2
        transforms: [{name: Rotate, limit: [-5, 5], p: 1.0}, {name: Pad, padding: 8}, {name: RandomCrop}]

Albumentations defines what each transform does and draws. A recipe whose transforms all have a fast form
(`fer.transforms.forms`) is applied by those, with the same results for the same draws; any other by albumentations
itself, slower. It is imported when an `Augmenter` is built, so that reading a recipe stays quick: the table below
checks names of transforms and arguments without it.
"""

import random
import threading
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from pydantic import Field, model_serializer, model_validator

from fer.config import Config, ConfigError, nearest

if TYPE_CHECKING:
    import albumentations
    from torch import Tensor

    from fer.transforms.pipeline import FastPipeline

Pixels = npt.NDArray[np.uint8]
Apply = Callable[[int, Pixels, Pixels], None]
"""(position in the batch, image, out): both RGB uint8 (size, size, 3); the image stays as it is."""

_WARP = ("interpolation", "border_mode", "fill")

TRANSFORMS: Mapping[str, tuple[str, ...]] = {
    "Affine": ("scale", "translate_percent", "translate_px", "rotate", "shear", "keep_ratio", "balanced_scale", *_WARP),
    "CLAHE": ("clip_limit", "tile_grid_size"),
    "CenterCrop": ("height", "width", "pad_if_needed", "border_mode", "fill"),
    "CoarseDropout": ("num_holes_range", "hole_height_range", "hole_width_range", "fill"),
    "ColorJitter": ("brightness", "contrast", "saturation", "hue"),
    "Downscale": ("scale_range", "interpolation_pair"),
    "ElasticTransform": ("alpha", "sigma", "approximate", "same_dxdy", *_WARP),
    "Erasing": ("scale", "ratio", "fill"),
    "GaussNoise": ("std_range", "mean_range", "per_channel", "noise_scale_factor"),
    "GaussianBlur": ("blur_limit", "sigma_limit"),
    "GridDropout": ("ratio", "random_offset", "unit_size_range", "holes_number_xy", "shift_xy", "fill"),
    "HorizontalFlip": (),
    "HueSaturationValue": ("hue_shift_limit", "sat_shift_limit", "val_shift_limit"),
    "ImageCompression": ("compression_type", "quality_range"),
    "MotionBlur": ("blur_limit", "allow_shifted", "angle_range", "direction_range"),
    "Pad": ("padding", "fill", "border_mode"),
    "PadIfNeeded": ("min_height", "min_width", "position", "border_mode", "fill"),
    "Perspective": ("scale", "keep_size", "fit_output", *_WARP),
    "RandomBrightnessContrast": ("brightness_limit", "contrast_limit", "brightness_by_max", "ensure_safe_range"),
    "RandomCrop": ("height", "width", "pad_if_needed", "pad_position", "border_mode", "fill"),
    "RandomGamma": ("gamma_limit",),
    "RandomResizedCrop": ("size", "scale", "ratio", "interpolation"),
    "Rotate": ("limit", "rotate_method", "crop_border", *_WARP),
    "Sharpen": ("alpha", "lightness", "method", "kernel_size", "sigma"),
    "ToGray": ("method",),
}
"""The transforms that a recipe may name, with the arguments of each besides `p`. All keep RGB uint8."""

CONTAINERS = ("OneOf", "Sequential")
"""Transforms of transforms: one of them, chosen in proportion to its `p`; or all of them together."""

_CODES = {
    "border_mode": {"constant": 0, "replicate": 1, "reflect": 2, "wrap": 3, "reflect_101": 4},
    "interpolation": {"nearest": 0, "bilinear": 1, "bicubic": 2, "area": 3, "lanczos": 4},
}
"""OpenCV's numbers behind the words that a recipe may use."""


class AugmentSpec(Config):
    """One transform: its name, probability and arguments, side by side as albumentations 2.0.8 calls them.

    Left out: `p` is what albumentations makes it; the output size of a crop is the model's input size.
    """

    name: str = Field(description="class in albumentations: one of TRANSFORMS or CONTAINERS")
    p: float | None = Field(default=None, ge=0.0, le=1.0, description="probability of being applied")
    options: dict[str, Any] = Field(default_factory=dict, description="arguments; written beside `name`, not nested")
    transforms: tuple["AugmentSpec", ...] = Field(default=(), description="of a container, in the order of application")

    @model_validator(mode="before")
    @classmethod
    def _gather_options(cls, data: Any) -> Any:
        if not isinstance(data, Mapping):
            return data
        own = {key: value for key, value in data.items() if key in cls.model_fields}
        if isinstance(own.get("transforms"), list):
            own["transforms"] = tuple(own["transforms"])  # pydantic no longer reads as JSON what this returns
        beside = {key: value for key, value in data.items() if key not in cls.model_fields}
        nested = own.get("options", {})
        return own | {"options": {**nested, **beside}} if beside and isinstance(nested, Mapping) else own

    @model_validator(mode="after")
    def _known(self) -> "AugmentSpec":
        names = (*TRANSFORMS, *CONTAINERS)
        if self.name not in names:
            raise ValueError(f"unknown transform {self.name!r}{nearest(self.name, names)}; allowed: {', '.join(names)}")
        if self.name in CONTAINERS:
            if not self.transforms:
                raise ValueError(f"{self.name} needs a list of `transforms`")
        elif self.transforms:
            raise ValueError(f"{self.name} takes no `transforms`; only {' and '.join(CONTAINERS)} do")
        allowed = TRANSFORMS.get(self.name, ())
        for option, value in self.options.items():
            if option not in allowed:
                hint = nearest(option, allowed)
                listing = ", ".join(("p", *allowed))
                raise ValueError(f"{self.name} has no argument {option!r}{hint}; allowed: {listing}")
            if isinstance(value, str) and option in _CODES and value not in _CODES[option]:
                hint = nearest(value, tuple(_CODES[option]))
                raise ValueError(f"{self.name}.{option} = {value!r}{hint}; allowed: {', '.join(_CODES[option])}")
        return self

    @model_serializer
    def _flat(self) -> dict[str, Any]:
        """As it is written in a recipe, so that dumping and parsing again gives the same."""
        flat: dict[str, Any] = {"name": self.name, **self.options}
        if self.p is not None:
            flat["p"] = self.p
        if self.transforms:
            flat["transforms"] = [spec.model_dump() for spec in self.transforms]
        return flat


class Augmenter:
    """Applies a recipe's transforms to the images of a batch; usable from any number of threads at once.

    The result depends on the image and the key alone: not on the thread, the batch, or what was augmented before.

    Args:
        specs: transforms in the order of application; none leaves images as they are.
        image_size: side of the square images in pixels; also what crops come out at unless they say otherwise.
        reference: albumentations does it, also where there is a fast form. The draws differ.

    Attributes:
        fast: the transforms are done in their fast forms.

    Raises:
        ConfigError: a wrong value (names of transforms and arguments are checked by `AugmentSpec`), or transforms that
            together change the image's size or type; it names the transform.
    """

    def __init__(self, specs: Sequence[AugmentSpec], image_size: int, *, reference: bool = False) -> None:
        self._specs = tuple(specs)
        self._size = image_size
        self._of_thread = threading.local()
        self._try_out()
        self._pipeline = None if reference else self._fast_form()
        self.fast = self._pipeline is not None

    def plan(self, keys: npt.NDArray[np.uint64]) -> Apply:
        """Draws for a whole batch; what is returned applies to one image after another what was drawn for it.

        keys: (B,), of the samples, as `fer.transforms.draws.sample_keys` makes them.
        """
        if self._pipeline is not None:
            return self._pipeline.plan(keys)
        numbers = keys.tolist()

        def apply(position: int, image: Pixels, out: Pixels) -> None:
            np.copyto(out, self._by_albumentations(image, numbers[position]))

        return apply

    def _fast_form(self) -> "FastPipeline | None":
        from fer.transforms.pipeline import FastPipeline, NoFastFormError

        try:
            return FastPipeline([_build(spec, self._size) for spec in self._specs], self._size)
        except NoFastFormError:
            return None

    def _by_albumentations(self, image: Pixels, key: int) -> Pixels:
        if not hasattr(self._of_thread, "pipeline"):
            self._of_thread.pipeline = _Pipeline(self._specs, self._size)
        result: Pixels = self._of_thread.pipeline(image, key)
        return result

    def _try_out(self) -> None:
        """Runs everything once on noise, also what is rarely drawn, so that a mistake shows before the first epoch."""
        image = np.random.default_rng(0).integers(0, 256, (self._size, self._size, 3), dtype=np.uint8)
        names = ", ".join(spec.name for spec in self._specs)
        certain = _Pipeline([_made_certain(spec) for spec in self._specs], self._size)
        try:
            for key in range(8):
                certain(image, key)
            results = [self._by_albumentations(image, key) for key in range(32)]
        except Exception as error:
            raise ConfigError(f"augment: {names} cannot be applied to an image of {image.shape}: {error}") from error
        for result in results:
            if result.shape != image.shape or result.dtype != np.uint8:
                raise ConfigError(
                    f"augment: {names} make {result.shape} {result.dtype} of an image of {image.shape} uint8; "
                    "end with a crop to the model's size (RandomCrop or CenterCrop without height and width)"
                )


def compose(
    specs: Sequence[AugmentSpec],
    image_size: int,
    *,
    mean: tuple[float, float, float] | None = None,
    std: tuple[float, float, float] | None = None,
) -> "Callable[[Pixels], Tensor]":
    """The transforms as albumentations' manual puts them together: the baseline of `Augmenter`.

    (size, size, 3) RGB uint8 -> (3, size, size), drawn at each call: float32 normalized by mean and std, which
    count from 0 to 1; uint8 without them.
    """
    import albumentations
    from albumentations.pytorch import ToTensorV2

    transforms = [_build(spec, image_size) for spec in specs]
    if mean is not None and std is not None:
        transforms.append(albumentations.Normalize(mean=mean, std=std))
    pipeline = albumentations.Compose([*transforms, ToTensorV2()])
    return lambda image: pipeline(image=image)["image"]


class _Pipeline:
    """A `Compose` and its random state; one a thread, since transforms keep state between their draws and their use."""

    def __init__(self, specs: Sequence[AugmentSpec], size: int) -> None:
        import albumentations

        transforms = [_build(spec, size) for spec in specs]
        # strict makes wrong arguments errors; there are no masks whose shape could disagree with the image's.
        self._compose = albumentations.Compose(transforms, strict=True, is_check_shapes=False)
        # Compose.set_random_seed would start every transform at the same point of the same stream, so that all
        # transforms of p = 0.5 are applied together or not at all. Shared generators make the draws follow one another;
        # resetting their state also costs a fifth of making new ones.
        self._draws = random.Random()
        self._numpy_draws = np.random.Philox(key=0)
        self._numpy_state = self._numpy_draws.state
        self._compose.set_random_state(np.random.Generator(self._numpy_draws), self._draws)

    def __call__(self, image: Pixels, key: int) -> Pixels:
        self._draws.seed(key)
        self._numpy_state["state"]["key"][0] = key
        self._numpy_draws.state = self._numpy_state
        return self._compose(image=image)["image"]  # type: ignore[no-any-return]


def _build(spec: AugmentSpec, size: int) -> "albumentations.BasicTransform | albumentations.BaseCompose":
    import albumentations

    kind = getattr(albumentations, spec.name)
    p = {} if spec.p is None else {"p": spec.p}
    if spec.name in CONTAINERS:
        return kind([_build(inner, size) for inner in spec.transforms], **p)
    arguments = _default_sizes(size).get(spec.name, {}) | {
        key: _value(key, value) for key, value in spec.options.items()
    }
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # albumentations only warns of arguments that it then ignores
            return kind(**arguments, **p)
    except (ValueError, TypeError, UserWarning) as error:
        # pydantic's message names the argument and the allowed values; its closing link to a manual helps nobody.
        text = "; ".join(
            line.strip() for line in str(error).splitlines()[1:] or [str(error)] if "errors.pydantic.dev" not in line
        )
        raise ConfigError(f"augment: {spec.name} with {spec.options}: {text}") from error


def _made_certain(spec: AugmentSpec) -> AugmentSpec:
    """The same with every probability 1, except inside OneOf, where they say which."""
    inner = spec.transforms if spec.name == "OneOf" else tuple(_made_certain(one) for one in spec.transforms)
    return spec.model_copy(update={"p": 1.0, "transforms": inner})


def _default_sizes(size: int) -> dict[str, dict[str, Any]]:
    """Arguments that a recipe may leave out, by transform: the model's input size."""
    square = {"height": size, "width": size}
    return {
        "RandomCrop": square,
        "CenterCrop": square,
        "RandomResizedCrop": {"size": (size, size)},
        "PadIfNeeded": {"min_height": size, "min_width": size},
    }


def _value(key: str, value: Any) -> Any:
    """A recipe's value as albumentations takes it: words as OpenCV's numbers, lists as tuples."""
    if isinstance(value, str):
        return _CODES.get(key, {}).get(value, value)
    if isinstance(value, Mapping):
        return {inner: _value("interpolation", item) for inner, item in value.items()}
    return tuple(_value(key, item) for item in value) if isinstance(value, list | tuple) else value
