"""Trained models as graphs for other runtimes: traced, written, checked against torch, quantized, loaded back."""
