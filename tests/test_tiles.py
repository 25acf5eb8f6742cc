"""Decoding in tiles: they cover the image, a decoder that sees single pixels gives the same, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from http_server import drawn_alone, pixels, serving

from rcdeploy_runtime import TextToImage
from rcdeploy_runtime.errors import RcdeployError
from rcdeploy_runtime.tiles import MIN_TILE, OVERLAP, decode_in_tiles, starts

PACKAGE = Path(__file__).resolve().parent.parent / "examples/students/fashion"


@pytest.mark.parametrize("length", range(1, 80, 3))
@pytest.mark.parametrize("tile", [MIN_TILE, 20, 37])
def test_tiles_cover_a_side_and_overlap(length: int, tile: int) -> None:
    begins = starts(length, tile)
    assert begins[0] == 0
    assert begins[-1] + min(tile, length) == length
    assert all(second - first <= tile - OVERLAP for first, second in zip(begins, begins[1:], strict=False))
    assert len(begins) == 1 or (len(begins) - 1) * (tile - OVERLAP) < length - OVERLAP + (tile - OVERLAP)


@pytest.mark.parametrize(("height", "width"), [(16, 16), (33, 50), (10, 41)])
def test_a_decoder_of_single_pixels_gives_the_same_in_tiles(height: int, width: int) -> None:
    latents = np.random.default_rng(0).standard_normal((4, height, width)).astype(np.float32)
    sizes = set()

    def decode(x: np.ndarray) -> np.ndarray:
        sizes.add(x.shape)
        return np.repeat(np.repeat(x[:, :3], 4, axis=2), 4, axis=3)

    np.testing.assert_allclose(decode_in_tiles(decode, latents, 16, 4), decode(latents[None])[0], atol=1e-6)
    sizes.discard((1, 4, height, width))
    assert sizes <= {(1, 4, min(16, height), min(16, width))}  # one size: a library compiles once


@pytest.fixture(scope="module")
def model() -> TextToImage:
    return TextToImage.load(PACKAGE, "cpu", 1)


def test_an_image_in_tiles_is_nearly_the_whole_one(model: TextToImage) -> None:
    prompt, size = "a photo of a red boot on a white background", {"height": 192, "width": 192}
    (whole,), _ = model.generate(prompt, seed=1, **size)
    (tiled,), record = model.generate(prompt, seed=1, decode_tile=128, **size)
    difference = np.abs(np.asarray(whole, float) - np.asarray(tiled, float))
    assert 0 < difference.mean() < 8
    assert record["decode_tile"] == 128
    (same,), _ = model.generate(prompt, seed=1, decode_tile=192, **size)
    assert np.array_equal(np.asarray(whole), np.asarray(same))


@pytest.mark.parametrize("pixels", [0, 127, 128.0, True, "128", 1 << 40])
def test_what_is_no_tile_is_refused(model: TextToImage, pixels: object) -> None:
    with pytest.raises(RcdeployError, match="decode_tile is"):
        model.generate("a boot", decode_tile=pixels)


def test_a_server_decodes_in_its_tiles(model: TextToImage) -> None:
    with serving(model, decode_tile=128) as server:
        image = server.draw("a red boot", 1, size="192x192").json()["data"][0]["b64_json"]
    assert (
        np.abs(pixels(image) - drawn_alone(model, "a red boot", 1, height=192, width=192, decode_tile=128)).max() <= 1
    )
