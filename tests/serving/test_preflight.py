from dataclasses import replace

import pytest

from warpcache_ray.access_config import AccessConfig, ApiKey
from warpcache_ray.config import ModelConfig, ServiceConfig, StoreConfig
from warpcache_ray.errors import InvalidConfig
from warpcache_ray.outbound_config import OutboundConfig, WebhookConfig
from warpcache_ray.parallel.layout import Layout
from warpcache_ray.serving.preflight import (
    check_access,
    check_devices,
    check_layout,
    check_model,
    check_profiler,
    check_storage,
    check_store,
    check_webhooks,
)
from warpcache_ray.upkeep_config import ProfilerConfig


def test_a_folder_with_an_index_is_a_model(tmp_path):
    """A local pipeline folder passes."""
    (tmp_path / "model_index.json").write_text("{}")
    check_model(ServiceConfig(ModelConfig(str(tmp_path))))


@pytest.mark.parametrize("name", ["", "sub/folder/of/none", "nobody-here/no-such-model"])
def test_what_is_nowhere_is_refused(name, tmp_path):
    """An empty folder, a missing one, and an id that the (offline) hub cache lacks: all named."""
    path = name if name.count("/") == 1 else str(tmp_path / name)
    with pytest.raises(InvalidConfig) as caught:
        check_model(ServiceConfig(ModelConfig(path)))
    assert caught.value.param == "model.path"
    assert repr(path) in caught.value.message


@pytest.mark.parametrize(
    ("device", "layout", "replicas", "gpus", "fine"),
    [
        ("cuda", Layout(), 1, 1, True),
        ("cuda", Layout(ulysses=2, cfg=2), 2, 8, True),
        ("cuda", Layout(ulysses=2, cfg=2), 2, 7, False),
        ("cuda", Layout(), 1, 0, False),
        ("cpu", Layout(), 2, 0, True),
    ],
)
def test_gpus_must_suffice(device, layout, replicas, gpus, fine):
    """Ranks × replicas GPUs are needed, on CPU none; the refusal tells both numbers."""
    model = ModelConfig("x", device=device)
    config = ServiceConfig(model, parallel=layout, replicas=replicas)
    resources = {"CPU": 64.0, "GPU": float(gpus)}
    if fine:
        check_devices(config, resources)
        return
    with pytest.raises(InvalidConfig) as caught:
        check_devices(config, resources)
    needed = layout.world_size * replicas
    assert f"needs {needed} GPUs; the cluster has {gpus}" in caught.value.message


@pytest.mark.parametrize(
    ("layout", "model", "told"),
    [
        (Layout(ulysses=3), "wan", "it must divide the model's 2 heads: 1, 2"),
        (Layout(cfg=2), "hunyuan", "has no uncond branch; it must be 1"),
    ],
)
def test_what_cannot_be_shared_is_refused(layout, model, told, folders):
    """From the model's files alone, with what would work."""
    config = ServiceConfig(ModelConfig(str(folders[model]), device="cpu"), parallel=layout)
    with pytest.raises(InvalidConfig, match=told):
        check_layout(config)


def test_two_ranks_fit_on_two_cores(folders):
    """Beside driver and ingress; a layout that the model can follow passes."""
    model = ModelConfig(str(folders["wan"]), device="cpu")
    config = ServiceConfig(model, parallel=Layout(ulysses=2))
    check_devices(config, {"CPU": 2.0})
    check_layout(config)


def test_the_embedded_store_serves_one_node():
    """On several nodes a server is needed that all of them reach."""
    check_store(ServiceConfig(ModelConfig("x")), 1)
    with pytest.raises(InvalidConfig, match="the cluster has 2; give a redis:// URL"):
        check_store(ServiceConfig(ModelConfig("x")), 2)


def test_a_store_of_ones_own_is_tried(store_server):
    """One that answers is fine on any number of nodes; one that doesn't is refused before anything is loaded."""
    check_store(ServiceConfig(ModelConfig("x"), store=StoreConfig(store_server.url)), 2)
    with pytest.raises(InvalidConfig, match=r"store.url = 'redis://127.0.0.1:1'.*can't be reached"):
        check_store(ServiceConfig(ModelConfig("x"), store=StoreConfig("redis://127.0.0.1:1")), 1)


def test_jobs_are_kept_where_videos_cant_say():
    """Results at a URL leave the embedded store without a folder: it has to be named, or a server."""
    config = ServiceConfig(ModelConfig("x"), results="memory://videos")
    with pytest.raises(InvalidConfig, match=r"store\.folder = ''.*results = 'memory://videos'"):
        check_store(config, 1)
    check_store(replace(config, store=StoreConfig(folder="/data/jobs")), 1)


def test_a_stores_password_stays_secret(store_server, monkeypatch):
    """It may be in the environment instead of the arguments, and no refusal shows it."""
    named = ServiceConfig(ModelConfig("x"), store=StoreConfig(url_env="JOBS_URL"))
    with pytest.raises(InvalidConfig, match=r"store.url_env = 'JOBS_URL': the environment has no"):
        check_store(named, 1)
    monkeypatch.setenv("JOBS_URL", store_server.url)
    check_store(named, 2)
    secret = "redis://me:hush@127.0.0.1:1"
    monkeypatch.setenv("JOBS_URL", secret)
    for config in (named, replace(named, store=StoreConfig(secret))):
        with pytest.raises(InvalidConfig, match=r"redis://\*\*\*@127.0.0.1:1'.*reached") as refused:
            check_store(config, 1)
        assert "hush" not in refused.value.message + repr(config)
    both = replace(named, store=StoreConfig(secret, "JOBS_URL"))
    with pytest.raises(InvalidConfig, match=r"store.url is given too; give either") as refused:
        check_store(both, 1)
    assert "hush" not in refused.value.message


def test_a_storages_password_is_not_shown():
    """Nor in the log's warnings."""
    config = ServiceConfig(ModelConfig("x"), results="nowhere://me:hush@host/videos")
    with pytest.raises(InvalidConfig, match=r"results = 'nowhere://\*\*\*@host/videos'") as refused:
        check_storage(config)
    assert "hush" not in refused.value.message


NO_KEYS = ServiceConfig(ModelConfig("x"))


@pytest.mark.parametrize("host", [None, "localhost", "127.0.0.1", "127.1.2.3", "::1"])
def test_nobody_else_reaches_loopback(host):
    """So no keys are needed there."""
    check_access(NO_KEYS, host)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.2", "10.0.0.1", "gpu-1.example", ""])
def test_public_addresses_want_keys(host):
    """Or to be told that it is meant; the refusal names the address and what can be done."""
    with pytest.raises(InvalidConfig) as caught:
        check_access(NO_KEYS, host)
    told = (f"http_options.host = {host!r}", "warpcache key create", "127.0.0.1", "allow_public")
    assert [words for words in told if words not in caught.value.message] == []
    for access in (AccessConfig((ApiKey("a", "0" * 64),)), AccessConfig(allow_public=True)):
        check_access(ServiceConfig(ModelConfig("x"), access=access), host)


def test_serve_opens_its_grpc_port_on_all_addresses():
    """So keys are wanted there, whatever HTTP listens on."""
    with pytest.raises(
        InvalidConfig, match=r"grpc_options\.port = 9000, .* all addresses"
    ) as caught:
        check_access(NO_KEYS, "127.0.0.1", 9000)
    assert "leave grpc_options out" in caught.value.message
    for access in (AccessConfig((ApiKey("a", "0" * 64),)), AccessConfig(allow_public=True)):
        check_access(ServiceConfig(ModelConfig("x"), access=access), "127.0.0.1", 9000)


def test_the_operators_own_receiver_is_checked_at_the_start():
    """Not by the first request."""
    config, fine = ServiceConfig(ModelConfig("x")), OutboundConfig(allow_hosts=("hooks.example",))
    hooks = WebhookConfig(url="https://hooks.example/", secret="whsec_" + "a" * 32)
    check_webhooks(config)
    check_webhooks(replace(config, outbound=fine, webhooks=hooks))
    with pytest.raises(
        InvalidConfig, match=r"webhooks.url = 'https://hooks.example/' is not allowed"
    ):
        check_webhooks(replace(config, webhooks=hooks))
    with pytest.raises(InvalidConfig, match=r"webhooks\.url: this service signs no webhooks"):
        check_webhooks(replace(config, outbound=fine, webhooks=replace(hooks, secret="")))


@pytest.mark.parametrize("field", ["results", "checkpoint_url"])
def test_a_place_for_files_is_tried(field, tmp_path):
    """Videos' and checkpoints': one that can't be written to, or needs a package that isn't there, is named."""
    (tmp_path / "file").touch()
    fine = {"results": str(tmp_path / "videos"), "checkpoint_url": f"memory://{tmp_path.name}"}
    check_storage(ServiceConfig(ModelConfig("x"), **fine))
    assert list((tmp_path / "videos").iterdir()) == []
    for place in ("s3://bucket/x", str(tmp_path / "file" / "x")):
        with pytest.raises(InvalidConfig) as caught:
            check_storage(ServiceConfig(ModelConfig("x"), **{**fine, field: place}))
        assert caught.value.param == field
        assert place in caught.value.message


def test_checkpoints_need_no_place_where_none_are_kept(tmp_path):
    """Their URL isn't tried then."""
    checkpoints = {"checkpoint_every": 0, "checkpoint_url": "s3://bucket/x"}
    check_storage(ServiceConfig(ModelConfig("x"), results=str(tmp_path), **checkpoints))


def test_replicas_of_several_ranks_do_not_profile_by_themselves() -> None:
    """Said at the start, with what can be done instead."""
    config = ServiceConfig(
        ModelConfig("x", device="cpu"), profiler=ProfilerConfig(auto_profile=True)
    )
    check_profiler(config)
    with pytest.raises(InvalidConfig, match="replicas of one rank can profile, these have 2"):
        check_profiler(replace(config, parallel=Layout(ulysses=2)))
