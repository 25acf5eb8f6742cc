"""What a network's file may not do: read beside its package, or loop without an end."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING
from xml.etree import ElementTree

from .errors import RcdeployError
from .files import inside
from .onnx_file import read_onnx

if TYPE_CHECKING:
    from .package import Package

CONTROL_FLOW = {"Loop", "If", "Scan", "SequenceMap", "TensorIterator"}
"""operators of ONNX and OpenVINO that hold graphs of their own: no network that we export has one, and a Loop of 2^62
turns never ends"""


def check_graph(package: Package, name: str) -> None:
    """Raises RcdeployError when the file `name` is a network with control flow, or with weights that are not listed."""
    if name.endswith(".onnx"):
        _check_onnx(package, name)
    elif name.endswith("openvino_model.xml"):
        _check_operators(package, name, _openvino_operators(package.file(name)))


def _check_onnx(package: Package, name: str) -> None:
    contents = read_onnx(package.file(name))
    _check_operators(package, name, contents.operators)
    for location in contents.external_files:
        inside(package.file(name).parent, location)
        if (Path(name).parent / location).as_posix() not in package.manifest.files:
            raise RcdeployError(f"{package.path}: {name} needs {location!r}, which is not in the package")


def _check_operators(package: Package, name: str, operators: set[str]) -> None:
    if found := sorted(CONTROL_FLOW & operators):
        raise RcdeployError(
            f"{package.path}: {name} has the operators {', '.join(found)}; networks with control flow are refused",
            fix="Export the model with rcdeploy export, which needs none.",
        )


def _openvino_operators(file: Path) -> set[str]:
    operators: set[str] = set()
    try:
        for _, element in ElementTree.iterparse(file):
            if element.tag == "layer":
                operators.add(element.get("type", ""))
            element.clear()
    except (ElementTree.ParseError, ValueError) as error:
        raise RcdeployError(f"{file} is no OpenVINO model: {error}", fix="Copy it again, or export it anew.") from None
    return operators
