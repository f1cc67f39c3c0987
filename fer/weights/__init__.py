"""Weights: importers of published files, and our own format (`fer.weights.store`)."""
