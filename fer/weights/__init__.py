"""Importers of published checkpoints."""

from fer.weights.convert import convert, dead_keys, published_options

__all__ = ["convert", "dead_keys", "published_options"]
