"""Ctrl-C that arrives even where Python or a library discards it."""

from __future__ import annotations

import _thread
import signal
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from rcdeploy_runtime.errors import RcdeployError

from ..progress import Progress

RETRY_SECONDS = 0.05


@contextmanager
def persistent_interrupts(progress: Progress) -> Iterator[Progress]:
    """Yields a `progress` during which a KeyboardInterrupt is not lost.

    Python discards exceptions in finalisers and in callbacks of weak references, of which torch.export runs thousands:
    about one interrupt in ten fell into such a callback. A discarded interrupt is raised again shortly after; whatever
    else discards one, the next call of the yielded `progress` raises it. An RcdeployError that follows an interrupt is
    taken for its consequence. Does nothing outside the main thread, and where interrupts are ignored.
    """
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        yield progress
        return
    interrupted = threading.Event()
    finished = threading.Event()

    def on_interrupt(_number: int, _frame: Any) -> None:
        interrupted.set()
        raise KeyboardInterrupt

    def raise_again() -> None:
        if not finished.is_set():
            _thread.interrupt_main()

    def on_discarded(discarded: Any) -> None:
        if not issubclass(discarded.exc_type, KeyboardInterrupt):
            sys.__unraisablehook__(discarded)
            return
        timer = threading.Timer(RETRY_SECONDS, raise_again)
        timer.daemon = True
        timer.start()

    def checked_progress(stage: str, completed: int, total: int, metrics: Mapping[str, float] | None = None, /) -> None:
        if interrupted.is_set():
            raise KeyboardInterrupt
        progress(stage, completed, total, metrics)

    former_handler = signal.signal(signal.SIGINT, on_interrupt)
    former_hook = sys.unraisablehook
    sys.unraisablehook = on_discarded
    try:
        yield checked_progress
    except RcdeployError:
        if interrupted.is_set():
            raise KeyboardInterrupt from None
        raise
    finally:
        finished.set()
        sys.unraisablehook = former_hook
        signal.signal(signal.SIGINT, former_handler)
