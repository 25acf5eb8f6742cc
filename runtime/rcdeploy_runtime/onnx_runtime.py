"""The one place that imports ONNX Runtime, with its telemetry switched off.

From 1.32 on ONNX Runtime writes an identifier below the home folder and looks up a telemetry host when it is imported.
`ORT_DISABLE_TELEMETRY=1` at the import prevents both; a user who sets the variable decides otherwise.
"""

from __future__ import annotations

import os
import threading
from typing import Any

VARIABLE = "ORT_DISABLE_TELEMETRY"
_lock = threading.Lock()


def import_onnxruntime() -> Any:
    """The module onnxruntime. The environment is afterwards as it was."""
    with _lock:
        set_by_user = VARIABLE in os.environ
        os.environ.setdefault(VARIABLE, "1")
        try:
            import onnxruntime
        finally:
            if not set_by_user:
                os.environ.pop(VARIABLE, None)
    return onnxruntime
