"""The process of one trial: its environment, its failure as data, and its end when the process that started it dies."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rcdeploy_runtime.errors import RcdeployError
from rcdeploy_runtime.files import read_json, write_json

from ..machine import usable_cores
from .trial import Trial

EXIT_BUSY = 75
"""exit code when another process runs the trial (EX_TEMPFAIL)"""
GRACE_SECONDS = 120
"""between SIGTERM, after which training writes a checkpoint, and the end without asking"""
FAILURE, LOG = ".failure.json", ".log"
"""extensions of the files beside a trial's folder"""


def exit_with_parent(grace_seconds: float = GRACE_SECONDS) -> None:
    """Ends this process when the one that holds the other end of its standard input dies, even by SIGKILL.

    It gets SIGTERM, as from its parent: a training writes a checkpoint first.
    """

    def watch() -> None:
        while os.read(0, 4096):  # nothing is ever sent: it returns at the end of file
            pass
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(grace_seconds)
        os._exit(128 + signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()


@contextmanager
def recorded_failure(trial: Trial) -> Iterator[None]:
    """An exception in the block is written to the trial's failure file, and raised again."""
    trial.file(FAILURE).unlink(missing_ok=True)
    try:
        yield
    except RcdeployError as error:
        write_json(trial.file(FAILURE), error.to_json())
        raise
    except Exception as error:
        unexpected = RcdeployError(f"{type(error).__name__}: {error}", fix=f"{trial.file(LOG)} has the traceback.")
        write_json(trial.file(FAILURE), unexpected.to_json())
        raise


def failure_of(trial: Trial, exit_code: int) -> RcdeployError:
    """What the trial's process recorded; without a record, how it ended."""
    file = trial.file(FAILURE)
    if file.is_file():
        return RcdeployError.from_json(read_json(file))
    ended = f"killed by signal {-exit_code}" if exit_code < 0 else f"ended with exit code {exit_code} and no error"
    return RcdeployError(ended, fix=f"{trial.file(LOG)} has its output.")


def environment(place: int, jobs: int) -> dict[str, str]:
    """Of the process in place 0 to jobs - 1: an even share of the cores, and one of CUDA_VISIBLE_DEVICES' GPUs."""
    variables = dict(os.environ)
    variables.setdefault("OMP_NUM_THREADS", str(max(1, usable_cores() // jobs)))
    gpus = [gpu for gpu in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if gpu]
    if gpus:
        variables["CUDA_VISIBLE_DEVICES"] = gpus[place % len(gpus)]
    return variables
