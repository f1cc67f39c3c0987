"""Files, archives, downloads and images: what is read and written, whole or not at all."""
