"""What the commands that ask a language model have in common: which one, what it will cost, whether to go on."""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rcdeploy_runtime.errors import RcdeployError

from .console import err

if TYPE_CHECKING:
    from ..prompts.journal import Journal
    from ..prompts.language_model import LanguageModel, Request


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
        from ..prompts.journal import cost_of

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
    endpoint: Annotated[
        str | None, typer.Option(help="A server with OpenAI's chat completions: http://localhost:8000/v1")
    ] = None,
    model: Annotated[str | None, typer.Option(help="The model's name there.")] = None,
    api_key_env: Annotated[str | None, typer.Option(help="The environment variable that holds the API key.")] = None,
    local_model: Annotated[
        Path | None, typer.Option(help="A language model's folder (transformers, safetensors) instead.")
    ] = None,
    concurrency: Annotated[int, typer.Option(min=1, max=256, help="Requests at once.")] = 8,
    requests_per_minute: Annotated[float | None, typer.Option(min=0.1, help="No more than so many.")] = None,
    timeout: Annotated[float, typer.Option(min=0.1, help="Seconds that an answer may take.")] = 120,
    retries: Annotated[
        int, typer.Option(min=0, help="How often a request that failed is sent again, later each time.")
    ] = 6,
    price_in: Annotated[
        float | None, typer.Option(min=0, help="Price of a million tokens asked, for the estimate.")
    ] = None,
    price_out: Annotated[float | None, typer.Option(min=0, help="Price of a million tokens answered.")] = None,
    yes: Annotated[
        bool, typer.Option("--yes", "-y", help="Do not ask before requests are sent to --endpoint.")
    ] = False,
) -> Asking:
    """Raises RcdeployError for options that do not go together."""
    from ..prompts.language_model import Endpoint, LocalModel

    if endpoint and local_model:
        raise RcdeployError("--endpoint and --local-model are both given", fix="One language model is enough.")
    if (model or api_key_env) and not endpoint:
        raise RcdeployError("--model and --api-key-env belong to an --endpoint", fix="Add --endpoint URL.")
    asked: LanguageModel | None = None
    if endpoint:
        if not model:
            raise RcdeployError("--endpoint needs the name of a model", fix="Add --model NAME.")
        asked = Endpoint(
            endpoint,
            model,
            key_variable=api_key_env,
            concurrency=concurrency,
            requests_per_minute=requests_per_minute,
            timeout_s=timeout,
            retries=retries,
        )
    elif local_model:
        from .console import quieten_libraries

        quieten_libraries()
        asked = LocalModel(local_model)
    return Asking(asked, (price_in, price_out), yes)


def asks_a_model(command: Callable[..., None]) -> Callable[..., None]:
    """In place of its keyword `asks` the command takes the options of make_asking, which make it."""
    own, options = (inspect.signature(f, eval_str=True).parameters for f in (command, make_asking))

    @functools.wraps(command)
    def with_options(**given: Any) -> None:
        asks = make_asking(**{name: given.pop(name) for name in options})
        command(**given, asks=asks)

    shown = [p.replace(kind=p.KEYWORD_ONLY) for n in own for p in (options.values() if n == "asks" else [own[n]])]
    with_options.__signature__ = inspect.Signature(shown)  # type: ignore[attr-defined]  # typer reads both
    with_options.__annotations__ = {p.name: p.annotation for p in shown}
    return with_options
