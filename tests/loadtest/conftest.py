"""A service for each test, and a client of it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import audit
import journey
import pytest
import requests
from faulty import Service
from journey import Http
from requests.adapters import HTTPAdapter

from warpcache_ray.access_config import AccessConfig
from warpcache_ray.store.server import EmbeddedServer


@pytest.fixture
def access() -> AccessConfig:
    """Who may use the service: everyone, unless a test says otherwise."""
    return AccessConfig()


@pytest.fixture
def service(
    store_server: EmbeddedServer, tmp_path: Path, access: AccessConfig
) -> Iterator[Service]:
    """A service with no jobs, ready to make videos."""
    service = Service(store_server, tmp_path, access)
    while requests.get(f"{service.url}/health", timeout=5).status_code != 200:
        time.sleep(0.01)
    yield service
    service.stop()


Told = list[tuple[str, str, bool]]


@pytest.fixture
def told() -> Told:
    """What the client has reported: kind, name, and whether it went well."""
    return []


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Clients hardly pause."""
    for module, name in ((journey, "PAUSE_S"), (journey, "POLL_S"), (audit, "PAUSE_S")):
        monkeypatch.setattr(module, name, 0.05)


@pytest.fixture
def http(service: Service, told: Told) -> Http:
    """A client of the service."""
    return Http(
        service.url,
        HTTPAdapter(),
        lambda kind, name, seconds, size, error: told.append((kind, name, error is None)),
    )


@pytest.fixture
def impatient(service: Service) -> Http:
    """One that gives up soon."""
    return Http(service.url, HTTPAdapter(), lambda *_: None, patience_s=0.2)
