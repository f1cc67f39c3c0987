"""What `report` may be told."""

from __future__ import annotations

from pydantic import Field

from fer.config import Config


class ReportConfig(Config):
    """What the report shows."""

    title: str = Field(
        default="Facial expression recognition", min_length=1, max_length=200, description="heading of the page"
    )
    published_rows: int = Field(
        default=12, ge=0, le=100, description="most published figures shown beside a dataset, the best first; 0: all"
    )
