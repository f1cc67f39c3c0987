"""From a picture to face crops: detect, align, crop."""
