"""What is applied to a cluster: valid by the published schemas, of one mind with itself, the service and the README."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml
from overlays import DEPLOY, OVERLAYS, Resource, build
from packaging.requirements import Requirement
from ray.serve.schema import ServeDeploySchema

from warpcache_ray.config import ServiceConfig, parse_config
from warpcache_ray.serving import autoscaling
from warpcache_ray.serving.replica import bundles

KUBERNETES = "1.31"
README = (DEPLOY.parent / "README.md").read_text()


@pytest.fixture(params=OVERLAYS, ids=lambda path: path.name)
def overlay(request: pytest.FixtureRequest) -> list[Resource]:
    return build(request.param)


@pytest.fixture
def service(overlay: list[Resource]) -> dict[str, Any]:
    """The RayService's spec."""
    (found,) = (each for each in overlay if each["kind"] == "RayService")
    return found["spec"]


@pytest.fixture
def served(service: dict[str, Any]) -> dict[str, Any]:
    """Its one application, as Serve reads it."""
    document = yaml.safe_load(service["serveConfigV2"])
    ServeDeploySchema.model_validate(document)
    assert document["http_options"] == {"host": "0.0.0.0", "port": 8000}
    (application,) = document["applications"]
    return application


@pytest.fixture
def config(served: dict[str, Any], tmp_path: Path) -> ServiceConfig:
    """What the service makes of its arguments, with keys that are there."""
    assert served["args"]["access"] == {"keys_file": "/etc/warpcache/keys.yaml"}
    return parse_config({**served["args"], "access": {}})


def strict(schema: Any) -> Any:
    """A structural schema that, unlike Kubernetes, doesn't drop silently what it doesn't know."""
    if isinstance(schema, list):
        return [strict(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {name: strict(each) for name, each in schema.items()}
    if isinstance(schema.get("properties"), dict) and schema.get("type") == "object":
        closed.setdefault("additionalProperties", False)
    return closed


def templates(service: dict[str, Any]) -> list[dict[str, Any]]:
    """The pods' templates: head, ingress, replicas."""
    cluster = service["rayClusterConfig"]
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    return [group["template"] for group in groups]


def values(found: Any, name: str) -> Iterator[Any]:
    """All that stands under a name, at any depth."""
    for key, value in found.items() if isinstance(found, dict) else enumerate(found):
        if key == name:
            yield value
        if isinstance(value, dict | list):
            yield from values(value, name)


@pytest.mark.skipif(not shutil.which("kubectl"), reason="kubectl isn't there to compare with")
@pytest.mark.parametrize("path", OVERLAYS, ids=lambda path: path.name)
def test_kustomize_makes_the_same(path: Path) -> None:
    """What the other tests look at is what is applied."""
    text = subprocess.run(
        ["kubectl", "kustomize", str(path)], capture_output=True, text=True, check=True
    ).stdout

    def named(resources: list[Resource]) -> dict[tuple[str, str], Resource]:
        return {(each["kind"], each["metadata"]["name"]): each for each in resources}

    assert named(list(yaml.safe_load_all(text))) == named(build(path))


def test_every_resource_is_valid(overlay: list[Resource]) -> None:
    """By KubeRay's schema and Kubernetes' own, with nothing in them that these don't know."""
    folder = Path(__file__).parent / "schemas"
    schema = strict(json.loads((folder / "rayservice-v1.json").read_text()))
    schema["properties"]["metadata"] = {"type": "object"}
    for resource in overlay:
        if resource["kind"] == "RayService":
            jsonschema.Draft7Validator(schema).validate(resource)
            for template in templates(resource["spec"]):
                metadata = {"name": "pod", **template["metadata"]}
                pod = {"apiVersion": "v1", "kind": "Pod", **template, "metadata": metadata}
                kubernetes_validate.validate(pod, KUBERNETES, strict=True)
        else:
            kubernetes_validate.validate(resource, KUBERNETES, strict=True)


def test_the_schema_refuses_what_isnt_there(overlay: list[Resource]) -> None:
    """A key that is misspelt is found."""
    folder = Path(__file__).parent / "schemas"
    schema = strict(json.loads((folder / "rayservice-v1.json").read_text()))
    schema["properties"]["metadata"] = {"type": "object"}
    (resource,) = (each for each in overlay if each["kind"] == "RayService")
    resource["spec"]["rayClusterConfig"]["autoscalerOptions"]["idleTimeoutS"] = 1
    with pytest.raises(jsonschema.ValidationError, match="idleTimeoutS"):
        jsonschema.Draft7Validator(schema).validate(resource)


def test_workers_are_sized_for_the_layout(
    service: dict[str, Any], served: dict[str, Any], config: ServiceConfig
) -> None:
    """A pod of `replicas` has room for one replica, and no GPU more; there may be as many pods as replicas."""
    needed = [{**bundle} for bundle in bundles(config)]
    group = service["rayClusterConfig"]["workerGroupSpecs"][1]
    assert group["groupName"] == "replicas"
    (container,) = group["template"]["spec"]["containers"]
    resources = container["resources"]
    assert resources["limits"].get("nvidia.com/gpu", 0) == sum(b.get("GPU", 0) for b in needed)
    assert int(resources["requests"]["cpu"]) >= sum(b["CPU"] for b in needed) - 1e-9
    replica, ingress = served["deployments"]
    assert group["maxReplicas"] == replica["autoscaling_config"]["max_replicas"]
    pods = service["rayClusterConfig"]["workerGroupSpecs"][0]
    assert pods["minReplicas"] == ingress["autoscaling_config"]["min_replicas"]
    gpus = config.model.device == "cuda"
    images = {c["image"] for t in templates(service) for c in t["spec"]["containers"]}
    assert images == {"warpcache-ray:cuda" if gpus else "warpcache-ray:cpu"}


def test_replicas_come_by_a_policy_of_ours(served: dict[str, Any], config: ServiceConfig) -> None:
    """It exists, takes its arguments, and can pay for the replicas that always are there."""
    assert config.replicas == "auto"
    policy = served["autoscaling_policy"]
    module, name = policy["policy_function"].split(":")
    assert module == autoscaling.__name__
    made = getattr(autoscaling, name)(**policy["policy_kwargs"])
    hourly = 3600 * config.gpu_second_price * config.parallel.world_size
    least = served["deployments"][0]["autoscaling_config"]["min_replicas"]
    assert made.most_per_hour >= max(1, least) * hourly


def test_nothing_is_cut_short(service: dict[str, Any], config: ServiceConfig) -> None:
    """The old cluster stays for longer than an attempt may take, pods of replicas for longer than these drain."""
    assert config.attempt_timeout_s is not None
    assert service["rayClusterDeletionDelaySeconds"] > config.attempt_timeout_s
    replicas = service["rayClusterConfig"]["workerGroupSpecs"][1]["template"]["spec"]
    assert replicas["terminationGracePeriodSeconds"] > config.drain_s + config.slow_step_s


def test_the_cluster_runs_the_ray_of_the_image(service: dict[str, Any]) -> None:
    """Its version is one that the package wants."""
    project = tomllib.loads((DEPLOY.parent / "pyproject.toml").read_text())["project"]
    (ray,) = (r for r in map(Requirement, project["dependencies"]) if r.name == "ray")
    assert ray.specifier.contains(service["rayClusterConfig"]["rayVersion"])


def test_secrets_are_those_that_the_readme_makes(overlay: list[Resource]) -> None:
    """One secret; whoever follows the README has every key of it that isn't optional."""
    asked = list(values(overlay, "secretKeyRef"))
    asked += [{"name": s["secretName"], **i} for s in values(overlay, "secret") for i in s["items"]]
    assert {ref["name"] for ref in asked} == {"warpcache"}
    command = re.search(r"kubectl create secret generic warpcache (?:.*\\\n)*.*", README)
    assert command
    made = set(re.findall(r"--from-(?:literal|file)=([\w.-]+)", command.group(0)))
    assert made == {ref["key"] for ref in asked}


def test_names_agree(
    overlay: list[Resource], service: dict[str, Any], config: ServiceConfig
) -> None:
    """Labels that are selected are those of pods; claims, variables, mounts and Redis are where they are asked for."""
    pods = templates(service)
    names = {(each["kind"], each["metadata"]["name"]) for each in overlay}
    claims = set(values([pod["spec"] for pod in pods], "claimName"))
    assert {("PersistentVolumeClaim", claim) for claim in claims} <= names
    host, _, port = service["rayClusterConfig"]["gcsFaultToleranceOptions"][
        "redisAddress"
    ].partition(":")
    assert ("Service", host) in names
    assert int(port) in values(overlay, "containerPort")
    groups = [
        {"ray.io/group": g["groupName"]} for g in service["rayClusterConfig"]["workerGroupSpecs"]
    ]
    labels = [
        {**pod["metadata"]["labels"], **group}
        for pod, group in zip(pods, [{}, *groups], strict=True)
    ]
    labels += [
        each["spec"]["template"]["metadata"]["labels"]
        for each in overlay
        if each["kind"] == "StatefulSet"
    ]
    for each in overlay:
        spec = each["spec"]
        if each["kind"] in ("NetworkPolicy", "PodDisruptionBudget"):
            selected = spec.get("podSelector", spec.get("selector"))["matchLabels"]
            assert any(selected.items() <= found.items() for found in labels), selected
    for pod in pods:
        (container,) = pod["spec"]["containers"]
        variables = {variable["name"] for variable in container["env"]}
        assert {config.store.url_env, config.webhooks.secret_env} <= variables
        mounted = {mount["mountPath"] for mount in container["volumeMounts"]}
        assert {"/etc/warpcache", "/models", config.results} <= mounted


def test_pods_may_do_little(service: dict[str, Any]) -> None:
    """They run as the image's user, which isn't root."""
    uid = re.search(r"--uid (\d+)", (DEPLOY / "Dockerfile").read_text())
    assert uid
    for pod in templates(service):
        assert pod["spec"]["securityContext"]["runAsNonRoot"]
        assert pod["spec"]["securityContext"]["runAsUser"] == int(uid.group(1))
        (container,) = pod["spec"]["containers"]
        assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
        assert not container["securityContext"]["allowPrivilegeEscalation"]


def test_redis_keeps_what_it_is_given(overlay: list[Resource]) -> None:
    """As the embedded store does."""
    (redis,) = (each for each in overlay if each["kind"] == "StatefulSet")
    (container,) = redis["spec"]["template"]["spec"]["containers"]
    options = dict(zip(container["args"][::2], container["args"][1::2], strict=True))
    assert options["--appendonly"] == "yes"
    assert options["--appendfsync"] == "always"
    assert options["--maxmemory-policy"] == "noeviction"


def test_workers_are_ready_by_our_health(service: dict[str, Any]) -> None:
    """But not the head, which the operator gives the application only once it is ready."""
    head, *workers = templates(service)
    assert "readinessProbe" not in head["spec"]["containers"][0]
    for worker in workers:
        probe = worker["spec"]["containers"][0]["readinessProbe"]
        assert probe["httpGet"] == {"path": "/health", "port": "serve"}
