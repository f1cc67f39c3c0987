"""Training: the loop, its state, recipes. Knows torch and `fer.shards`; no cluster, no tracking."""
