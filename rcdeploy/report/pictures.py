"""Pictures people would rather look at than read: grids, loss curves, p(t)."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from rcdeploy_runtime.files import replacing

INK, PAPER = (30, 30, 30), (255, 255, 255)


def grid(rows: Sequence[tuple[str, Any]], captions: Sequence[str], path: Path, *, edge: int = 128) -> None:
    """rows: (label, pictures [n, 3, h, w] in [0, 1]); one caption a column. Small pictures are enlarged to `edge`."""
    n, label_width, gap = len(captions), 110, 4
    font, small = ImageFont.load_default(14), ImageFont.load_default(11)
    head = 50
    sheet = Image.new("RGB", (label_width + n * (edge + gap), head + len(rows) * (edge + gap)), PAPER)
    pen = ImageDraw.Draw(sheet)
    for column, caption in enumerate(captions):
        lines = _wrapped(caption, small, edge, pen)[:3]
        pen.multiline_text((label_width + column * (edge + gap), head - 2), "\n".join(lines), INK, small, anchor="ld")
    for i, (label, images) in enumerate(rows):
        top = head + i * (edge + gap)
        pen.multiline_text(
            (4, top + edge // 2), "\n".join(_wrapped(label, font, label_width - 8, pen)), INK, font, "lm"
        )
        for column, image in enumerate(images):
            pixels = (np.asarray(image).transpose(1, 2, 0) * 255).round().astype(np.uint8)
            picture = Image.fromarray(pixels).resize((edge, edge), Image.Resampling.BICUBIC)
            sheet.paste(picture, (label_width + column * (edge + gap), top))
    _save(sheet, path)


def _wrapped(text: str, font: Any, width: float, pen: ImageDraw.ImageDraw) -> list[str]:
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and pen.textlength(longer, font=font) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines


def _save(image: Image.Image, path: Path) -> None:
    with replacing(path) as beside:
        image.save(beside, path.suffix.removeprefix(".").upper())


def _figure(width: float, height: float) -> Any:
    from matplotlib.figure import Figure

    return Figure((width, height), layout="constrained")


def _save_figure(figure: Any, path: Path) -> None:
    page = io.BytesIO()
    figure.savefig(page, format=path.suffix.removeprefix("."), dpi=110)
    with replacing(path) as beside:
        beside.write_bytes(page.getvalue())


def loss_curves(metrics: Sequence[dict[str, Any]], path: Path, *, title: str) -> None:
    """One line per loss over the steps, logarithmic; validation as points."""
    figure = _figure(7, 4)
    axes = figure.add_subplot()
    for name in ("loss", "output", "feature", "task", "validation"):
        points = [(m["step"], m[name]) for m in metrics if name in m]
        if points:
            style = {"marker": "o", "linestyle": "--"} if name == "validation" else {"linewidth": 1.2}
            axes.plot(*zip(*points, strict=True), label=name, **style)
    axes.set(xlabel="step", ylabel="loss", yscale="log", title=title)
    axes.grid(alpha=0.3)
    axes.legend()
    _save_figure(figure, path)


def probability_curves(curves: dict[str, Any], path: Path) -> None:
    """name -> function of u = t/T: the paper's Fig. A."""
    figure = _figure(7.5, 3.6)
    axes = figure.add_subplot()
    u = np.linspace(0, 0.999, 1000)
    for name, p in curves.items():
        axes.plot(u, p(u), label=name)
    axes.set(xlabel="t / T", ylabel="p(t)", ylim=(-0.03, 1.03), title="probability that a text is replaced")
    axes.grid(alpha=0.3)
    figure.legend(loc="outside right upper")  # inside, it would cover a curve
    _save_figure(figure, path)
