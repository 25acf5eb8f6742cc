"""What could execute a package on this machine: backend, device, precision and number of threads."""

from __future__ import annotations

from dataclasses import replace

from ..errors import RcdeployError
from ..machine import physical_cores, usable_cores
from ..openvino_session import computed_in
from ..package import Package
from ..session_options import BACKENDS, SessionOptions

CAPABILITIES = {"BF16": "bf16", "FP16": "fp16"}
"""OpenVINO's names of what a device computes in"""


def default_options(package: Package) -> SessionOptions:
    """What a package is executed with when nothing is chosen, by name. Raises RcdeployError where it is missing."""
    backend = BACKENDS[package.format][0]
    devices = _devices(backend)
    if not devices:
        raise RcdeployError(
            f"{package.path} needs {backend}, which is not installed", fix=f'pip install "rcdeploy-runtime[{backend}]"'
        )
    return SessionOptions(backend=backend, device=devices[0])


def variants(package: Package) -> list[SessionOptions]:
    """Every backend, device and precision that can execute the package here, with the default number of threads.

    The default options come first. Backends that are not installed are left out.
    """
    options = [default_options(package)]
    for backend in BACKENDS[package.format]:
        for device in _devices(backend):
            for precision in _precisions(package, backend, device):
                options.append(SessionOptions(backend=backend, device=device, precision=precision))
    return list(dict.fromkeys(options))


def reference_options(package: Package) -> SessionOptions:
    """What the images of all others are compared with: the default, in fp32 where OpenVINO would compute in bf16."""
    options = default_options(package)
    return (
        replace(options, precision="fp32")
        if options.backend == "openvino" and "bf16" in _computed_in(package, options.device)
        else options
    )


def with_threads(options: SessionOptions) -> list[SessionOptions]:
    """The same with one thread, with one for each physical core, and with one for each logical core; of a CPU only."""
    if options.device != "cpu" or options.backend == "tensorrt":
        return []
    return [replace(options, threads=n) for n in sorted({1, physical_cores(), len(usable_cores())})]


def not_installed(package: Package) -> list[str]:
    """Backends that could execute the package, were they installed."""
    return [backend for backend in BACKENDS[package.format] if not _devices(backend)]


def precision_name(package: Package, options: SessionOptions) -> str:
    """Of the computation, where it is chosen, else of the package's UNet and of a decoder that has another."""
    if options.precision:
        return options.precision
    unet, decoder = (package.facts.precision_of(component) for component in ("unet", "vae_decoder"))
    return unet if unet == decoder else f"{unet}, decoder {decoder}"


def _computed_in(package: Package, device: str) -> set[str]:
    """What OpenVINO computes a package's networks in, unless it is told otherwise."""
    precisions = (package.facts.precision_of(name) for name in ("text_encoder", "unet", "vae_decoder"))
    return {computed_in(precision, device) for precision in precisions}


def _devices(backend: str) -> list[str]:
    """Names of devices, that of `auto` first; none where the backend is not installed."""
    if backend == "onnxruntime":
        from ..onnx_session import available_devices

        return available_devices()
    if backend == "openvino":
        from ..openvino_session import available_devices as openvino_devices

        return openvino_devices()
    return ["cuda"]


def _precisions(package: Package, backend: str, device: str) -> list[str | None]:
    """None is the package's own: fp32, or bf16 of one in bf16 or int8. Others are what the device computes in."""
    if backend != "openvino":
        return [None]
    from ..openvino_session import capabilities

    try:
        possible = ["fp32", *(CAPABILITIES[name] for name in capabilities(device) if name in CAPABILITIES)]
    except RcdeployError:
        possible = []
    return [None, *(precision for precision in possible if {precision} != _computed_in(package, device))]
