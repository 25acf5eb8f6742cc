"""The interface of language models that write prompts and answer yes or no: a request goes in, a text comes out.

`endpoint` and `local_models` have the implementations; concurrency and the answers of earlier runs are the business of
`journal`.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import Protocol

CHARACTERS_PER_TOKEN = 4
"""of English text, roughly: for estimates of cost only"""


@dataclass(frozen=True)
class Request:
    """A chat completion request.

    Args:
        system: the system message.
        user: the user message.
        max_tokens: of the answer.
        temperature: 0 is greedy.
        repeat: tells apart equal requests that need different answers.
    """

    system: str
    user: str
    max_tokens: int
    temperature: float = 0.0
    repeat: int = 0

    def key(self, model: str) -> str:
        """32 hex digits: equal for requests that may share an answer."""
        return hashlib.sha256(json.dumps([model, asdict(self)], sort_keys=True).encode()).hexdigest()[:32]


class LanguageModel(Protocol):
    """A model that answers requests.

    Args:
        name: part of a request's key.
        concurrency: requests it takes at once.
        is_remote: whether requests may cost money.
    """

    name: str
    concurrency: int
    is_remote: bool

    def answer(self, request: Request) -> str:
        """The model's text. Raises RcdeployError when it cannot answer."""

    def stop(self) -> None:
        """Waits no longer: requests under way end soon, with an RcdeployError if need be."""
