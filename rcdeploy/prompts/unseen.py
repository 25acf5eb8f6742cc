"""Captions without a concept (the paper's sec. J): what stays is free of it, what is dropped serves as text alone.

Three looks, each at what the one before let through: a list of words; a language model's yes or no, as JSON;
and, where the teacher has drawn the captions already, both once more at what BLIP sees in the pictures.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rcdeploy_runtime.files import replacing, write_json

from .generate import write_lines
from .journal import Journal, Progress, ask
from .keywords import Keywords
from .language_model import LanguageModel, Request

SENTENCES = 20
"""asked about in one request"""
TOKENS_A_SENTENCE = 30
"""of an answer, at the most"""


@dataclass(frozen=True)
class Dropped:
    """stage: "keyword", "model", "unanswered" (the model gave no usable answer), or those with "picture " before them.

    reason: the word that was found. seen: what the captioner said of the picture.
    """

    caption: str
    stage: str
    reason: str
    seen: str | None = None


@dataclass(frozen=True)
class Concept:
    """What must not be seen: its name in the plural ("animals"), and the words that give it away."""

    name: str
    keywords: Keywords

    @property
    def key(self) -> str:
        """Of the language model's JSON: contains_animals."""
        return "contains_" + re.sub(r"\W+", "_", self.name)

    def request(self, captions: Sequence[str]) -> Request:
        """The paper's prompts; for other concepts than animals the same, without what only concerns animals."""
        if self.name == "animals":
            one, confused = "an animal", "plants, objects, places, or any word that could be confused for an animal"
            specific = "the specific animal name"
            reason = "the animal name"
        else:
            one, confused = f"{self.name}", f"any word that could be confused for one that means {self.name}"
            specific, reason = "the specific word", "that word"
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
        return Request(system, user, max_tokens=64 + TOKENS_A_SENTENCE * len(captions))

    def verdicts(self, answer: str, count: int) -> list[str | None] | None:
        """For each sentence the word that was found, None for 'no'; None in all when the answer is malformed."""
        start, end = answer.find("["), answer.rfind("]")
        try:
            rows = json.loads(answer[start : end + 1])
            said = [(str(row[self.key]).strip().lower(), str(row.get("reason") or "")) for row in rows]
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return None
        if len(said) != count or any(word not in ("yes", "no") for word, _ in said):
            return None
        return [reason if word == "yes" else None for word, reason in said]


def by_keywords(concept: Concept, captions: Sequence[str]) -> list[Dropped | None]:
    """For each caption why it is dropped, or None."""
    words = [concept.keywords.find(caption) for caption in captions]
    return [Dropped(c, "keyword", word) if word else None for c, word in zip(captions, words, strict=True)]


def model_requests(concept: Concept, captions: Sequence[str]) -> list[Request]:
    return [concept.request(part) for part in _parts(captions, SENTENCES)]


def by_model(
    concept: Concept,
    captions: Sequence[str],
    model: LanguageModel,
    journal: Journal,
    progress: Progress | None = None,
) -> list[Dropped | None]:
    """For each caption why it is dropped, or None. SENTENCES at once; those of malformed answers once more, one by one.

    What has no usable answer then is dropped: nothing passes unread.
    """
    found: dict[str, Dropped | None] = {}
    for size in (SENTENCES, 1):
        parts = list(_parts([c for c in dict.fromkeys(captions) if c not in found], size))
        requests = [concept.request(part) for part in parts]
        sizes = {request: len(part) for request, part in zip(requests, parts, strict=True)}
        ask(model, requests, journal, lambda r, said, n=sizes: concept.verdicts(said, n[r]) is not None, progress)  # type: ignore[misc]
        for request, part in zip(requests, parts, strict=True):
            if (key := request.key(model.name)) in journal:
                reasons = concept.verdicts(journal[key], len(part)) or []
                for caption, reason in zip(part, reasons, strict=True):
                    found[caption] = None if reason is None else Dropped(caption, "model", reason)
    return [found.get(caption, Dropped(caption, "unanswered", "")) for caption in captions]


def by_pictures(
    concept: Concept,
    seen: dict[str, str],
    captions: Sequence[str],
    model: LanguageModel | None,
    journal: Journal,
    progress: Progress | None = None,
) -> list[Dropped | None]:
    """The same looks at what the captioner saw (caption -> that); captions without a picture pass."""
    shown = [caption for caption in captions if caption in seen]
    said = [seen[caption] for caption in shown]
    first = by_keywords(concept, said)
    if model:
        left = [text for text, why in zip(said, first, strict=True) if why is None]
        answers = iter(by_model(concept, left, model, journal, progress))
        first = [why or next(answers) for why in first]
    why_of = {
        caption: Dropped(caption, f"picture {why.stage}", why.reason, why.caption)
        for caption, why in zip(shown, first, strict=True)
        if why
    }
    return [why_of.get(caption) for caption in captions]


def write_split(
    folder: Path, captions: Sequence[str], dropped: Sequence[Dropped | None], how: dict[str, object]
) -> dict[str, int]:
    """kept.txt, dropped.jsonl (caption, stage, reason, seen), counts.json; the order stays. Returns counts."""
    gone = [why for why in dropped if why]
    kept = (caption for caption, why in zip(captions, dropped, strict=True) if why is None)
    counts = {"captions": len(captions), "kept": write_lines(folder / "kept.txt", kept), "dropped": len(gone)}
    for why in gone:
        counts[why.stage] = counts.get(why.stage, 0) + 1
    with replacing(folder / "dropped.jsonl") as beside, beside.open("w", encoding="utf-8") as lines:
        for why in gone:
            said = {key: value for key, value in asdict(why).items() if value is not None}
            lines.write(json.dumps(said, ensure_ascii=False) + "\n")
    write_json(folder / "counts.json", {"counts": counts, **how})
    return counts


def _parts(captions: Sequence[str], size: int) -> Iterator[Sequence[str]]:
    return (captions[i : i + size] for i in range(0, len(captions), size))
