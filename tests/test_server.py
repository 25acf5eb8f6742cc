"""The server as its clients see it: OpenAI's own client, batches, streams, edits, a full queue, clients that leave."""

from __future__ import annotations

import base64
import io
import json
import re
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import pytest
from http_server import HeldModel, Running, drawn_alone, pixels, serving, wait_until
from openai import BadRequestError, OpenAI
from PIL import Image

from rcdeploy_runtime import TextToImage
from rcdeploy_runtime.server.answers import preview_steps
from rcdeploy_runtime.server.image_data import ImageStore
from rcdeploy_runtime.server.settings import Limits

ROOT = Path(__file__).parent.parent
BOOT = "a photo of a red boot on a white background"


@pytest.fixture(scope="module")
def model() -> TextToImage:
    return TextToImage.load(ROOT / "examples/students/fashion", threads=1)


@pytest.fixture(scope="module")
def editor() -> TextToImage:
    """A model with an encoder; its weights are random."""
    return TextToImage.load(ROOT / "tests/fixtures/formats_0_1/package", threads=1)


@pytest.fixture(scope="module")
def server(model: TextToImage) -> Iterator[Running]:
    with serving(model, names=("fashion",)) as running:
        yield running


@pytest.fixture(scope="module")
def client(server: Running) -> OpenAI:
    return OpenAI(base_url=f"{server.url}/v1", api_key="unused", max_retries=0)


def test_openais_client_draws_what_the_runtime_draws(client: OpenAI, model: TextToImage) -> None:
    assert [m.id for m in client.models.list()] == ["fashion"]
    assert client.models.retrieve("fashion").object == "model"
    answer = client.images.generate(model="fashion", prompt=BOOT, n=2, size="64x64", extra_body={"seed": 7})
    assert (answer.size, answer.output_format, len(answer.data)) == ("64x64", "png", 2)
    for image, seed in zip(answer.data, (7, 8), strict=True):
        assert np.abs(pixels(image.b64_json) - drawn_alone(model, BOOT, seed)).max() <= 1
        assert image.seed == seed and image.url is None


def test_two_models_on_one_server(model: TextToImage, editor: TextToImage) -> None:
    with serving(model, editor, names=("student", "teacher")) as running:
        assert [entry["id"] for entry in running.client.get("/v1/models").json()["data"]] == ["student", "teacher"]
        with ThreadPoolExecutor(4) as threads:
            answers = list(threads.map(lambda k: running.draw(BOOT, 7, model=("student", "teacher")[k % 2]), range(4)))
        alone = drawn_alone(model, BOOT, 7), drawn_alone(editor, BOOT, 7)
        for k, answer in enumerate(answers):
            assert np.abs(pixels(answer.json()["data"][0]["b64_json"]) - alone[k % 2]).max() <= 1
        first = running.draw(BOOT, 7).json()["data"][0]["b64_json"]  # none named
        assert np.abs(pixels(first) - alone[0]).max() <= 1
        assert "Model: student" in Image.open(io.BytesIO(base64.b64decode(first))).text["parameters"]
        refused = running.client.get("/v1/models/judge")
        assert refused.status_code == 404 and "here are: student, teacher" in refused.json()["error"]["message"]
        facts = running.client.get("/v1/page", params={"model": "teacher"}).json()
        assert facts["can_edit"] and facts["models"] == ["student", "teacher"]


@pytest.mark.parametrize("stream", [False, True])
def test_a_request_ends_after_the_time_that_it_may_take(model: TextToImage, stream: bool) -> None:
    held = HeldModel(model)
    with serving(held, limits=Limits(seconds=0.3)) as running:
        answer = running.draw(BOOT, stream=stream)
        assert answer.status_code == (200 if stream else 504) and '"code":"timeout"' in answer.text.replace(" ", "")
        held.go.set()
        wait_until(lambda: len(running.service.queue) == 0)
        running.service.settings.limits.__dict__["seconds"] = 60.0
        assert running.draw(BOOT).status_code == 200


def test_the_guides_examples_work(server: Running, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    page = (ROOT / "docs/guide/server.md").read_text("utf-8").replace("http://127.0.0.1:8000", server.url)
    exec("".join(re.findall(r"^```python\n(.*?)^```", page, re.S | re.M)), {})
    assert sorted(file.name for file in tmp_path.iterdir()) == ["boot-0.png", "boot-1.png"]
    address, body = re.search(r"curl (\S+).*?-d '(.*?)'", page, re.S).groups()
    answer = httpx.post(address, json=json.loads(body), trust_env=False).json()
    assert httpx.get(answer["data"][0]["url"], trust_env=False).content == (tmp_path / "boot-0.png").read_bytes()


def test_the_models_own_settings_can_be_changed(client: OpenAI, model: TextToImage) -> None:
    extra = {"seed": 1, "steps": 3, "sampler": "euler", "guidance_scale": 1.5, "negative_prompt": "a bag"}
    answer = client.images.generate(prompt=BOOT, size="96x64", extra_body=extra)
    settings = {"num_inference_steps": 3, "sampler": "euler", "guidance_scale": 1.5, "negative_prompt": "a bag"}
    expected = drawn_alone(model, BOOT, 1, width=96, height=64, **settings)
    assert np.abs(pixels(answer.data[0].b64_json) - expected).max() <= 1


@pytest.mark.parametrize(("output_format", "kind"), [("png", "PNG"), ("jpeg", "JPEG"), ("webp", "WEBP")])
def test_urls_and_formats(client: OpenAI, output_format: str, kind: str) -> None:
    answer = client.images.generate(prompt=BOOT, response_format="url", output_format=output_format)
    fetched = httpx.get(answer.data[0].url, trust_env=False)
    assert fetched.headers["content-type"] == f"image/{output_format}"
    assert Image.open(io.BytesIO(fetched.content)).format == kind
    assert len(answer.data[0].url.rsplit("/", 1)[1]) > 40
    assert httpx.get(answer.data[0].url + "x", trust_env=False).status_code == 404


def test_urls_end() -> None:
    store = ImageStore(seconds=0.05, max_bytes=10)
    first = store.put(b"12345678", "png")
    assert store.get(first) == b"12345678"
    second = store.put(b"1234", "png")
    assert store.get(first) is None and store.get(second) == b"1234"
    time.sleep(0.06)
    assert store.get(second) is None


def test_a_stream_has_previews_and_ends_with_the_image(client: OpenAI, model: TextToImage) -> None:
    stream = client.images.generate(prompt=BOOT, stream=True, partial_images=2, extra_body={"seed": 7, "steps": 6})
    events = list(stream)
    kinds = [event.type for event in events]
    assert kinds == ["image_generation.partial_image"] * 2 + ["image_generation.completed"]
    assert [event.partial_image_index for event in events[:2]] == [0, 1]
    *steps, result = model.stream(BOOT, seed=7, num_inference_steps=6, preview="rgb")
    expected = [steps[k - 1].previews[0].resize((64, 64), Image.Resampling.BICUBIC) for k in (2, 4)]
    for event, image in zip(events, [*expected, result.images[0]], strict=True):
        assert np.abs(pixels(event.b64_json) - np.asarray(image).astype(int)).max() <= 1
    assert events[2].usage.total_tokens == 0 and events[2].size == "64x64"
    assert preview_steps(25, 3) == {6, 12, 19} and preview_steps(2, 3) == {1} and preview_steps(9, 0) == set()


def test_edits(editor: TextToImage) -> None:
    picture = np.random.default_rng(0).integers(0, 255, (64, 64, 4), np.uint8)
    picture[..., 3] = 255
    holed = picture.copy()
    holed[:, :32, 3] = 0
    image, mask = (encoded(array) for array in (picture, holed))
    with serving(editor) as running:
        client = OpenAI(base_url=f"{running.url}/v1", api_key="unused", max_retries=0)
        extra = {"seed": 3, "steps": 2, "strength": 0.9}
        whole = client.images.edit(image=image, prompt="a bag", extra_body=extra)
        expected = drawn_alone(editor, "a bag", 3, image=Image.fromarray(picture), strength=0.9, num_inference_steps=2)
        assert np.abs(pixels(whole.data[0].b64_json) - expected).max() <= 1
        by_mask = client.images.edit(image=[image], mask=mask, prompt="a bag", extra_body=extra)
        by_alpha = client.images.edit(image=mask, prompt="a bag", extra_body=extra)
        for answer in (by_mask, by_alpha):
            result = pixels(answer.data[0].b64_json)
            assert np.array_equal(result[:, 32:], picture[:, 32:, :3]) and (result[:, :32] != picture[:, :32, :3]).any()
        kinds = [event.type for event in client.images.edit(image=image, prompt="a bag", stream=True, extra_body=extra)]
        assert kinds == ["image_edit.completed"]
        for wrong, words in (
            ({"image": b"no image"}, "no whole png"),
            ({"image": [image, image]}, "there are 2"),
            ({"image": image, "mask": image}, "transparent"),
            ({"image": image[:200]}, "no whole png"),
            ({"image": encoded(np.zeros((1025, 1024, 3), np.uint8))}, "at most 1,048,576"),
        ):
            with pytest.raises(BadRequestError, match=words):
                client.images.edit(prompt="a bag", **wrong)


def encoded(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "png")
    return buffer.getvalue()


def test_a_model_without_an_encoder_says_so(client: OpenAI) -> None:
    with pytest.raises(BadRequestError, match="no encoder"):
        client.images.edit(image=encoded(np.zeros((8, 8, 3), np.uint8)), prompt="a bag")


def test_requests_of_one_shape_are_drawn_together_and_equal_those_drawn_alone(model: TextToImage) -> None:
    held = HeldModel(model)
    prompts = [f"a photo of a {colour} boot on a white background" for colour in ("red", "blue", "green", "yellow")]
    with serving(held) as running, ThreadPoolExecutor(8) as pool:
        first = pool.submit(running.draw, "first")
        wait_until(lambda: held.batches)
        answers = []
        for seed, prompt in enumerate(prompts):
            answers.append(pool.submit(running.draw, prompt, 100 - seed, n=1 + seed % 2))
            wait_until(lambda: len(running.service.queue) == len(answers))
        other = pool.submit(running.draw, "other", 5, steps=1)
        wait_until(lambda: len(running.service.queue) == 5)
        held.go.set()
        assert first.result().status_code == other.result().status_code == 200
        for seed, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
            for k, image in enumerate(answer.result().json()["data"]):
                expected = drawn_alone(model, prompt, 100 - seed + k)
                assert image["seed"] == 100 - seed + k and np.abs(pixels(image["b64_json"]) - expected).max() <= 1
        together = [prompts[0], prompts[1], prompts[1], prompts[2], prompts[3], prompts[3]]
        assert held.batches == [["first"], together, ["other"]]
        metrics = running.client.get("/metrics").text
        assert "rcdeploy_images_total 8.0" in metrics and 'rcdeploy_batch_images_bucket{le="6.0"} 3.0' in metrics


def test_a_request_waits_a_moment_for_others(model: TextToImage) -> None:
    held = HeldModel(model)
    held.go.set()
    with serving(held, batch_window_s=1.0, limits=Limits(images=3)) as running, ThreadPoolExecutor(3) as pool:
        answers = list(pool.map(lambda seed: running.draw(BOOT, seed), range(3)))
        assert [a.status_code for a in answers] == [200] * 3 and held.batches == [[BOOT] * 3]


def test_a_full_queue_says_when_to_come_again(model: TextToImage) -> None:
    held = HeldModel(model)
    with serving(held, limits=Limits(queue=2)) as running, ThreadPoolExecutor(3) as pool:
        answers = [pool.submit(running.draw, BOOT, 0)]
        wait_until(lambda: held.batches)
        answers += [pool.submit(running.draw, BOOT, seed) for seed in (1, 2)]
        wait_until(lambda: len(running.service.queue) == 2)
        full = running.draw(BOOT, 3)
        assert full.status_code == 429 and int(full.headers["retry-after"]) >= 1
        assert full.json()["error"]["code"] == "queue_full" and full.json()["error"]["type"] == "rate_limit_error"
        held.go.set()
        assert [answer.result().status_code for answer in answers] == [200] * 3


@pytest.mark.parametrize("streamed", [False, True])
def test_a_client_that_goes_away_cancels_its_request(
    model: TextToImage, streamed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = HeldModel(model)
    with serving(held) as running, ThreadPoolExecutor(2) as pool:
        queue, cancelled = running.service.queue, []
        cancel = queue.cancel
        monkeypatch.setattr(queue, "cancel", lambda job: (cancel(job), cancelled.append(job.prompt)))

        def leave(prompt: str) -> None:
            body = {"prompt": prompt, "stream": streamed}
            with pytest.raises(httpx.ReadTimeout):
                httpx.post(f"{running.url}/v1/images/generations", json=body, timeout=1.0, trust_env=False)

        drawing = pool.submit(leave, "drawing")
        wait_until(lambda: held.batches)
        waiting = pool.submit(leave, "waiting")
        wait_until(lambda: len(queue) == 1 or waiting.done())
        drawing.result(), waiting.result()
        wait_until(lambda: set(cancelled) == {"drawing", "waiting"})
        assert len(queue) == 0
        held.go.set()
        assert running.draw(BOOT).status_code == 200
        wait_until(lambda: held.finished)
        assert held.batches == [["drawing"], [BOOT]] and held.finished == 1


def test_a_stop_finishes_what_was_taken(model: TextToImage) -> None:
    held = HeldModel(model)
    with serving(held) as running, ThreadPoolExecutor(2) as pool:
        answers = [pool.submit(running.draw, BOOT, 0)]
        wait_until(lambda: held.batches)
        answers.append(pool.submit(running.draw, BOOT, 1, steps=1))
        wait_until(lambda: len(running.service.queue) == 1)
        running.server.should_exit = True
        threading.Timer(0.2, held.go.set).start()
        assert [answer.result().status_code for answer in answers] == [200, 200]
        running.thread.join(30)
        assert not running.thread.is_alive() and not running.service.ready
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"{running.url}/healthz", trust_env=False)


def test_a_stop_does_not_wait_longer_than_its_grace(model: TextToImage) -> None:
    held = HeldModel(model)
    with serving(held, grace_s=1) as running, ThreadPoolExecutor(2) as pool:
        answers = [pool.submit(running.draw, BOOT, 0)]
        wait_until(lambda: held.batches)
        answers.append(pool.submit(running.draw, BOOT, 1, steps=1))
        wait_until(lambda: len(running.service.queue) == 1)
        running.server.should_exit = True
        wait_until(lambda: len(running.service.queue) == 0)
        held.go.set()
        running.thread.join(30)
        assert not running.thread.is_alive() and len(held.batches) == 1 and held.finished == 0
        assert [answer.result().status_code for answer in answers] == [503, 503]
        assert answers[1].result().json()["error"]["code"] == "stopping"


def test_a_failed_generation_is_500_without_details(model: TextToImage, caplog: pytest.LogCaptureFixture) -> None:
    class Failing(HeldModel):
        def _held(self, prompts, events):  # type: ignore[no-untyped-def]
            if "bad" in prompts:
                raise RuntimeError("a secret detail")
            yield from super()._held(prompts, events)

    failing = Failing(model)
    failing.go.set()
    with serving(failing, batch_window_s=1.0, limits=Limits(images=2)) as running, ThreadPoolExecutor(2) as pool:
        good, bad = pool.map(running.draw, ["good", "bad"])  # one batch at first, then each by itself
        assert (good.status_code, bad.status_code) == (200, 500)
        assert "secret" not in bad.text and bad.json()["error"]["type"] == "server_error"
        streamed = running.draw("bad", stream=True).text
        assert re.match(r"event: error\ndata: ", streamed)
        assert json.loads(streamed.split("data: ")[1])["error"]["code"] == "generation_failed"
        assert running.client.get("/readyz").status_code == 200
    assert "a secret detail" in caplog.text
