"""Requests that schemathesis makes from the server's OpenAPI description, right ones and wrong ones."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from http_server import serving
from hypothesis import HealthCheck, given, settings
from hypothesis.strategies import SearchStrategy
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from rcdeploy_runtime import TextToImage
from rcdeploy_runtime.server.settings import Limits

STUDENT = Path(__file__).parent.parent / "examples/students/fashion"
CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]


@pytest.fixture(scope="module")
def api() -> Iterator[Any]:
    model = TextToImage.load(STUDENT, threads=1)
    with serving(model, batch_window_s=0.0, limits=Limits(steps=2, images=2, pixels=64 * 64)) as running:
        yield schemathesis.openapi.from_url(f"{running.url}/openapi.json")


def test_every_answer_is_one_that_the_description_has(api: Any) -> None:
    operations = [result.ok() for result in api.get_all_operations()]
    assert len(operations) == 9
    for operation in operations:
        for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE):
            if mode is GenerationMode.POSITIVE or operation.method == "post":
                check(operation.as_strategy(generation_mode=mode))


def check(cases: SearchStrategy[schemathesis.Case]) -> None:
    @settings(max_examples=15, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck), database=None)
    @given(cases)
    def answer(case: schemathesis.Case) -> None:
        case.call_and_validate(checks=CHECKS)

    answer()
