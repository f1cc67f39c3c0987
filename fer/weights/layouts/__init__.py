"""The published layouts, one file per family of models."""

from fer.weights.layouts import backbones, ddamfn, lhc, poster
from fer.weights.layouts.base import Layout

LAYOUTS: dict[str, Layout] = {**backbones.LAYOUTS, **ddamfn.LAYOUTS, **lhc.LAYOUTS, **poster.LAYOUTS}
"""By the name of our model."""

__all__ = ["LAYOUTS", "Layout"]
