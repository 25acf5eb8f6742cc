"""The student's UNet beside its teacher's as inline SVG, from the two configs: a row for a stage, a box for a layer.

The height of a box is its layer's number of channels: filled the student's, with a dashed outline the teacher's.
Colours are classes of the page's style sheet, for light and dark.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from html import escape
from typing import Any, Literal

from ..model_config import has_wavelet_gating

Config = Mapping[str, Any]
Kind = Literal["resnet", "attention", "sampler"]

WIDTH, MAX_HEIGHT, BOX, GAP, ROW_GAP = 400, 42, 18, 4, 26
"""in units of the SVG, which the page scales: its width, a box's largest height and its width, gaps"""


@dataclass(frozen=True)
class Layer:
    """One resnet, attention (a Transformer2DModel) or down-/upsampler of the teacher, and its remains in the student.

    Attributes:
        side: down, mid or up.
        stage: 0 is the outermost, on both sides.
        channels, student_channels: the latter None if the student lacks the layer.
        depth, student_depth: transformer layers inside an attention.
        gated: the student has wavelet gating in place of this sampler.
    """

    side: Literal["down", "mid", "up"]
    stage: int
    kind: Kind
    index: int
    channels: int
    student_channels: int | None
    depth: int = 1
    student_depth: int = 1
    gated: bool = False

    @property
    def title(self) -> str:
        channels = f"{self.channels} channels"
        if self.depth > 1:
            channels += f", {self.depth} transformer layers"
        if self.student_channels is None:
            change = "removed"
        elif self.gated:
            change = "wavelet gating in the student"
        elif (self.student_channels, self.student_depth) == (self.channels, self.depth):
            change = "unchanged"
        else:
            change = f"{self.student_channels} in the student"
            change += f", {self.student_depth} transformer layers" if self.depth > 1 else ""
        place = "mid" if self.side == "mid" else f"{self.side} {self.stage}"
        name = f"{self.side}sampler" if self.kind == "sampler" else f"{self.kind} {self.index}"
        return f"{place}, {name}: {channels}; {change}"


def layers(teacher: Config, student: Config) -> list[Layer]:
    """Every layer of the teacher in the order of the forward pass: down from stage 0, mid, up to stage 0.

    The student is one of student/spec.py: it may lack the innermost stages; it has the first layers of a down block,
    and the first ones and the last one of an up block (which has one layer more).
    """
    count = len(teacher["block_out_channels"])
    result = [layer for stage in range(count) for layer in _block("down", stage, teacher, student)]
    result += _mid(teacher, student)
    return result + [layer for stage in reversed(range(count)) for layer in _block("up", stage, teacher, student)]


def _block(side: Literal["down", "up"], stage: int, teacher: Config, student: Config) -> Iterator[Layer]:
    channels = int(teacher["block_out_channels"][stage])
    student_stages = len(student["block_out_channels"])
    width = int(student["block_out_channels"][stage]) if stage < student_stages else None
    teacher_layers = _layer_count(teacher, stage) + (side == "up")
    student_layers = 0 if width is None else _layer_count(student, stage) + (side == "up")
    indices = [*range(student_layers)]
    if side == "up" and student_layers:  # the teacher's first layers and its last one
        indices[-1] = teacher_layers - 1
    student_attends = width is not None and _attends(student, side, stage)
    for index in range(teacher_layers):
        remaining = width if index in indices else None
        yield Layer(side, stage, "resnet", index, channels, remaining)
        if _attends(teacher, side, stage):
            depth = _depth(teacher, side, stage, index)
            student_depth = 1
            if remaining is not None and student_attends:
                student_depth = _depth(student, side, stage, indices.index(index))
            attention = remaining if student_attends else None
            yield Layer(side, stage, "attention", index, channels, attention, depth, student_depth)
    gated = has_wavelet_gating(student)
    # every stage but the innermost ends in a downsampler; every one but the outermost in an upsampler
    if side == "down" and stage < len(teacher["block_out_channels"]) - 1:
        yield Layer(side, stage, "sampler", 0, channels, width if stage < student_stages - 1 else None, gated=gated)
    if side == "up" and stage > 0:
        yield Layer(side, stage, "sampler", 0, channels, width, gated=gated)


def _mid(teacher: Config, student: Config) -> Iterator[Layer]:
    """resnet, attention, resnet; UNetMidBlock2D is a resnet alone."""
    kind, student_kind = (config.get("mid_block_type", "UNetMidBlock2DCrossAttn") for config in (teacher, student))
    if kind is None:
        return
    innermost = len(teacher["block_out_channels"]) - 1
    channels = int(teacher["block_out_channels"][-1])
    width = None if student_kind is None else int(student["block_out_channels"][-1])
    yield Layer("mid", innermost, "resnet", 0, channels, width)
    if "Attn" in kind:
        depth = _depth(teacher, "mid", -1, 0)
        student_depth = 1 if student_kind is None else _depth(student, "mid", -1, 0)
        yield Layer("mid", innermost, "attention", 0, channels, width, depth, student_depth)
        yield Layer("mid", innermost, "resnet", 1, channels, width)


def _layer_count(config: Config, stage: int) -> int:
    layers = config.get("layers_per_block", 2)
    return int(layers[stage] if isinstance(layers, list | tuple) else layers)


def _attends(config: Config, side: str, stage: int) -> bool:
    types = config["down_block_types"] if side == "down" else config["up_block_types"][::-1]
    return "Attn" in types[stage]


def _depth(config: Config, side: str, stage: int, index: int) -> int:
    """Transformer layers of an attention. Lists have an entry for each stage, which may be a list for its layers."""
    depths = config.get("transformer_layers_per_block", 1)
    if side == "up" and config.get("reverse_transformer_layers_per_block"):
        depths = config["reverse_transformer_layers_per_block"][::-1]
    depth = depths[stage] if isinstance(depths, list | tuple) else depths
    if isinstance(depth, list | tuple):
        depth = depth[min(index, len(depth) - 1)]
    return int(depth)


def diagram(teacher: Config, student: Config) -> str:
    """The SVG element, without title or legend, which are the page's."""
    every = layers(teacher, student)
    widths = [int(w) for w in teacher["block_out_channels"]]
    unit = MAX_HEIGHT / max(widths)
    most = max(sum(x.stage == s and x.kind != "sampler" for x in every if x.side != "mid") for s in range(len(widths)))
    step = min(BOX + GAP, (WIDTH - 120) / most)  # blocks of many layers have narrower boxes
    parts = []
    y = 14.0
    for stage, width in enumerate(widths):
        middle = y + width * unit / 2
        left = _side("down", stage, every)
        right = _side("up", stage, every)
        parts += [_box(layer, i * step, middle, step - GAP, unit) for i, layer in enumerate(left)]
        start = WIDTH - len(right) * step + GAP
        parts += [_box(layer, start + i * step, middle, step - GAP, unit) for i, layer in enumerate(right)]
        new = int(student["block_out_channels"][stage]) if stage < len(student["block_out_channels"]) else None
        parts.append(_label(len(left) * step, start - GAP, middle, _latent_size(teacher, stage), width, new))
        y += width * unit + ROW_GAP
        if stage < len(widths) - 1:
            parts.append(_arrows(stage, every, y - ROW_GAP / 2, (len(left) * step - GAP) / 2, (start + WIDTH) / 2))
    mid = [layer for layer in every if layer.side == "mid"]
    if mid:
        middle = y + MAX_HEIGHT / 2
        start = (WIDTH - len(mid) * step + GAP) / 2
        parts += [_box(layer, start + i * step, middle, step - GAP, unit) for i, layer in enumerate(mid)]
        change = ", removed" if mid[0].student_channels is None else ""
        parts.append(_text(start - 3 * GAP, middle + 3, f"mid{change}", "end"))
        y += MAX_HEIGHT + 4
    else:
        y -= ROW_GAP - 4
    return f'<svg class="unet" viewBox="0 0 {WIDTH} {y:.0f}" role="img">{"".join(parts)}</svg>'


def _side(side: str, stage: int, every: list[Layer]) -> list[Layer]:
    return [layer for layer in every if (layer.side, layer.stage) == (side, stage) and layer.kind != "sampler"]


def _latent_size(config: Config, stage: int) -> str:
    size = config.get("sample_size")
    if not isinstance(size, int):
        return ""
    size = -(-size // 2**stage)  # halved with odd sizes rounded up
    return f"{size} × {size}"


def _box(layer: Layer, x: float, middle: float, width: float, unit: float) -> str:
    height = layer.channels * unit
    student_height = (layer.student_channels or 0) * unit
    shapes = ""
    if student_height < height:
        shapes += _rect("was", x + 0.5, middle - height / 2 + 0.5, width - 1, height - 1)
    if student_height:
        shapes += _rect(layer.kind, x, middle - student_height / 2, width, student_height)
    if layer.depth > 1:
        shorter = layer.student_channels is not None and layer.student_depth < layer.depth
        depth = f"{layer.depth}→{layer.student_depth}" if shorter else f"×{layer.depth}"
        shapes += _text(x + width / 2, middle - height / 2 - 2, depth, "middle", "small")
    return f"<g><title>{escape(layer.title)}</title>{shapes}</g>"


def _rect(kind: str, x: float, y: float, width: float, height: float) -> str:
    return f'<rect class="{kind}" x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" rx="1.5"/>'


def _text(x: float, y: float, text: str, anchor: str, kind: str = "") -> str:
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _label(left: float, right: float, middle: float, size: str, channels: int, student_channels: int | None) -> str:
    """The skip connection from down to up; above it the latents' size, below it the channels."""
    text = f"{channels} removed" if student_channels is None else f"{channels} → {student_channels}"
    text = f"{channels}" if student_channels == channels else text
    kind = "skip was" if student_channels is None else "skip"
    line = f'<path class="{kind}" d="M{left + 4:.1f} {middle:.1f}H{right - 4:.1f}"/>'
    centre = (left + right) / 2
    return line + _text(centre, middle - 4, size, "middle", "soft") + _text(centre, middle + 11, text, "middle")


def _arrows(stage: int, every: list[Layer], y: float, left: float, right: float) -> str:
    """Down after a stage on the left, up into it (from the next one's upsampler) on the right."""
    shapes = ""
    for side, of, x, way in (("down", stage, left, 4), ("up", stage + 1, right, -4)):
        for layer in every:
            if (layer.side, layer.stage, layer.kind) == (side, of, "sampler"):
                path = f"M{x - 5:.1f} {y - way:.1f}L{x:.1f} {y + way:.1f}L{x + 5:.1f} {y - way:.1f}"
                kind = "arrow was" if layer.student_channels is None else "arrow"
                shapes += f'<path class="{kind}" d="{path}"><title>{escape(layer.title)}</title></path>'
    return shapes
