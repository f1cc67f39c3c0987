"""Where images come from: one reader a dataset, behind the `Source` protocol of `fer.sources.base`."""
