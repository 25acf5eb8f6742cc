"""One loaded package, many threads: a studio that generates images, reports progress and can be cancelled.

    python examples/embed/studio.py examples/students/fashion "red boot, white background" "blue bag, red background"

`TextToImage` may be called from any number of threads. `stream` yields a Step after every step and a Result at the end,
so progress, previews and cancelling are done in a loop; nothing has to be killed.
"""

from __future__ import annotations

import argparse
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from PIL import Image

from rcdeploy_runtime import Result, TextToImage


class Studio:
    def __init__(self, package: str, workers: int = 2) -> None:
        # one thread for each worker: together they use as many cores as there are workers
        self.model = TextToImage.load(package, threads=1)
        self.pool = ThreadPoolExecutor(workers)
        self.closing = threading.Event()
        self.progress: dict[str, float] = {}

    def generate(self, prompt: str, seed: int) -> Image.Image | None:
        """The image, or None when the studio closed meanwhile."""
        for event in self.model.stream(prompt, seed=seed):
            if isinstance(event, Result):
                return event.images[0]
            self.progress[prompt] = event.completed / event.total
            if self.closing.is_set():
                break  # leaving the loop cancels
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
        futures = [studio.pool.submit(studio.generate, p, seed) for seed, p in enumerate(args.prompts)]
        for k, future in enumerate(futures):
            image = future.result()
            if image is not None:
                image.save(args.out / f"{k}.png")
                print(f"{args.out / f'{k}.png'}: {args.prompts[k]}")
    finally:
        studio.close()


if __name__ == "__main__":
    main()
