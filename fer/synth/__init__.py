"""Procedural faces driven by facial action units: the embedded default dataset.

They are drawings of expression prototypes: what a model scores on them says nothing about its accuracy on people.
"""

from fer.synth.config import SceneConfig
from fer.synth.expressions import ACTION_UNITS, EXPRESSIONS
from fer.synth.scene import Face, Layout, Scene, describe, encode, render
from fer.synth.sheet import contact_sheet
from fer.synth.streams import GENERATOR_VERSION

__all__ = [
    "ACTION_UNITS", "EXPRESSIONS", "GENERATOR_VERSION", "Face", "Layout", "Scene", "SceneConfig", "contact_sheet",
    "describe", "encode", "render",
]  # fmt: skip
