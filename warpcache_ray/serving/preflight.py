"""What can be checked before anything is started: the model is there, the devices suffice."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from ipaddress import ip_address
from pathlib import Path

import httpx
from huggingface_hub import get_token, hf_hub_url, snapshot_download, try_to_load_from_cache
from huggingface_hub.errors import HFValidationError

from warpcache_ray.config import ModelConfig, ServiceConfig
from warpcache_ray.errors import InvalidConfig, InvalidRequest, Unavailable
from warpcache_ray.extras import need
from warpcache_ray.model_folder import INDEX, check_components
from warpcache_ray.parallel import support
from warpcache_ray.serving import webhooks
from warpcache_ray.serving.artifacts import Artifacts
from warpcache_ray.serving.outbound import Outbound
from warpcache_ray.store.connection import check, connect
from warpcache_ray.store.server import EmbeddedServer
from warpcache_ray.urls import shown

_CONFIG_FILES = [INDEX, "transformer/config.json"]
HUB_TIMEOUT_S = 5.0
DRIVER_CPUS = 0.1
INGRESS_CPUS = 0.1
RANK_CPUS = 0.9
"""Less than one: driver and ingress, which hardly compute, find room beside as many ranks as there are cores."""


def check_model(config: ServiceConfig) -> None:
    """The model's folder, or its entry in the local hub cache or on the hub, exists; a folder with all its components.

    Raises:
        InvalidConfig: it doesn't; names the component that is missing.
    """
    model = config.model
    _check_form(model)
    if model.folder is not None:
        check_components(model.folder, (*model.files,))
        return
    if Path(model.path).expanduser().is_dir():
        said = f"model.path = {model.path!r} is a folder without a {INDEX}; give that of a whole pipeline"
        raise InvalidConfig(said, "model.path")
    if _cached(model.path, model.revision):
        return
    try:
        url = hf_hub_url(model.path, INDEX, revision=model.revision)
        # One try: the hub client's own retries would outlast the patience of whoever waits for this.
        token = get_token()
        headers = {"authorization": f"Bearer {token}"} if token else {}
        answer = httpx.head(url, headers=headers, timeout=HUB_TIMEOUT_S, follow_redirects=True)
        answer.raise_for_status()
    except (httpx.HTTPError, HFValidationError) as error:
        raise InvalidConfig(
            f"model.path = {model.path!r}: no folder with a {INDEX}, and no such model in the local hub cache or "
            f"on the hub ({type(error).__name__})",
            "model.path",
        ) from error


def _check_form(model: ModelConfig) -> None:
    """The files beside the folder are there, and the packages that the weights' form needs."""
    files = {f"model.files.{name}": file for name, file in model.files.items()}
    files |= {f"model.loras.{n}": f for n, f in model.loras.items() if f.endswith(".safetensors")}
    for where, file in files.items():
        if not Path(file).is_file():
            raise InvalidConfig(f"{where} = {file!r}: no such file", where)
    for package, where, asked in (
        ("torchao", "model.dtype", model.dtype == "fp8"),
        ("peft", "model.loras", model.loras),
        ("dfloat11", "model.dfloat11", model.dfloat11),
    ):
        if asked:
            need(package, where)


def _cached(path: str, revision: str | None) -> bool:
    try:
        return isinstance(try_to_load_from_cache(path, INDEX, revision=revision), str)
    except HFValidationError:
        return False


def check_devices(config: ServiceConfig, resources: Mapping[str, float]) -> None:
    """The cluster has the GPUs and CPUs that the replicas and the ingress need; where replicas come and go, so may
    nodes.

    Raises:
        InvalidConfig: it has not.
    """
    if config.replicas == "auto":
        return
    ranks = config.parallel.world_size * config.replicas
    needs = {"GPU": float(ranks)} if config.model.device == "cuda" else {}
    needs["CPU"] = round(config.replicas * DRIVER_CPUS + ranks * RANK_CPUS + INGRESS_CPUS, 2)
    for kind, needed in needs.items():
        there = resources.get(kind, 0)
        if there < needed:
            raise InvalidConfig(
                f"replicas = {config.replicas} × {config.parallel} needs {needed:g} {kind}s; "
                f"the cluster has {there:g}",
                "replicas",
            )


def check_access(config: ServiceConfig, host: str | None, grpc_port: int | None = None) -> None:
    """Where Serve's proxies listen, for HTTP at `host` and for gRPC at `grpc_port` of all addresses (None: nowhere),
    only those come who may.

    Raises:
        InvalidConfig: other machines reach it, and no keys are needed there.
    """
    access = config.access
    if access.keys or access.allow_public:
        return
    if host is not None and not _is_loopback(host):
        where, instead = f"http_options.host = {host!r}", "set http_options.host: 127.0.0.1"
    elif grpc_port is not None:
        where = f"grpc_options.port = {grpc_port}, which Serve opens on all addresses,"
        instead = "leave grpc_options out"
    else:
        return
    raise InvalidConfig(
        f"{where} can be reached from other machines, and access.keys is empty; configure keys "
        f"(`warpcache key create NAME` makes one), or {instead}, or set access.allow_public: true "
        "where everyone who reaches it may use it",
        "access.keys",
    )


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def check_store(config: ServiceConfig, nodes: int) -> None:
    """The job store can be reached from where it is needed, and keeps what it is given.

    Raises:
        InvalidConfig: the given one doesn't, or isn't where it should be; the embedded one has no executable, or there
            are several nodes, which its socket doesn't reach.
    """
    url = config.store.address
    if url:
        try:
            asyncio.run(_try_store(url))
        except Unavailable as error:
            message = f"store.url = {shown(url)!r}: {error.message}"
            raise InvalidConfig(message, "store.url") from error
        return
    if nodes > 1:
        raise InvalidConfig(
            f"store.url = '': the embedded store serves one node, the cluster has {nodes}; give a redis:// URL",
            "store.url",
        )
    if "://" in config.results and not config.store.folder:
        raise InvalidConfig(
            f"store.folder = '': results = {config.results!r} is no folder in which the jobs could be kept too; "
            "give one that lasts, or the store.url of a Redis",
            "store.folder",
        )
    EmbeddedServer(config.store_folder)


def check_storage(config: ServiceConfig) -> None:
    """Videos and checkpoints can be kept where they are to be.

    Raises:
        InvalidConfig: they can't; names the place, and what is missing.
    """
    Artifacts(config.artifacts).check("results")
    if config.checkpoint_every:
        Artifacts(config.checkpoints).check("checkpoint_url")


async def _try_store(url: str) -> None:
    redis = connect(url)
    try:
        await check(redis)
    finally:
        await redis.aclose()


def check_webhooks(config: ServiceConfig) -> None:
    """The URL that jobs' ends are told to where a request names none is one that a request might name.

    Raises:
        InvalidConfig: it isn't allowed, or there is no secret.
    """
    outbound, url = Outbound(config.outbound), config.webhooks.url
    try:
        if url:
            webhooks.check(url, outbound, config.webhooks)
    except InvalidRequest as error:
        said = error.message.replace(webhooks.PARAM, "webhooks.url", 1)
        raise InvalidConfig(said, "webhooks.url") from error


def check_profiler(config: ServiceConfig) -> None:
    """The service can profile by itself, if it is to.

    Raises:
        InvalidConfig: its replicas have several ranks.
    """
    ranks = config.parallel.world_size
    if config.profiler.auto_profile and ranks > 1:
        raise InvalidConfig(
            f"profiler.auto_profile = true: replicas of one rank can profile, these have {ranks}; set it to false, and "
            "publish what `warpcache profile` finds",
            "profiler.auto_profile",
        )


def check_layout(config: ServiceConfig) -> None:
    """The model can be shared out over ranks as the layout says; reads two of its files, from the hub if need be.

    Raises:
        InvalidConfig: it can't.
    """
    if config.parallel.world_size == 1:
        return
    model = config.model
    folder = model.folder or Path(
        snapshot_download(model.path, revision=model.revision, allow_patterns=_CONFIG_FILES)
    )
    support.check_layout(config.parallel, folder)
