"""The HTTP service without Ray: what it answers, what it refuses, what it counts, how it stops."""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import re
import signal
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from builders.images import encoded
from builders.limits import patience
from builders.runs import child, write_output_to
from builders.service import Client
from builders.stopping import wait_until

from fer import cli, processes
from fer.commands import serve as command
from fer.inference.model import Model
from fer.service.app import create_app, file_of, listen, server
from fer.service.batches import Batches
from fer.service.limits import Limits, Rate

NOISE = np.random.default_rng(0).integers(0, 256, (90, 70, 3), dtype=np.uint8)
PHOTO = encoded(NOISE, "JPEG", quality=95)
FOUND = {"file": "image", "read": True, "faces": [], "refused": []}


class Fixed:
    """A backend that answers as it is told, or waits until it is released."""

    def __init__(self, answer: Any = FOUND) -> None:
        self.answer, self.released, self.taken = answer, threading.Event(), 0

    async def predict(self, image: bytes) -> tuple[dict[str, Any], int]:
        self.taken += 1
        await asyncio.to_thread(self.released.wait, patience(60))
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer, 1

    async def healthy(self) -> bool:
        return not isinstance(self.answer, Exception)


def released(answer: Any = FOUND) -> Fixed:
    backend = Fixed(answer)
    backend.released.set()
    return backend


def form(data: bytes, name: str = 'name="file"; filename="a.jpg"') -> dict[str, Any]:
    """The arguments of a request with a form of one field."""
    body = b"--x\r\nContent-Disposition: form-data; " + name.encode() + b"\r\n\r\n" + data + b"\r\n--x--\r\n"
    return {"body": body, "headers": {"Content-Type": "multipart/form-data; boundary=x"}}


# ------------------------------------------------------------------------------------------------ answers


def test_answer_is_the_result_of_the_model_for_raw_bytes_and_for_a_form(start, model: Model) -> None:
    expected = {**model.predict([PHOTO])[0].to_dict(), "file": "image", "trained_on_synthetic": False}
    with start() as client:
        answers = [client.predict(PHOTO), client.predict(PHOTO, {"Content-Type": "image/jpeg"})]
        answers.append(client.predict(**form(PHOTO)))
    for one in answers:
        assert (one.status, json.loads(one.body)) == (200, expected)
        assert one.headers["Cache-Control"] == "no-store"


def test_form_with_bytes_of_any_kind_is_read_exactly() -> None:
    data = bytes(range(256)) * 3 + b"\r\n--y\r\n\n\r"
    assert file_of("multipart/form-data; boundary=x", form(data)["body"]) == data
    text = form(b"words", 'name="note"')["body"].removesuffix(b"--x--\r\n") + form(data)["body"]
    assert file_of('multipart/form-data; charset=utf-8; boundary="x"', text) == data, "the first file"


def test_model_is_described_with_its_limits(start, model: Model) -> None:
    with start(rate=7) as client:
        found = json.loads(client.ask("/v1/model").body)
    assert found["labels"] == list(model.labels)
    assert found["card"]["dataset"] == "scenes"
    assert found["versions"]["fer"]
    assert found["limits"]["rate"] == 7


def test_health_follows_the_backend(start) -> None:
    for backend, status in ((released(), 200), (released(processes.LostError("gone")), 503)):
        with start(backend) as client:
            assert client.ask("/healthz").status == status


def test_interface_describes_what_is_sent_and_answered(start, model: Model) -> None:
    with start() as client:
        document = json.loads(client.ask("/openapi.json").body)
        answer = json.loads(client.predict(PHOTO).body)
        assert client.ask("/docs").status == 404, "a page that would load its scripts from elsewhere"
    post, schemas = document["paths"]["/v1/predict"]["post"], document["components"]["schemas"]
    assert set(post["requestBody"]["content"]) == {"image/*", "multipart/form-data"}
    assert {"200", "413", "415", "422", "429", "503"} <= set(post["responses"])
    assert set(schemas["PredictionSchema"]["properties"]) == set(answer)
    assert set(schemas["FaceSchema"]["properties"]) == set(answer["faces"][0])
    assert {"/v1/predict", "/v1/model", "/healthz", "/metrics"} == set(document["paths"])


# ------------------------------------------------------------------------------------------------ refusals


@pytest.mark.parametrize(
    ("body", "status", "reason"),
    [(b"<html>", 415, "not_an_image"), (b"", 415, "empty"), (b"8BPS" + bytes(99), 415, "unsupported"),
     (PHOTO[:-40], 422, "truncated"), (encoded(np.zeros((9000, 9000), np.uint8), "PNG"), 413, "too_large")],
)  # fmt: skip
def test_what_is_no_image_is_refused_with_the_reason(start, body: bytes, status: int, reason: str) -> None:
    with start() as client:
        answer = client.predict(body)
        metrics = client.ask("/metrics").body.decode()
    found = json.loads(answer.body)["detail"]
    assert (answer.status, found["reason"]) == (status, reason)
    assert found["message"]
    assert f'fer_rejected_total{{reason="{reason}"}} 1.0' in metrics


@pytest.mark.parametrize(
    "request_", [form(b"a", 'name="file"'), {"body": b"", "headers": {"Content-Type": "multipart/form-data"}},
                 {"body": b"--x--", "headers": {"Content-Type": "multipart/form-data; boundary=x"}}],
)  # fmt: skip
def test_form_without_a_file_is_refused(start, request_: dict[str, Any]) -> None:
    with start() as client:
        answer = client.predict(**request_)
    assert (answer.status, json.loads(answer.body)["detail"]["reason"]) == (422, "no_file")


def test_too_long_a_body_is_refused_before_it_is_sent(start) -> None:
    with start(max_bytes=1000) as client, socket.create_connection(("127.0.0.1", client.port)) as connection:
        connection.settimeout(patience(30))
        connection.sendall(b"POST /v1/predict HTTP/1.1\r\nHost: here\r\nContent-Length: 1001\r\n\r\n")
        assert connection.recv(100).startswith(b"HTTP/1.1 413 ")


def test_body_of_unknown_length_is_refused_once_it_is_too_long(start) -> None:
    def endless() -> Iterator[bytes]:
        while not answered.is_set():
            yield bytes(500)

    answered, backend = threading.Event(), released()
    with start(backend, max_bytes=1000) as client:
        connection = http.client.HTTPConnection("127.0.0.1", client.port, timeout=patience(30))
        sender = threading.Thread(target=lambda: connection.request("POST", "/v1/predict", endless()))
        sender.start()
        wait_until(lambda: 'reason="too_large"' in client.ask("/metrics").body.decode())
        answered.set()
        sender.join()
        assert connection.getresponse().status == 413
        connection.close()
    assert backend.taken == 0


def test_slow_body_is_given_up(start) -> None:
    with (
        start(body_seconds=0.05, queue=1) as client,
        socket.create_connection(("127.0.0.1", client.port)) as connection,
    ):
        connection.settimeout(patience(30))
        connection.sendall(b"POST /v1/predict HTTP/1.1\r\nHost: here\r\nContent-Length: 100\r\n\r\nabc")
        assert connection.recv(100).startswith(b"HTTP/1.1 408 ")
        assert client.predict(PHOTO).status != 429, "its place is free again"


def test_full_queue_refuses_at_once_and_answers_those_inside(start) -> None:
    backend, inside = Fixed(), []
    with start(backend, queue=3) as client:
        senders = [threading.Thread(target=lambda: inside.append(client.predict(PHOTO).status)) for _ in range(3)]
        for sender in senders:
            sender.start()
        wait_until(lambda: backend.taken == 3)
        refused = client.predict(PHOTO)
        assert "fer_requests_in_flight 3.0" in client.ask("/metrics").body.decode()
        assert client.ask("/healthz").status == 200
        backend.released.set()
        for sender in senders:
            sender.join()
        assert client.predict(PHOTO).status == 200
    assert (refused.status, json.loads(refused.body)["detail"]["reason"]) == (429, "full")
    assert int(refused.headers["Retry-After"]) >= 1
    assert inside == [200] * 3


def test_rate_of_an_address_is_limited_with_bursts(start) -> None:
    now = [100.0]
    rate = Rate(5, lambda: now[0])
    assert [rate.wait("a") for _ in range(5)] == [0] * 5
    assert rate.wait("a") == pytest.approx(0.2)
    assert rate.wait("b") == 0
    now[0] += 0.2
    assert [rate.wait("a") > 0 for _ in range(2)] == [False, True]
    slow = Rate(0.1, lambda: now[0])
    assert (slow.wait("a"), slow.wait("a")) == (0, pytest.approx(10))
    with start(released(), rate=0.01) as client:
        assert client.predict(PHOTO).status == 200
        refused = client.predict(PHOTO)
    assert (refused.status, json.loads(refused.body)["detail"]["reason"]) == (429, "rate")
    assert 90 < int(refused.headers["Retry-After"]) <= 100


def test_addresses_are_forgotten_when_they_are_not_limited_any_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fer.service.limits._ADDRESSES", 3)
    now = [0.0]
    rate = Rate(1, lambda: now[0])
    for name in "abc":
        rate.wait(name)
        now[0] += 0.9
    rate.wait("d")
    assert set(rate._due) == {"c", "d"}


def test_backend_that_is_lost_or_fails_is_no_end_of_the_service(start, caplog: pytest.LogCaptureFixture) -> None:
    for error, status in ((processes.LostError("died"), 503), (RuntimeError("a defect"), 500)):
        with start(released(error)) as client:
            answers = [client.predict(PHOTO) for _ in range(2)]
        assert [one.status for one in answers] == [status] * 2
        assert (answers[0].headers["Retry-After"] is not None) == (status == 503)
    hung = Fixed()
    with start(hung, predict_seconds=0.05) as client:
        assert client.predict(PHOTO).status == 503
        hung.released.set()


def test_hostile_files_are_answered_and_the_service_lives(start, test_data: Path) -> None:
    images = [path for path in sorted((test_data / "bad").rglob("*")) if path.is_file()]
    assert len(images) >= 58
    with start() as client:
        found = {path.name: client.predict(path.read_bytes()) for path in images}
        assert client.predict(PHOTO).status == 200
    statuses = {name: answer.status for name, answer in found.items()}
    assert set(statuses.values()) == {200, 413, 415, 422}
    assert statuses["exif_orientation_6.jpg"] == 200
    assert statuses["truncated_60pct.jpg"] == statuses["corrupt_scan.jpg"] == 422
    assert statuses["zero_bytes.jpg"] == statuses["html_renamed.jpg"] == 415
    assert statuses["blank_12000x12000.png"] == 413


# ------------------------------------------------------------------------------------------------ batches


def test_what_waits_together_is_predicted_together_in_order() -> None:
    async def main() -> tuple[list[Any], list[list[bytes]]]:
        batches: list[list[bytes]] = []
        free = asyncio.Event()

        async def work(images: Any) -> list[Any]:
            batches.append(list(images))
            await free.wait()
            return [{"of": image} for image in images]

        many = Batches(work, places=1, most=4)
        first = asyncio.create_task(many.predict(b"first"))
        while not batches:
            await asyncio.sleep(0)
        others = [asyncio.create_task(many.predict(bytes([number]))) for number in range(6)]
        await asyncio.sleep(0)
        others[1].cancel()  # its client has left
        free.set()
        return await asyncio.gather(first, *others, return_exceptions=True), batches

    answers, batches = asyncio.run(main())
    assert [len(batch) for batch in batches] == [1, 3, 2]
    assert answers[0] == ({"of": b"first"}, 1)
    assert isinstance(answers[2], asyncio.CancelledError)
    assert [answer[0]["of"][0] for answer in answers[1:] if isinstance(answer, tuple)] == [0, 2, 3, 4, 5]


def test_images_whose_clients_have_left_are_not_predicted() -> None:
    async def main() -> list[int]:
        sizes = []

        async def work(images: Any) -> list[Any]:
            sizes.append(len(images))
            await asyncio.sleep(0)
            return [{} for _ in images]

        many = Batches(work, places=1, most=8)
        left = [asyncio.create_task(many.predict(b"left")) for _ in range(5)]
        await asyncio.sleep(0)
        for one in left:
            one.cancel()
        await asyncio.gather(*left, return_exceptions=True)
        await many.predict(b"here")
        return sizes

    assert asyncio.run(main())[-1] == 1


def test_image_that_fails_fails_alone() -> None:
    async def main() -> list[Any]:
        async def work(images: Any) -> list[Any]:
            if b"bad" in images:
                raise RuntimeError("a defect")
            return [{} for _ in images]

        many = Batches(work, places=1, most=8)
        return await asyncio.gather(*(many.predict(one) for one in (b"a", b"bad", b"c")), return_exceptions=True)

    one, bad, other = asyncio.run(main())
    assert (one, other) == (({}, 1), ({}, 1))
    assert isinstance(bad, RuntimeError)


# ------------------------------------------------------------------------------------------------ metrics, page


def test_metrics_count_requests_faces_and_batches(start) -> None:
    with start() as client:
        statuses = [client.predict(body).status for body in (PHOTO, PHOTO, b"<html>")]
        answer = client.ask("/metrics")
    lines = answer.body.decode().splitlines()
    assert statuses == [200, 200, 415]
    assert answer.headers["Content-Type"].startswith("text/plain")
    for line in (
        'fer_requests_total{status="200"} 2.0', 'fer_requests_total{status="415"} 1.0', "fer_faces_total 2.0",
        "fer_request_seconds_count 3.0", "fer_batch_images_count 3.0", "fer_requests_in_flight 0.0",
    ):  # fmt: skip
        assert line in lines


def test_page_needs_nothing_from_elsewhere_and_may_run_nothing_else(start) -> None:
    with start() as client:
        answer = client.ask("/")
    page, policy = answer.body.decode(), answer.headers["Content-Security-Policy"]
    assert not re.findall(r"(?:src|href)=\"(?:https?:)?//|@import|url\(", page)
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert not re.findall(r"<[^>]* (?:style|on\w+)=", page), "the policy would forbid it"


def test_page_shows_boxes_and_labels_in_a_browser(start, model: Model, tmp_path: Path) -> None:
    browser_path = Path("/usr/bin/chromium")
    sync_api = pytest.importorskip("playwright.sync_api")
    if not browser_path.exists():
        pytest.skip(f"{browser_path} is not there")
    (tmp_path / "photo.jpg").write_bytes(PHOTO)
    (tmp_path / "page.jpg").write_bytes(b"<html>")
    label = model.predict(PHOTO).faces[0].label
    with start() as client, sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=str(browser_path), args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 375, "height": 667})
        page.set_default_timeout(patience(20) * 1000)
        problems: list[str] = []
        page.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: problems.append(str(error)))
        asked: list[str] = []
        page.on("request", lambda request: asked.append(request.url))
        page.goto(client.url)
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.id") == "file", "the keyboard reaches the choice first"
        page.get_by_label("Drop or paste a photo here, or choose one:").set_input_files(tmp_path / "photo.jpg")
        page.get_by_role("status").filter(has_text="1 face.").wait_for()
        assert page.locator("svg rect").count() == 1
        assert page.locator("svg text").text_content() == f"1 {label}"
        assert page.get_by_role("table").get_by_role("row").nth(1).get_by_role("cell").first.inner_text() == label
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), "a phone scrolls down only"
        assert not problems
        page.get_by_label("Drop or paste").set_input_files(tmp_path / "page.jpg")
        page.get_by_role("status").filter(has_text="Not predicted").wait_for()
        assert page.get_by_role("table").count() == 0
        browser.close()
    assert all(url.startswith((client.url, "blob:" + client.url)) for url in asked)


# ------------------------------------------------------------------------------------------------ start and stop


def serve_until_released(output: str, folder: str) -> None:
    """A service, for `child`, whose one request ends when a file is there."""
    write_output_to(output)

    class Waiting:
        async def predict(self, image: bytes) -> tuple[dict[str, Any], int]:
            (Path(folder) / "taken").touch()
            while not (Path(folder) / "released").exists():
                await asyncio.sleep(0.01)
            return FOUND, 1

        async def healthy(self) -> bool:
            return True

    def main() -> None:
        with listen("127.0.0.1", 0) as socket:
            app = create_app(Waiting(), {"trained_on_synthetic": False}, Limits())
            (Path(folder) / "port.tmp").write_text(str(socket.getsockname()[1]))
            (Path(folder) / "port.tmp").rename(Path(folder) / "port")
            server(app).run(sockets=[socket])

    processes.run(main)


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_stopped_service_answers_the_request_in_flight_and_takes_no_other(
    start, tmp_path: Path, signum: int, code: int
) -> None:
    work = child(serve_until_released, str(tmp_path / "output"), str(tmp_path))
    wait_until((tmp_path / "port").exists, work)
    client = Client(int((tmp_path / "port").read_text()))
    answers: list[int] = []
    sender = threading.Thread(target=lambda: answers.append(client.predict(PHOTO).status))
    sender.start()
    wait_until((tmp_path / "taken").exists, work)
    assert work.pid is not None
    os.kill(work.pid, signum)

    def refuses() -> bool:
        try:
            socket.create_connection(("127.0.0.1", client.port), timeout=1).close()
        except OSError:
            return True
        return False

    wait_until(refuses, work)
    assert not answers
    (tmp_path / "released").touch()
    sender.join()
    work.join(patience(60))
    assert (answers, work.exitcode) == ([200], code), (tmp_path / "output").read_text()


def test_taken_port_is_named_before_anything_is_loaded(weights: Path) -> None:
    with listen("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ValueError, match=f"port {port}: .*--port"):
            cli._main(["serve", "--weights", "nowhere", "--port", str(port)])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [(["--port", "70000"], "--port 70000"), (["--replicas", "0"], "--replicas 0"), (["--max-bytes", "0"], "max_bytes"),
     (["--rate", "-1"], "rate"), (["--host", "192.0.2.1"], "192.0.2.1"), (["--weights", "gone.safetensors"], "gone")],
)  # fmt: skip
def test_wrong_argument_is_refused(arguments: list[str], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        cli._main(["serve", "--port", "0", *arguments])


def test_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "find_spec", lambda name: None if name == "fastapi" else name)
    with pytest.raises(ValueError, match=r"needs fastapi: run `pip install .* '\.\[serve\]'`"):
        cli._main(["serve"])
