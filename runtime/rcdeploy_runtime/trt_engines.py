"""From an ONNX package to a package of TensorRT engines, built on the device that will use them; no torch.

Two builders with one interface: `tensorrt` builds for the GPU of this machine; TensorRT-RTX (`tensorrt_rtx`) builds
ahead of time, without a GPU, for compute capabilities that are named. Networks are strongly typed: the precision is
that of the graph (export it with --precision fp16 or int8).
"""

from __future__ import annotations

import dataclasses
import importlib
import platform
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .engine_options import EngineOptions, Size
from .errors import RcdeployError
from .files import new_folder, replacing, user_cache
from .manifest import NAME
from .package import COMPONENTS, Package

ENGINE = "model.engine"
DEFAULT_SCALES = (0.5, 1.0, 2.0)
"""smallest, usual and largest image size of an engine, in terms of the package's (only its own, if exported static)"""
Log = Callable[[str], None]


def load_builder(*, rtx: bool | None = None) -> Any:
    """The tensorrt module, or TensorRT-RTX's. rtx: True or False takes that one, None whichever is installed.

    Raises RcdeployError when it is not installed.
    """
    names = {None: ("tensorrt", "tensorrt_rtx"), True: ("tensorrt_rtx",), False: ("tensorrt",)}[rtx]
    for name in names:
        try:
            module = importlib.import_module(name)
        except (ImportError, OSError):  # OSError: bindings without their libraries
            continue
        if hasattr(module, "Builder"):
            return module
    raise RcdeployError(
        f"{' and '.join(names)} {'are' if len(names) > 1 else 'is'} not installed",
        fix="On a machine with a GPU: pip install tensorrt; engines of TensorRT-RTX need tensorrt-rtx-cu13, which "
        "builds without a GPU too, given the compute capabilities of the devices.",
    )


def check_graphs(package: str | Path) -> dict[str, str]:
    """Parse every graph of an ONNX package with TensorRT-RTX -> component: "accepted", and its number of layers.

    Raises RcdeployError when TensorRT-RTX is not installed, or a graph is refused.
    """
    trt = load_builder(rtx=True)
    source = Package(package)
    verdicts = {}
    for name in _components(source):
        _, network, parser = _parse(trt, source, name)
        verdicts[name] = f"accepted, {network.num_layers} layers"
        del parser, network
    return verdicts


def build_engines(
    package: str | Path,
    out: str | Path | None = None,
    options: EngineOptions | None = None,
    *,
    log: Log = lambda _message: None,
) -> Path:
    """Build an engine for every network of an ONNX package; returns the folder of the new package.

    Args:
        package: folder or .zip.
        out: folder of the new package; by default beside the package, with "-engines" at the end of its name.
        options: of the builder.
        log: gets remarks for a person.

    Raises:
        RcdeployError: no builder is installed, or a network cannot be built; then no folder is left.
    """
    options = options or EngineOptions()
    source = Package(package)
    if source.format != "onnx":
        raise RcdeployError(f"{package} is a package for {source.format}; engines are built from an ONNX package")
    sizes = _image_sizes(source, options)
    trt = load_builder(rtx=True if options.compute_capabilities else None)
    rtx = trt.__name__ == "tensorrt_rtx"
    if rtx and not options.compute_capabilities:
        raise RcdeployError(
            "TensorRT-RTX builds ahead of time and needs to know for which GPUs",
            fix="Give --compute-capability, for example 8.6,8.9; or pip install tensorrt where the GPU is.",
        )
    base = Path(package).with_suffix("") if Path(package).suffix == ".zip" else Path(package)
    target = Path(out) if out else base.with_name(base.name + "-engines")
    with new_folder(target) as folder:
        _copy_other_files(source, folder)
        engine_bytes = {}
        for name in _components(source):
            log(f"building {name} with {trt.__name__} {trt.__version__}")
            blob = _build(trt, source, name, options, sizes)
            (folder / name / ENGINE).write_bytes(blob)
            engine_bytes[name] = len(blob)
            log(f"  {len(blob) / 1e6:.1f} MB")
        manifest = source.manifest
        facts = {**manifest.facts, "format": "trt", "engines": {"builder": trt.__name__, "version": trt.__version__}}
        facts["engines"] |= {
            "gpu": None if rtx else _gpu_name(),
            "compute_capabilities": list(options.compute_capabilities),
            "hardware_compatible": options.hardware_compatible,
            "machine": platform.machine(),
            "bytes": engine_bytes,
            "max_batch": options.max_batch,
            "sizes": [list(size) for size in sizes],
        }
        manifest = dataclasses.replace(manifest, files={}, onnx={}, facts=facts)
        manifest.add_files(folder)
        manifest.write(folder)
    return target


def _components(package: Package) -> list[str]:
    return [c for c in COMPONENTS if f"{c}/model.onnx" in package.manifest.files]


def _copy_other_files(package: Package, folder: Path) -> None:
    for name in package.manifest.files:
        if ".onnx" not in name and name != NAME:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(package.file(name), folder / name)


def _parse(trt: Any, package: Package, name: str) -> tuple[Any, Any, Any]:
    """(builder, network, parser) of a component's graph."""
    logger = trt.Logger(trt.Logger.ERROR)
    try:
        builder = trt.Builder(logger)
    except (TypeError, RuntimeError) as error:  # raised by its bindings on a machine without a GPU
        raise RcdeployError(
            f"TensorRT cannot start here: {error}", fix="Is there an NVIDIA GPU and its driver?"
        ) from None
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    # from the file, so that weights beside it are found
    if not parser.parse_from_file(str(package.file(f"{name}/model.onnx"))):
        reasons = "; ".join(str(parser.get_error(i).desc()) for i in range(parser.num_errors))
        raise RcdeployError(f"TensorRT refuses the {name}: {reasons}", fix="Export it with --format trt (opset 20).")
    _decompose_attention(trt, network)
    return builder, network, parser


def _decompose_attention(trt: Any, network: Any) -> None:
    """Let TensorRT decompose attention where it has no kernel for the head's width (small models; opset 23)."""
    if not hasattr(trt, "IAttentionInputLayer"):
        return
    for i in range(network.num_layers):
        layer = network.get_layer(i)
        if layer.type == trt.LayerType.ATTENTION_INPUT:
            layer.__class__ = trt.IAttentionInputLayer
            layer.attention.decomposable = True


def _build(trt: Any, package: Package, name: str, options: EngineOptions, sizes: tuple[Size, Size, Size]) -> bytes:
    builder, network, parser = _parse(trt, package, name)
    config = builder.create_builder_config()
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, int(options.workspace_gb * 2**30))
    profile = builder.create_optimization_profile()
    dynamic = False
    for i in range(network.num_inputs):
        tensor = network.get_input(i)
        shape = tuple(tensor.shape)
        if -1 in shape:
            dynamic = True
            profile.set_shape(
                tensor.name, *_profile_shapes(package, name, tensor.name, shape, options.max_batch, sizes)
            )
    if dynamic:
        config.add_optimization_profile(profile)
    if options.compute_capabilities:
        config.num_compute_capabilities = len(options.compute_capabilities)
        for i, capability in enumerate(options.compute_capabilities):
            level = getattr(trt.ComputeCapability, "SM" + capability.replace(".", ""), None)
            if level is None:
                known = [c for c in dir(trt.ComputeCapability) if c.startswith("SM")]
                raise RcdeployError(f"compute capability {capability!r} is none of {', '.join(known)}")
            config.set_compute_capability(level, i)
    elif options.hardware_compatible:
        config.hardware_compatibility_level = trt.HardwareCompatibilityLevel.AMPERE_PLUS
    timings = user_cache() / f"timings-{trt.__version__}-{_gpu_name()}".replace(" ", "-")
    caching = not options.compute_capabilities and hasattr(config, "create_timing_cache")
    if caching:  # the second build of a like network is many times as fast
        config.set_timing_cache(config.create_timing_cache(timings.read_bytes() if timings.is_file() else b""), False)
    blob = builder.build_serialized_network(network, config)
    if blob is None:
        raise RcdeployError(
            f"TensorRT cannot build the {name}",
            fix="Its messages above say why. Out of memory: change --workspace-gb. No GPU: give --compute-capability.",
        )
    if caching:
        with replacing(timings) as beside:
            beside.write_bytes(bytes(config.get_timing_cache().serialize()))
    del parser
    return bytes(blob)


def _image_sizes(package: Package, options: EngineOptions) -> tuple[Size, Size, Size]:
    """Smallest, usual and largest image size of the engines. Raises RcdeployError for sizes the model cannot have."""
    multiple = package.facts.size_multiple
    if options.sizes:
        for height, width in options.sizes:
            if height % multiple or width % multiple:
                raise RcdeployError(f"--profile: {height}x{width} is not a multiple of {multiple} pixels")
        return options.sizes
    usual = package.size
    cache = package.manifest.recipe.get("cache")
    resolution = cache.get("resolution") if isinstance(cache, dict) else None
    if isinstance(resolution, int) and not package.facts.static_size:
        usual = (resolution, resolution)

    def scaled(scale: float) -> Size:
        height, width = (max(multiple, int(side * scale) // multiple * multiple) for side in usual)
        return height, width

    return scaled(DEFAULT_SCALES[0]), scaled(DEFAULT_SCALES[1]), scaled(DEFAULT_SCALES[2])


def _profile_shapes(
    package: Package,
    component: str,
    tensor: str,
    shape: tuple[int, ...],
    max_batch: int,
    sizes: tuple[Size, Size, Size],
) -> list[tuple[int, ...]]:
    """Smallest, usual and largest shape of an input whose dynamic dimensions are -1."""
    pixels = 1 if component == "vae_encoder" else package.facts.pixels_per_latent
    batch_sizes = (1, 2, 2 * max_batch) if component == "unet" else (1, 1, max_batch)
    return [
        tuple(
            fixed if fixed != -1 else batch_size if axis == 0 else size[axis - 2] // pixels
            for axis, fixed in enumerate(shape)
        )
        for batch_size, size in zip(batch_sizes, sizes, strict=True)
    ]


def _gpu_name() -> str | None:
    try:
        from cuda.bindings import runtime as cudart
    except ImportError:
        return None
    error, properties = cudart.cudaGetDeviceProperties(0)
    return properties.name.decode() if int(error) == 0 else None
