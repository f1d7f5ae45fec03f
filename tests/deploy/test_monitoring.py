"""The dashboard and the alerts ask for metrics that there are; promtool and a real Prometheus take them."""

import asyncio
import json
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import yaml

from tests.deploy.monitoring import GPU_ALONE, names, panels, rules, watched_fleet

ALERTS = {one["alert"]: one for group in yaml.safe_load(rules())["groups"] for one in group["rules"]}
QUERIES = [query for panel in panels() for query, _ in panel.queries()]
EXPORT_ALL = """
from opentelemetry import metrics
from opentelemetry.exporter.prometheus import PrometheusMetricReader
from opentelemetry.metrics import Histogram
from opentelemetry.sdk.metrics import MeterProvider
from prometheus_client import REGISTRY, generate_latest
from triptych.telemetry import instruments

for collector in list(REGISTRY._collector_to_names):
    REGISTRY.unregister(collector)
metrics.set_meter_provider(MeterProvider([PrometheusMetricReader()]))
owner = instruments.Level(max)
for each in list(vars(instruments).values()):
    if isinstance(each, instruments.Level):
        each.watch(owner, lambda _: 1.0, {})
    elif isinstance(each, Histogram):
        each.record(1)
    elif isinstance(each, instruments.Count):
        each.add(1)
print(generate_latest().decode())
"""
"""Prints every metric of triptych.telemetry as Prometheus reads it."""


@pytest.fixture(scope="module")
def exported() -> set[str]:
    made = subprocess.run(
        [sys.executable, "-c", EXPORT_ALL], capture_output=True, text=True, check=True, timeout=120
    )
    return set(re.findall(r"^(\w+)[ {]", made.stdout, re.MULTILINE))


@pytest.mark.parametrize("expression", [*QUERIES, *(one["expr"] for one in ALERTS.values())])
def test_a_query_asks_for_metrics_and_labels_that_there_are(expression: str, exported: set[str]) -> None:
    from triptych.telemetry import instruments

    assert names(expression)
    assert names(expression) <= exported
    known = {value.replace(".", "_") for value in vars(instruments).values() if isinstance(value, str)}
    known |= {"le", "instance", "triptych_model_fingerprint"}
    asked = re.findall(r"(\w+)(?:=~?|!=)\"", expression)
    grouped = [word for inside in re.findall(r"by \(([^)]*)\)", expression) for word in inside.split(", ")]
    assert {*asked, *grouped} <= known


def test_the_dashboard_has_everything_grafana_needs_of_a_panel() -> None:
    dashboard = json.loads((Path(__file__).parents[2] / "deploy/monitoring/dashboard.json").read_text())
    numbers = [one["id"] for one in dashboard["panels"]]
    assert len(set(numbers)) == len(numbers)
    cells = set()
    for panel in panels():
        place = panel.said["gridPos"]
        covered = {
            (place["x"] + right, place["y"] + down)
            for right in range(place["w"])
            for down in range(place["h"])
        }
        assert not covered & cells, f"{panel.title} covers another panel"
        cells |= covered
        assert all(0 <= x < 24 for x, _ in covered)
        assert panel.said["description"].endswith(".")
        assert panel.said["datasource"]["uid"] == "${datasource}"


@dataclass(frozen=True)
class Case:
    """Series, a value a minute, of which an alert fires, and such of which it does not."""

    fires: Sequence[str]
    quiet: Sequence[str]


def generate(status: str, values: str) -> str:
    method = "triptych.v1.ImageGenerationService/Generate"
    return (
        f'rpc_server_call_duration_seconds_count{{rpc_method="{method}",rpc_response_status_code="{status}"}}'
        f" {values}"
    )


def stage(metric: str, labels: str, values: str) -> str:
    return f'triptych_stage_{metric}{{triptych_stage="denoiser"{labels}}} {values}'


def model(instance: str, fingerprint: str) -> str:
    labels = f'triptych_stage="denoiser",instance="{instance}",triptych_model_fingerprint="{fingerprint}"'
    return f"triptych_model_info{{{labels}}} 1x200"


READY = ',triptych_state="ready"'
WIRE, COMPUTE = ',triptych_part="wire"', ',triptych_part="compute"'
HTTP = "http_server_request_duration_seconds_count"
CASES = {
    "TriptychStageGone": Case(
        [stage("rows_outstanding", "", "8x200"), stage("replicas", READY, "0x200")],
        [stage("rows_outstanding", "", "0x200"), stage("replicas", READY, "0x200")],  # scaled to zero
    ),
    "TriptychRequestsFail": Case(
        [generate("OK", "0+60x200"), generate("UNAVAILABLE", "0+3x200")],
        [generate("OK", "0+60x200"), generate("INVALID_ARGUMENT", "0+60x200")],
    ),
    "TriptychGatewayFails": Case(
        [f'{HTTP}{{http_response_status_code="{code}"}} 0+30x200' for code in (200, 503)],
        [f'{HTTP}{{http_response_status_code="{code}"}} 0+30x200' for code in (200, 400)],
    ),
    "TriptychDeadlinesMissed": Case(
        [generate("OK", "0+60x200"), generate("DEADLINE_EXCEEDED", "0+6x200")],
        [generate("OK", "0+60x200"), generate("DEADLINE_EXCEEDED", "0+1x200")],
    ),
    "TriptychRequestsRefused": Case(
        ['triptych_refusals_total{triptych_reason="busy",rpc_method="Generate"} 0+1x200'],
        ['triptych_refusals_total{triptych_reason="invalid_argument",rpc_method="Generate"} 0+1x200'],
    ),
    "TriptychRequestsWait": Case(
        ['triptych_queue_age_seconds{triptych_queue_name="requests"} 0+2x200'],
        ['triptych_queue_age_seconds{triptych_queue_name="requests"} 30x200'],
    ),
    "TriptychDenoisersTooFew": Case(
        ['triptych_queue_age_seconds{triptych_queue_name="rows"} 2x200'],
        ['triptych_queue_age_seconds{triptych_queue_name="rows"} 2 0.1x200'],
    ),
    "TriptychReplicasEjected": Case(
        [stage("ejections_total", "", "0+1x200")], [stage("ejections_total", "", "0 1 2 3x200")]
    ),
    "TriptychModelsMixed": Case([model("a", "1"), model("b", "2")], [model("a", "1"), model("b", "1")]),
    "TriptychWireSlow": Case(
        [stage("call_time_seconds_total", part, "0+10x200") for part in (WIRE, COMPUTE)],
        [
            stage("call_time_seconds_total", WIRE, "0+1x200"),
            stage("call_time_seconds_total", COMPUTE, "0+9x200"),
        ],
    ),
    "TriptychDeviceMemoryShort": Case(
        ["triptych_device_memory_usage_bytes{} 79e9x200", "triptych_device_memory_limit_bytes{} 80e9x200"],
        ["triptych_device_memory_usage_bytes{} 60e9x200", "triptych_device_memory_limit_bytes{} 80e9x200"],
    ),
}


@pytest.fixture
def rules_file(tmp_path: Path) -> Path:
    file = tmp_path / "triptych.yaml"
    file.write_text(rules())
    return file


def promtool(*words: str | Path) -> str:
    """What it says of what is right."""
    command = shutil.which("promtool")
    if command is None:
        pytest.skip("promtool, which checks alert rules, is not installed (Debian: prometheus)")
    made = subprocess.run([command, *words], capture_output=True, text=True, timeout=120)
    assert made.returncode == 0, made.stdout + made.stderr
    return made.stdout


def test_promtool_takes_the_rules(rules_file: Path) -> None:
    assert f"SUCCESS: {len(ALERTS)} rules found" in promtool("check", "rules", rules_file)


def firing(name: str, series: Sequence[str], samples: Sequence[dict[str, object]]) -> dict[str, object]:
    """A test as promtool reads it."""
    return {
        "interval": "1m",
        "input_series": [
            {"series": name + brace, "values": values}
            for name, brace, values in (one.partition("} ") for one in series)
        ],
        "promql_expr_test": [
            {
                "expr": f'count by (alertname) (ALERTS{{alertname="{name}", alertstate="firing"}})',
                "eval_time": "100m",
                "exp_samples": samples,
            }
        ],
    }


def test_every_alert_fires_when_it_should_and_only_then(rules_file: Path) -> None:
    assert CASES.keys() == ALERTS.keys()
    tests = []
    for name, case in CASES.items():
        fired = [{"labels": f'{{alertname="{name}"}}', "value": 1}]
        tests += [firing(name, case.fires, fired), firing(name, case.quiet, [])]
    file = rules_file.with_name("tests.yaml")
    file.write_text(yaml.safe_dump({"rule_files": [rules_file.name], "tests": tests}))
    promtool("test", "rules", file)


async def test_every_query_of_every_panel_has_data_under_load(tmp_path: Path, tiny_checkpoint: Path) -> None:
    if shutil.which("prometheus") is None:
        pytest.skip("Prometheus, which the dashboard asks, is not installed (Debian: prometheus)")
    without = set() if torch.cuda.is_available() else GPU_ALONE
    lacking = {query for query in QUERIES if not names(query) <= without}
    with watched_fleet(tmp_path, tiny_checkpoint) as watched:
        async with watched.under_load(3):
            until = time.monotonic() + 600
            while lacking := {query for query in lacking if not watched.prometheus.has(query)}:
                assert time.monotonic() < until, lacking
                await watched.lose_a_denoiser()  # until a call was lost
                await asyncio.sleep(1)
                watched.prometheus.reads(watched.up)
        (group,) = watched.prometheus.ask("rules")["groups"]
    assert {one["name"]: one["lastError"] for one in group["rules"] if "lastError" in one} == {}
    assert {one["health"] for one in group["rules"]} == {"ok"}
