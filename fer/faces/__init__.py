"""Face crops from images: detect, align, crop."""
