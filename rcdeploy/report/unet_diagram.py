"""What a student keeps of its teacher's UNet, drawn from the two configs as inline SVG: a row a stage, a box a layer.

A box is as high as its layer has channels. Filled is what the student has; a dashed outline is what the teacher had.
Colours are classes of the page's style sheet, so that one drawing serves light and dark.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from html import escape
from typing import Any, Literal

Config = Mapping[str, Any]
Kind = Literal["resnet", "attention", "sampler"]

WIDTH, HIGHEST, BOX, GAP, ROW_GAP = 400, 42, 18, 4, 26
"""of the drawing, in its own units: the page scales it"""


@dataclass(frozen=True)
class Layer:
    """One resnet, attention (a Transformer2DModel) or down-/upsampler of the teacher, and what became of it.

    side: down, mid or up. stage: 0 is the outermost, whichever side. channels: the teacher's; kept: the student's, None
    if the layer is removed. depth, kept_depth: transformer layers inside an attention, teacher's and student's.
    """

    side: Literal["down", "mid", "up"]
    stage: int
    kind: Kind
    index: int
    channels: int
    kept: int | None
    depth: int = 1
    kept_depth: int = 1

    @property
    def words(self) -> str:
        channels = f"{self.channels} channels"
        if self.depth > 1:
            channels += f", {self.depth} transformer layers"
        if self.kept is None:
            fate = "removed"
        elif (self.kept, self.kept_depth) == (self.channels, self.depth):
            fate = "kept"
        else:
            fate = f"{self.kept} kept" + (f", {self.kept_depth} transformer layers" if self.depth > 1 else "")
        place = "mid" if self.side == "mid" else f"{self.side} {self.stage}"
        what = f"{self.side}sampler" if self.kind == "sampler" else f"{self.kind} {self.index}"
        return f"{place}, {what}: {channels}; {fate}"


def layers(teacher: Config, student: Config) -> list[Layer]:
    """Every layer of the teacher in the order data passes it: down from stage 0, mid, up to stage 0.

    The student is read as the rules of student/spec.py make it: stages go from the innermost outwards; of a down
    block's layers the first stay, of an up block's (one more) the first and the last.
    """
    count = len(teacher["block_out_channels"])
    found = [layer for stage in range(count) for layer in _block("down", stage, teacher, student)]
    found += _mid(teacher, student)
    return found + [layer for stage in reversed(range(count)) for layer in _block("up", stage, teacher, student)]


def _block(side: Literal["down", "up"], stage: int, teacher: Config, student: Config) -> Iterator[Layer]:
    channels = int(teacher["block_out_channels"][stage])
    stages_left = len(student["block_out_channels"])
    left = int(student["block_out_channels"][stage]) if stage < stages_left else None
    have = _layer_count(teacher, stage) + (side == "up")
    keep = 0 if left is None else _layer_count(student, stage) + (side == "up")
    # an up block of the student takes the teacher's first layers and its last one
    staying = [*range(keep)] if side == "down" or not keep else [*range(keep - 1), have - 1]
    attends = _attends(teacher, side, stage)
    still_attends = left is not None and _attends(student, side, stage)
    for index in range(have):
        kept = left if index in staying else None
        yield Layer(side, stage, "resnet", index, channels, kept)
        if attends:
            depth, new = _depth(teacher, side, stage, index), 1
            if kept is not None and still_attends:
                new = _depth(student, side, stage, staying.index(index))
            yield Layer(side, stage, "attention", index, channels, kept if still_attends else None, depth, new)
    # every stage but the innermost ends in a downsampler; every one but the outermost in an upsampler
    if side == "down" and stage < len(teacher["block_out_channels"]) - 1:
        yield Layer(side, stage, "sampler", 0, channels, left if stage < stages_left - 1 else None)
    if side == "up" and stage > 0:
        yield Layer(side, stage, "sampler", 0, channels, left)


def _mid(teacher: Config, student: Config) -> Iterator[Layer]:
    """resnet, attention, resnet; UNetMidBlock2D is a resnet alone."""
    kind, still = (config.get("mid_block_type", "UNetMidBlock2DCrossAttn") for config in (teacher, student))
    if kind is None:
        return
    innermost = len(teacher["block_out_channels"]) - 1
    channels = int(teacher["block_out_channels"][-1])
    kept = None if still is None else int(student["block_out_channels"][-1])
    yield Layer("mid", innermost, "resnet", 0, channels, kept)
    if "Attn" in kind:
        depth, new = _depth(teacher, "mid", -1, 0), 1 if still is None else _depth(student, "mid", -1, 0)
        yield Layer("mid", innermost, "attention", 0, channels, kept, depth, new)
        yield Layer("mid", innermost, "resnet", 1, channels, kept)


def _layer_count(config: Config, stage: int) -> int:
    layers = config.get("layers_per_block", 2)
    return int(layers[stage] if isinstance(layers, list | tuple) else layers)


def _attends(config: Config, side: str, stage: int) -> bool:
    types = config["down_block_types"] if side == "down" else config["up_block_types"][::-1]
    return "Attn" in types[stage]


def _depth(config: Config, side: str, stage: int, index: int) -> int:
    """Transformer layers of an attention. Lists have an entry a stage, whose entries may be lists with one a layer."""
    depths = config.get("transformer_layers_per_block", 1)
    if side == "up" and config.get("reverse_transformer_layers_per_block"):
        depths = config["reverse_transformer_layers_per_block"][::-1]
    depth = depths[stage] if isinstance(depths, list | tuple) else depths
    if isinstance(depth, list | tuple):
        depth = depth[min(index, len(depth) - 1)]
    return int(depth)


def diagram(teacher: Config, student: Config) -> str:
    """The SVG element. Without title or legend, which are the page's."""
    every = layers(teacher, student)
    widths = [int(w) for w in teacher["block_out_channels"]]
    unit = HIGHEST / max(widths)
    most = max(sum(x.stage == s and x.kind != "sampler" for x in every if x.side != "mid") for s in range(len(widths)))
    step = min(BOX + GAP, (WIDTH - 120) / most)  # blocks of many layers have narrower boxes
    parts, y = [], 14.0
    for stage, width in enumerate(widths):
        middle = y + width * unit / 2
        left = _side("down", stage, every)
        right = _side("up", stage, every)
        parts += [_box(layer, i * step, middle, step - GAP, unit) for i, layer in enumerate(left)]
        start = WIDTH - len(right) * step + GAP
        parts += [_box(layer, start + i * step, middle, step - GAP, unit) for i, layer in enumerate(right)]
        new = int(student["block_out_channels"][stage]) if stage < len(student["block_out_channels"]) else None
        parts.append(_label(len(left) * step, start - GAP, middle, _edge(teacher, stage), width, new))
        y += width * unit + ROW_GAP
        if stage < len(widths) - 1:
            parts.append(_arrows(stage, every, y - ROW_GAP / 2, (len(left) * step - GAP) / 2, (start + WIDTH) / 2))
    mid = [layer for layer in every if layer.side == "mid"]
    if mid:
        middle, start = y + HIGHEST / 2, (WIDTH - len(mid) * step + GAP) / 2
        parts += [_box(layer, start + i * step, middle, step - GAP, unit) for i, layer in enumerate(mid)]
        fate = ", removed" if mid[0].kept is None else ""
        parts.append(_text(start - 3 * GAP, middle + 3, f"mid{fate}", "end"))
        y += HIGHEST + 4
    else:
        y -= ROW_GAP - 4
    return f'<svg class="unet" viewBox="0 0 {WIDTH} {y:.0f}" role="img">{"".join(parts)}</svg>'


def _side(side: str, stage: int, every: list[Layer]) -> list[Layer]:
    return [layer for layer in every if (layer.side, layer.stage) == (side, stage) and layer.kind != "sampler"]


def _edge(config: Config, stage: int) -> str:
    size = config.get("sample_size")
    if not isinstance(size, int):
        return ""
    edge = -(-size // 2**stage)  # halved with odd sizes rounded up
    return f"{edge} × {edge}"


def _box(layer: Layer, x: float, middle: float, width: float, unit: float) -> str:
    old, new = layer.channels * unit, (layer.kept or 0) * unit
    shapes = ""
    if new < old:
        shapes += _rect("was", x + 0.5, middle - old / 2 + 0.5, width - 1, old - 1)
    if new:
        shapes += _rect(layer.kind, x, middle - new / 2, width, new)
    if layer.depth > 1:
        shorter = layer.kept is not None and layer.kept_depth < layer.depth
        depth = f"{layer.depth}→{layer.kept_depth}" if shorter else f"×{layer.depth}"
        shapes += _text(x + width / 2, middle - old / 2 - 2, depth, "middle", "small")
    return f"<g><title>{escape(layer.words)}</title>{shapes}</g>"


def _rect(kind: str, x: float, y: float, width: float, height: float) -> str:
    return f'<rect class="{kind}" x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" rx="1.5"/>'


def _text(x: float, y: float, text: str, anchor: str, kind: str = "") -> str:
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _label(left: float, right: float, middle: float, edge: str, old: int, new: int | None) -> str:
    """The skip connection from down to up; above it the latents' size, below it the channels."""
    channels = f"{old} removed" if new is None else f"{old}" if new == old else f"{old} → {new}"
    line = f'<path class="{"skip was" if new is None else "skip"}" d="M{left + 4:.1f} {middle:.1f}H{right - 4:.1f}"/>'
    centre = (left + right) / 2
    return line + _text(centre, middle - 4, edge, "middle", "soft") + _text(centre, middle + 11, channels, "middle")


def _arrows(stage: int, every: list[Layer], y: float, left: float, right: float) -> str:
    """Down after a stage on the left, up into it (from the next one's upsampler) on the right."""
    shapes = ""
    for side, of, x, way in (("down", stage, left, 4), ("up", stage + 1, right, -4)):
        for layer in every:
            if (layer.side, layer.stage, layer.kind) == (side, of, "sampler"):
                path = f"M{x - 5:.1f} {y - way:.1f}L{x:.1f} {y + way:.1f}L{x + 5:.1f} {y - way:.1f}"
                kind = "arrow was" if layer.kept is None else "arrow"
                shapes += f'<path class="{kind}" d="{path}"><title>{escape(layer.words)}</title></path>'
    return shapes
