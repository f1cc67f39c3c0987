"""What the server of child processes imports once for all of them: torch imports much at its first update."""

import albumentations  # noqa: F401
import builders.runs  # noqa: F401
import pyarrow.parquet  # noqa: F401
import torch._dynamo  # noqa: F401

import fer.stages.train  # noqa: F401
