"""Networks that several models read feature maps from."""
