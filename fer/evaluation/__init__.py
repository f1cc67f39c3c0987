"""Evaluation of trained models on the test split: prediction, metrics, figures."""
