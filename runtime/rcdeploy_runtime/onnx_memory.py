"""A bound on the memory of ONNX Runtime on the CPU, for packages from strangers.

ONNX Runtime takes arrays from an arena, and an arena can have a limit. Weights are not counted. Constants that are
folded while a graph is loaded come from elsewhere, so that folding is left out where there is a limit.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from .errors import RcdeployError
from .onnx_runtime import import_onnxruntime

onnxruntime = import_onnxruntime()

NOT_BOUNDED = ["ConstantFolding"]
"""optimizers whose memory is not the arena's"""
DEFAULT = -1
_lock = threading.Lock()


@contextmanager
def memory_limit(options: Any, memory_gb: float | None) -> Iterator[dict[str, Any]]:
    """Sessions made of `options` in this block get arenas of at most `memory_gb`; no limit if None.

    Yields further arguments for the session. ONNX Runtime has one arena limit a process, which a session takes when it
    is made: hence the lock. Raises RcdeployError where this onnxruntime cannot do it.
    """
    if memory_gb is None:
        yield {}
        return
    arena = {
        "max_mem": int(memory_gb * 1e9),
        "arena_extend_strategy": DEFAULT,
        "initial_chunk_size_bytes": DEFAULT,
        "max_dead_bytes_per_chunk": DEFAULT,
    }
    with _lock:
        try:
            where = onnxruntime.OrtMemoryInfo(
                "Cpu", onnxruntime.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, onnxruntime.OrtMemType.DEFAULT
            )
            onnxruntime.create_and_register_allocator(where, onnxruntime.OrtArenaCfg(arena))
        except Exception as error:  # ONNX Runtime's exceptions have no common base but this
            raise RcdeployError(
                f"this onnxruntime cannot limit its memory: {error}", fix="Leave memory_gb out, or upgrade onnxruntime."
            ) from None
        options.add_session_config_entry("session.use_env_allocators", "1")
        yield {"disabled_optimizers": NOT_BOUNDED}
