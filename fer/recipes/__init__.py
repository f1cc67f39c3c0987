"""Training recipes as package data; see `fer.training.recipe`."""
