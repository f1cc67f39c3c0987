"""Fast forms one after another, and inside `Sequential`."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fer.transforms.draws import Float64Array, UInt64Array, uniforms
from fer.transforms.forms import FORMS, Pixels, Shape, Transform

Steps = list[tuple[Transform, Any]]
"""What is done to one image: transforms with the parameters drawn for it."""


@dataclass(frozen=True)
class _Leaf:
    """A transform at its place in the recipe: it is given images of `shape`, and numbers at `place`."""

    form: Transform
    shape: Shape
    place: int

    @property
    def p(self) -> float:
        return self.form.p

    def add_steps(self, u: Float64Array, samples: Sequence[int], steps: list[Steps]) -> None:
        """Appends to the steps of those of the `samples` that it is applied to."""
        of = self.form.parameters(u[:, self.place + 1 : self.place + 1 + self.form.draws], self.shape)
        for sample in _applied(self.p, u[:, self.place], samples):
            steps[sample].append((self.form, of[sample]))


@dataclass(frozen=True)
class _Sequential:
    inner: "tuple[_Node, ...]"
    p: float
    place: int

    def add_steps(self, u: Float64Array, samples: Sequence[int], steps: list[Steps]) -> None:
        chosen = _applied(self.p, u[:, self.place], samples)
        for node in self.inner:
            node.add_steps(u, chosen, steps)


_Node = _Leaf | _Sequential


def _applied(p: float, u: Float64Array, samples: Sequence[int]) -> Sequence[int]:
    """The samples that something of probability p happens to."""
    return samples if p >= 1 else [sample for sample in samples if u[sample] < p]


class NoFastFormError(Exception):
    """The transforms have to be done by albumentations."""


class FastPipeline:
    """A recipe's transforms in their fast forms.

    Args:
        references: objects of albumentations, in the order of application.
        size: side of the square images.

    Raises:
        NoFastFormError: one of them has no fast form, or the images' shape would depend on what is drawn.
    """

    def __init__(self, references: Sequence[Any], size: int) -> None:
        self._slots: list[tuple[int, int]] = []
        self._transforms = 0
        self._nodes, shape = self._sequence(references, (size, size))
        if shape != (size, size):
            raise NoFastFormError
        self._blocks = np.array(self._slots, np.int64).reshape(-1, 2)

    def plan(self, keys: UInt64Array) -> Callable[[int, Pixels, Pixels], None]:
        """Draws for the samples whose keys (B,) are given; what is returned does it: (position, image, out)."""
        u = uniforms(keys, self._blocks)
        steps: list[Steps] = [[] for _ in range(len(keys))]
        for node in self._nodes:
            node.add_steps(u, range(len(keys)), steps)
        return lambda position, image, out: _run(steps[position], image, out)

    def _sequence(self, references: Sequence[Any], shape: Shape) -> tuple[tuple[_Node, ...], Shape]:
        nodes = []
        for reference in references:
            node, after = self._node(reference, shape)
            if after != shape and node.p < 1:
                raise NoFastFormError  # what follows would meet two shapes
            nodes.append(node)
            shape = after
        return tuple(nodes), shape

    def _node(self, reference: Any, shape: Shape) -> tuple[_Node, Shape]:
        name = type(reference).__name__
        if name == "Sequential":
            place = self._take(1)
            inner, after = self._sequence(reference.transforms, shape)
            return _Sequential(inner, reference.p, place), after
        if name not in FORMS or not FORMS[name].supports(reference):
            raise NoFastFormError
        form = FORMS[name](reference)
        made = form.shape(shape)
        if made is None:
            raise NoFastFormError
        return _Leaf(form, shape, self._take(1 + form.draws)), made

    def _take(self, numbers: int) -> int:
        """Keeps places for the uniform numbers of the next transform: whole blocks of four. Returns the first."""
        first = 4 * len(self._slots)
        self._slots += [(self._transforms, block) for block in range(-(-numbers // 4))]
        self._transforms += 1
        return first


def _run(steps: Steps, image: Pixels, out: Pixels) -> None:
    """Does the steps to an image (H, W, 3), which stays as it is, and writes the result to `out`."""
    for form, parameter in steps:
        if form.in_place and image is not out:
            if image.shape == out.shape:
                np.copyto(out, image)
                image = out
            else:
                image = image.copy()
        image = form.apply(image, parameter)
    if image is not out:
        np.copyto(out, image)
