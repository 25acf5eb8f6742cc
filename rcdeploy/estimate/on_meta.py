"""What a piece of real code costs, found by running it on the meta device: shapes are computed, numbers are not.

So a training step of any batch size is counted in a second or two, with all that a formula would forget: blocks that
gradient checkpointing runs again, feature taps and projectors, what autograd keeps for the backward pass.
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

IN_HALF, IN_FLOAT = ("conv2d", "linear"), ("group_norm", "layer_norm")
"""autocast's rules on a GPU for the operations that these networks are made of"""


@dataclass(frozen=True)
class Cost:
    """macs: multiply-accumulates of matrix products. operations: kernels started. peak_bytes: the most that was alive
    at once of what the code made, weights not counted. kept_bytes: what was still alive when it ended (gradients).
    """

    macs: int
    operations: int
    peak_bytes: int
    kept_bytes: int


def cost_of(code: Callable[[], Any], *, autocast: torch.dtype | None = None) -> Cost:
    """Runs `code`, whose tensors are all on the meta device. autocast: the dtype of mixed precision, if any."""
    counter = _Counter()
    with _as_trained(autocast), counter:
        kept = code()  # held until the figures are read
        cost = Cost(counter.flops // 2, counter.operations, counter.peak, counter.now)
        del kept
    return cost


class _Counter(TorchDispatchMode):
    """Floating point operations, operations that make a tensor, and the bytes of those tensors while they are alive.

    torch's own FlopCounterMode has the same formulas, but holds on to tensors that would be freed.
    """

    def __init__(self) -> None:
        super().__init__()
        self.flops = self.operations = self.now = self.peak = 0
        self._known: weakref.WeakSet[Any] = weakref.WeakSet()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if func._overloadpacket in flop_registry:
            self.flops += flop_registry[func._overloadpacket](*args, **kwargs, out_val=result)
        given = {id(t.untyped_storage()) for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        made = [t.untyped_storage() for t in tree_leaves(result) if isinstance(t, Tensor)]
        new = {id(s): s for s in made if id(s) not in given and s not in self._known}
        for storage in new.values():
            self._known.add(storage)
            self.now += storage.nbytes()
            weakref.finalize(storage, self._free, storage.nbytes())
        self.operations += bool(new)
        self.peak = max(self.peak, self.now)
        return result

    def _free(self, size: int) -> None:
        self.now -= size


@contextmanager
def _as_trained(half: torch.dtype | None) -> Iterator[None]:
    """Attention as the fused kernels do it, which keep no table of weights; mixed precision as autocast has it.

    Both depend on the device: on meta attention would be written out, and autocast does nothing. torch.nn.functional is
    changed for as long as the block runs, because a TorchFunctionMode is off during the backward pass, where
    checkpointed blocks run again.
    """

    def cast(given: Any, dtype: torch.dtype | None) -> Any:
        if half is None or dtype is None:
            return given
        return tree_map(lambda x: x.to(dtype) if isinstance(x, Tensor) and x.is_floating_point() else x, given)

    def wrapped(function: Any, dtype: torch.dtype | None) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            args, kwargs = cast((args, kwargs), dtype)
            return function(*args, **kwargs)

        return call

    def attention(query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, **rest: Any) -> Tensor:
        query, key, value = cast((query, key, value), half)
        if attn_mask is not None:
            return before["scaled_dot_product_attention"](query, key, value, attn_mask, **rest)
        return torch.ops.aten._scaled_dot_product_flash_attention(query, key, value)[0]

    before = {name: getattr(F, name) for name in ("scaled_dot_product_attention", *IN_HALF, *IN_FLOAT)}
    now = {name: wrapped(before[name], half if name in IN_HALF else torch.float32) for name in (*IN_HALF, *IN_FLOAT)}
    try:
        for name, function in {**now, "scaled_dot_product_attention": attention}.items():
            setattr(F, name, function)
        yield
    finally:
        for name, function in before.items():
            setattr(F, name, function)
