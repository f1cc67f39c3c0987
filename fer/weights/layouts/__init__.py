"""The published layouts, a file a family of models."""

from fer.weights.layouts import ddamfn
from fer.weights.layouts.base import Layout

LAYOUTS: dict[str, Layout] = {**ddamfn.LAYOUTS}
"""By the name of our model."""

__all__ = ["LAYOUTS", "Layout"]
