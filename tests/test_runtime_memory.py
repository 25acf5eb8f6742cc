"""memory_gb: what a small graph may ask of ONNX Runtime, and that an honest package draws the same with a limit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper, save

from rcdeploy_runtime import RcdeployError, TextToImage
from rcdeploy_runtime.onnx_session import OnnxSession

COUNT = 2**24
"""numbers of 4 bytes: 67 MB"""


def shape(*sizes: int) -> Any:
    return helper.make_tensor("s", TensorProto.INT64, [len(sizes)], sizes)


NODES = {
    "ConstantOfShape": ([helper.make_node("ConstantOfShape", ["s"], ["big"])], [shape(COUNT)]),
    "Expand": ([helper.make_node("Expand", ["x", "s"], ["big"])], [shape(COUNT, 1)]),
    "Tile": ([helper.make_node("Tile", ["x", "s"], ["big"])], [shape(COUNT)]),
    "Concat": (
        [
            helper.make_node("Concat", [a, a], [b], axis=0)
            for a, b in zip(["x", *(f"c{i}" for i in range(23))], [*(f"c{i}" for i in range(23)), "big"], strict=True)
        ],
        [],
    ),
}


@pytest.mark.parametrize("name", NODES)
def test_a_graph_that_asks_for_too_much(tmp_path: Path, name: str) -> None:
    nodes, tensors = NODES[name]
    nodes = [*nodes, helper.make_node("ReduceSum", ["big"], ["sum"]), helper.make_node("Add", ["x", "sum"], ["y"])]
    x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in (("x", ["n"]), ("y", None)))
    graph = helper.make_graph(nodes, "g", [x], [y], tensors)
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), tmp_path / "x.onnx")
    one = {"x": np.ones(1, np.float32)}
    with pytest.raises(RcdeployError, match="cannot run") as caught:
        OnnxSession(tmp_path / "x.onnx", "cpu", 1, memory_gb=0.03).run(one)
    assert "memory_gb" in str(caught.value.fix)
    assert OnnxSession(tmp_path / "x.onnx", "cpu", 1, memory_gb=0.5).run(one).size
    assert OnnxSession(tmp_path / "x.onnx", "cpu", 1).run(one).size


def test_an_honest_package_draws_the_same(package: Path) -> None:
    images = []
    for limit in (None, 1.0):
        model = TextToImage.load(package, "cpu", 1, memory_gb=limit)
        images.append(np.asarray(model.generate("a bag", seed=1, num_inference_steps=2)[0][0], int))
    assert np.abs(images[0] - images[1]).max() <= 1


@pytest.mark.parametrize("limit", [0, -1.0, 1e-6, float("nan"), float("inf"), "1", True])
def test_what_is_no_limit(package: Path, limit: Any) -> None:
    with pytest.raises(RcdeployError, match="memory_gb is"):
        TextToImage.load(package, memory_gb=limit)
