"""fer: train, compare and use facial expression recognition models."""

__version__ = "0.1.0"
