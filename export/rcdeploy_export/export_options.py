"""Options of an export: what every format can be written in, and which combinations are refused.

Nothing of torch is imported here: contradictions are reported before seconds of imports.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rcdeploy_runtime.errors import RcdeployError
from rcdeploy_runtime.manifest import NAME
from rcdeploy_runtime.sampling_defaults import SamplingDefaults

PRECISIONS = {
    "onnx": ("fp32", "fp16", "int8", "int8-matmul"),
    "openvino": ("fp32", "fp16", "bf16", "int8", "int8-weights"),
    "trt": ("fp32", "fp16", "int8"),
    "executorch": ("fp32", "int8"),
    "coreml": ("fp32", "fp16"),
}
"""format -> the precisions of UNet and text encoder. int8: weights and arithmetic. int8-matmul: matrix products alone,
convolutions in fp32. int8-weights: weights alone, arithmetic in fp32"""
FOR_PHONES = ("executorch", "coreml")
"""formats of programs for one shape, made without ONNX"""
FORMER_PRECISIONS = {("onnx", "mixed"): "int8-matmul", ("openvino", "mixed"): "int8-weights"}
"""(format, precision of packages up to version 0.1) -> its name today"""
HALF_VAES: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("onnx", "trt", "coreml"), ("fp16",)),
    "openvino": ("fp16", "bf16"),
    "executorch": (),
}
"""format -> the precisions of the VAE beside fp32"""
OPSETS = {"onnx": 23, "openvino": 20, "trt": 20}
"""23 has Attention and GroupNormalization as one node each, which halves ONNX Runtime's memory; 20 is what OpenVINO,
quantisation and the TensorRT of a Jetson read"""
MIN_OPSET = 18
MAX_OPSET = 23
MAX_OPSET_CONVERTED = 20
"""of graphs that are quantised, or converted to OpenVINO's"""
REASONS = {
    ("onnx", "bf16"): "ONNX Runtime has no bf16 convolutions for the CPU: take --format openvino --precision bf16, "
    "where the processor has it; for a GPU take fp16.",
    ("onnx", "int8-weights"): "int8-weights is OpenVINO's; for ONNX take int8-matmul, or --format openvino.",
    ("openvino", "int8-matmul"): "int8-matmul is ONNX Runtime's; for OpenVINO take int8-weights, or --format onnx.",
    ("executorch", "fp16"): "XNNPACK computes in fp32 or int8 here: take fp32 or int8.",
    (
        "coreml",
        "int8",
    ): "For Core ML take fp16, in which the Neural Engine computes; for int8 take --format executorch.",
    ("trt", "bf16"): "A bf16 graph cannot be compared with torch here: take fp16.",
    **{
        ("trt", precision): "TensorRT reads int8 as Q/DQ pairs around each product: take int8."
        for precision in ("mixed", "int8-matmul", "int8-weights")
    },
}


def current_precision(format: str, precision: str, log: Callable[[str], None]) -> str:
    """Today's name of a precision; a former one ("mixed") is still accepted, with a remark."""
    renamed = FORMER_PRECISIONS.get((format, precision))
    if renamed is None:
        return precision
    log(f"--precision {precision} is now called {renamed} for --format {format}.")
    return renamed


@dataclass(frozen=True)
class ExportOptions:
    """Format, precision and variants of one export. Raises RcdeployError for a contradiction or a missing file.

    Args:
        format: onnx, openvino, trt (ONNX that TensorRT reads), executorch or coreml.
        precision: of UNet and text encoder, one of PRECISIONS[format].
        vae_precision: fp32, fp16 or (OpenVINO) bf16; fp16 decoders of some models overflow into black images, bf16 has
            the range of fp32. None takes bf16 beside OpenVINO's UNet in bf16 or int8, else fp32.
        opset: of the ONNX graphs; None takes the format's default.
        static: fixes every shape (of executorch and coreml it always is) at one image of the model's native size, or of
            `image_size`; two rows in the UNet for guidance, one where the model is sampled without.
        image_size: (height, width) in pixels, for static exports.
        external_data: stores weights beside the graph, even below 2 GB.
        prompts: a file of captions to calibrate with and to draw; by default those of the run.
        measure_seconds: that the measurements of a smaller precision may take together: a third for the UNet's speed, a
            third for its error over the timesteps, what is left for images. One turn and one sample are always taken;
            0 measures nothing but images that are asked for. The comparison with torch is not among them.
        image_count: images that compare a smaller precision with torch; None takes as many as those seconds allow.
        clip: the folder of a CLIP model that scores those images.
        decoder: the folder of a tiny decoder, in the place of the VAE's.
        encoder: packs the VAE's encoder, which img2img needs.
        judge: packs the judge beside the teacher, so that the package can be evaluated anywhere.
        sampling: that the package records instead of the run's own.
    """

    format: str = "onnx"
    precision: str = "fp32"
    vae_precision: str | None = None
    opset: int | None = None
    static: bool = False
    image_size: tuple[int, int] | None = None
    external_data: bool = False
    prompts: Path | None = None
    measure_seconds: float = 60.0
    image_count: int | None = None
    clip: Path | None = None
    decoder: Path | None = None
    encoder: bool = True
    judge: bool = False
    sampling: SamplingDefaults | None = None

    def __post_init__(self) -> None:
        _check_choice("--format", self.format, tuple(PRECISIONS))
        half = HALF_VAES[self.format]
        if self.vae_precision is not None:
            reason = REASONS.get((self.format, self.vae_precision))
            _check_choice(f"--vae-precision for {self.format}", self.vae_precision, ("fp32", *half), reason)
        reason = REASONS.get((self.format, self.precision))
        _check_choice(f"--precision for {self.format}", self.precision, PRECISIONS[self.format], reason)
        if self.format in FOR_PHONES and (self.opset is not None or self.external_data):
            raise RcdeployError(f"--opset and --external-data are of ONNX graphs, and --format {self.format} has none")
        largest = MAX_OPSET_CONVERTED if self.quantised or self.format == "openvino" else MAX_OPSET
        if self.opset is not None and not MIN_OPSET <= self.opset <= largest:
            title = f"--format {self.format} --precision {self.precision}"
            raise RcdeployError(f"--opset {self.opset}: allowed for {title} are {MIN_OPSET} to {largest}")
        if self.image_size and not self.fixed_shapes:
            raise RcdeployError(
                "--size is for --static only",
                fix="Without --static the package draws any size that the model can.",
            )
        if not 0 <= self.measure_seconds < math.inf:
            raise RcdeployError(f"--measure-seconds {self.measure_seconds}: must be 0 or more")
        if self.image_count is not None and self.image_count < 0:
            raise RcdeployError(f"--pictures {self.image_count}: must be 0 or more")
        for option, path in (("--prompts", self.prompts), ("--clip", self.clip), ("--decoder", self.decoder)):
            if path is not None and not path.exists():
                raise RcdeployError(f"{option} {path}: no such file or folder")

    def as_facts(self) -> dict[str, Any]:
        """What the package's contents depend on, beside the files that it is made from; as JSON."""
        names = (
            *("format", "precision", "opset", "static", "external_data"),
            *("encoder", "judge"),
        )
        facts = {name: getattr(self, name) for name in names}
        image_size = list(self.image_size) if self.image_size else None
        return {**facts, "vae_precision": self.precision_of("vae"), "image_size": image_size}

    @property
    def quantised(self) -> bool:
        """Whether any weights become int8."""
        return self.precision.startswith("int8")

    @property
    def fixed_shapes(self) -> bool:
        """Whether every network takes one shape only."""
        return self.static or self.format in FOR_PHONES

    @property
    def runs_here(self) -> bool:
        """Whether this machine can execute the result, and so compare it with torch."""
        return self.format != "coreml"

    @property
    def resolved_opset(self) -> int | None:
        """None of a format without ONNX graphs."""
        if self.opset is not None or self.format in FOR_PHONES:
            return self.opset
        return 20 if self.quantised else OPSETS[self.format]

    def precision_of(self, component: str) -> str:
        if component.startswith("vae"):
            beside_half = self.format == "openvino" and self.precision in ("bf16", "int8")
            return self.vae_precision or ("bf16" if beside_half else "fp32")
        # the text encoder runs once per image: TensorRT's int8 and the two partial int8 precisions leave it in fp32
        whole_in_int8 = self.precision == "int8" and self.format != "trt"
        if component.startswith("text_encoder") and self.quantised and not whole_in_int8:
            return "fp32"
        return self.precision

    def check_installed(self) -> None:
        """Raises RcdeployError when the format needs a library that is not installed."""
        needed = {
            "openvino": ["openvino", "openvino_tokenizers", *(["nncf"] if self.quantised else [])],
            "executorch": ["executorch", "torchao"],
            "coreml": ["coremltools"],
        }
        for name in needed.get(self.format, []):
            if importlib.util.find_spec(name) is None:
                raise RcdeployError(f"{name} is not installed", fix=f'pip install "rcdeploy[{self.format}]"')


def check_target(out: Path) -> None:
    """Raises RcdeployError when `out` exists and is not a package, which alone may be replaced."""
    if out.exists() and not (out / NAME).is_file():
        raise RcdeployError(f"{out} exists and is not a package", fix="Give --out another folder.")


def _check_choice(name: str, value: str, allowed: tuple[str, ...], reason: str | None = None) -> None:
    if value not in allowed:
        raise RcdeployError(f"{name}: {value!r} is none of {', '.join(allowed)}", fix=reason)
