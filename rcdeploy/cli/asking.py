"""What the commands that ask a language model have in common: which one, what it will cost, whether to go on."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rcdeploy_runtime.errors import RcdeployError

from .console import err

if TYPE_CHECKING:
    from rcdeploy.prompts.journal import Journal
    from rcdeploy.prompts.language_model import LanguageModel, Request

EndpointUrl = Annotated[
    str | None, typer.Option("--endpoint", help="A server with OpenAI's chat completions: http://localhost:8000/v1")
]
ModelName = Annotated[str | None, typer.Option("--model", help="The model's name there.")]
KeyVariable = Annotated[
    str | None, typer.Option("--api-key-env", help="The environment variable that holds the API key.")
]
LocalFolder = Annotated[
    Path | None, typer.Option("--local-model", help="A language model's folder (transformers, safetensors) instead.")
]
Concurrency = Annotated[int, typer.Option(min=1, max=256, help="Requests at once.")]
PerMinute = Annotated[float | None, typer.Option("--requests-per-minute", min=0.1, help="No more than so many.")]
TimeoutS = Annotated[float, typer.Option("--timeout", min=0.1, help="Seconds that an answer may take.")]
Retries = Annotated[int, typer.Option(min=0, help="How often a request that failed is sent again, later each time.")]
PriceIn = Annotated[float | None, typer.Option(min=0, help="Price of a million tokens asked, for the estimate.")]
PriceOut = Annotated[float | None, typer.Option(min=0, help="Price of a million tokens answered.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask before requests are sent to --endpoint.")]


@dataclass(frozen=True)
class Asking:
    """model: None when none was named. prices: of a million tokens asked and answered."""

    model: LanguageModel | None
    prices: tuple[float | None, float | None]
    yes: bool

    def confirm(self, requests: Sequence[Request], journal: Journal, tokens_out: int, what: str) -> None:
        """Says what the requests will cost; asks whether to send them. A local model costs time only: nobody is asked.

        Raises RcdeployError when there is nobody to ask, typer.Abort when the answer is no.
        """
        from rcdeploy.prompts.journal import cost_of

        if self.model is None:
            return
        cost = cost_of(self.model.name, requests, journal, tokens_out)
        if not cost.requests:
            return
        text = (
            f"{what}: {cost.requests:,} requests to {self.model.name}, about {cost.tokens_in:,} tokens asked and "
            f"{cost.tokens_out:,} answered"
        )
        if None not in self.prices:
            text += f", at your prices about {cost.price(self.prices[0] or 0, self.prices[1] or 0):,.2f}"
        err.print(text, style="dim", highlight=False)
        if self.yes or not self.model.is_remote:
            return
        if not sys.stdin.isatty():
            raise RcdeployError(f"{text}: nothing was sent", fix="Add --yes to send them.")
        typer.confirm("Send them?", abort=True)


def make_asking(
    endpoint: str | None,
    name: str | None,
    key_variable: str | None,
    folder: Path | None,
    concurrency: int,
    per_minute: float | None,
    timeout_s: float,
    retries: int,
    prices: tuple[float | None, float | None],
    yes: bool,
) -> Asking:
    """Raises RcdeployError for options that do not go together."""
    from rcdeploy.prompts.language_model import Endpoint, LocalModel

    if endpoint and folder:
        raise RcdeployError("--endpoint and --local-model are both given", fix="One language model is enough.")
    if (name or key_variable) and not endpoint:
        raise RcdeployError("--model and --api-key-env belong to an --endpoint", fix="Add --endpoint URL.")
    if endpoint and not name:
        raise RcdeployError("--endpoint needs the name of a model", fix="Add --model NAME.")
    model: LanguageModel | None = None
    if endpoint:
        model = Endpoint(
            endpoint,
            str(name),
            key_variable=key_variable,
            concurrency=concurrency,
            requests_per_minute=per_minute,
            timeout_s=timeout_s,
            retries=retries,
        )
    elif folder:
        from .console import quieten_libraries

        quieten_libraries()
        model = LocalModel(folder)
    return Asking(model, prices, yes)
