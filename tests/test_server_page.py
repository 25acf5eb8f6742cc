"""The page at /: its files, what it is told of the model, the text in its pictures."""

from __future__ import annotations

import base64
import io
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
from http_server import serving
from PIL import Image

from rcdeploy_runtime import TextToImage
from rcdeploy_runtime.server.page import FOLDER, KINDS, MAX_CAPTIONS, captions
from rcdeploy_runtime.server.settings import Limits, Tokens

ROOT = Path(__file__).resolve().parent.parent
TOKEN = "a-token-that-nobody-knows"
PROMPT = "a photo of a red boot on a white background"


@pytest.fixture(scope="module")
def model() -> TextToImage:
    return TextToImage.load(ROOT / "examples/students/fashion", threads=1)


def test_the_page_and_its_files_need_no_token_and_load_nothing_from_elsewhere(model: TextToImage) -> None:
    with serving(model, tokens=Tokens([TOKEN])) as running:
        page = running.client.get("/")
        assert page.status_code == 200 and page.headers["content-type"].startswith("text/html")
        for name in re.findall(r'(?:href|src)="page/([^"]+)"', page.text):
            assert running.client.get(f"/page/{name}").headers["content-type"].startswith(KINDS[name])
        assert "default-src 'none'" in page.headers["content-security-policy"]
        for name in ("../page.py", "page.py", "..%2fpage.py", "index.htm"):
            assert running.client.get(f"/page/{name}").status_code in (401, 404)
        assert running.client.get("/v1/page").status_code == 401
    for file in FOLDER.iterdir():
        assert not re.search(r"https?://|(src|href)=\"//|\beval\(|innerHTML| style=| on\w+=\"", file.read_text())


def test_what_the_page_is_told(model: TextToImage) -> None:
    with serving(model, names=("fashion",), limits=Limits(steps=7)) as running:
        facts = running.client.get("/v1/page").json()
    assert (facts["model"], facts["width"], facts["steps"], facts["max_steps"]) == ("fashion", 64, 2, 7)
    assert facts["sampler"] in facts["samplers"] and not facts["can_edit"]
    assert 20 < len(facts["captions"]) <= MAX_CAPTIONS
    assert set(facts["captions"]) <= set(model.package.file("captions.txt").read_text().splitlines())


def test_captions_of_strangers_do_no_harm(tmp_path: Path) -> None:
    def found(data: bytes | None, name: str) -> list[str]:
        file = tmp_path / name
        if data is not None:
            file.write_bytes(data)
        return captions(SimpleNamespace(facts=SimpleNamespace(captions=name), file=lambda _: file))  # type: ignore[arg-type]

    assert found(b"one\n\n \ntwo", "a.txt") == ["one", "two"]
    assert found(None, "gone.txt") == found(b"no gzip", "b.txt.gz") == found(b"", "c.txt") == []
    assert found(b"\xff\xfe\n" * 3_000_000, "d.txt") == []


def test_a_png_says_how_it_was_made(model: TextToImage) -> None:
    with serving(model, names=("fashion",)) as running:
        answer = running.draw(PROMPT, 3, negative_prompt="a bag, in äöü").json()
        image = Image.open(io.BytesIO(base64.b64decode(answer["data"][0]["b64_json"])))
        assert image.info["parameters"].splitlines() == [
            PROMPT,
            "Negative prompt: a bag, in äöü",
            "Steps: 2, Sampler: ddim, CFG scale: 1, Seed: 3, Size: 64x64, Model: fashion",
        ]
        assert running.draw(PROMPT, 3, output_format="webp").status_code == 200
