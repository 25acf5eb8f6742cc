"""An fp32 ONNX file to int8, by the scheme that its target executes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from rcdeploy_runtime.noise_schedule import Array
from rcdeploy_runtime.onnx_runtime import import_onnxruntime


def quantise_onnx(
    file: Path,
    precision: str,
    target: str,
    calibration: Sequence[dict[str, Array]],
    on_sample: Callable[[int], None],
) -> None:
    """Replaces an fp32 ONNX file of opset 20 by its int8 form.

    Args:
        file: the graph.
        precision: int8 (weights and activations of matrix products and convolutions, activations scaled at run time)
            or int8-matmul (matrix products alone). For TensorRT: symmetric Q/DQ pairs with fixed scales, which it
            fuses.
        target: onnx or trt.
        calibration: inputs of the network; empty where it has no convolutions worth quantising.
        on_sample: called with the number of calibration samples used.
    """
    import_onnxruntime()  # with its telemetry off
    from onnxruntime import quantization

    quantised = file.with_name("quantised.onnx")
    if target == "trt":
        quantization.quantize_static(
            file,
            quantised,
            _CalibrationReader(calibration, on_sample),
            quant_format=quantization.QuantFormat.QDQ,
            activation_type=quantization.QuantType.QInt8,
            weight_type=quantization.QuantType.QInt8,
            per_channel=True,
            op_types_to_quantize=["MatMul", "Conv", "Gemm"],
            extra_options={"ActivationSymmetric": True, "WeightSymmetric": True, "QuantizeBias": False},
        )
    else:
        convolutions = precision == "int8" and bool(calibration)  # of the UNet; a text encoder has none
        quantization.quantize_dynamic(
            file,
            quantised,
            op_types_to_quantize=["MatMul", "Conv"] if convolutions else ["MatMul"],
            per_channel=True,
            weight_type=quantization.QuantType.QUInt8 if convolutions else quantization.QuantType.QInt8,
        )
    quantised.replace(file)


class _CalibrationReader:
    """The interface that onnxruntime.quantization reads calibration data through."""

    def __init__(self, samples: Sequence[dict[str, Array]], on_sample: Callable[[int], None]) -> None:
        self._samples: Iterator[tuple[int, dict[str, Array]]] = iter(enumerate(samples, 1))
        self._on_sample = on_sample

    def get_next(self) -> dict[str, Array] | None:
        number, sample = next(self._samples, (0, None))
        if sample is not None:
            self._on_sample(number)
        return sample
