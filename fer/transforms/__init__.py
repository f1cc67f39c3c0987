"""Augmentation: what a recipe lists, by fast forms where all of it has one, else by albumentations."""
