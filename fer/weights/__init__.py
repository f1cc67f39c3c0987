"""Weights: importers of published files, and our own format (`fer.weights.store`)."""

from fer.weights.convert import convert, dead_keys, published_options
from fer.weights.published import load_published, read_published

__all__ = ["convert", "dead_keys", "load_published", "published_options", "read_published"]
