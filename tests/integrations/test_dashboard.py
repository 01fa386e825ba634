"""The dashboard and the alert rules are what their script writes, and every query asks for something that exists.

Prometheus and promtool are no Python packages: what needs them is skipped, saying so, where they are not installed
(on Debian: apt install prometheus). The same queries are always parsed, and compared with what the example emits.
"""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import httpx
import pytest

ROOT = Path(__file__).parents[2]
GRAFANA = ROOT / "integrations" / "grafana"
WAIT_S = 60.0

yaml = pytest.importorskip("yaml")
promql = pytest.importorskip("promql_parser")
pytest.importorskip("grafana_foundation_sdk")
parser = pytest.importorskip("prometheus_client.parser")
pytest.importorskip("opentelemetry.exporter.prometheus")


def _script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("build_dashboard", ROOT / "scripts" / "build_dashboard.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # its dataclasses look themselves up
    spec.loader.exec_module(module)
    return module


build = _script()
DASHBOARD: dict[str, Any] = json.loads((GRAFANA / "lava.json").read_text())
RULES: list[dict[str, Any]] = [
    rule for group in yaml.safe_load((GRAFANA / "alerts.yaml").read_text())["groups"] for rule in group["rules"]
]
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
QUERIES = {f"{panel['title']} {one['refId']}": one["expr"] for panel in PANELS for one in panel["targets"]}
ALERTS = {alert.name: alert for alerts in build.ALERTS_OF.values() for alert in alerts}


def asked(query: str, *, rate: str = "1m", span: str = "1h") -> str:
    """As Grafana sends it, with everything chosen."""
    query = query.replace("$__rate_interval", rate).replace("$__range", span)
    return re.sub(r"\$(job|provider|model)\b", ".*", query)


EXPRESSIONS = {name: asked(query) for name, query in QUERIES.items()} | {rule["alert"]: rule["expr"] for rule in RULES}


def tool(name: str) -> str:
    return shutil.which(name) or pytest.skip(f"{name} is not installed (on Debian: apt install prometheus)")


# What is written -----------------------------------------------------------------------------------------------------


def test_what_is_committed_is_what_the_script_writes() -> None:
    assert (GRAFANA / "lava.json").read_text() == build.build_dashboard()
    assert (GRAFANA / "alerts.yaml").read_text() == build.build_alerts()


def test_the_dashboard_can_be_taken_to_any_grafana() -> None:
    """No data source of somebody's, a uid that stays, and three questions."""
    assert DASHBOARD["uid"] == "lava-middleware"
    assert DASHBOARD["refresh"] == "30s"
    assert [panel["title"] for panel in DASHBOARD["panels"] if panel["type"] == "row"] == ["Money", "Gate", "Health"]
    assert {panel["datasource"]["uid"] for panel in PANELS} == {"${datasource}"}
    assert {one["datasource"]["uid"] for panel in PANELS for one in panel["targets"]} == {"${datasource}"}
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])
    assert all(panel["description"] and panel["fieldConfig"]["defaults"]["unit"] for panel in PANELS)


def test_panels_do_not_overlap() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not cells & taken, panel["title"]
        assert at["x"] + at["w"] <= 24
        taken |= cells


def test_nothing_asks_for_a_customer() -> None:
    """No series has such a label."""
    assert "customer_id" not in (GRAFANA / "lava.json").read_text() + (GRAFANA / "alerts.yaml").read_text()


# What is asked -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", EXPRESSIONS)
def test_every_expression_is_promql(name: str) -> None:
    promql.parse(EXPRESSIONS[name])


def selected(node: Any) -> Iterator[Any]:
    """All selectors of series in an expression."""
    if isinstance(node, promql.VectorSelector):
        yield node
    for inside in ("expr", "lhs", "rhs", "vector_selector", "args", "param"):
        found = getattr(node, inside, None)
        for one in found if isinstance(found, list) else [found]:
            if one is not None and not isinstance(one, str | float | int):
                yield from selected(one)


def grouped(node: Any) -> Iterator[str]:
    """All labels that something is summed by."""
    modifier = getattr(node, "modifier", None)
    if isinstance(node, promql.AggregateExpr) and modifier is not None:
        yield from modifier.labels
    for inside in ("expr", "lhs", "rhs", "args", "param"):
        found = getattr(node, inside, None)
        for one in found if isinstance(found, list) else [found]:
            if one is not None and not isinstance(one, str | float | int):
                yield from grouped(one)


def wanted() -> set[tuple[str, str]]:
    """(series, label) of everything that some expression asks for."""
    found: set[tuple[str, str]] = set()
    for expression in EXPRESSIONS.values():
        tree = promql.parse(expression)
        series = list(selected(tree))
        assert series, expression
        found |= {(one.name, matcher.name) for one in series for matcher in one.matchers.matchers}
        found |= {(one.name, label) for one in series for label in grouped(tree)}
    return found


def emitted(url: str) -> set[tuple[str, str]]:
    """(series, label) of everything that an application shows; an empty label is none in Prometheus."""
    families = parser.text_string_to_metric_families(httpx.get(url).text)
    samples = [one for family in families for one in family.samples]
    return {(one.name, label) for one in samples for label, value in one.labels.items()} | {
        (one.name, "job") for one in samples
    }


# The example ---------------------------------------------------------------------------------------------------------


def eventually(condition: Callable[[], Any], what: Callable[[], object] = lambda: "") -> None:
    """Wait for what other processes do."""
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline, f"it did not come true in time: {what()}"
        time.sleep(0.2)


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


@contextmanager
def running(*command: object, stop: signal.Signals, cwd: Path) -> Iterator[None]:
    with subprocess.Popen(
        [str(one) for one in command], cwd=cwd, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        try:
            yield
        finally:
            process.send_signal(stop)
            process.wait(20)


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """(the address of its metrics, its ledger): the example application with its customers."""
    directory = tmp_path_factory.mktemp("grafana")
    ports, ledger = (free_port(), free_port()), directory / "lava.db"
    command = [sys.executable, GRAFANA / "example.py", "--port", ports[0], "--metrics-port", ports[1]]
    command += ["--calls-a-second", 60, "--ledger", f"sqlite:///{ledger}"]
    with running(*command, stop=signal.SIGINT, cwd=directory):
        url = f"http://127.0.0.1:{ports[1]}/metrics"
        eventually(lambda: _answers(url))
        yield url, ledger


def _answers(url: str) -> bool:
    try:
        return httpx.get(url).status_code == 200
    except httpx.HTTPError:
        return False


def test_every_series_and_label_that_is_asked_for_exists(example: tuple[str, Path]) -> None:
    """A name that was changed in the code and not here would be a panel without data."""
    url, _ = example
    eventually(lambda: wanted() <= emitted(url), lambda: sorted(wanted() - emitted(url)))


# With Prometheus -----------------------------------------------------------------------------------------------------


def test_promtool_takes_the_alert_rules_and_every_query(tmp_path: Path) -> None:
    """The queries as recording rules."""
    promtool = tool("promtool")
    subprocess.run([promtool, "check", "rules", GRAFANA / "alerts.yaml"], check=True, capture_output=True)
    rules = [{"record": f"panel:{number}", "expr": expr} for number, expr in enumerate(map(asked, QUERIES.values()))]
    file = tmp_path / "panels.yaml"
    file.write_text(json.dumps({"groups": [{"name": "panels", "rules": rules}]}))
    checked = subprocess.run([promtool, "check", "rules", file], capture_output=True, text=True)
    assert checked.returncode == 0, checked.stderr
    assert f"{len(QUERIES)} rules found" in checked.stdout


@contextmanager
def prometheus(target: str, directory: Path) -> Iterator[str]:
    """A real one that looks at this target each second."""
    program, port = tool("prometheus"), free_port()
    scrape = {"job_name": "example", "static_configs": [{"targets": [target]}]}
    (directory / "prometheus.yml").write_text(
        json.dumps({"global": {"scrape_interval": "1s"}, "scrape_configs": [scrape]})
    )
    command = [program, "--config.file=prometheus.yml", f"--web.listen-address=127.0.0.1:{port}"]
    with running(*command, "--storage.tsdb.path=data", stop=signal.SIGTERM, cwd=directory):
        url = f"http://127.0.0.1:{port}"
        eventually(lambda: _answers(f"{url}/-/ready"))
        yield url


def test_every_query_and_every_alert_has_data_in_a_real_prometheus(example: tuple[str, Path], tmp_path: Path) -> None:
    """Fed by the example. The ledger is away for a moment: another process holds its lock."""
    metrics, ledger = example
    queries = {name: asked(query, rate="10s", span="30s") for name, query in QUERIES.items()}
    queries |= {name: alert.value for name, alert in ALERTS.items()}
    with prometheus(metrics.removeprefix("http://").removesuffix("/metrics"), tmp_path) as url:
        silent = set(queries)

        def heard() -> bool:
            for name in sorted(silent):
                answer = httpx.get(f"{url}/api/v1/query", params={"query": queries[name]}).json()
                assert answer["status"] == "success", (name, answer)
                if any(value != "NaN" for _, value in (one["value"] for one in answer["data"]["result"])):
                    silent.discard(name)
            return not silent

        with _locked(ledger):
            unavailable = build.ALERTS_OF["lava-gate"][0].value
            eventually(lambda: "ledger_unavailable" in httpx.get(metrics).text, lambda: "the ledger was not missed")
        assert unavailable in queries.values()
        eventually(heard, lambda: sorted(silent))


@contextmanager
def _locked(ledger: Path) -> Iterator[None]:
    lock = "import sqlite3,sys; c=sqlite3.connect(sys.argv[1],isolation_level=None); c.execute('BEGIN IMMEDIATE');"
    hold = [sys.executable, "-c", f"{lock} print(flush=True); sys.stdin.read()", str(ledger)]
    with subprocess.Popen(hold, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdin is not None
        holder.stdout.readline()
        yield
        holder.stdin.close()


STEADY, GROWING = "0+1x120", "0+100x120"
NEVER, ONCE_BEFORE, JUST_NOW = "0x120", "1x120", "_x88 1x32"
HELD, DENIED = f'{build.DECISION}="held"', f'{build.DECISION}="denied"'


def _decisions(reason: str, values: str) -> dict[str, str]:
    return {f'{build.DECISIONS}{{job="app", {DENIED}, {build.REASON}="{reason}"}}': values}


def _of(metric: str, values: str, more: str = "") -> dict[str, str]:
    return {f'{metric}{{job="app"{more}}}': values}


CASES: dict[str, tuple[dict[str, str], dict[str, str]]] = {
    # alert → (series by the minute under which it fires after 90 minutes, series under which it keeps quiet)
    "LavaSoldBelowCost": (
        _of(build.CHARGED, STEADY) | _of(build.COST, GROWING),
        _of(build.CHARGED, GROWING) | _of(build.COST, STEADY),
    ),
    "LavaOverrun": (
        _of(build.OVERRUN, "0+10x120") | _of(build.CHARGED, GROWING),
        _of(build.OVERRUN, STEADY) | _of(build.CHARGED, GROWING),
    ),
    "LavaDebt": (
        _of(build.DEBT, "0+10x120") | _of(build.CHARGED, GROWING),
        _of(build.DEBT, STEADY) | _of(build.CHARGED, "0+1000x120"),
    ),
    "LavaLedgerUnavailable": (
        _decisions("ledger_unavailable", JUST_NOW),
        _decisions("ledger_unavailable", ONCE_BEFORE) | _decisions("limit_reached", GROWING),
    ),
    "LavaWithoutHold": (
        _of(build.DECISIONS, JUST_NOW, f', {build.DECISION}="open"'),
        _of(build.DECISIONS, GROWING, f", {HELD}"),
    ),
    "LavaUnmetered": (
        _of(build.UNMETERED, STEADY, f', {build.REASON}="unmetered:endpoint_unmetered:images"'),
        _of(build.UNMETERED, GROWING, f', {build.REASON}="unbilled"'),
    ),
    "LavaPriceUnknown": (_decisions("price_unknown", JUST_NOW), _decisions("price_unknown", ONCE_BEFORE)),
    "LavaNobodyBound": (_decisions("customer_unknown", STEADY), _decisions("customer_unknown", NEVER)),
    "LavaMostCallsRefused": (
        _decisions("insufficient_credit", GROWING) | _of(build.DECISIONS, STEADY, f", {HELD}"),
        _decisions("insufficient_credit", STEADY) | _of(build.DECISIONS, GROWING, f", {HELD}"),
    ),
    "LavaGateSlow": (
        _of(f"{build.GATE_TIME}_sum", STEADY, f", {HELD}") | _of(f"{build.GATE_TIME}_count", STEADY, f", {HELD}"),
        _of(f"{build.GATE_TIME}_sum", STEADY, f", {HELD}") | _of(f"{build.GATE_TIME}_count", GROWING, f", {HELD}"),
    ),
    "LavaRecordsRefused": (_of(build.DEAD, JUST_NOW), _of(build.DEAD, ONCE_BEFORE)),
    "LavaExportBehind": (
        _of(build.OLDEST, "600x120", f', {build.FOLLOWER}="jsonl"'),
        _of(build.OLDEST, "5x120", f', {build.FOLLOWER}="jsonl"'),
    ),
    "LavaNotReported": (
        _of(build.ESTIMATED, "0+50x120") | _of(build.RECORDS, GROWING),
        _of(build.ESTIMATED, STEADY) | _of(build.RECORDS, GROWING),
    ),
    "LavaRecordsLate": (
        _of(f"{build.LAG}_sum", GROWING) | _of(f"{build.LAG}_count", STEADY),
        _of(f"{build.LAG}_sum", STEADY) | _of(f"{build.LAG}_count", STEADY),
    ),
}


def test_every_alert_fires_when_it_should_and_only_then(tmp_path: Path) -> None:
    """What happens for the first time makes its series: that must be seen, too."""
    assert set(CASES) == {rule["alert"] for rule in RULES}
    tests = [
        {
            "name": f"{name} {'fires' if fires else 'keeps quiet'}",
            "interval": "1m",
            "input_series": [{"series": series, "values": values} for series, values in given.items()],
            "alert_rule_test": [{"eval_time": "90m", "alertname": name, "exp_alerts": _expected(name, fires, given)}],
        }
        for name, cases in CASES.items()
        for fires, given in zip((True, False), cases, strict=True)
    ]
    file = tmp_path / "alerts_test.yaml"
    file.write_text(
        json.dumps({"rule_files": [str(GRAFANA / "alerts.yaml")], "evaluation_interval": "5m", "tests": tests})
    )
    ran = subprocess.run([tool("promtool"), "test", "rules", file], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout + ran.stderr


def _expected(name: str, fires: bool, given: dict[str, str]) -> list[dict[str, Any]]:
    if not fires:
        return []
    (rule,) = [one for one in RULES if one["alert"] == name]
    annotations = {key: text.replace("{{ $labels.job }}", "app") for key, text in rule["annotations"].items()}
    labels = {"job": "app", **rule["labels"]}
    if name == "LavaExportBehind":
        labels[build.FOLLOWER] = "jsonl"
    return [{"exp_labels": labels, "exp_annotations": annotations}]
