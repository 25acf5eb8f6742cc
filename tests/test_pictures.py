"""Plots have the size, the captions and the marks that they should."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from rcdeploy.conditioning import probability
from rcdeploy.plots import (
    CAPTION_HEIGHT,
    GAP,
    IMAGE_SIZE,
    LABEL_WIDTH,
    grid,
    loss_curves,
    probability_curves,
    read_grid,
)


def solid(channel: int, count: int = 2) -> torch.Tensor:
    images = torch.zeros(count, 3, 8, 8)
    images[:, channel] = 1
    return images


def test_grid_places_every_image_under_its_caption(tmp_path: Path) -> None:
    rows = [("teacher", solid(0)), ("student, step 1,000", solid(2))]
    grid(rows, ["a red thing", "a long caption " * 9], tmp_path / "g.png")
    sheet = np.asarray(Image.open(tmp_path / "g.png"))
    assert tuple(sheet[50 + 64, 110 + 64]) == (255, 0, 0)
    assert tuple(sheet[50 + 132 + 64, 110 + 132 + 64]) == (0, 0, 255)
    assert (sheet[:48, 110:240] < 128).any(), "no caption was written"
    assert (sheet[50:178, :104] < 128).any(), "no label was written"
    images = read_grid(tmp_path / "g.png")
    assert [[image.getpixel((64, 64)) for image in row] for row in images] == [[(255, 0, 0)] * 2, [(0, 0, 255)] * 2]


def test_a_grid_without_captions_has_no_band_for_them(tmp_path: Path) -> None:
    for captions in ((), ["", ""]):
        grid([("teacher", solid(0))], captions, tmp_path / "g.png")
        with Image.open(tmp_path / "g.png") as sheet:
            assert sheet.size == (LABEL_WIDTH + 2 * (IMAGE_SIZE + GAP), IMAGE_SIZE + GAP)
        assert [len(row) for row in read_grid(tmp_path / "g.png")] == [2]


def test_every_row_may_have_captions_of_its_own(tmp_path: Path) -> None:
    rows = [("1 to 2", solid(0)), ("3 to 3", solid(2, 1))]
    grid(rows, (), tmp_path / "g.png", row_captions=[["a boot", "a bag"], ["a coat"]])
    sheet = np.asarray(Image.open(tmp_path / "g.png"))
    step = IMAGE_SIZE + GAP
    assert sheet.shape[:2] == (2 * (CAPTION_HEIGHT + step), LABEL_WIDTH + 2 * step)
    second = CAPTION_HEIGHT + step
    assert tuple(sheet[second + CAPTION_HEIGHT + 64, LABEL_WIDTH + 64]) == (0, 0, 255)
    assert (sheet[second : second + 48, LABEL_WIDTH : LABEL_WIDTH + 40] < 128).any(), "no caption was written"


def test_curves_are_written_in_the_format_of_their_name(tmp_path: Path) -> None:
    metrics = [{"step": i, "loss": 1 / i, "output": 0.5 / i} for i in range(1, 9)] + [{"step": 8, "validation": 0.1}]
    loss_curves(metrics, tmp_path / "loss.png", title="t")
    assert Image.open(tmp_path / "loss.png").size[0] > 500
    probability_curves({"sigmoid": probability("sigmoid")}, tmp_path / "p.svg")
    assert "<svg" in (tmp_path / "p.svg").read_text()
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".")]
