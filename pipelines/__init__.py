"""The DVC entry points: one thin script a stage, named as in dvc.yaml. Run as `python -m pipelines.<stage>`."""
