"""Dashboard and alerts, checked by Prometheus' own tools and tried on the metrics of a real worker."""

import asyncio
import json
import os
import re
import shutil
import socket
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.integration.test_worker import MANIFEST, PARTITIONS, telemetry
from tests.integration.workers import WorkerProcess, publish, running
from tidegate.streams.kafka.topics import topics
from tidegate.streams.settings import load_settings
from tidegate.streams.simulation.embedded_broker import embedded_broker

ROOT = Path(__file__).parents[2]
ALERTS = ROOT / "deploy" / "prometheus" / "alerts.yml"
DASHBOARD: dict[str, Any] = json.loads((ROOT / "deploy" / "grafana" / "tidegate.json").read_text())
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
RULES: dict[str, str] = {
    rule["alert"]: rule["expr"] for group in yaml.safe_load(ALERTS.read_text())["groups"] for rule in group["rules"]
}
SHOWN = {f"{panel['title']} {target['refId']}": target["expr"] for panel in PANELS for target in panel["targets"]}
METRIC = re.compile(r"\b(?:tidegate|process)_\w+(?:\{([^}]*)\})?")
SECONDS = 180
"""How long a worker and Prometheus have to show all; a busy machine makes it slow, and not another story."""


def tool(name: str) -> str:
    """One of Prometheus' programs, or the test is left out; not under CI, which has them."""
    found = shutil.which(name)
    if found is None:
        if os.environ.get("CI"):
            pytest.fail(f"{name} is not there: apt-get install prometheus")
        pytest.skip(f"{name} is not there: apt-get install prometheus")
    return found


def filled(expression: str) -> str:
    """A panel's expression as Grafana sends it, with everything chosen."""
    for name, value in {"$__rate_interval": "1m", "$flag": ".*", "$region": ".*", "$gate": ".*"}.items():
        expression = expression.replace(name, value)
    assert "$" not in expression
    return expression


@pytest.mark.parametrize("path", ["deploy/prometheus/alerts.yml", "deploy/prometheus/prometheus.yml"])
def test_promtool_finds_nothing_wrong(path: str) -> None:
    kind = "config" if path.endswith("prometheus.yml") else "rules"
    done = subprocess.run([tool("promtool"), "check", kind, str(ROOT / path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(RULES)} rules found" in done.stdout


def test_alerts_fire_when_they_should_and_not_when_they_should_not() -> None:
    tests = Path(__file__).with_name("alerts_test.yml")
    done = subprocess.run([tool("promtool"), "test", "rules", str(tests)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_alert_is_seen_to_fire() -> None:
    tests = Path(__file__).with_name("alerts_test.yml").read_text()
    assert set(re.findall(r'alertname="(\w+)"', tests)) == RULES.keys()


def test_each_panel_has_a_title_a_place_and_a_data_source_of_its_own_choice() -> None:
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])
    assert all(panel["title"] and panel["targets"] for panel in PANELS)
    sources = [*PANELS, *(target for panel in PANELS for target in panel["targets"])]
    assert {one["datasource"]["uid"] for one in sources} == {"${datasource}"}
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not cells & taken
        assert at["x"] + at["w"] <= 24
        taken |= cells


def free_port() -> int:
    """A port of this machine that nobody has."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port


class Prometheus:
    """A Prometheus that scrapes one worker each second."""

    def __init__(self, folder: Path, worker: str) -> None:
        self.address = f"127.0.0.1:{free_port()}"
        config = {
            "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
            "rule_files": [str(ALERTS)],
            "scrape_configs": [{"job_name": "tidegate", "static_configs": [{"targets": [worker]}]}],
        }
        (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
        self._log = (folder / "prometheus.log").open("wb")
        self._process = subprocess.Popen(
            [
                tool("prometheus"),
                f"--config.file={folder / 'prometheus.yml'}",
                f"--storage.tsdb.path={folder / 'data'}",
                f"--web.listen-address={self.address}",
            ],
            stdout=self._log,
            stderr=self._log,
        )

    def ask(self, path: str, **what: str) -> Any:
        """An answer of its API. Raises OSError where it does not answer, or says that the question is wrong."""
        query = urllib.parse.urlencode(what)
        with urllib.request.urlopen(f"http://{self.address}/api/v1/{path}?{query}", timeout=10) as page:
            return json.load(page)["data"]

    def query(self, expression: str) -> list[Any]:
        """What an expression gives now."""
        found: list[Any] = self.ask("query", query=expression)["result"]
        return found

    def stop(self) -> None:
        """End it."""
        self._process.terminate()
        self._process.wait(30)
        self._log.close()


@pytest.fixture(scope="module")
def prometheus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """A Prometheus that has scraped a real worker which has read, decided, and left events out."""
    folder = tmp_path_factory.mktemp("prometheus")
    manifest = folder / "flags.yml"
    # With evidence that has to exclude something.
    manifest.write_text(MANIFEST.replace("evidence: point, ", ""))
    shaped = load_settings(broker="b:1", gate_partitions=2, partitions=PARTITIONS)
    with embedded_broker({topic.name: topic.partitions for topic in topics(shaped)}) as servers:
        settings = shaped.model_copy(update={"broker": servers})
        quick = {"TIDEGATE_SESSION_TIMEOUT": "3s", "TIDEGATE_HEARTBEAT": "500ms", "TIDEGATE_INSTANCE_ID": ""}
        worker = WorkerProcess(settings, manifest, "worker", folder, environment=quick)
        with running(worker):
            address = str(worker.logged("serving")[-1]["address"]).removeprefix("http://")
            served = Prometheus(folder, address)
            try:
                _wait(lambda: served.query("tidegate_build_info"))
                # Counters have to be seen before they count.
                records = [*telemetry(30_000, 5)]
                asyncio.run(publish(settings, [*records, (0, _elsewhere(records))]))
                _wait(lambda: served.query("tidegate_gate_bound and tidegate_gate_rule_out"))
                _wait(lambda: served.query("rate(tidegate_events_accepted_total[1m]) > 0"))
                _wait(lambda: served.query("tidegate_events_out_of_scope_total"))
                yield served
            finally:
                served.stop()


def _elsewhere(records: list[tuple[int, bytes]]) -> bytes:
    """An event of a region that its flag does not name."""
    requests = [value for _, value in records if b'"answer"' in value and b'"event_id"' in value]
    return json.dumps(json.loads(requests[-1]) | {"event_id": "elsewhere", "region": "elsewhere"}).encode()


def _wait(condition: Any) -> None:
    give_up = time.monotonic() + SECONDS
    while True:
        try:
            if condition():
                return
        except OSError:
            pass
        assert time.monotonic() < give_up, "a worker and Prometheus did not show everything in time"
        time.sleep(0.2)


@pytest.mark.parametrize("name", SHOWN)
def test_each_panel_shows_something_of_a_real_worker(name: str, prometheus: Prometheus) -> None:
    """Twice scraped, so that rates are there too."""
    _wait(lambda: prometheus.query(filled(SHOWN[name])))


@pytest.mark.parametrize("name", RULES)
def test_each_alert_rests_on_metrics_and_labels_that_a_real_worker_has(name: str, prometheus: Prometheus) -> None:
    """The expression itself gives nothing where nothing is wrong."""
    expression = RULES[name]
    prometheus.query(expression)
    labels: set[str] = set()
    for selector in METRIC.finditer(expression):
        metric, _, _ = selector[0].partition("{")
        if metric == "tidegate_records_lost_total":
            metric = "tidegate_records_total"  # Nothing was lost here.
            labels.add("topic")
        series = prometheus.query(metric)
        assert series, metric
        named = {label for one in series for label in one["metric"]}
        assert set(re.findall(r"(\w+)\s*=", selector[1] or "")) <= named
        labels |= named
    grouped = re.findall(r"\b(?:by|on) \(([^)]*)\)", expression)
    assert {label.strip() for group in grouped for label in group.split(",")} <= labels


def test_prometheus_itself_takes_the_alerts(prometheus: Prometheus) -> None:
    """As rules that it evaluates without an error."""
    _wait(lambda: all(rule["lastEvaluation"] > "2" for rule in _rules(prometheus)))
    assert {rule["name"]: rule["health"] for rule in _rules(prometheus)} == dict.fromkeys(RULES, "ok")


def _rules(prometheus: Prometheus) -> list[dict[str, Any]]:
    return [rule for group in prometheus.ask("rules")["groups"] for rule in group["rules"]]
