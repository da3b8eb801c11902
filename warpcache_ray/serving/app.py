"""The application builder that configs/*.yaml name: `import_path: warpcache_ray.serving.app:build`."""

from __future__ import annotations

import re
import sys
import time
from typing import Any

import psutil
import ray
from ray import serve
from ray.serve import Application
from ray.serve.config import AutoscalingConfig, HTTPOptions, gRPCOptions
from ray.serve.context import _get_global_client

from warpcache_ray.config import ServiceConfig, parse_config
from warpcache_ray.errors import InvalidConfig
from warpcache_ray.page_config import read_front
from warpcache_ray.serving import handles, traces
from warpcache_ray.serving.ingress import Ingress
from warpcache_ray.serving.preflight import (
    DRIVER_CPUS,
    INGRESS_CPUS,
    check_access,
    check_devices,
    check_layout,
    check_model,
    check_profiler,
    check_storage,
    check_store,
    check_webhooks,
)
from warpcache_ray.serving.replica import Replica, bundles

OUTPUT_DELAY_S = 1.5
GRACE_LOOP_S = 0.2
"""Replicas answer no requests, so there are none to wait for."""
TELLING = AutoscalingConfig(
    min_replicas=1, max_replicas=1, metrics_interval_s=2.0, look_back_period_s=20.0
)
"""The ingress is one, always; for `look_back_period_s` what it told counts where nothing new comes."""
_SERVE_RUN = re.compile(r"\bserve(\.scripts)? run\b")


def build(args: dict[str, Any]) -> Application:
    """The Serve application that `args` describe.

    Raises:
        InvalidConfig: names the field and the value; a `serve run` that waits for this application ends too.
    """
    try:
        config = parse_config(args)
        check_access(config, http_host(), grpc_port())
        check_devices(config, ray.cluster_resources())
        check_store(config, sum(node["Alive"] for node in ray.nodes()))
        check_webhooks(config)
        check_storage(config)
        check_model(config)
        check_layout(config)
        read_front(config.page)
        traces.check(config)
        check_profiler(config)
    except InvalidConfig as error:
        _end_serve_run(error)
        raise
    return assemble(config)


def http_host() -> str | None:
    """Where Serve's HTTP proxies listen, or will, if it isn't started yet; None: nowhere. `serve run FILE` and
    `serve deploy` listen on all addresses where the file says nothing, `serve.run` on the loopback interface."""
    # Serve has no public way to ask; its REST API has, which needs the dashboard.
    client = _get_global_client(raise_if_no_controller_running=False)
    options = HTTPOptions() if client is None else client.http_config
    host: str | None = options.host
    return host


def grpc_port() -> int | None:
    """Where Serve's gRPC proxies listen, on all addresses; None: nowhere, as they have no methods to serve."""
    client = _get_global_client(raise_if_no_controller_running=False)
    if client is None:
        return None
    options: gRPCOptions = ray.get(client._controller.get_grpc_config.remote())
    return options.port if options.grpc_servicer_functions else None


def assemble(config: ServiceConfig) -> Application:
    """Replicas, each with a placement group for its ranks, behind one ingress."""
    replicas = (
        serve.deployment(Replica)
        .options(
            **_count(config),
            max_ongoing_requests=1,
            ray_actor_options={"num_cpus": DRIVER_CPUS},
            placement_group_bundles=bundles(config),
            placement_group_strategy="PACK",
            max_constructor_retry_count=2,
            health_check_period_s=2.0,
            # Past its time to drain a replica has its step at hand to end, or the decoding.
            graceful_shutdown_timeout_s=config.drain_s + config.slow_step_s,
            graceful_shutdown_wait_loop_s=GRACE_LOOP_S,
        )
        .bind(config)
    )
    ingress = serve.deployment(serve.ingress()(Ingress)).options(
        ray_actor_options={"num_cpus": INGRESS_CPUS},
        max_ongoing_requests=handles.REQUESTS,
        health_check_period_s=5.0,
        # One that tells Serve of the work.
        autoscaling_config=TELLING if config.replicas == "auto" else None,
    )
    return ingress.bind(config, replicas)


def _count(config: ServiceConfig) -> dict[str, Any]:
    """How many replicas, as options of their deployment. The bounds of `auto` stand in the Serve file."""
    if config.replicas != "auto":
        return {"num_replicas": config.replicas}
    return {"autoscaling_config": AutoscalingConfig(min_replicas=1, max_replicas=1)}


def _end_serve_run(error: InvalidConfig) -> None:
    # `serve run FILE` waits for ever for an application whose builder raised. This builder runs in a worker of the
    # cluster that `serve run` started, so the command is one of its ancestors; on a cluster that others started
    # there is no such ancestor, and the failure stands in `serve status`.
    for process in psutil.Process().parents():
        if _SERVE_RUN.search(" ".join(process.cmdline())):
            print(f"{error.code}: {error.message}", file=sys.stderr, flush=True)
            # Ray shows a worker's output with a delay.
            time.sleep(OUTPUT_DELAY_S)
            process.terminate()
            return
