"""Where pictures come from: one reader a dataset, behind the `Source` protocol of `fer.sources.base`."""
