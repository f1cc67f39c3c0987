"""The only package that imports ray.

config.py   which cluster, and how a search uses it
session.py  a cluster for a block of work; nodes.py: what its nodes hold; health.py: what it has lost
map.py      a function over many units of work: crop, evaluate
fit.py      the workers of one training run (Ray Train)
grid.py     the trials of a search, the cells of a study (Ray Tune); trials.py: the record of a search
serve.py    the replicas of a model behind `fer serve` (Ray Serve)
jobs.py     the job server of a remote cluster
compat.py   what depends on the version of Ray
"""
