"""Prediction over a split: on Ray workers, or in this process without Ray. The result is the same bits."""

from __future__ import annotations

from fer.cluster.config import ClusterConfig
from fer.console import progress
from fer.evaluation.config import EvaluateConfig
from fer.evaluation.predict import Predictions, PredictJob, merge, predict_share


def predict(job: PredictJob, config: EvaluateConfig, cluster: ClusterConfig, rows: int) -> Predictions:
    """Predictions for all `rows` rows of the job's split, in its order.

    Raises:
        ValueError: labels that do not match, unreadable shards, a cluster that is too small or cannot be reached, or a
            GPU that is asked for and not there.
    """
    if config.workers == 0:
        return merge([predict_share(job, device=_device(config.gpu))], rows)
    from fer.cluster.session import connect, require

    gpus = int(config.gpu)
    with connect(cluster):
        require(workers=config.workers, cpus=config.threads, gpus=gpus)
        import ray

        work = ray.remote(num_cpus=config.threads, num_gpus=gpus, max_retries=2)(_share)
        waiting = [work.remote(job, rank, config.workers, config.gpu) for rank in range(config.workers)]
        shares: list[Predictions] = []
        with progress(len(waiting), f"predict {job.split}", "worker") as bar:
            while waiting:
                done, waiting = ray.wait(waiting)
                try:
                    shares += ray.get(done)
                except ray.exceptions.RayTaskError as error:
                    raise error.cause if isinstance(error.cause, ValueError) else error from None
                bar.update(len(done))
    return merge(shares, rows)


def _share(job: PredictJob, rank: int, world_size: int, gpu: bool) -> Predictions:
    return predict_share(job, rank, world_size, _device(gpu))


def _device(gpu: bool) -> str:
    import torch

    if gpu and not torch.cuda.is_available():
        raise ValueError("evaluate.gpu is true, and torch finds no GPU: set it to false, or name a cluster with GPUs")
    return "cuda" if gpu else "cpu"
