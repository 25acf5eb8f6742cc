"""Counts the cost of running code on the meta device, where shapes are computed and numbers are not.

So a training step of any batch size is counted in a second or two, with all that a formula would forget: blocks that
gradient checkpointing runs again, feature taps and projectors, what autograd saves for the backward pass.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.flop_counter import flop_registry

AUTOCAST_TO_HALF = ("conv2d", "conv_transpose2d", "linear")
AUTOCAST_TO_FLOAT = ("group_norm", "layer_norm")
"""autocast's rules on a GPU for the operations that these networks are made of"""


@dataclass(frozen=True)
class Cost:
    """Cost of a piece of code.

    macs: multiply-accumulates of matrix products. operations: kernels started. peak_bytes: of the tensors that the code
    allocated, the most alive at once (weights are not counted). final_bytes: those still alive when it ended, such as
    gradients.
    """

    macs: int
    operations: int
    peak_bytes: int
    final_bytes: int


def cost_of(code: Callable[[], Any], *, autocast: torch.dtype | None = None) -> Cost:
    """Runs `code`, whose tensors are all on the meta device. autocast: the dtype of mixed precision, if any."""
    counter = _Counter()
    with _as_trained(autocast), counter:
        result = code()  # alive until the counters are read
        cost = Cost(counter.flops // 2, counter.operations, counter.peak_bytes, counter.live_bytes)
        del result
    return cost


class _Counter(TorchDispatchMode):
    """Floating point operations, operations that allocate a tensor, and the bytes of those tensors while they live.

    torch's own FlopCounterMode has the same formulas, but holds on to tensors that would be freed.
    """

    def __init__(self) -> None:
        super().__init__()
        self.flops = 0
        self.operations = 0
        self.live_bytes = 0
        self.peak_bytes = 0
        self._counted: weakref.WeakSet[Any] = weakref.WeakSet()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if func._overloadpacket in flop_registry:
            self.flops += flop_registry[func._overloadpacket](*args, **kwargs, out_val=result)
        inputs = {id(t.untyped_storage()) for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        outputs = [t.untyped_storage() for t in tree_leaves(result) if isinstance(t, Tensor)]
        new = {id(s): s for s in outputs if id(s) not in inputs and s not in self._counted}
        for storage in new.values():
            self._counted.add(storage)
            self.live_bytes += storage.nbytes()
            weakref.finalize(storage, self._free, storage.nbytes())
        self.operations += bool(new)
        self.peak_bytes = max(self.peak_bytes, self.live_bytes)
        return result

    def _free(self, size: int) -> None:
        self.live_bytes -= size


@contextmanager
def _as_trained(half: torch.dtype | None) -> Iterator[None]:
    """Attention as the fused kernels do it, which store no attention matrix; mixed precision as autocast has it.

    Both depend on the device: on meta attention would be written out, and autocast does nothing. torch.nn.functional is
    changed for as long as the block runs, because a TorchFunctionMode is off during the backward pass, where
    checkpointed blocks run again.
    """

    def cast(tree: Any, dtype: torch.dtype | None) -> Any:
        if half is None or dtype is None:
            return tree
        return tree_map(lambda x: x.to(dtype) if isinstance(x, Tensor) and x.is_floating_point() else x, tree)

    def autocast(function: Any, dtype: torch.dtype | None) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            args, kwargs = cast((args, kwargs), dtype)
            return function(*args, **kwargs)

        return call

    def attention(query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, **rest: Any) -> Tensor:
        query, key, value = cast((query, key, value), half)
        if attn_mask is not None:
            return originals["scaled_dot_product_attention"](query, key, value, attn_mask, **rest)
        return torch.ops.aten._scaled_dot_product_flash_attention(query, key, value)[0]

    names = ("scaled_dot_product_attention", *AUTOCAST_TO_HALF, *AUTOCAST_TO_FLOAT)
    originals = {name: getattr(F, name) for name in names}
    replacements = {name: autocast(originals[name], half) for name in AUTOCAST_TO_HALF}
    replacements |= {name: autocast(originals[name], torch.float32) for name in AUTOCAST_TO_FLOAT}
    replacements["scaled_dot_product_attention"] = attention
    try:
        for name, function in replacements.items():
            setattr(F, name, function)
        yield
    finally:
        for name, function in originals.items():
            setattr(F, name, function)
