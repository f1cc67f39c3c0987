"""The table of an evaluation: one row a sample, in the order of the split."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa

from fer.shards.table import write_table


def prediction_schema() -> pa.Schema:
    """sample_id; label and predicted: indices into the labels; probabilities: one a class; correct."""
    return pa.schema(
        [
            pa.field("sample_id", pa.string(), nullable=False),
            pa.field("label", pa.int8(), nullable=False),
            pa.field("predicted", pa.int8(), nullable=False),
            pa.field("probabilities", pa.list_(pa.float32()), nullable=False),
            pa.field("correct", pa.bool_(), nullable=False),
        ]
    )


def write_predictions(path: Path, columns: Mapping[str, Any], metadata: Mapping[str, str]) -> None:
    """Writes predictions.parquet from columns (sequences or arrays); `metadata` says what they are predictions of."""
    schema = prediction_schema()
    write_table(
        path, pa.table({name: columns[name] for name in schema.names}, schema=schema), schema, metadata=metadata
    )
