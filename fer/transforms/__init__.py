"""Fast forms of augmentations: parameters drawn for a whole batch at once, uint8 pictures changed by single calls.

Each form does what the transform of the same name in albumentations 2.0.8 does, to the bit, with the same function of
the same uniform numbers. It knows that library's object by its attributes alone: `fer.transforms.reference` alone
imports it.
"""
