"""How to export: what each format can be, and in which precision."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from rcdeploy_runtime.errors import RcdeployError

PRECISIONS = {
    "onnx": ("fp32", "fp16", "int8", "mixed"),
    "openvino": ("fp32", "fp16", "bf16", "int8", "mixed"),
    "trt": ("fp32", "fp16", "int8"),
}
"""format -> what UNet and text encoder may be in"""
OPSETS = {"onnx": 23, "openvino": 20, "trt": 20}
"""23 has Attention and GroupNormalization as one node each, which halves ONNX Runtime's memory; 20 is what OpenVINO,
quantisation and the TensorRT of a Jetson read"""
WHY_NOT = {
    ("onnx", "bf16"): "ONNX Runtime has no bf16 convolutions for the CPU: take --format openvino --precision bf16, "
    "where the processor has it; for a GPU take fp16.",
    ("trt", "bf16"): "The graph of bf16 cannot be compared with torch here: take fp16.",
    ("trt", "mixed"): "TensorRT takes int8 as Q/DQ pairs around each product: take int8.",
}


@dataclass(frozen=True)
class Settings:
    """How to export. Raises RcdeployError for what does not go together.

    precision: of UNet and text encoder; the VAE stays fp32 unless vae_precision says otherwise (fp16 decoders of some
    models overflow into black pictures). opset: None takes the format's own. static: shapes fixed at one picture of the
    model's size, or of `size` (height, width in pixels); two rows in the UNet, for guidance. external_data: weights
    beside the graph even below 2 GB. prompts: a file of captions to calibrate with and to draw; the run's own by
    default. pictures: drawn to compare a smaller precision with torch; None takes as many as a minute allows. clip: a
    CLIP model's folder, to score them.
    """

    format: str = "onnx"
    precision: str = "fp32"
    vae_precision: str = "fp32"
    opset: int | None = None
    static: bool = False
    size: tuple[int, int] | None = None
    external_data: bool = False
    prompts: Path | None = None
    pictures: int | None = None
    clip: Path | None = None

    def __post_init__(self) -> None:
        _one_of("format", self.format, tuple(PRECISIONS))
        _one_of("vae precision", self.vae_precision, ("fp32", "fp16"))
        why = WHY_NOT.get((self.format, self.precision))
        _one_of(f"precision for {self.format}", self.precision, PRECISIONS[self.format], why)
        if self.size and not self.static:
            raise RcdeployError("a size is fixed with --static only; without it the package draws any size")
        if self.pictures is not None and self.pictures < 0:
            raise RcdeployError(f"{self.pictures} pictures cannot be drawn")

    @property
    def resolved_opset(self) -> int:
        if self.opset is not None:
            return self.opset
        return 20 if self.precision in ("int8", "mixed") else OPSETS[self.format]

    def precision_of(self, component: str) -> str:
        if component.startswith("vae"):
            return self.vae_precision
        # a text encoder runs once a picture: TensorRT's int8 and ours of both kinds leave it whole
        whole = self.precision == "mixed" or (self.format, self.precision) == ("trt", "int8")
        return "fp32" if whole and component == "text_encoder" else self.precision


def _one_of(name: str, value: str, allowed: tuple[str, ...], why: str | None = None) -> None:
    if value not in allowed:
        raise RcdeployError(f"{name}: {value!r} is none of {', '.join(allowed)}", fix=why)
