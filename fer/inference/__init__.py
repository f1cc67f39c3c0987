"""Photographs in, expressions out: detect, align, classify."""
