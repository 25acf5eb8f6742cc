"""One loaded package, many threads: a picture studio that takes orders, shows progress and can be told to stop.

    python examples/embed/studio.py packages/quickstart-onnx "a red boot, white background" "a blue bag, red background"

`TextToImage` may be called from any number of threads. `stream` yields after every step, so progress, previews and
cancelling are what a loop can do; nothing has to be killed.
"""

from __future__ import annotations

import argparse
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from PIL import Image

from rcdeploy_runtime import TextToImage


class Studio:
    def __init__(self, package: str, workers: int = 2) -> None:
        # each of the workers draws with one thread: together they use as many cores as there are workers
        self.model = TextToImage.load(package, threads=1)
        self.pool = ThreadPoolExecutor(workers)
        self.closing = threading.Event()
        self.progress: dict[str, float] = {}

    def draw(self, prompt: str, seed: int) -> Image.Image | None:
        for step in self.model.stream(prompt, seed=seed, guidance_scale=4.0):
            self.progress[prompt] = step.i / step.n
            if step.done:
                return step.images[0]
            if self.closing.is_set():
                return None  # leaving the loop is all that cancelling takes
        return None

    def close(self) -> None:
        self.closing.set()
        self.pool.shutdown()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("package")
    parser.add_argument("prompts", nargs="+")
    parser.add_argument("--out", type=Path, default=Path("studio"))
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    studio = Studio(args.package)
    try:
        orders = [studio.pool.submit(studio.draw, p, seed) for seed, p in enumerate(args.prompts)]
        for k, order in enumerate(orders):
            picture = order.result()
            if picture is not None:
                picture.save(args.out / f"{k}.png")
                print(f"{args.out / f'{k}.png'}: {args.prompts[k]}")
    finally:
        studio.close()


if __name__ == "__main__":
    main()
