"""The running service keeps to its own OpenAPI document, whatever it is sent."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

pytestmark = pytest.mark.slow

CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
)


def test_the_service_keeps_to_its_document(
    deploy: Callable[..., httpx.Client], record_property: Callable[[str, object], None]
) -> None:
    """Requests by the document and against it: no 5xx, no status, media type or body that it doesn't tell of. Left out
    is the route that doesn't end."""
    client = deploy("toyworld", "wan")
    command = [Path(sys.executable).with_name("schemathesis"), "run"]
    command += [f"{client.base_url}openapi.json", "--url", str(client.base_url)]
    command += ["--exclude-path", "/jobs/{job_id}/events", "--checks", ",".join(CHECKS)]
    command += ["--phases", "coverage,fuzzing", "--max-examples", "30", "--seed", "1"]
    command += ["--continue-on-failure", "--warnings", "off", "--request-timeout", "120"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=280)
    assert ended.returncode == 0, ended.stdout[-8000:] + ended.stderr
    generated = [line for line in ended.stdout.splitlines() if "generated" in line]
    record_property("requests", generated[0].strip())
    assert client.get("/health").status_code == 200
