"""Training: the loop, its state, schedules, recipes. Knows torch and `fer.shards`; no cluster, no tracker."""
