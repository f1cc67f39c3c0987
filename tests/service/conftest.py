"""A service in this process, without Ray: uvicorn in a thread, around anything that predicts."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest
from builders.scenes import save_weights
from builders.service import Client

from fer.commands.serve import describe
from fer.inference.model import Model
from fer.service.app import create_app, listen, server
from fer.service.batches import Batches
from fer.service.limits import Limits


class ModelBackend:
    """A model of this process, in the place of the replicas."""

    def __init__(self, model: Model) -> None:
        async def work(images: Any) -> list[Any]:
            return await asyncio.to_thread(lambda: [one.to_dict() for one in model.results(named(images))])

        self.predict = Batches(work, places=1, most=16).predict

    async def healthy(self) -> bool:
        return True


def named(images: Any) -> list[tuple[str, bytes]]:
    return [("image", image) for image in images]


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run."""
    return save_weights(tmp_path_factory.mktemp("trained"))


@pytest.fixture(scope="session")
def model(weights: Path) -> Model:
    """It takes each photo as one face."""
    return Model(weights, detector="whole", threads=1)


@pytest.fixture
def start(model: Model) -> Callable[..., AbstractContextManager[Client]]:
    """`start(backend, **limits)`: a running service for a block; without a backend, of `model`."""

    @contextmanager
    def started(backend: Any = None, **limits: Any) -> Iterator[Client]:
        app = create_app(backend or ModelBackend(model), describe(model), Limits(**limits))
        with listen("127.0.0.1", 0) as socket:
            running = server(app)
            thread = threading.Thread(target=running.run, kwargs={"sockets": [socket]})
            thread.start()
            try:
                yield Client(socket.getsockname()[1])
            finally:
                running.should_exit = True
                thread.join()

    return started
