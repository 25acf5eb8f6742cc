"""Pictures people would rather look at than read: grids, loss curves, p(t)."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from rcdeploy_runtime.files import replacing

INK, PAPER = (30, 30, 30), (255, 255, 255)
LABEL_WIDTH, HEAD, GAP, EDGE = 110, 50, 4, 128
"""of a grid, in pixels: what stands left of and above its pictures, and between them"""

CSS_COLOURS = {"#010101": "var(--ink)", "#020202": "var(--soft)", "#030303": "var(--line)", "#040404": "var(--accent)"}
"""what a figure is drawn in, and what stands for it in a page, which is light or dark"""


def grid(rows: Sequence[tuple[str, Any]], captions: Sequence[str], path: Path, *, edge: int = EDGE) -> None:
    """rows: (label, pictures [n, 3, h, w] in [0, 1]); one caption a column. Small pictures are enlarged to `edge`."""
    n, label_width, gap, head = len(captions), LABEL_WIDTH, GAP, HEAD
    font, small = ImageFont.load_default(14), ImageFont.load_default(11)
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


def grid_pictures(path: Path) -> list[list[Image.Image]]:
    """The pictures of a grid that `grid` wrote, row by row."""
    with Image.open(path) as opened:
        sheet = opened.convert("RGB")
    step = EDGE + GAP
    return [
        [sheet.crop((x, y, x + EDGE, y + EDGE)) for x in range(LABEL_WIDTH, sheet.width - EDGE, step)]
        for y in range(HEAD, sheet.height - EDGE, step)
    ]


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


def new_figure(width: float, height: float) -> Any:
    from matplotlib.figure import Figure

    return Figure((width, height), layout="constrained")


def save_figure(figure: Any, path: Path) -> None:
    page = io.BytesIO()
    figure.savefig(page, format=path.suffix.removeprefix("."), dpi=110)
    with replacing(path) as beside:
        beside.write_bytes(page.getvalue())


def loss_curves(metrics: Sequence[dict[str, Any]], path: Path, *, title: str) -> None:
    """One line per loss over the steps, logarithmic; validation as points."""
    figure = new_figure(7, 4)
    axes = figure.add_subplot()
    for name in ("loss", "output", "feature", "task", "validation"):
        points = [(m["step"], m[name]) for m in metrics if name in m]
        if points:
            style = {"marker": "o", "linestyle": "--"} if name == "validation" else {"linewidth": 1.2}
            axes.plot(*zip(*points, strict=True), label=name, **style)
    axes.set(xlabel="step", ylabel="loss", yscale="log", title=title)
    axes.grid(alpha=0.3)
    axes.legend()
    save_figure(figure, path)


def probability_curves(curves: dict[str, Any], path: Path) -> None:
    """name -> function of u = t/T: the paper's Fig. A."""
    figure = new_figure(7.5, 3.6)
    axes = figure.add_subplot()
    u = np.linspace(0, 0.999, 1000)
    for name, p in curves.items():
        axes.plot(u, p(u), label=name)
    axes.set(xlabel="t / T", ylabel="p(t)", ylim=(-0.03, 1.03), title="probability that a text is replaced")
    axes.grid(alpha=0.3)
    figure.legend(loc="outside right upper")  # inside, it would cover a curve
    save_figure(figure, path)


def loss_svg(metrics: Sequence[dict[str, Any]], best_step: int | None) -> str:
    """The losses as an inline SVG element in the page's colours."""
    styles = {
        "loss": {"color": "#040404", "linewidth": 1.8},
        "output": {"color": "#020202", "linewidth": 1.1},
        "feature": {"color": "#020202", "linewidth": 1.1, "linestyle": "--"},
        "task": {"color": "#020202", "linewidth": 1.1, "linestyle": ":"},
        "validation": {"color": "#040404", "linestyle": "none", "marker": "o", "markersize": 5},
    }
    figure, axes = _page_figure()
    for name, style in styles.items():
        points = [(m["step"], m[name]) for m in metrics if name in m]
        if points:
            axes.plot(*zip(*points, strict=True), label=name, **style)
            ringed = [p for p in points if name == "validation" and p[0] == best_step]
            if ringed:
                axes.plot(*ringed[0], color="#040404", marker="o", markersize=11, fillstyle="none", clip_on=False)
    axes.set(xlabel="step", yscale="log")
    axes.yaxis.set_major_locator(_ticker().LogLocator(subs=(1, 2, 5), numticks=8))
    axes.yaxis.set_major_formatter(lambda value, _position: f"{value:g}")
    axes.yaxis.set_minor_formatter(_ticker().NullFormatter())
    axes.xaxis.set_major_locator(_ticker().MaxNLocator(5, integer=True))
    if axes.get_legend_handles_labels()[0]:
        figure.legend(loc="outside upper left", ncols=5, frameon=False, labelcolor="#010101", **_NARROW_LEGEND)
    return _inline_svg(figure)


def probability_svg(p: Any) -> str:
    """p(t) over t/T as an inline SVG element, the area under it shaded: the share of texts that are replaced."""
    figure, axes = _page_figure()
    u = np.linspace(0, 0.999, 200)
    axes.plot(u, p(u), color="#040404", linewidth=1.8)
    axes.fill_between(u, p(u), color="#040404", alpha=0.12, linewidth=0)
    axes.set(xlabel="t / T, from a picture to noise", xlim=(0, 1), ylim=(0, 1.03))
    return _inline_svg(figure)


_NARROW_LEGEND = {"handlelength": 1.3, "columnspacing": 1.0, "handletextpad": 0.4, "borderpad": 0}


def _ticker() -> Any:
    from matplotlib import ticker

    return ticker


def _page_figure() -> tuple[Any, Any]:
    """Small, so that its letters are still read where a phone halves it; no box around, fine lines across."""
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
    """The figure as an <svg> to stand in a page: letters stay letters, colours become the page's, no addresses."""
    import matplotlib

    page = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "rcdeploy"}):
        figure.savefig(page, format="svg", metadata={"Date": None})
    svg = page.getvalue()
    svg = svg[svg.index("<svg") :]
    for unwanted in (
        "<(metadata|style).*?</(metadata|style)>",  # a style in an inline SVG would hold for the whole page
        ' xmlns(:xlink)?="[^"]*"| (width|height)="[0-9.]+pt"',
        ' id="[a-z._]+_[0-9]+"',  # nothing refers to these, and two figures would share them
        "font-family: [^;]*; ",  # the page's own letters
    ):
        svg = re.sub(unwanted, "", svg, flags=re.DOTALL)
    svg = re.sub("font: [^;]*", "font-size: 10px", svg)
    for drawn, shown in CSS_COLOURS.items():
        svg = svg.replace(drawn, shown)
    return svg
