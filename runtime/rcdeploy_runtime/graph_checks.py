"""Checks of a network's file: no weights outside its package, no control flow."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from xml.etree import ElementTree

from .errors import RcdeployError
from .files import inside
from .onnx_file import read_onnx

CONTROL_FLOW = {"Loop", "If", "Scan", "SequenceMap", "TensorIterator"}
"""operators of ONNX and OpenVINO that hold graphs of their own: no network that we export has one, and a Loop of 2^62
turns never ends"""


def check_graph(file: Path, name: str, listed: Collection[str]) -> None:
    """Raises RcdeployError when a network has control flow, or weights outside its package.

    file: the network. name: its name inside the package. listed: the names of the package's files.
    """
    if name.endswith(".onnx"):
        contents = read_onnx(file)
        _check_operators(file, contents.operators)
        for location in contents.external_files:
            inside(file.parent, location)
            if (Path(name).parent / location).as_posix() not in listed:
                raise RcdeployError(f"{file} needs {location!r}, which is not in the package")
    elif name.endswith("openvino_model.xml"):
        _check_operators(file, _openvino_operators(file))


def _check_operators(file: Path, operators: set[str]) -> None:
    if refused := sorted(CONTROL_FLOW & operators):
        raise RcdeployError(
            f"{file} has the operators {', '.join(refused)}; networks with control flow are refused",
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
