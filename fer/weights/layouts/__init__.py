"""The published layouts, a file a family of models."""

from fer.weights.layouts import backbones, ddamfn, dynamic_vit, lhc, poster_v1, poster_v2
from fer.weights.layouts.base import Layout

LAYOUTS: dict[str, Layout] = {
    **backbones.LAYOUTS,
    **ddamfn.LAYOUTS,
    **dynamic_vit.LAYOUTS,
    **lhc.LAYOUTS,
    **poster_v1.LAYOUTS,
    **poster_v2.LAYOUTS,
}
"""By the name of our model."""

__all__ = ["LAYOUTS", "Layout"]
