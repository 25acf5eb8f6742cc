"""Draws with one set of options, in a process of its own: `python -m rcdeploy_runtime.tuning.worker TASK` (JSON).

Replies are lines of JSON on stdout: one when the package is loaded, and one for each line that asks for an image. What
libraries print goes to stderr. It ends when its input does.
"""

from __future__ import annotations

import base64
import json
import os
import sys
import time
from typing import Any, TextIO

from ..errors import RcdeployError
from ..machine import peak_memory


def main() -> None:
    task = json.loads(sys.argv[1])
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    try:
        from ..package import Package
        from ..session_options import SessionOptions
        from ..text_to_image import TextToImage

        package = Package(task["folder"], verify=False)  # whoever asks has compared its files
        model = TextToImage(package, SessionOptions(**task["options"]), tuned=False)
        _reply(replies, {})
        for line in sys.stdin:
            _reply(replies, _draw(model, json.loads(line)))
    except RcdeployError as error:
        _reply(replies, {"error": error.to_json()})
    except MemoryError:
        _reply(replies, {"error": RcdeployError("it ran out of memory").to_json()})


def _draw(model: Any, request: dict[str, Any]) -> dict[str, Any]:
    """request: {"prompt", "seed", "num_inference_steps"} -> the image's bytes, seconds by stage, memory."""
    started = time.perf_counter()
    images, record = model.generate(**request)
    return {
        "image": base64.b64encode(images[0].tobytes()).decode("ascii"),
        "seconds": record["seconds"],
        "elapsed": time.perf_counter() - started,
        "peak_memory_bytes": peak_memory(),
    }


def _reply(replies: TextIO, reply: dict[str, Any]) -> None:
    replies.write(json.dumps(reply) + "\n")
    replies.flush()


if __name__ == "__main__":
    main()
