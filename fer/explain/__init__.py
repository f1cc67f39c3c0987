"""Why a model predicts what it predicts, and what its predictions say about the data."""
