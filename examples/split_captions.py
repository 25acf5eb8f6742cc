"""Splits the embedded teacher's captions into those that students may learn from and those that only score them.

    python examples/split_captions.py                   # a second; writes beside captions.txt.gz

captions_train.txt.gz: 13,440 captions, for latent caches and prompt pools. captions_held_out.txt.gz: 2,240 captions of
the 448 scenes whose combination of item, colour and background stands in none of the others (fashion.is_held_out).
"""

from __future__ import annotations

import gzip
from pathlib import Path

from fashion import is_held_out, scenes

TEACHER = Path(__file__).resolve().parent / "teachers" / "fashion"


def main() -> None:
    captions = gzip.decompress((TEACHER / "captions.txt.gz").read_bytes()).decode().splitlines()
    held_out = {caption for scene in scenes() if is_held_out(scene) for caption in scene.captions()}
    for name, selected in (
        ("captions_train", [caption for caption in captions if caption not in held_out]),
        ("captions_held_out", [caption for caption in captions if caption in held_out]),
    ):
        with gzip.GzipFile(TEACHER / f"{name}.txt.gz", "wb", mtime=0) as file:
            file.write("".join(f"{caption}\n" for caption in selected).encode())
        print(f"{name}.txt.gz: {len(selected):,} captions")


if __name__ == "__main__":
    main()
