"""This file knows how to draw panels.png: the panels of lava.json with what a real Prometheus has for each.

    pip install matplotlib && apt install prometheus && python picture.py

Ports 8000, 9091 and 9464 must be free. It starts the example and a Prometheus that reads it, waits (--minutes), asks
each panel's queries and draws the answers where the dashboard has them. Grafana draws them more beautifully; the
figures are the same.
"""

import argparse
import json
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx
import matplotlib

matplotlib.use("agg")
import matplotlib.dates as dates
import matplotlib.pyplot as plt

HERE = Path(__file__).parent
STEP_S = 5
METRICS, PROMETHEUS = 9464, 9091
UNITS = {"percentunit": (100, "%"), "s": (1000, " ms"), "reqps": (1, "/s"), "short": (1, "")}
"""Grafana's unit → (factor, what to write behind). One that is missing is written as it is."""


def collect(seconds: float) -> dict[str, list[tuple[str, list[tuple[float, float]]]]]:
    """Panel → (legend, [(time, value), ...]) of each of its curves; of a figure the value at the end alone."""
    with ExitStack() as running:
        directory = Path(running.enter_context(tempfile.TemporaryDirectory()))
        config = {
            "global": {"scrape_interval": f"{STEP_S}s"},
            "scrape_configs": [{"job_name": "shop", "static_configs": [{"targets": [f"127.0.0.1:{METRICS}"]}]}],
        }
        (directory / "prometheus.yml").write_text(json.dumps(config))
        program = shutil.which("prometheus") or sys.exit(
            "Prometheus is not installed (on Debian: apt install prometheus)"
        )
        example = subprocess.Popen([sys.executable, HERE / "example.py"], cwd=directory, stderr=subprocess.DEVNULL)
        running.callback(lambda: (example.send_signal(signal.SIGINT), example.wait(20)))
        command = [program, "--config.file=prometheus.yml", f"--web.listen-address=127.0.0.1:{PROMETHEUS}"]
        server = subprocess.Popen([*command, "--storage.tsdb.path=data"], cwd=directory, stderr=subprocess.DEVNULL)
        running.callback(lambda: (server.terminate(), server.wait(20)))
        began = time.time()
        time.sleep(seconds)
        return {title: _asked(targets, began + 20, time.time()) for title, targets in _targets()}


def _panels() -> list[dict[str, Any]]:
    panels: list[dict[str, Any]] = json.loads((HERE / "lava.json").read_text())["panels"]
    return panels


def _targets() -> list[tuple[str, list[dict[str, Any]]]]:
    return [(panel["title"], panel["targets"]) for panel in _panels() if panel["type"] != "row"]


def _asked(targets: list[dict[str, Any]], start: float, end: float) -> list[tuple[str, list[tuple[float, float]]]]:
    curves = []
    for target in targets:
        query = re.sub(r"\$(job|provider|model)\b", ".*", target["expr"])
        query = query.replace("$__rate_interval", "30s").replace("$__range", f"{round(end - start)}s")
        asked: dict[str, Any] = {"query": query, "start": start, "end": end, "step": STEP_S}
        kind = "query_range"
        if target.get("instant"):
            kind, asked = "query", {"query": query, "time": end}
        answer = httpx.get(f"http://127.0.0.1:{PROMETHEUS}/api/v1/{kind}", params=asked).json()
        for one in answer["data"]["result"]:
            legend = _named(target["legendFormat"], one["metric"])
            values = one["values"] if "values" in one else [one["value"]]
            curves.append((legend.strip() or "(none)", [(at, float(value)) for at, value in values]))
    return curves


def _named(legend: str, labels: dict[str, str]) -> str:
    return re.sub(r"\{\{(\w+)\}\}", lambda label: labels.get(label[1], ""), legend)


def draw(data: dict[str, list[tuple[str, list[tuple[float, float]]]]], to: Path) -> None:
    panels = _panels()
    height = max(panel["gridPos"]["y"] + panel["gridPos"]["h"] for panel in panels)
    plt.rcParams.update(
        {"font.size": 7, "axes.edgecolor": "#b8b8b8", "axes.spines.top": False, "axes.spines.right": False}
    )
    figure = plt.figure(figsize=(14, height * 0.26), facecolor="white")
    for panel in panels:
        at = panel["gridPos"]
        bottom = 1 - (at["y"] + at["h"]) / height
        if panel["type"] == "row":
            figure.text(0.012, bottom + 0.2 / height, panel["title"], fontsize=12, weight="bold")
            continue
        flat = panel["type"] == "stat"
        pad = (0.006, 0.4 / height, 0.012, 0.8 / height) if flat else (0.03, 2.1 / height, 0.04, 3.3 / height)
        box = (at["x"] / 24 + pad[0], bottom + pad[1], at["w"] / 24 - pad[2], at["h"] / height - pad[3])
        axes = figure.add_axes(box)
        (_figure if flat else _curves)(axes, panel, data[panel["title"]])
    figure.savefig(to, dpi=80, metadata={"Software": None})


def _unit(panel: dict[str, Any]) -> tuple[float, str]:
    unit = panel["fieldConfig"]["defaults"]["unit"]
    return UNITS.get(unit, (1, " " + unit.removeprefix("suffix:").strip()))


def _figure(axes: Any, panel: dict[str, Any], curves: list[tuple[str, list[tuple[float, float]]]]) -> None:
    factor, unit = _unit(panel)
    value = curves[0][1][-1][1] * factor
    steps = panel["fieldConfig"]["defaults"]["thresholds"]["steps"]
    color = [step["color"] for step in steps if step["value"] is None or curves[0][1][-1][1] >= step["value"]][-1]
    color = "#222222" if len(steps) == 1 else {"red": "#c4162a", "orange": "#e0752d", "green": "#37872d"}[color]
    shown = f"{value:,.0f}" if unit == "" else f"{value:,.4f}" if 0 < abs(value) < 0.1 else f"{value:,.2f}"
    axes.set_xticks([])
    axes.set_yticks([])
    axes.set_facecolor("#f7f7f8")
    axes.text(0.04, 0.78, panel["title"], transform=axes.transAxes, fontsize=8, color="#555555")
    axes.text(0.5, 0.3, shown + unit, transform=axes.transAxes, fontsize=15, ha="center", color=color)


def _curves(axes: Any, panel: dict[str, Any], curves: list[tuple[str, list[tuple[float, float]]]]) -> None:
    factor, unit = _unit(panel)
    stacked = panel["fieldConfig"]["defaults"]["custom"].get("stacking", {}).get("mode") == "normal"
    axes.set_title(f"{panel['title']}  ({unit.strip() or 'number'})", loc="left", fontsize=8, color="#555555")
    times = sorted({at for _, points in curves for at, _ in points})
    rows = [[dict(points).get(at, float("nan")) * factor for at in times] for _, points in curves]
    when = [datetime.fromtimestamp(at) for at in times]
    if stacked:
        axes.stackplot(when, [[0 if value != value else value for value in row] for row in rows], alpha=0.75)
        for number, (legend, _) in enumerate(curves):
            axes.plot([], [], color=f"C{number}", label=legend, linewidth=4)
    else:
        for (legend, _), row in zip(curves, rows, strict=True):
            axes.plot(when, row, label=legend, linewidth=1)
    axes.set_ylim(bottom=0)
    axes.xaxis.set_major_formatter(dates.DateFormatter("%H:%M"))
    axes.xaxis.set_major_locator(dates.AutoDateLocator(maxticks=5))
    axes.grid(alpha=0.25)
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.13), ncols=2, fontsize=6, frameon=False)


def main() -> None:
    parser = argparse.ArgumentParser(description="Draws panels.png.")
    parser.add_argument("--minutes", type=float, default=6)
    given = parser.parse_args()
    draw(collect(given.minutes * 60), HERE / "panels.png")


if __name__ == "__main__":
    main()
