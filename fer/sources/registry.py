"""All datasets: which reader belongs to which `source` in params.yaml. A new dataset adds a line to each of the two."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, Any

from pydantic import Field

from fer.config import Config
from fer.sources.affectnet import AffectNetConfig, AffectNetSource
from fer.sources.aihub import AiHubConfig, AiHubSource
from fer.sources.base import Source
from fer.sources.caers import CaersConfig, CaersSource
from fer.sources.fer2013 import Fer2013Config, Fer2013Source
from fer.sources.ferplus import FerPlusConfig, FerPlusSource
from fer.sources.folders import FoldersConfig, FoldersSource
from fer.sources.identities import IdentitiesConfig, IdentitiesSource
from fer.sources.muxspace import MuxspaceConfig, MuxspaceSource
from fer.sources.rafdb import RafDbConfig, RafDbSource
from fer.sources.synthetic import SyntheticConfig, SyntheticSource
from fer.sources.table import TableConfig, TableSource

DatasetConfig = Annotated[
    SyntheticConfig
    | Fer2013Config
    | MuxspaceConfig
    | FerPlusConfig
    | FoldersConfig
    | IdentitiesConfig
    | TableConfig
    | AiHubConfig
    | AffectNetConfig
    | CaersConfig
    | RafDbConfig,
    Field(discriminator="source"),
]

READERS: Mapping[type[Config], Callable[[Any], Source]] = {
    AiHubConfig: AiHubSource,
    AffectNetConfig: AffectNetSource,
    CaersConfig: CaersSource,
    RafDbConfig: RafDbSource,
    Fer2013Config: Fer2013Source,
    FerPlusConfig: FerPlusSource,
    FoldersConfig: FoldersSource,
    IdentitiesConfig: IdentitiesSource,
    MuxspaceConfig: MuxspaceSource,
    TableConfig: TableSource,
}


def get_source(config: DatasetConfig, seed: int) -> Source:
    """The reader of a configured dataset. `seed` matters to generated ones alone."""
    if isinstance(config, SyntheticConfig):
        return SyntheticSource(config, seed)
    return READERS[type(config)](config)
