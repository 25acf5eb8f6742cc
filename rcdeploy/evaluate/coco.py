"""COCO's annotations: captions with the ids of their images, and which images show an animal. Imports no torch.

The paper's Table 2 scores 8,265 of val2014's 40,504 images with animals and 32,239 without, by COCO's supercategory
"animal" (section J). instances_val2014.json is 150 MB, most of it outlines, so it is read an entry at a time.
"""

from __future__ import annotations

import csv
import json
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from rcdeploy_runtime.errors import RcdeployError

from ..prompts.columns import find_column
from ..prompts.readers import check_regular_file, files_of

ANIMAL = "animal"
CHARACTERS_PER_READ = 1 << 20
MAX_ENTRY_CHARACTERS = 1 << 24
"""a longer entry of an array is no annotation: most likely the file is damaged; the bound keeps memory flat"""
_WHITE_SPACE = re.compile(r"[ \t\r\n]*")
_AFTER_VALUE = tuple(",:]} \t\r\n")
_NUMBERED_FILE = re.compile(r"(?:.*\D)?(\d{12})\.\w+")
"""COCO_val2014_000000000042.jpg, or 000000000042.jpg as from 2017 on"""


@dataclass(frozen=True)
class CaptionedImage:
    """A caption (white space normalised) and the id of the image that it belongs to."""

    image_id: int
    caption: str


def is_coco_captions(source: Path) -> bool:
    """Whether the source is to be read as COCO's captions_*.json; other readers know no .json."""
    return source.suffix.lower() == ".json"


def captioned_images(source: Path, column: str | None = None) -> Iterator[CaptionedImage]:
    """The captions of a source with their images' ids, in the file's order.

    source: captions_*.json, of which the first caption of each image is taken; or tables (.csv, .tsv, folders of them)
    with a column image_id, or file_name with names as COCO's. column: of a table's captions; None to detect it.

    Raises RcdeployError for other files, without ids, or damaged.
    """
    if is_coco_captions(source):
        yield from _first_captions(source)
        return
    for file in files_of(source):
        if file.suffix.lower() not in (".csv", ".tsv"):
            raise RcdeployError(
                f"{file} has no ids of images, by which captions are split",
                fix="Give COCO's captions_val2014.json, or a .csv with a column image_id or file_name.",
            )
        yield from _rows(file, column)


def images_with_animals(file: Path) -> tuple[set[int], set[int]]:
    """(ids of the images with an annotation of supercategory "animal", ids of all images) of instances_*.json."""
    images: set[int] = set()
    by_category: dict[int, set[int]] = defaultdict(set)
    animals: set[int] = set()
    try:
        for key, entry in array_entries(file):
            if key == "images":
                images.add(int(entry["id"]))
            elif key == "annotations":
                by_category[int(entry["category_id"])].add(int(entry["image_id"]))
            elif key == "categories" and entry["supercategory"] == ANIMAL:
                animals.add(int(entry["id"]))
    except (KeyError, TypeError, ValueError) as error:
        raise _not_coco(file, f"an entry without {error}" if isinstance(error, KeyError) else str(error)) from None
    if not images or not animals:
        raise _not_coco(file, "it has no images" if not images else f"it has no category of supercategory {ANIMAL!r}")
    return set().union(*(by_category[category] for category in animals)), images


def split_by_animals(file: Path, image_ids: Sequence[int]) -> list[bool]:
    """For each image: it shows an animal, by the annotations in `file`. Raises RcdeployError for images it lacks."""
    animals, images = images_with_animals(file)
    missing = [image_id for image_id in image_ids if image_id not in images]
    if missing:
        raise RcdeployError(
            f"{file} lacks {len(missing):,} of the {len(image_ids):,} images that the prompts belong to, "
            f"the first is {missing[0]}",
            fix="Take the annotations of the same images: instances_val2014.json for captions of val2014.",
        )
    return [image_id in animals for image_id in image_ids]


def array_entries(file: Path) -> Iterator[tuple[str, Any]]:
    """(key, entry) of every array of the JSON object in `file`, one entry in memory at a time.

    Raises RcdeployError when it is no such file.
    """
    check_regular_file(file)
    try:
        with file.open(encoding="utf-8") as stream:
            yield from _Reader(file, stream).entries()
    except (OSError, UnicodeDecodeError) as error:
        raise RcdeployError(f"{file} cannot be read: {error}", fix="It is a JSON file of COCO's annotations.") from None


class _Reader:
    """A window of a JSON text, moved on as values are taken from it."""

    def __init__(self, file: Path, stream: TextIO) -> None:
        self.file = file
        self.stream = stream
        self.text = ""
        self.at = 0
        self.decode = json.JSONDecoder().raw_decode

    def entries(self) -> Iterator[tuple[str, Any]]:
        self.expect("{")
        while self.peek() != "}":
            key = self.value()
            self.expect(":")
            if self.peek() == "[":
                self.expect("[")
                while self.peek() != "]":
                    yield str(key), self.value()
                    self.comma("]")
                self.expect("]")
            else:
                self.value()
            self.comma("}")

    def more(self) -> bool:
        """Reads on, and forgets what was taken; False at the end of the file."""
        chunk = self.stream.read(CHARACTERS_PER_READ)
        self.text = self.text[self.at :] + chunk
        self.at = 0
        return bool(chunk)

    def peek(self) -> str:
        """The next character that is no white space; "" at the end of the file."""
        while True:
            match = _WHITE_SPACE.match(self.text, self.at)
            self.at = match.end() if match else self.at
            if self.at < len(self.text) or not self.more():
                return self.text[self.at : self.at + 1]

    def expect(self, character: str) -> None:
        if self.peek() != character:
            raise _not_coco(self.file, f"{character!r} was expected where {self.text[self.at : self.at + 20]!r} stands")
        self.at += 1

    def comma(self, end: str) -> None:
        """Moves past a comma, which must stand there unless `end` does."""
        if self.peek() != end:
            self.expect(",")

    def value(self) -> Any:
        """The next value. One that the window cuts may look whole (12|34, 1|.5), so what must follow is looked at."""
        self.peek()
        while True:
            try:
                value, end = self.decode(self.text, self.at)
                if self.text[end : end + 1] in _AFTER_VALUE:
                    self.at = end
                    return value
                problem = "it ends too early"
            except (ValueError, RecursionError) as error:
                problem = str(error)
            if len(self.text) - self.at > MAX_ENTRY_CHARACTERS or not self.more():
                raise _not_coco(self.file, problem)


def _not_coco(file: Path, problem: str) -> RcdeployError:
    return RcdeployError(
        f"{file} is no file of COCO's annotations: {problem}",
        fix="instances_val2014.json and captions_val2014.json are in annotations_trainval2014.zip of cocodataset.org.",
    )


def _first_captions(file: Path) -> Iterator[CaptionedImage]:
    """Of each image the first caption in the file: COCO has five or more, the paper scores one."""
    seen: set[int] = set()
    try:
        for key, entry in array_entries(file):
            if key == "annotations" and (image_id := int(entry["image_id"])) not in seen:
                seen.add(image_id)
                yield CaptionedImage(image_id, " ".join(str(entry["caption"]).split()))
    except (KeyError, TypeError, ValueError) as error:
        raise _not_coco(file, f"an entry without {error}" if isinstance(error, KeyError) else str(error)) from None


def _rows(file: Path, column: str | None) -> Iterator[CaptionedImage]:
    try:
        with file.open(newline="", encoding="utf-8-sig") as stream:
            rows = csv.DictReader(stream, delimiter="\t" if file.suffix.lower() == ".tsv" else ",")
            names = list(rows.fieldnames or [])
            text = find_column(file, names, column)
            ids = next((name for name in ("image_id", "file_name") if name in names), None)
            if ids is None:
                raise RcdeployError(
                    f"{file} has no ids of images: neither a column image_id nor file_name",
                    fix="Give COCO's captions_val2014.json, or add a column.",
                )
            for row in rows:
                yield CaptionedImage(_image_id(file, rows.line_num, row[ids]), " ".join((row[text] or "").split()))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise RcdeployError(f"{file} cannot be read: {error}") from None


def _image_id(file: Path, line: int, text: str | None) -> int:
    """42 of "42" or "COCO_val2014_000000000042.jpg"."""
    name = (text or "").strip()
    numbered = _NUMBERED_FILE.fullmatch(name)
    digits = numbered[1] if numbered else name
    if not re.fullmatch(r"[0-9]{1,12}", digits):
        raise RcdeployError(
            f"{file}, line {line}: {name[:80]!r} names no image of COCO",
            fix="It should be a number, or a name such as COCO_val2014_000000000042.jpg.",
        )
    return int(digits)
