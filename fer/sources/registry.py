"""All datasets: which reader belongs to which `source` in params.yaml."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from fer.sources.base import Source
from fer.sources.fer2013 import Fer2013Config, Fer2013Source
from fer.sources.synthetic import SyntheticConfig, SyntheticSource

DatasetConfig = Annotated[SyntheticConfig | Fer2013Config, Field(discriminator="source")]


def get_source(config: DatasetConfig, seed: int) -> Source:
    """The reader of a configured dataset. `seed` matters to generated ones alone."""
    if isinstance(config, SyntheticConfig):
        return SyntheticSource(config, seed)
    return Fer2013Source(config)
