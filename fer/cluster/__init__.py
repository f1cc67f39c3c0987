"""The only package that imports ray: a cluster to work on, and the maps, trainings, searches and jobs on it."""
