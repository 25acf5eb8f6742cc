"""Plots for people: grids of images, loss curves, p(t)."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from rcdeploy_runtime.files import replacing

INK = (30, 30, 30)
PAPER = (255, 255, 255)
LABEL_WIDTH, CAPTION_HEIGHT, GAP, IMAGE_SIZE = 110, 50, 4, 128
"""of a grid, in pixels: left of each row, above a row with captions, between images, along an image's sides"""
MAX_CAPTION_LINES = 3

CSS_COLOURS = {"#010101": "var(--ink)", "#020202": "var(--soft)", "#030303": "var(--line)", "#040404": "var(--accent)"}
"""the colours of a figure, and the variables that replace them in a page, which is light or dark"""


def grid(
    rows: Sequence[tuple[str, Any]],
    captions: Sequence[str],
    path: Path,
    *,
    row_captions: Sequence[Sequence[str]] = (),
    image_size: int = IMAGE_SIZE,
) -> None:
    """Write images as a table with a label left of each row and captions above the images.

    Args:
        rows: (label, images [n, 3, h, w] in [0, 1]).
        captions: one for each column, above the first row; without any there is no band for them.
        path: an image file.
        row_captions: instead of `captions`: for each row, one for each of its images.
        image_size: images are resized to this, in pixels.
    """
    bands: list[Sequence[str]] = list(row_captions) or [captions, *[()] * (len(rows) - 1)]
    bands = [band if any(band) else () for band in bands]
    columns = max(len(images) for _, images in rows)
    step = image_size + GAP
    height = len(rows) * step + sum(CAPTION_HEIGHT for band in bands if band)
    sheet = Image.new("RGB", (LABEL_WIDTH + columns * step, height), PAPER)
    pen = ImageDraw.Draw(sheet)
    large = ImageFont.load_default(14)
    small = ImageFont.load_default(11)
    top = 0
    for (label, images), band in zip(rows, bands, strict=True):
        top += CAPTION_HEIGHT if band else 0
        for column, caption in enumerate(band):
            text = "\n".join(_wrap(caption, small, image_size, pen)[:MAX_CAPTION_LINES])
            pen.multiline_text((LABEL_WIDTH + column * step, top - 2), text, INK, small, anchor="ld")
        text = "\n".join(_wrap(label, large, LABEL_WIDTH - 8, pen))
        pen.multiline_text((4, top + image_size // 2), text, INK, large, "lm")
        for column, image in enumerate(images):
            pixels = (np.asarray(image).transpose(1, 2, 0) * 255).round().astype(np.uint8)
            resized = Image.fromarray(pixels).resize((image_size, image_size), Image.Resampling.BICUBIC)
            sheet.paste(resized, (LABEL_WIDTH + column * step, top))
        top += step
    with replacing(path) as beside:
        sheet.save(beside, path.suffix.removeprefix(".").upper())


def read_grid(path: Path) -> list[list[Image.Image]]:
    """The images of a grid that `grid` wrote with captions above its columns (or none), row by row."""
    with Image.open(path) as file:
        sheet = file.convert("RGB")
    step = IMAGE_SIZE + GAP
    top = sheet.height % step  # the band of captions, if there is one
    return [
        [sheet.crop((x, y, x + IMAGE_SIZE, y + IMAGE_SIZE)) for x in range(LABEL_WIDTH, sheet.width - IMAGE_SIZE, step)]
        for y in range(top, sheet.height - IMAGE_SIZE, step)
    ]


def _wrap(text: str, font: Any, width: float, pen: ImageDraw.ImageDraw) -> list[str]:
    """Lines of at most `width` pixels, broken at spaces."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and pen.textlength(longer, font=font) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines


def new_figure(width: float, height: float) -> Any:
    """An empty matplotlib Figure, sizes in inches."""
    from matplotlib.figure import Figure

    return Figure((width, height), layout="constrained")


def save_figure(figure: Any, path: Path) -> None:
    """Write the figure in the format that the file's name ends in."""
    content = io.BytesIO()
    figure.savefig(content, format=path.suffix.removeprefix("."), dpi=110)
    with replacing(path) as beside:
        beside.write_bytes(content.getvalue())


def loss_curves(metrics: Sequence[dict[str, Any]], path: Path, *, title: str) -> None:
    """Plot each loss over the steps on a logarithmic axis; validation as points."""
    figure = new_figure(7, 4)
    axes = figure.add_subplot()
    for name in ("loss", "output", "feature", "task", "frequency", "validation"):
        points = [(m["step"], m[name]) for m in metrics if name in m]
        if points:
            style = {"marker": "o", "linestyle": "--"} if name == "validation" else {"linewidth": 1.2}
            axes.plot(*zip(*points, strict=True), label=name, **style)
    axes.set(xlabel="step", ylabel="loss", yscale="log", title=title)
    axes.grid(alpha=0.3)
    axes.legend()
    save_figure(figure, path)


def probability_curves(curves: Mapping[str, Any], path: Path) -> None:
    """Plot p(t) by name, each a function of u = t/T (the paper's Fig. A)."""
    figure = new_figure(7.5, 3.6)
    axes = figure.add_subplot()
    u = np.linspace(0, 0.999, 1000)
    for name, p in curves.items():
        axes.plot(u, p(u), label=name)
    axes.set(xlabel="t / T", ylabel="p(t)", ylim=(-0.03, 1.03), title="probability that a prompt is replaced")
    axes.grid(alpha=0.3)
    figure.legend(loc="outside right upper")  # inside, it would cover a curve
    save_figure(figure, path)


def loss_svg(metrics: Sequence[dict[str, Any]], best_step: int | None) -> str:
    """The losses over the steps as an inline SVG element in the page's colours, the best step marked."""
    styles = {
        "loss": {"color": "#040404", "linewidth": 1.8},
        "output": {"color": "#020202", "linewidth": 1.1},
        "feature": {"color": "#020202", "linewidth": 1.1, "linestyle": "--"},
        "task": {"color": "#020202", "linewidth": 1.1, "linestyle": ":"},
        "frequency": {"color": "#020202", "linewidth": 1.1, "linestyle": "-."},
        "validation": {"color": "#040404", "linestyle": "none", "marker": "o", "markersize": 5},
    }
    figure, axes = _page_figure()
    for name, style in styles.items():
        points = [(m["step"], m[name]) for m in metrics if name in m]
        if points:
            axes.plot(*zip(*points, strict=True), label=name, **style)
            best = [p for p in points if name == "validation" and p[0] == best_step]
            if best:
                axes.plot(*best[0], color="#040404", marker="o", markersize=11, fillstyle="none", clip_on=False)
    axes.set(xlabel="step", yscale="log")
    axes.yaxis.set_major_locator(_ticker().LogLocator(subs=(1, 2, 5), numticks=8))
    axes.yaxis.set_major_formatter(lambda value, _position: f"{value:g}")
    axes.yaxis.set_minor_formatter(_ticker().NullFormatter())
    axes.xaxis.set_major_locator(_ticker().MaxNLocator(5, integer=True))
    if axes.get_legend_handles_labels()[0]:
        figure.legend(loc="outside upper left", ncols=5, frameon=False, labelcolor="#010101", **_NARROW_LEGEND)
    return _inline_svg(figure)


def probability_svg(p: Any) -> str:
    """p(t) over t/T as an inline SVG element, the area under it shaded: the share of prompts that are replaced."""
    figure, axes = _page_figure()
    u = np.linspace(0, 0.999, 200)
    axes.plot(u, p(u), color="#040404", linewidth=1.8)
    axes.fill_between(u, p(u), color="#040404", alpha=0.12, linewidth=0)
    axes.set(xlabel="t / T, from image to noise", xlim=(0, 1), ylim=(0, 1.03))
    return _inline_svg(figure)


_NARROW_LEGEND = {"handlelength": 1.3, "columnspacing": 1.0, "handletextpad": 0.4, "borderpad": 0}


def _ticker() -> Any:
    from matplotlib import ticker

    return ticker


def _page_figure() -> tuple[Any, Any]:
    """A figure and its axes, small enough that its text stays legible on a phone; no frame, fine lines across."""
    figure = new_figure(4.4, 2.9)
    figure.patch.set_alpha(0)
    axes = figure.add_subplot(facecolor="none")
    for side, spine in axes.spines.items():
        spine.set_visible(side == "bottom")
        spine.set_color("#030303")
    axes.tick_params(which="both", color="#030303", labelcolor="#020202", length=0)
    axes.xaxis.label.set_color("#020202")
    axes.grid(axis="y", color="#030303", linewidth=0.7)
    axes.set_axisbelow(True)
    return figure, axes


def _inline_svg(figure: Any) -> str:
    """The figure as an <svg> for a page: text stays text, colours become CSS variables, no URLs."""
    import matplotlib

    content = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "rcdeploy"}):
        figure.savefig(content, format="svg", metadata={"Date": None})
    svg = content.getvalue()
    svg = svg[svg.index("<svg") :]
    for pattern in (
        "<(metadata|style).*?</(metadata|style)>",  # a style in an inline SVG would hold for the whole page
        ' xmlns(:xlink)?="[^"]*"| (width|height)="[0-9.]+pt"',
        ' id="[a-z._]+_[0-9]+"',  # nothing refers to these, and two figures would share them
        "font-family: [^;]*; ",  # the page's own font
    ):
        svg = re.sub(pattern, "", svg, flags=re.DOTALL)
    svg = re.sub("font: [^;]*", "font-size: 10px", svg)
    for colour, variable in CSS_COLOURS.items():
        svg = svg.replace(colour, variable)
    return svg
