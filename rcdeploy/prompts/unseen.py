"""Filters a concept out of captions (the paper's sec. J): remaining ones get images, the others serve as text alone.

Three filters, each for what passed the one before: a list of words; a language model's yes or no, as JSON; and, where
captions have images already, both once more for BLIP's captions of the images.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rcdeploy_runtime.files import replacing, write_json

from ..progress import Progress, no_progress
from .generate import write_lines
from .journal import Journal, ask
from .keywords import Keywords
from .language_model import LanguageModel, Request

SENTENCES_PER_REQUEST = 20
MAX_TOKENS_PER_SENTENCE = 30
"""of an answer"""


@dataclass(frozen=True)
class Dropped:
    """A caption that is filtered out.

    Args:
        caption: the caption.
        stage: "keyword", "model", "unanswered" (the model gave no usable answer), or one of these after "picture "
            for what was filtered by its image.
        reason: the word that gave it away.
        seen: the image's caption.
    """

    caption: str
    stage: str
    reason: str
    seen: str | None = None


@dataclass(frozen=True)
class Concept:
    """A concept that must not be seen: its name in the plural ("animals"), and the words that give it away."""

    name: str
    keywords: Keywords

    @property
    def key(self) -> str:
        """Key in the language model's JSON: contains_animals."""
        return "contains_" + re.sub(r"\W+", "_", self.name)

    def request(self, captions: Sequence[str]) -> Request:
        """The paper's prompts; for other concepts than animals the same, without what only concerns animals."""
        if self.name == "animals":
            one = "an animal"
            confused = "plants, objects, places, or any word that could be confused for an animal"
            specific = "the specific animal name"
            reason = "the animal name"
        else:
            one = self.name
            confused = f"any word that could be confused for one that means {self.name}"
            specific = "the specific word"
            reason = "that word"
        system = (
            "You are an assistant that identifies if each sentence in the provided JSON contains references to "
            f"{self.name}. Do not consider {confused}. If you find a reference to {one}, provide the exact word that "
            "led you to identify it."
        )
        user = (
            f"Read each of the following sentences and determine if it contains a reference to {one}. The sentences "
            "are given in JSON format. Provide an answer with 'yes' or 'no' for each sentence. If the answer is 'yes', "
            f"provide {specific} that led you to this conclusion. Provide the answers in JSON format as a list of "
            f"dictionaries, where each dictionary contains '{self.key}' with either 'yes' or 'no', and 'reason', which "
            f"is {reason} if 'yes', or an empty string if 'no'.\n\n"
            f"Input: {json.dumps(list(captions), ensure_ascii=False)}"
        )
        return Request(system, user, max_tokens=64 + MAX_TOKENS_PER_SENTENCE * len(captions))

    def verdicts(self, answer: str, count: int) -> list[str | None] | None:
        """For each sentence the word that gave it away, None for 'no'; None instead of a list when it is malformed."""
        start = answer.find("[")
        end = answer.rfind("]")
        try:
            rows = json.loads(answer[start : end + 1])
            verdicts = [(str(row[self.key]).strip().lower(), str(row.get("reason") or "")) for row in rows]
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return None
        if len(verdicts) != count or any(verdict not in ("yes", "no") for verdict, _ in verdicts):
            return None
        return [reason if verdict == "yes" else None for verdict, reason in verdicts]


def by_keywords(concept: Concept, captions: Sequence[str]) -> list[Dropped | None]:
    """For each caption why it is dropped, or None."""
    words = [concept.keywords.find(caption) for caption in captions]
    return [Dropped(c, "keyword", word) if word else None for c, word in zip(captions, words, strict=True)]


def model_requests(concept: Concept, captions: Sequence[str]) -> list[Request]:
    return [concept.request(part) for part in _parts(captions, SENTENCES_PER_REQUEST)]


def by_model(
    concept: Concept,
    captions: Sequence[str],
    model: LanguageModel,
    journal: Journal,
    progress: Progress = no_progress,
) -> list[Dropped | None]:
    """For each caption why it is dropped, or None.

    SENTENCES_PER_REQUEST at once; those of malformed answers once more, one by one. A caption without a usable answer
    after that is dropped: nothing passes unread.
    """
    results: dict[str, Dropped | None] = {}
    for size in (SENTENCES_PER_REQUEST, 1):
        parts = list(_parts([c for c in dict.fromkeys(captions) if c not in results], size))
        requests = [concept.request(part) for part in parts]
        sizes = {request: len(part) for request, part in zip(requests, parts, strict=True)}

        def is_usable(request: Request, answer: str, sizes: dict[Request, int] = sizes) -> bool:
            return concept.verdicts(answer, sizes[request]) is not None

        ask(model, requests, journal, is_usable, progress=progress)
        for request, part in zip(requests, parts, strict=True):
            if (key := request.key(model.name)) in journal:
                reasons = concept.verdicts(journal[key], len(part)) or []
                for caption, reason in zip(part, reasons, strict=True):
                    results[caption] = None if reason is None else Dropped(caption, "model", reason)
    return [results.get(caption, Dropped(caption, "unanswered", "")) for caption in captions]


def by_images(
    concept: Concept,
    image_captions: Mapping[str, str],
    captions: Sequence[str],
    model: LanguageModel | None,
    journal: Journal,
    progress: Progress = no_progress,
) -> list[Dropped | None]:
    """The filters above, for the captions of the captions' images; captions without an image pass.

    Args:
        concept: the concept.
        image_captions: BLIP's caption of a caption's image.
        captions: the captions to filter.
        model: the second filter, if there is one.
        journal: the model's answers.
        progress: of the model's answers.
    """
    with_image = [caption for caption in captions if caption in image_captions]
    texts = [image_captions[caption] for caption in with_image]
    dropped = by_keywords(concept, texts)
    if model:
        remaining = [text for text, reason in zip(texts, dropped, strict=True) if reason is None]
        answers = iter(by_model(concept, remaining, model, journal, progress))
        dropped = [reason or next(answers) for reason in dropped]
    results = {
        caption: Dropped(caption, f"picture {drop.stage}", drop.reason, drop.caption)
        for caption, drop in zip(with_image, dropped, strict=True)
        if drop
    }
    return [results.get(caption) for caption in captions]


def write_split(
    folder: Path, captions: Sequence[str], dropped: Sequence[Dropped | None], provenance: dict[str, object]
) -> dict[str, int]:
    """Writes kept.txt, dropped.jsonl (caption, stage, reason, seen) and counts.json, in the captions' order.

    Args:
        folder: where to.
        captions: all captions.
        dropped: for each why it is dropped, or None.
        provenance: how they were filtered, for counts.json.

    Returns:
        Counts of captions, of kept ones, and of dropped ones by stage.
    """
    drops = [drop for drop in dropped if drop]
    kept = (caption for caption, drop in zip(captions, dropped, strict=True) if drop is None)
    counts = {"captions": len(captions), "kept": write_lines(folder / "kept.txt", kept), "dropped": len(drops)}
    for drop in drops:
        counts[drop.stage] = counts.get(drop.stage, 0) + 1
    with replacing(folder / "dropped.jsonl") as beside, beside.open("w", encoding="utf-8") as lines:
        for drop in drops:
            row = {key: value for key, value in asdict(drop).items() if value is not None}
            lines.write(json.dumps(row, ensure_ascii=False) + "\n")
    write_json(folder / "counts.json", {"counts": counts, **provenance})
    return counts


def _parts(captions: Sequence[str], size: int) -> Iterator[Sequence[str]]:
    return (captions[i : i + size] for i in range(0, len(captions), size))
