"""The only package that imports ray.

config.py   which cluster, and how a search uses it
session.py  a cluster for a block of work; nodes.py: what its nodes hold; health.py: what it has lost
host.py     one local cluster for all stages of a `dvc repro`; shared.py: how a stage asks for it
map.py      a function over many units of work: crop, evaluate
fit.py      the workers of one training run (Ray Train)
beside.py   several training runs at once: the cells of a study
grid.py     the trials of a search (Ray Tune); ranks.py: several workers of one; trials.py: their record
serve.py    the replicas of a model behind `fer serve` (Ray Serve)
jobs.py     the job server of a remote cluster
compat.py   what depends on the version of Ray
"""
