"""What is drawn for people has the size and the marks that it should."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from rcdeploy.conditioning import probability
from rcdeploy.plots import grid, loss_curves, probability_curves


def test_grid_shows_each_picture_in_its_place(tmp_path: Path) -> None:
    red, blue = torch.zeros(2, 3, 8, 8), torch.zeros(2, 3, 8, 8)
    red[:, 0], blue[:, 2] = 1, 1
    grid([("teacher", red), ("student, step 1,000", blue)], ["a red thing", "a long caption " * 9], tmp_path / "g.png")
    sheet = np.asarray(Image.open(tmp_path / "g.png"))
    assert tuple(sheet[50 + 64, 110 + 64]) == (255, 0, 0)
    assert tuple(sheet[50 + 132 + 64, 110 + 132 + 64]) == (0, 0, 255)
    assert (sheet[:48, 110:240] < 128).any(), "no caption was written"
    assert (sheet[50:178, :104] < 128).any(), "no label was written"


def test_curves_are_written_in_the_format_of_their_name(tmp_path: Path) -> None:
    metrics = [{"step": i, "loss": 1 / i, "output": 0.5 / i} for i in range(1, 9)] + [{"step": 8, "validation": 0.1}]
    loss_curves(metrics, tmp_path / "loss.png", title="t")
    assert Image.open(tmp_path / "loss.png").size[0] > 500
    probability_curves({"sigmoid": probability("sigmoid")}, tmp_path / "p.svg")
    assert "<svg" in (tmp_path / "p.svg").read_text()
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".")]
