"""Requests made from the server's own description: no fault, and no answer that the description does not know."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

PATHS = ("/score", "/get_reward", "/classify", "/pooling", "/v1/embeddings", "/v1/score/evaluation", "/reward", "/inspect", "/perturb")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_schemathesis_finds_no_fault(start_server: Callable[..., Any], models: dict[str, Any]) -> None:
    schemathesis = pytest.importorskip("schemathesis")
    from hypothesis import HealthCheck, Phase, given, settings
    from schemathesis.checks import not_a_server_error
    from schemathesis.specs.openapi.checks import content_type_conformance, response_schema_conformance, status_code_conformance

    server = start_server("dense", "ensemble")
    schema = schemathesis.openapi.from_dict(server.app.app.openapi())
    checks = (not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance)
    statuses: set[int] = set()
    for path in (*PATHS, "/health", "/metrics"):
        operation = schema[path]["GET" if path in ("/health", "/metrics") else "POST"]
        for mode in schemathesis.GenerationMode:

            @settings(
                max_examples=25,
                deadline=None,
                derandomize=True,
                phases=[Phase.generate],
                suppress_health_check=list(HealthCheck),
                database=None,
            )
            @given(case=operation.as_strategy(generation_mode=mode))
            def answers(case: Any) -> None:
                found = case.call(base_url=server.address, timeout=30)
                statuses.add(found.status_code)
                case.validate_response(found, checks=checks)

            try:
                answers()
            except Exception as error:
                if type(error).__name__ != "Unsatisfiable":  # an address without a body has no bad one
                    raise
    assert {200, 422} <= statuses
