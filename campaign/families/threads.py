"""Several threads with one model or pool, several processes in one cache, run or evaluation: as if one came first."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from random import Random
from typing import Any

from ..attempts import Failed, Family, Place
from ..commands import compare, fork, set_up, wait

PROMPTS = ("a red bag", "", "two shoes on a blue table", "a coat " * 40)


def run(place: Place, random: Random) -> None:
    random.choice(KINDS)(place, random)


def _together(tasks: Sequence[Callable[[], Any]]) -> list[Any]:
    """The results of tasks that start at once, a thread each."""
    with ThreadPoolExecutor(len(tasks)) as pool:
        return [future.result() for future in [pool.submit(task) for task in tasks]]


def _one_model(place: Place, random: Random) -> None:
    from rcdeploy_runtime import TextToImage

    calls = [(random.choice(PROMPTS), random.randrange(5), random.randint(1, 3)) for _ in range(random.randint(2, 6))]
    place.describe(f"{len(calls)} threads draw with one model: {calls}")
    model = TextToImage.load(place.materials / "package", device="cpu", threads=random.choice((1, 2, None)))

    def draw(prompt: str, seed: int, steps: int) -> bytes:
        images, _ = model.generate(prompt, seed=seed, num_inference_steps=steps)
        return bytes(images[0].tobytes())

    alone = [draw(*call) for call in calls]
    if _together([lambda call=call: draw(*call) for call in calls]) != alone:
        raise Failed("a picture drawn beside others is another one")


def _one_package(place: Place, random: Random) -> None:
    from rcdeploy_runtime import TextToImage

    count = random.randint(2, 5)
    shutil.rmtree(place.folder.parent / "cache", ignore_errors=True)  # of digests: all compute them
    zipped = random.random() < 0.5
    place.describe(f"{count} threads load one {'zip' if zipped else 'folder'} and draw")
    package = place.materials / "package"
    if zipped:
        package = Path(shutil.make_archive("package", "zip", package))

    def load() -> bytes:
        images, _ = TextToImage.load(package, device="cpu", threads=1).generate("a bag", seed=1, num_inference_steps=1)
        return bytes(images[0].tobytes())

    if len(set(_together([load] * count))) != 1:
        raise Failed("the same package drew different pictures")


def _one_pool(place: Place, random: Random) -> None:
    from rcdeploy.prompts.pool_builder import build_pool

    count = random.randint(2, 8)
    place.describe(f"{count} threads read one pool at random places")
    texts = [f"prompt number {i} {'x' * (i % 50)}" for i in range(500)]
    Path("texts.txt").write_text("".join(f"{text}\n" for text in texts))
    pool = build_pool([Path("texts.txt")], Path("pool"))

    def read(seed: int) -> bool:
        places = [Random(seed).randrange(500) for _ in range(300)]
        return all(pool[i] == texts[i] for i in places) and pool.take(places) == [texts[i] for i in places]

    if not all(_together([lambda seed=seed: read(seed) for seed in range(count)])):
        raise Failed("a prompt was read as another one")


def _processes(name: str, allowed: set[int]) -> Callable[[Place, Random], None]:
    """Several processes of one command in one folder. allowed: exit codes of those that came too late."""

    def run_processes(place: Place, random: Random) -> None:
        command, expected = set_up(place, name)
        count = random.randint(2, 3)
        place.describe(f"{count} processes of {name} in one folder")
        pids = [fork([*command.arguments, "--quiet"]) for _ in range(count)]
        codes = [wait(pid) for pid in pids]
        if 0 not in codes or not set(codes) <= {0, *allowed}:
            said = Path("traceback.txt").read_text()[:200] if Path("traceback.txt").is_file() else ""
            raise Failed(f"they ended with the exit codes {codes} {said}")
        compare(command, expected, "with several processes")

    return run_processes


KINDS = [
    _one_model,
    _one_package,
    _one_pool,
    _processes("cache", set()),
    _processes("evaluate", set()),
    _processes("distill", {2}),
    _processes("prompts build", {2}),
]

FAMILY = Family("Threads and processes", run, share=50, seconds=180)
