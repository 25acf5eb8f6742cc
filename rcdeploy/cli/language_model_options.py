"""Options of the commands that use a language model: which one, what it costs, whether to send requests."""

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
class LanguageModelOptions:
    """The options' values.

    Args:
        model: the language model; None when none is named.
        price_in: price of a million input tokens.
        price_out: price of a million output tokens.
        yes: send requests without confirmation.
    """

    model: LanguageModel | None
    price_in: float | None = None
    price_out: float | None = None
    yes: bool = False

    def confirm(self, requests: Sequence[Request], journal: Journal, tokens_out: int, purpose: str) -> None:
        """Prints what the requests will cost and asks for confirmation; a local model costs time only.

        Args:
            requests: all that are needed; those in the journal cost nothing.
            journal: earlier answers.
            tokens_out: expected tokens of an answer.
            purpose: for the message.

        Raises:
            RcdeployError: confirmation is needed, but stdin is not a terminal.
            typer.Abort: the answer is no.
        """
        from ..prompts.journal import cost_of

        if self.model is None:
            return
        cost = cost_of(self.model.name, requests, journal, tokens_out)
        if not cost.requests:
            return
        text = (
            f"{purpose}: {cost.requests:,} requests to {self.model.name}, about {cost.tokens_in:,} input tokens and "
            f"{cost.tokens_out:,} output tokens"
        )
        if self.price_in is not None and self.price_out is not None:
            text += f", at your prices about {cost.price(self.price_in, self.price_out):,.2f}"
        err.print(text, style="dim", highlight=False)
        if self.yes or not self.model.is_remote:
            return
        if not sys.stdin.isatty():
            raise RcdeployError(f"{text}: nothing was sent", fix="Add --yes to send them.")
        typer.confirm("Send them?", abort=True)


def _option(*names: str, **settings: Any) -> Any:
    settings.setdefault("show_default", False)
    return typer.Option(*names, rich_help_panel="Language model", **settings)


def language_model_options(
    endpoint: Annotated[
        str | None, _option(help="URL of an OpenAI-compatible server, e.g. http://localhost:8000/v1")
    ] = None,
    model: Annotated[str | None, _option(help="Model name at --endpoint.")] = None,
    api_key_env: Annotated[str | None, _option(help="Environment variable that holds the API key.")] = None,
    local_model: Annotated[
        Path | None, _option(help="Folder of a causal language model (transformers, safetensors), not --endpoint.")
    ] = None,
    concurrency: Annotated[int, _option(min=1, max=256, help="Number of concurrent requests.", show_default=True)] = 8,
    requests_per_minute: Annotated[float | None, _option(min=0.1, help="Rate limit.", show_default="unlimited")] = None,
    timeout: Annotated[
        float, _option(min=0.1, help="Seconds until a request counts as failed.", show_default=True)
    ] = 120,
    retries: Annotated[
        int, _option(min=0, help="Retries of a failed request, with exponential backoff.", show_default=True)
    ] = 6,
    price_in: Annotated[float | None, _option(min=0, help="Price of a million input tokens, for the estimate.")] = None,
    price_out: Annotated[float | None, _option(min=0, help="Price of a million output tokens.")] = None,
    yes: Annotated[bool, _option("--yes", "-y", help="Send requests to --endpoint without confirmation.")] = False,
) -> LanguageModelOptions:
    """Opens the language model. Raises RcdeployError for options that contradict each other."""
    if endpoint and local_model:
        raise RcdeployError("--endpoint and --local-model are both given", fix="One language model is enough.")
    if (model or api_key_env) and not endpoint:
        raise RcdeployError("--model and --api-key-env belong to an --endpoint", fix="Add --endpoint URL.")
    language_model: LanguageModel | None = None
    if endpoint:
        if not model:
            raise RcdeployError("--endpoint needs the name of a model", fix="Add --model NAME.")
        from ..prompts.endpoint import Endpoint, EndpointOptions

        language_model = Endpoint(
            endpoint,
            model,
            EndpointOptions(concurrency, requests_per_minute, timeout, retries),
            key_variable=api_key_env,
            log=lambda text: err.print(text, style="yellow", markup=False, highlight=False),
        )
    elif local_model:
        from ..prompts.local_models import LocalModel
        from .console import quieten_libraries

        quieten_libraries()
        language_model = LocalModel(local_model)
    return LanguageModelOptions(language_model, price_in, price_out, yes)


def with_language_model(command: Callable[..., None]) -> Callable[..., None]:
    """Replaces the command's keyword `language_model` by the options of language_model_options, which make it."""
    own, shared = (inspect.signature(f, eval_str=True).parameters for f in (command, language_model_options))

    @functools.wraps(command)
    def wrapped(**values: Any) -> None:
        options = language_model_options(**{name: values.pop(name) for name in shared})
        command(**values, language_model=options)

    parameters: list[inspect.Parameter] = []
    for name, parameter in own.items():
        parameters += shared.values() if name == "language_model" else [parameter]
    parameters = [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in parameters]
    wrapped.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]  # typer reads both
    wrapped.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return wrapped
