import dataclasses
from pathlib import Path

import pytest
import yaml

from warpcache_ray.config import ModelConfig, load_application, parse_config
from warpcache_ray.core.policies.never import Never
from warpcache_ray.errors import InvalidConfig, InvalidPolicy
from warpcache_ray.policy_spec import parse_policy

MODEL = {"path": "x"}
CONFIGS = sorted((Path(__file__).parents[1] / "configs").glob("*.yaml"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_shipped_configurations_load(path):
    """Each file in configs/ is valid and within its own limits; what makes images leaves out their frames."""
    model = load_application(path).model
    for name in ("height", "width", "num_frames", "num_inference_steps"):
        assert (getattr(model.defaults, name) or 1) <= getattr(model.limits, name)


def test_a_model_is_enough():
    """Everything else has a default, every quality stands for a policy, `exact` for never."""
    config = parse_config({"model": MODEL})
    thresholds = [config.quality_policy(q).threshold for q in ("high", "balanced", "fast")]
    assert thresholds == sorted(set(thresholds))
    assert config.quality_policy("exact") == Never()
    assert (config.default_policy.name, config.parallel.world_size) == ("worldcache", 1)
    assert config.local_folder.name == config.name
    assert config.artifacts == str(config.local_folder)
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.replicas = 2


def test_what_is_kept_beside_the_results():
    """Store and checkpoints are in folders of their own there; checkpoints also where results are kept at a URL, and
    where a place is given for them."""
    config = parse_config({"model": MODEL, "results": "/data"})
    assert (config.artifacts, str(config.store_folder)) == ("/data", "/data/store")
    assert config.checkpoints == "/data/checkpoints"
    for place in ({"results": "s3://b/v"}, {"checkpoint_url": "s3://b/v/"}):
        assert parse_config({"model": MODEL, **place}).checkpoints == "s3://b/v/checkpoints"


@pytest.mark.parametrize(
    ("args", "param", "told"),
    [
        ({"modle": 1}, "modle", "modle = 1"),
        ({"model": {}}, "model.path", "model.path"),
        ({"model": MODEL | {"pth": 1}}, "model.pth", "model.pth = 1"),
        ({"model": MODEL | {"dtype": "int8"}}, "model.dtype", "'int8'.*'float32', 'bfloat16'"),
        ({"model": MODEL | {"limits": {"queue": "long"}}}, "model.limits.queue", "'long'.*integer"),
        ({"replicas": "two"}, "replicas", "replicas = 'two'.*integer"),
        ({"replicas": 0}, "replicas", "0.*1"),
        ({"lease_s": 0.0}, "lease_s", "0.0"),
        ({"queue_timeout_s": 0.0}, "queue_timeout_s", "0.0.*greater than 0"),
        ({"attempt_timeout_s": -1.0}, "attempt_timeout_s", "-1.0.*greater than 0"),
        ({"client_weights": {"a1": 0}}, "client_weights.a1", "0: .*greater than 0"),
        (
            {"outbound": {"allow_private_hosts": ["*"]}},
            "outbound.allow_private_hosts.0",
            "'\\*'.*pattern",
        ),
        ({"outbound": {"ports": [0]}}, "outbound.ports.0", "0.*greater than or equal to 1"),
        ({"policy": "magic"}, "policy", "policy = 'magic'.*never, interval"),
        ({"policy": {"name": "interval", "every": 0}}, "policy", "every: 0 .*1 or more"),
        ({"policy": 5}, "policy", "policy = 5"),
        ({"parallel": {"ulysses": 0}}, "parallel", "ulysses: 0 .*1 or more"),
        ({"parallel": {"vae": True}}, "parallel", "vae: one rank decodes alone"),
        ({"parallel": {"tensor": 2}}, "parallel.tensor", "parallel.tensor = 2"),
        ({"quality": {"high": "never", "fast": "never"}}, "quality", "'balanced' is missing"),
        (
            {"quality": {"high": "magic", "balanced": "never", "fast": "never"}},
            "quality.high",
            "quality.high = 'magic'.*never, interval",
        ),
    ],
    ids=str,
)
def test_refusals(args, param, told):
    """Each message names the field and its value, and what is allowed where that is a list."""
    with pytest.raises(InvalidConfig, match=told) as caught:
        parse_config({"model": MODEL, **args})
    assert caught.value.param == param


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"hello",
        b"a: [",
        b"- 1",
        b"applications: []",
        b"applications: [{name: x}]",
        b"applications: [{args: 5}]",
        b"applications: [{args: }]",
        b"\x00\x01",
        b"\x89PNG\xff\xfe",
    ],
    ids=str,
)
def test_files_that_are_not_configurations(content, tmp_path):
    """Whatever the file holds, the message names it."""
    path = tmp_path / "service.yaml"
    path.write_bytes(content)
    with pytest.raises(InvalidConfig) as caught:
        load_application(path)
    assert repr(str(path)) in caught.value.message


@pytest.mark.parametrize("name", ["none.yaml", "."])
def test_files_that_cannot_be_read(name, tmp_path):
    """A missing file and a folder are named."""
    with pytest.raises(InvalidConfig, match=f"config = '{tmp_path}.*(No such file|Is a directory)"):
        load_application(tmp_path / name)


def test_bad_args_in_a_file(tmp_path):
    """The first application's args are checked."""
    path = tmp_path / "service.yaml"
    path.write_text(yaml.safe_dump({"applications": [{"args": {"model": MODEL, "threads": "x"}}]}))
    with pytest.raises(InvalidConfig, match="threads = 'x'"):
        load_application(path)


def test_a_model_folder_has_an_index(tmp_path):
    """A folder counts as a model once its index is there; a hub id has none."""
    assert ModelConfig(str(tmp_path)).folder is None
    (tmp_path / "model_index.json").write_text("{}")
    assert ModelConfig(str(tmp_path)).folder == tmp_path
    assert ModelConfig("nobody/nothing").folder is None


def test_a_policy_may_stand_in_a_file(tmp_path, monkeypatch):
    """It is read while the configuration is: what goes to the replicas names no file. Parameters beside it win."""
    (tmp_path / "policy.yaml").write_text("{name: interval, every: 4, warmup: 3}")
    monkeypatch.chdir(tmp_path)
    file = {"file": "policy.yaml"}
    quality = {"high": "never", "balanced": file | {"every": 6}, "fast": "interval"}
    config = parse_config({"model": MODEL, "policy": file, "quality": quality})
    (tmp_path / "policy.yaml").unlink()
    assert (config.default_policy.every, config.default_policy.warmup) == (4, 3)
    balanced = config.quality_policy("balanced")
    assert (balanced.every, balanced.warmup) == (6, 3)


@pytest.mark.parametrize(
    ("policy", "told"),
    [
        ({"file": "none.yaml"}, "policy = {'file': 'none.yaml'}: none.yaml: can't be read"),
        ({"file": "a.txt"}, "must end in .json, .yaml or .yml"),
        ({"file": 5}, "must end in .json, .yaml or .yml"),
        ({"file": "a.yaml", "evry": 2}, "a.yaml: .*has no parameter 'evry'"),
        ({"file": "a.yaml", "every": 0}, "every: 0 .*1 or more"),
    ],
    ids=str,
)
def test_refused_policy_files(policy, told, tmp_path, monkeypatch):
    """The message names the field, the file, and what is wrong."""
    (tmp_path / "a.yaml").write_text("interval")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InvalidConfig, match=told) as caught:
        parse_config({"model": MODEL, "policy": policy})
    assert caught.value.param == "policy"


def test_how_weights_are_held():
    """Single files tell models apart; compressed weights have conditions, which are named."""
    plain, other = (
        parse_config({"model": MODEL | more}).model
        for more in ({}, {"files": {"transformer": "a.safetensors"}, "dtype": "fp8"})
    )
    assert plain.version != other.version
    with pytest.raises(InvalidConfig, match=r"model.*dfloat11 needs dtype bfloat16, device cuda"):
        parse_config({"model": MODEL | {"dfloat11": {"transformer": "x"}, "dtype": "float32"}})
    with pytest.raises(InvalidConfig, match=r"model.files"):
        parse_config({"model": MODEL | {"files": {"vae": "x"}}})


def test_requests_name_no_files():
    """Only a configuration may: a client's policy is never a path on the server."""
    with pytest.raises(InvalidPolicy):
        parse_policy({"file": "configs/toyworld.yaml"})


@pytest.mark.parametrize(
    "store", [{"ulr": "redis://:hush@h"}, {"url": ["redis://:hush@h"]}, "redis://:hush@h"]
)
def test_a_stores_password_is_never_shown(store):
    """Wherever it was put by mistake; nor is it part of how a configuration is printed."""
    with pytest.raises(InvalidConfig, match=r"^store(\.\w+)*: ") as refused:
        parse_config({"model": MODEL, "store": store})
    assert "hush" not in refused.value.message
    config = parse_config({"model": MODEL, "store": {"url": "redis://:hush@h"}})
    assert "hush" not in repr(config)


@pytest.mark.parametrize(
    "webhooks", [{"secret": "whsec_c2hvcnQ="}, {"secert": "whsec_c2hvcnQ="}, "whsec_c2hvcnQ="]
)
def test_a_secret_is_never_shown(webhooks):
    """Not where it is refused, not where a configuration is printed."""
    with pytest.raises(InvalidConfig, match=r"^webhooks(\.secret|\.secert|): ") as refused:
        parse_config({"model": MODEL, "webhooks": webhooks})
    assert "c2hvcnQ" not in str(refused.value)
    secret = "whsec_" + "a" * 32
    config = parse_config({"model": MODEL, "webhooks": {"secret": secret}})
    assert config.webhooks.signing_secret == secret
    assert secret not in repr(config)


@pytest.mark.parametrize(
    ("section", "field", "value"),
    [
        ("audits", "share", 1.5),
        ("audits", "shares", 0.5),
        ("profiler", "profile_requests", 1),
        ("profiler", "quality", 1.0),
        ("profiler", "canary_percent", 100),
    ],
)
def test_what_idle_replicas_cannot_do_is_refused(section, field, value):
    """The sections of the upkeep: the message names the field."""
    with pytest.raises(InvalidConfig) as caught:
        parse_config({"model": {"path": "x"}, section: {field: value}})
    assert caught.value.param == f"{section}.{field}"
