"""A model behind Ray Serve: replicas that predict batches of images, and are replaced when they die.

HTTP is not Serve's part here but that of `fer.service`, in the process of `fer serve`: it knows the length of a body
before it is read, ends with the requests in flight answered, and counts what every replica has done.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fer import processes
from fer.cluster import compat
from fer.cluster.config import ClusterConfig
from fer.cluster.nodes import require, require_paths
from fer.cluster.session import Cluster, connect, run_in_thread
from fer.service.batches import Answer, Batches

if TYPE_CHECKING:
    from fer.inference.model import Model

MOST_IMAGES = 16
"""Of a batch, as many as the detector takes at once; what else waits is for the next replica that is free."""

_BATCHES = 2
"""Of a replica: one that it predicts, and one that is there when it is ready."""


class Replica:
    """One process with the model, in one thread beside those of Serve.

    Detectors are made for one thread, and `torch.set_num_threads` holds for the thread that calls it.

    Args:
        weights: file that `fer.inference.model.Model` takes.
        options: its other arguments.
    """

    def __init__(self, weights: str, options: Mapping[str, Any]) -> None:
        processes.quiet_libraries()
        self._thread = ThreadPoolExecutor(1, "model")
        self._model = self._thread.submit(_ready, weights, options).result()

    async def predict(self, images: Sequence[bytes]) -> list[Answer]:
        """A `Result` for each image, as plain JSON."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, _answers, self._model, images)


def _ready(weights: str, options: Mapping[str, Any]) -> Model:
    import numpy as np

    from fer.inference.model import Model

    model, blank = Model(Path(weights), **options), np.zeros((64, 64, 3), np.uint8)
    model.predict(blank)  # loads the detector
    model.predict_faces([blank])
    return model


def _answers(model: Model, images: Sequence[bytes]) -> list[Answer]:
    return [result.to_dict() for result in model.results([("image", image) for image in images])]


class Replicas:
    """What `fer.service.app` asks to predict."""

    def __init__(self, handle: Any, name: str, cluster: Cluster, count: int) -> None:
        self._handle, self._name, self._cluster = handle, name, cluster
        self._batches = Batches(self._work, places=count, most=MOST_IMAGES)

    async def predict(self, image: bytes) -> tuple[Answer, int]:
        """As `Batches.predict`; LostError where the replica has died, and its successor is not there yet."""
        return await self._batches.predict(image)

    async def _work(self, images: Sequence[bytes]) -> list[Answer]:
        from ray.exceptions import RayActorError

        try:
            answers: list[Answer] = await self._handle.predict.remote(list(images))
        except RayActorError as error:
            raise processes.LostError(f"a replica of the model has died ({type(error).__name__})") from None
        return answers

    async def healthy(self) -> bool:
        """Whether all replicas are there."""
        from ray import serve

        status = await asyncio.to_thread(serve.status)
        return self._name in status.applications and str(status.applications[self._name].status.value) == "RUNNING"

    async def check(self) -> None:
        """Raises LostClusterError where the cluster was lost."""
        self._cluster.watch.check()


@contextmanager
def replicas(
    weights: Path, options: Mapping[str, Any], *, count: int, threads: int, config: ClusterConfig | None = None
) -> Iterator[Replicas]:
    """Replicas of a model on the cluster of RAY_ADDRESS or a local one, for the block.

    Args:
        weights: file, which every node must see.
        options: other arguments of `fer.inference.model.Model`, but for `threads`.
        count: replicas, each with so many `threads`.

    Raises:
        ValueError: the cluster is too small, cannot be reached, or does not see the weights.
        LostClusterError: it was lost.
        RuntimeError: the replicas did not start, with the reason of Serve.
    """
    path, name = str(weights.resolve()), f"fer-{os.getpid()}"
    with connect(config or ClusterConfig()) as cluster:
        from ray import serve

        require(workers=count, cpus=threads)
        require_paths([path], cluster.address)
        logging.getLogger("ray.serve").setLevel(logging.WARNING)
        deployment = serve.deployment(Replica).options(
            name="model",
            num_replicas=count,
            max_ongoing_requests=_BATCHES,
            ray_actor_options={"num_cpus": threads},
            graceful_shutdown_timeout_s=5,
        )

        def start() -> Any:
            serve.start(proxy_location="Disabled", logging_config={"log_level": "WARNING", "enable_access_log": False})
            return serve.run(deployment.bind(path, {**options, "threads": threads}), name=name, route_prefix=None)

        try:
            yield Replicas(compat.by_value(run_in_thread(start, cluster.watch.check)), name, cluster, count)
        finally:
            if cluster.address is not None:  # a local one ends with all that it holds
                with suppress(Exception):
                    serve.delete(name)
