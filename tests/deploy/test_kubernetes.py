"""The manifests in deploy/kubernetes are what Kubernetes takes, and their options are the services' own."""

import importlib
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from kubernetes_validate import validate
from pydantic import ValidationError

from triptych.keda import externalscaler_pb2
from triptych.serving.settings import Options, ServerSettings, read_settings
from triptych_coordinator.external_scaler import trigger_of
from triptych_coordinator.settings import CoordinatorSettings
from triptych_denoiser.settings import DenoiserSettings
from triptych_gateway.settings import GatewaySettings
from triptych_text_encoder.settings import TextEncoderSettings
from triptych_vae_codec.settings import VaeCodecSettings

MANIFESTS = Path(__file__).parents[2] / "deploy/kubernetes"
OVERLAYS = sorted(path.name for path in (MANIFESTS / "overlays").iterdir())
SETTINGS: dict[str, type[Options]] = {
    "coordinator": CoordinatorSettings,
    "gateway": GatewaySettings,
    "text-encoder": TextEncoderSettings,
    "denoiser": DenoiserSettings,
    "vae-codec": VaeCodecSettings,
}
CUSTOM = {
    "cert-manager.io/v1": "cloudcoil.models.cert_manager.v1",
    "keda.sh/v1alpha1": "cloudcoil.models.keda.v1alpha1",
    "monitoring.coreos.com/v1": "cloudcoil.models.prometheus_operator.v1",
}
"""What Kubernetes itself has no schema of, and models made of the schemas of those who have."""

Manifest = dict[str, Any]


def containers(manifests: list[Manifest]) -> Iterator[tuple[Manifest, Manifest]]:
    """Pods of workloads, each with its container."""
    for one in manifests:
        if one["kind"] in ("Deployment", "StatefulSet"):
            pod = one["spec"]["template"]["spec"]
            (container,) = pod["containers"]
            yield pod, container


def settings_of(container: Manifest, manifests: list[Manifest]) -> Options:
    """As the service reads its options and variables; of one that it does not know the process would end."""
    variables = {one["name"]: one["value"] for one in container.get("env", [])}
    sources = {one["configMapRef"]["name"] for one in container.get("envFrom", []) if "configMapRef" in one}
    for one in manifests:
        if one["kind"] == "ConfigMap" and one["metadata"]["name"] in sources:
            variables |= one["data"]
    known = SETTINGS[container["name"]]
    own = {name for name in variables if name.startswith("TRIPTYCH_")}
    assert own <= {f"TRIPTYCH_{field.upper()}" for field in known.model_fields}
    with pytest.MonkeyPatch.context() as monkeypatch:
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        return read_settings(known, container["name"], container["args"])


def check_options(manifests: list[Manifest]) -> None:
    found = set()
    for pod, container in containers(manifests):
        found.add(container["name"])
        settings = settings_of(container, manifests)
        ports = {one["name"]: one["containerPort"] for one in container["ports"]}
        if isinstance(settings, GatewaySettings):
            check_gateway(settings, container, ports)
        elif isinstance(settings, ServerSettings):
            check_server(settings, container, ports)
        assert pod["terminationGracePeriodSeconds"] > settings.drain_seconds + settings.grace_seconds
        assert container["securityContext"]["readOnlyRootFilesystem"]
    assert found == set(SETTINGS)


def check_server(settings: ServerSettings, container: Manifest, ports: dict[str, int]) -> None:
    assert settings.tls_client_roots, "callers show a certificate"
    listening = {
        "grpc": settings.listen,
        "health": settings.health_listen,
        "metrics": settings.metrics_listen,
    }
    assert ports == {name: port_of(at) for name, at in listening.items()}
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert container[probe]["grpc"]["port"] == ports["health"]


def check_gateway(settings: GatewaySettings, container: Manifest, ports: dict[str, int]) -> None:
    assert settings.tls_certificate
    assert settings.tls_client_certificate
    assert settings.coordinator == "coordinator:50050"
    assert ports == {"https": port_of(settings.listen), "metrics": port_of(settings.metrics_listen)}
    for probe in ("readinessProbe", "livenessProbe"):
        assert container[probe]["httpGet"] == {"path": "/health", "port": "https", "scheme": "HTTPS"}


def port_of(address: object) -> int:
    return int(str(address).rpartition(":")[2])


def test_the_base_has_the_services_own_options() -> None:
    """Needs nothing but Python: the files of the base as they are."""
    files = [path.read_text() for path in (MANIFESTS / "base").glob("*.yaml")]
    check_options([one for text in files for one in yaml.safe_load_all(text) if "spec" in one])


@pytest.fixture(scope="module", params=OVERLAYS)
def overlay(request: pytest.FixtureRequest) -> list[Manifest]:
    kubectl = shutil.which("kubectl")
    if kubectl is None:
        pytest.skip(
            "kubectl, which makes manifests of an overlay, is not installed (Debian: kubernetes-client)"
        )
    made = subprocess.run(
        [kubectl, "kustomize", MANIFESTS / "overlays" / request.param],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert made.returncode == 0, made.stderr
    return list(yaml.safe_load_all(made.stdout))


def check_custom(manifest: Manifest) -> None:
    """Raises for a wrong value, and for a field that there is not: that one is not read."""
    models = importlib.import_module(CUSTOM[manifest["apiVersion"]])  # takes seconds
    read = getattr(models, manifest["kind"]).model_validate(manifest)
    assert read.model_dump(mode="json", by_alias=True, exclude_unset=True) == manifest


def test_kubernetes_and_its_operators_take_every_manifest(overlay: list[Manifest]) -> None:
    for one in overlay:
        if one["apiVersion"] in CUSTOM:
            check_custom(one)
        else:
            validate(one, "1.30", strict=True)
        assert one["kind"] == "Namespace" or one["metadata"]["namespace"] == "triptych", one["metadata"]


def test_an_overlay_has_the_services_own_options(overlay: list[Manifest]) -> None:
    check_options(overlay)


def test_what_is_named_is_there(overlay: list[Manifest]) -> None:
    secrets = {one["spec"]["secretName"] for one in overlay if one["kind"] == "Certificate"}
    maps = {one["metadata"]["name"] for one in overlay if one["kind"] == "ConfigMap"}
    workloads = {one["metadata"]["name"] for one in overlay if one["kind"] in ("Deployment", "StatefulSet")}
    for pod, container in containers(overlay):
        mounted = {one["secret"]["secretName"] for one in pod["volumes"] if "secret" in one}
        assert mounted <= secrets
        sources = container.get("envFrom", [])
        assert {one["configMapRef"]["name"] for one in sources if "configMapRef" in one} <= maps
    for one in overlay:
        if one["kind"] in ("Service", "PodDisruptionBudget"):
            selector = one["spec"]["selector"]
            labels = selector.get("matchLabels", selector)
            assert labels["app.kubernetes.io/name"] in workloads
        if one["kind"] == "ScaledObject":
            assert one["spec"]["scaleTargetRef"]["name"] in workloads
        if one["kind"] == "TriggerAuthentication":
            assert {ref["name"] for ref in one["spec"]["secretTargetRef"]} <= secrets


def test_the_coordinator_takes_the_triggers_of_every_scaled_object(overlay: list[Manifest]) -> None:
    (coordinators,) = [one for one in overlay if one["kind"] == "StatefulSet"]
    for one in overlay:
        if one["kind"] == "ScaledObject":
            triggers = one["spec"]["triggers"]
            pushed = [trigger["metadata"] for trigger in triggers if trigger["type"] == "external-push"]
            assert len(pushed) == coordinators["spec"]["replicas"]
            for metadata in pushed:
                trigger = trigger_of(externalscaler_pb2.ScaledObjectRef(scalerMetadata=metadata))
                assert trigger.stage == one["metadata"]["name"].replace("-", "_")
                assert trigger.linger_seconds > one["spec"]["pollingInterval"]
            (summed,) = [trigger["metadata"] for trigger in triggers if trigger["type"] == "prometheus"]
            assert summed["ignoreNullValues"] == "false"
            assert float(summed["threshold"]) == trigger.target_rows


def test_an_option_that_is_not_the_services_is_found(capsys: pytest.CaptureFixture[str]) -> None:
    wrong = {"name": "denoiser", "args": ["--lissten=0.0.0.0:50052"]}
    with pytest.raises(SystemExit):
        settings_of(wrong, [])
    assert "lissten" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "value"), [("pollinginterval", 5), ("pollingInterval", "often"), ("triggers", None)]
)
def test_a_field_that_keda_does_not_take_is_found(name: str, value: object) -> None:
    spec = {"scaleTargetRef": {"name": "denoiser"}, "triggers": [{"type": "external", "metadata": {}}]}
    right = {"apiVersion": "keda.sh/v1alpha1", "kind": "ScaledObject", "metadata": {}, "spec": spec}
    check_custom(right)
    with pytest.raises((AssertionError, ValidationError)):
        check_custom(right | {"spec": spec | {name: value}})
