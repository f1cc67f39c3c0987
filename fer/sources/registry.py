"""All datasets: which reader belongs to which `source` in params.yaml.

A new dataset of this package adds a line to each of the two; that of a plugin (`fer.plugins`) is registered:

    @register(MyConfig)
    class MySource(TreeSource): ...
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, TypeVar, Union, get_args

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

R = TypeVar("R", bound=Callable[[Any], Source])


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

READERS: dict[type[Config], Callable[[Any], Source]] = {
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
_SHIPPED = len(READERS)


def register(config: type[Config]) -> Callable[[R], R]:
    """Class decorator for the reader of the datasets whose `source` is that of `config`, a Literal of one name.

    Raises:
        ValueError: the name is taken.
    """
    (name,) = get_args(config.model_fields["source"].annotation)

    def decorate(reader: R) -> R:
        if name in sources():
            raise ValueError(f"source {name!r} is registered already, by {sources()[name].__qualname__}")
        READERS[config] = reader
        return reader

    return decorate


def sources() -> dict[str, type[Config]]:
    """The configuration of each known `source`."""
    kinds: list[type[Config]] = [SyntheticConfig, *READERS]
    return {get_args(kind.model_fields["source"].annotation)[0]: kind for kind in kinds}


def dataset_type() -> Any:
    """`DatasetConfig` with the datasets of plugins; itself where there are none."""
    if len(READERS) == _SHIPPED:
        return DatasetConfig
    return Annotated[Union[tuple(sources().values())], Field(discriminator="source")]  # noqa: UP007


def get_source(config: DatasetConfig, seed: int) -> Source:
    """The reader of a configured dataset. `seed` matters to generated ones alone."""
    if isinstance(config, SyntheticConfig):
        return SyntheticSource(config, seed)
    return READERS[type(config)](config)
