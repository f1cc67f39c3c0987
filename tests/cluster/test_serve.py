"""`fer serve` as a user starts it, with its replicas on Ray: one start for all of it."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import psutil
import pytest
from builders.images import encoded
from builders.limits import patience
from builders.scenes import save_weights
from builders.service import Client
from builders.stopping import family, wait_until

from fer.inference.model import Model

MARK = b"no file may hold these bytes: 6f1d0f2b"
NOISE = np.random.default_rng(0).integers(0, 256, (500, 400, 3), dtype=np.uint8)
PHOTO = encoded(NOISE, "JPEG", quality=95) + MARK  # what stands behind the end of a JPEG is ignored


@pytest.mark.ray
@pytest.mark.timeout(900)
@pytest.mark.slow
def test_service_answers_many_clients_and_hostile_files_keeps_no_image_and_stops_after_the_last_answer(
    tmp_path: Path, test_data: Path
) -> None:
    weights = save_weights(tmp_path)
    expected = Model(weights, detector="whole", threads=1).predict(PHOTO).faces[0]
    words = ["serve", "--weights", str(weights), "--port", "0", "--detector", "whole", "--threads", "1"]
    output = tmp_path / "output"
    with open(output, "w") as file:
        start = "from fer.cli import main; main()"
        service = subprocess.Popen([sys.executable, "-c", start, *words], stdout=file, stderr=subprocess.STDOUT)
    try:
        (port,) = wait_until(lambda: re.findall(r"at http://127\.0\.0\.1:(\d+) ", output.read_text()), service)
        client = Client(int(port))
        assert client.ask("/healthz").status == 200

        with ThreadPoolExecutor(16) as clients:
            answers = list(clients.map(client.predict, [PHOTO] * 64))
        assert [answer.status for answer in answers] == [200] * 64
        for answer in answers:
            (face,) = json.loads(answer.body)["faces"]
            assert (face["label"], face["box"]) == (expected.label, list(expected.box or ()))
            # Sums of floats depend on the size of the batch in their last bits.
            assert face["probabilities"] == pytest.approx(expected.probabilities, abs=1e-5)
        (together,) = re.findall(r"fer_batch_images_sum (\S+)", client.ask("/metrics").body.decode())
        assert float(together) > 64, "some were predicted together"

        images = [path.read_bytes() for path in sorted((test_data / "bad").rglob("*")) if path.is_file()]
        with ThreadPoolExecutor(4) as clients:
            statuses = {answer.status for answer in clients.map(client.predict, images)}
        assert statuses == {200, 413, 415, 422}
        assert client.predict(PHOTO).status == 200
        written = [path for path in Path("/tmp").glob(f"fer-ray-{service.pid}-*/**/*") if path.is_file()]
        assert written
        assert not [path for path in written if MARK in path.read_bytes()]

        (replica,) = [one for one in family(service) if "ServeReplica" in " ".join(one.cmdline())]
        replica.kill()
        seen = set()
        wait_until(lambda: seen.add(status := client.predict(PHOTO).status) or status == 200, service)
        assert seen <= {200, 503}

        large = encoded(np.zeros((7000, 7000), np.uint8), "PNG")
        with ThreadPoolExecutor(1) as sender:
            last = sender.submit(client.predict, large)
            wait_until(lambda: "fer_requests_in_flight 1.0" in client.ask("/metrics").body.decode(), service)
            everyone = family(service)
            os.kill(service.pid, signal.SIGTERM)
            assert last.result().status == 200
        assert service.wait(patience(60)) == 143, output.read_text()
        psutil.wait_procs(everyone, patience(10))
        assert not [one for one in everyone if one.is_running() and one.status() != psutil.STATUS_ZOMBIE]
        assert "Traceback" not in output.read_text()
    finally:
        service.kill()
        service.wait()
