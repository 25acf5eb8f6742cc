"""Log lines as JSON: one object a line on stderr."""

from __future__ import annotations

import json
import logging
import sys
import time
import warnings
from typing import Any

STANDARD = {*vars(logging.makeLogRecord({})), "message", "asctime", "color_message", "taskName"}
LOGGERS = ("rcdeploy_runtime.server", "uvicorn.error", "asyncio")


class JsonFormatter(logging.Formatter):
    """time, level, event, what was given as `extra`, and the traceback of an exception."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03}Z",
            "level": record.levelname.lower(),
            "event": record.getMessage(),
            **{name: value for name, value in vars(record).items() if name not in STANDARD},
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def configure_logging(log_prompts: bool) -> None:
    """For a process that only serves: the server's log, uvicorn's and warnings go to stderr as JSON.

    Texts of warnings may quote prompts, and are left out unless `log_prompts`.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter())
    for name in LOGGERS:
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(logging.INFO)
    log = logging.getLogger(LOGGERS[0])

    def show(message: object, category: type[Warning], filename: str, lineno: int, *_: object, **__: object) -> None:
        text = {"text": str(message)} if log_prompts else {}
        log.warning("warning", extra={"category": category.__name__, "where": f"{filename}:{lineno}", **text})

    warnings.showwarning = show
