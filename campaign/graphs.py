"""Hostile ONNX graphs, made from a real one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

HUGE = (2**20, 2**28, 2**31, 2**34, 2**40, 2**62)


def mutate_graph(file: Path, random: Random, secret: Path) -> str:
    """Change the model; returns what, in words. secret: a file outside its package."""
    model = onnx.load(file)
    words = random.choice(CHANGES)(model, random, secret)
    file.write_bytes(model.SerializeToString())
    return words


def _spliced(model: Any, nodes: list[Any], constants: dict[str, Any], output: str) -> None:
    """Let new nodes run: the graph's first output becomes (itself + 0 times the mean of `output`)."""
    graph = model.graph
    for name, value in constants.items():
        graph.initializer.append(numpy_helper.from_array(value, name))
    last = graph.output[0].name
    for node in graph.node:
        for i, name in enumerate(node.output):
            if name == last:
                node.output[i] = "campaign_before"
    graph.initializer.append(numpy_helper.from_array(np.zeros((), np.float32), "campaign_zero"))
    graph.node.extend(
        [
            *nodes,
            helper.make_node("ReduceMean", [output], ["campaign_mean"], keepdims=0),
            helper.make_node("Mul", ["campaign_mean", "campaign_zero"], ["campaign_nothing"]),
            helper.make_node("Add", ["campaign_before", "campaign_nothing"], [last]),
        ]
    )


def _allocates(model: Any, random: Random, _secret: Path) -> str:
    """A node that makes much of a few bytes."""
    size = random.choice(HUGE)
    operator = random.choice(("ConstantOfShape", "Expand", "Tile", "Range", "Pad", "OneHot", "RandomNormal", "Resize"))
    one = np.ones(1, np.float32)
    shape = np.asarray([size], np.int64)
    name, out = "campaign_size", ["campaign_out"]
    constants: dict[str, Any] = {name: shape}
    if operator == "ConstantOfShape":
        node = helper.make_node(operator, [name], out)
    elif operator in ("Expand", "Tile"):
        constants["campaign_one"] = one
        node = helper.make_node(operator, ["campaign_one", name], out)
    elif operator == "Range":
        constants = {"a": np.float32(0), "b": np.float32(min(size, 2**40)), "c": np.float32(1)}
        constants = {k: np.asarray(v) for k, v in constants.items()}
        node = helper.make_node(operator, ["a", "b", "c"], out)
    elif operator == "Pad":
        constants = {"campaign_one": one, "campaign_pads": np.asarray([0, size], np.int64)}
        node = helper.make_node(operator, ["campaign_one", "campaign_pads"], out)
    elif operator == "OneHot":
        constants = {"i": np.zeros(1, np.int64), "d": np.asarray(size, np.int64), "v": np.asarray([0, 1], np.float32)}
        node = helper.make_node(operator, ["i", "d", "v"], out)
    elif operator == "RandomNormal":
        node = helper.make_node(operator, [], out, shape=[size])
    else:
        constants = {"campaign_one": one.reshape(1, 1, 1, 1), "campaign_sizes": np.asarray([1, 1, 1, size], np.int64)}
        node = helper.make_node(operator, ["campaign_one", "", "", "campaign_sizes"], out)
    _spliced(model, [node], constants, "campaign_out")
    return f"{operator} of {size:,} elements"


def _grows(model: Any, random: Random, _secret: Path) -> str:
    """A chain of nodes, each of which doubles its input."""
    times = random.choice((20, 28, 33, 50))
    names = [f"campaign_{i}" for i in range(times + 1)]
    nodes = [helper.make_node("Concat", [a, a], [b], axis=0) for a, b in zip(names, names[1:], strict=False)]
    _spliced(model, nodes, {names[0]: np.ones(1, np.float32)}, names[-1])
    return f"doubled {times} times"


def _loops(model: Any, random: Random, _secret: Path) -> str:
    kind = random.choice(("Loop", "If", "Scan", "function"))
    value = helper.make_tensor_value_info("c", TensorProto.FLOAT, [1])
    body = helper.make_graph([helper.make_node("Identity", ["campaign_x"], ["c"])], "body", [], [value])
    if kind == "function":
        inner = helper.make_node("Mine", ["x"], ["y"], domain="mine")
        function = helper.make_function("mine", "Mine", ["x"], ["y"], [inner], [helper.make_opsetid("mine", 1)])
        model.functions.append(function)
        model.opset_import.append(helper.make_opsetid("mine", 1))
        node = helper.make_node("Mine", ["campaign_x"], ["campaign_out"], domain="mine")
    else:
        attribute = {"Loop": "body", "If": "then_branch", "Scan": "body"}[kind]
        node = helper.make_node(kind, ["campaign_x"], ["campaign_out"], **{attribute: body})
    _spliced(model, [node], {"campaign_x": np.ones(1, np.float32)}, "campaign_out")
    return f"{'a function that calls itself' if kind == 'function' else kind}"


def _external(model: Any, random: Random, secret: Path) -> str:
    tensor = random.choice(list(model.graph.initializer))
    location = random.choice(
        (str(secret), "../../secret.txt", "/dev/zero", "config.json", "../tokenizer/tokenizer.json", "absent", "", "\0")
        + ("model.onnx", ".", "x" * 5000)
    )
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    entries = {"location": location, "offset": random.choice((0, -1, 2**62)), "length": random.choice((4, -1, 2**62))}
    for key in random.sample(sorted(entries), random.randint(1, 3)):
        entry = tensor.external_data.add()
        entry.key, entry.value = key, str(entries[key])
    return f"external data {entries}"[:150]


def _initializer(model: Any, random: Random, _secret: Path) -> str:
    tensor = random.choice(list(model.graph.initializer))
    kind = random.choice(("dims", "negative", "type", "nan", "short", "twice", "removed", "many dims"))
    if kind == "dims":
        tensor.dims[:] = [random.choice(HUGE)] * random.choice((1, 4))
    elif kind == "negative":
        tensor.dims[:] = [-1]
    elif kind == "type":
        tensor.data_type = random.choice((0, 2, 6, 7, 8, 10, 11, 16, 99))
    elif kind == "nan":
        tensor.CopyFrom(
            numpy_helper.from_array(np.full_like(numpy_helper.to_array(tensor), random.choice((127, 3))), tensor.name)
        )
    elif kind == "short":
        tensor.raw_data = tensor.raw_data[:3]
    elif kind == "twice":
        model.graph.initializer.append(tensor)
    elif kind == "removed":
        model.graph.initializer.remove(tensor)
    else:
        tensor.dims[:] = [1] * 5000
    return f"initializer {tensor.name}: {kind}"


def _node(model: Any, random: Random, _secret: Path) -> str:
    node = random.choice(list(model.graph.node))
    words = f"node {node.op_type}"
    kind = random.choice(("operator", "input", "output", "attribute", "attribute", "removed", "domain", "cycle"))
    if kind == "operator":
        node.op_type = random.choice(
            ("Relu", "Conv", "Mine", "", "MatMul", "Gather", "Reshape", "QLinearConv", "Einsum")
        )
    elif kind == "input" and node.input:
        node.input[random.randrange(len(node.input))] = random.choice(list(model.graph.initializer)).name
    elif kind == "output":
        node.output[0] = random.choice(("", "x", random.choice(list(model.graph.node)).output[0]))
    elif kind == "attribute" and node.attribute:
        attribute = random.choice(list(node.attribute))
        value = random.choice((-1, 0, 2**31, 2**62))
        if attribute.ints:
            attribute.ints[:] = [value] * random.choice((1, len(attribute.ints), 1000))
        attribute.i = value
        attribute.f = float(value)
        words += f".{attribute.name} = {value}"
    elif kind == "removed":
        model.graph.node.remove(node)
    elif kind == "domain":
        node.domain = random.choice(("com.microsoft", "ai.onnx.ml", "mine", "\u202e"))
    else:
        node.input.append(node.output[0])
    return f"{words}: {kind}"


def _signature(model: Any, random: Random, _secret: Path) -> str:
    graph = model.graph
    kind = random.choice(
        ("input name", "output name", "no outputs", "huge input", "type", "more inputs", "opset", "ir")
    )
    if kind == "input name":
        graph.input[0].name = random.choice(("x", "", "\0"))
    elif kind == "output name":
        graph.output[0].name = "x"
    elif kind == "no outputs":
        del graph.output[:]
    elif kind == "huge input":
        dims = graph.input[0].type.tensor_type.shape.dim
        if dims:
            dims[random.randrange(len(dims))].dim_value = random.choice(HUGE)
    elif kind == "type":
        graph.input[0].type.tensor_type.elem_type = random.choice((0, 7, 8, 10, 11, 99))
    elif kind == "more inputs":
        graph.input.append(helper.make_tensor_value_info("more", TensorProto.FLOAT, [1]))
    elif kind == "opset":
        model.opset_import[0].version = random.choice((0, 1, 999, 2**62, -1))
    else:
        model.ir_version = random.choice((0, 99, 2**31, -1))
    return f"signature: {kind}"


def _text(model: Any, random: Random, _secret: Path) -> str:
    """Names and descriptions that are huge."""
    size = random.choice((100_000, 20_000_000))
    model.doc_string = "x" * size
    model.graph.node[0].name = "y" * random.choice((10, 70_000))
    entry = model.metadata_props.add()
    entry.key, entry.value = "location", "../../secret.txt"
    return f"a description of {size:,} characters"


Change = Callable[[Any, Random, Path], str]
CHANGES: list[Change] = [
    _allocates,
    _allocates,
    _grows,
    _loops,
    _external,
    _initializer,
    _node,
    _node,
    _signature,
    _text,
]
