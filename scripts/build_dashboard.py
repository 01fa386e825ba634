"""This file knows how to build integrations/grafana: the dashboard, and the alert rules beside it.

    python scripts/build_dashboard.py            write both anew
    python scripts/build_dashboard.py --check    say whether what is written is what would be

It needs what the tests need (`make test` sets it up). Names come from lava_middleware.export.names, as Prometheus shows
them: dots are underscores, counters end in _total, seconds in _seconds. Series also carry the exporter's own labels, so
every query sums. Money is counted in ten-billionths of a credit.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from grafana_foundation_sdk.builders import common, dashboard, prometheus, stat, timeseries
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import common as common_models
from grafana_foundation_sdk.models import dashboard as models

from lava_middleware.export import names
from lava_middleware.export.names import Instrument

HERE = Path(__file__).parents[1] / "integrations" / "grafana"
DASHBOARD = HERE / "lava.json"
ALERTS = HERE / "alerts.yaml"

TICKS = "1e10"
"""Of a credit."""


# What everything is called in Prometheus -----------------------------------------------------------------------------


def label(name: str) -> str:
    return name.replace(".", "_")


def counter(instrument: Instrument) -> str:
    return f"{label(instrument.name)}_total"


def gauge(instrument: Instrument) -> str:
    return label(instrument.name) + ("_seconds" if instrument.unit == "s" else "")


MODEL = label(names.GENERATION_A.request_model)
PROVIDER = label(names.GENERATION_A.provider)
METER = label(names.METER)
DECISION = label(names.GATE_DECISION)
REASON = label(names.GATE_REASON)
BASIS = label(names.USAGE_BASIS)
UNIT = label(names.UNIT)
OUTCOME = label(names.OUTCOME)
CAUSE = label(names.CAUSE)
FOLLOWER = label(names.FOLLOWER)
RESULT = label(names.RESULT)

CHARGED, COST = counter(names.CREDITS_CHARGED), counter(names.COST)
OVERRUN, DEBT = counter(names.CREDITS_OVERRUN), counter(names.CREDITS_DEBT)
USED, RECORDS, ESTIMATED = counter(names.USED), counter(names.RECORDS), counter(names.ESTIMATED)
DECISIONS, UNMETERED = counter(names.DECISIONS), counter(names.UNMETERED)
EXPORTED, DEAD = counter(names.EXPORTED), counter(names.DEAD)
PENDING, OLDEST = gauge(names.PENDING), gauge(names.OLDEST_AGE)
GATE_TIME, LAG = gauge(names.GATE_DURATION), gauge(names.SETTLEMENT_LAG)


# Queries -------------------------------------------------------------------------------------------------------------

JOB = 'job=~"$job"'
OF_CALLS = f'{JOB}, {PROVIDER}=~"$provider", {MODEL}=~"$model"'
"""Only what is counted per record names provider and model."""


def per_second(metric: str, where: str = JOB, window: str = "$__rate_interval", by: str = "") -> str:
    return f"sum{f' by ({by})' if by else ''} (rate({metric}{{{where}}}[{window}]))"


def whole(metric: str, where: str = JOB, window: str = "$__range") -> str:
    """How much in the time that is shown. What never happened has no series, and is 0."""
    return f"(sum(increase({metric}{{{where}}}[{window}])) or vector(0))"


def happened(metric: str, where: str = JOB, window: str = "$__range") -> str:
    """How often something rare happened. Its first time makes the series, and increase() sees no increase in that."""
    series = f"{metric}{{{where}}}" if where else metric
    return f"(increase({series}[{window}]) > 0) or ({series} unless {series} offset {window})"


def times(metric: str, where: str = JOB) -> str:
    return f"(sum({happened(metric, where)}) or vector(0))"


def mean(histogram: str, where: str = JOB, window: str = "$__rate_interval", by: str = "") -> str:
    """Not a quantile: unless an application sets others, the SDK's first bucket ends at five seconds."""
    total, count = (per_second(f"{histogram}_{part}", where, window, by) for part in ("sum", "count"))
    return f"{total} / {count}"


@dataclass(frozen=True, slots=True)
class Query:
    expr: str
    legend: str = ""


# Panels --------------------------------------------------------------------------------------------------------------

DATASOURCE = models.DataSourceRef(type_val="prometheus", uid="${datasource}")
RED, ORANGE, GREEN = "red", "orange", "green"


def _targets(panel: Any, queries: Iterable[Query], *, instant: bool) -> Any:
    for number, query in enumerate(queries):
        target = prometheus.Dataquery().expr(query.expr).legend_format(query.legend).ref_id(chr(ord("A") + number))
        panel = panel.with_target(target.datasource(DATASOURCE).instant() if instant else target.datasource(DATASOURCE))
    return panel.datasource(DATASOURCE)


def _bad_from(*steps: tuple[float, str]) -> Any:
    all_steps = [models.Threshold(value=None, color=GREEN), *(models.Threshold(value=at, color=to) for at, to in steps)]
    return dashboard.ThresholdsConfig().mode(models.ThresholdsMode.ABSOLUTE).steps(all_steps)


FIGURES_ABREAST = 6


def figure(title: str, says: str, unit: str, query: str, *bad: tuple[float, str], decimals: int | None = None) -> Any:
    """One number for the time that is shown."""
    panel = stat.Panel().title(title).description(says).unit(unit).height(4).span(24 // FIGURES_ABREAST)
    panel = panel.reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"])).thresholds(_bad_from(*bad))
    panel = panel.color_mode(common_models.BigValueColorMode.VALUE if bad else common_models.BigValueColorMode.NONE)
    panel = panel.graph_mode(common_models.BigValueGraphMode.NONE)
    return _targets(panel if decimals is None else panel.decimals(decimals), [Query(query)], instant=True)


def curve(title: str, says: str, unit: str, *queries: Query, stacked: bool = False, abreast: int = 3) -> Any:
    panel = timeseries.Panel().title(title).description(says).unit(unit).height(8).span(24 // abreast).min(0)
    panel = panel.line_width(1).fill_opacity(30 if stacked else 8).show_points(common_models.VisibilityMode.NEVER)
    panel = panel.legend(
        common.VizLegendOptions()
        .display_mode(common_models.LegendDisplayMode.LIST)
        .placement(common_models.LegendPlacement.BOTTOM)
        .show_legend(True)
    )
    panel = panel.tooltip(common.VizTooltipOptions().mode(common_models.TooltipDisplayMode.MULTI))
    if stacked:
        panel = panel.stacking(common.StackingConfig().mode(common_models.StackingMode.NORMAL))
    return _targets(panel, queries, instant=False)


CREDITS = "suffix: credits"
AN_HOUR = "suffix: credits/h"


def credits_an_hour(metric: str, by: str = "") -> str:
    return f"{per_second(metric, OF_CALLS, by=by)} * 3600 / {TICKS}"


def credits(metric: str) -> str:
    return f"{whole(metric, OF_CALLS)} / {TICKS}"


def share(part: str, of: str) -> str:
    """Nothing of nothing is 0."""
    return f"({part} / ({of} > 0)) or vector(0)"


DENIED = f'{JOB}, {DECISION}="denied"'
OPEN = f'{JOB}, {DECISION}="open"'

ROWS: dict[str, list[Callable[[], Any]]] = {
    # question → the panels that answer it
    "Money": [
        lambda: figure("Charged", "What customers were charged.", CREDITS, credits(CHARGED), decimals=2),
        lambda: figure("Cost", "What providers take for the same calls.", CREDITS, credits(COST), decimals=2),
        lambda: figure(
            "Margin",
            "The part of the charges that is not cost. Below 0: sold below cost.",
            "percentunit",
            share(f"({whole(CHARGED, OF_CALLS)} - {whole(COST, OF_CALLS)})", whole(CHARGED, OF_CALLS)),
            decimals=1,
        ),
        lambda: figure(
            "Overrun", "Charged above what was held.", CREDITS, credits(OVERRUN), (0.000001, ORANGE), decimals=4
        ),
        lambda: figure(
            "Debt",
            "Charged that no credit of the customer covered.",
            CREDITS,
            credits(DEBT),
            (0.000001, RED),
            decimals=4,
        ),
        lambda: figure("Records", "Usage records.", "short", whole(RECORDS, OF_CALLS), decimals=0),
        lambda: curve(
            "Charged and cost",
            "At the rate of the moment.",
            AN_HOUR,
            Query(credits_an_hour(CHARGED), "charged"),
            Query(credits_an_hour(COST), "cost"),
        ),
        lambda: curve(
            "Charged, by model",
            "The ten that bring in most.",
            AN_HOUR,
            Query(f"topk(10, {credits_an_hour(CHARGED, MODEL)})", f"{{{{{MODEL}}}}}"),
            stacked=True,
        ),
        lambda: curve(
            "Charged, by meter",
            "Calls without a meter are those of no name.",
            AN_HOUR,
            Query(credits_an_hour(CHARGED, METER), f"{{{{{METER}}}}}"),
            stacked=True,
        ),
        lambda: curve(
            "Units used",
            "Disjoint: they add up.",
            "short",
            Query(per_second(USED, OF_CALLS, by=UNIT), f"{{{{{UNIT}}}}} a second"),
            stacked=True,
        ),
        lambda: curve(
            "Overrun, by cause",
            "Possible wherever the provider decides the quantity; never silent.",
            AN_HOUR,
            Query(credits_an_hour(OVERRUN, CAUSE), f"{{{{{CAUSE}}}}}"),
            stacked=True,
        ),
        lambda: curve(
            "Debt, by model",
            "It is repaid first, and blocks the customer's next call.",
            AN_HOUR,
            Query(credits_an_hour(DEBT, MODEL), f"{{{{{MODEL}}}}}"),
            stacked=True,
        ),
    ],
    "Gate": [
        lambda: figure("Calls", "Provider calls that the gate decided on.", "short", whole(DECISIONS), decimals=0),
        lambda: figure(
            "Refused",
            "The part of them that was refused.",
            "percentunit",
            share(whole(DECISIONS, DENIED), whole(DECISIONS)),
            decimals=1,
        ),
        lambda: figure(
            "Without a hold",
            "Let out while the ledger could not be asked (on_ledger_outage, mode).",
            "short",
            times(DECISIONS, OPEN),
            (1, RED),
            decimals=0,
        ),
        lambda: figure(
            "Unmetered",
            "Passed without being metered, or would have been refused (mode observe).",
            "short",
            times(UNMETERED),
            (1, ORANGE),
            decimals=0,
        ),
        lambda: figure(
            "Ledger unavailable",
            "Refused because the ledger did not answer.",
            "short",
            times(DECISIONS, f'{JOB}, {REASON}="ledger_unavailable"'),
            (1, RED),
            decimals=0,
        ),
        lambda: figure(
            "Time to the answer",
            "Mean time from the start of a provider call to the gate's answer.",
            "s",
            mean(GATE_TIME, window="$__range"),
            (0.05, ORANGE),
            (0.5, RED),
        ),
        lambda: curve(
            "Decisions",
            "held: a hold was committed; denied: refused; open: policy let it go unheld.",
            "reqps",
            Query(per_second(DECISIONS, by=DECISION), f"{{{{{DECISION}}}}}"),
            stacked=True,
            abreast=4,
        ),
        lambda: curve(
            "Refused, by reason",
            "402 insufficient_credit, 429 limit_reached, 403 the others.",
            "reqps",
            Query(per_second(DECISIONS, DENIED, by=REASON), f"{{{{{REASON}}}}}"),
            stacked=True,
            abreast=4,
        ),
        lambda: curve(
            "Time to the answer, by answer",
            "Mean. A call that waits for open calls to give credit back waits here.",
            "s",
            Query(mean(GATE_TIME, by=DECISION), f"{{{{{DECISION}}}}}"),
            abreast=4,
        ),
        lambda: curve(
            "Unmetered, by reason",
            "lava doctor names the hosts.",
            "reqps",
            Query(per_second(UNMETERED, by=REASON), f"{{{{{REASON}}}}}"),
            stacked=True,
            abreast=4,
        ),
    ],
    "Health": [
        lambda: figure(
            "Not reported",
            "The part of the records whose figures no provider reported: counted from what passed, or estimated.",
            "percentunit",
            share(whole(ESTIMATED, OF_CALLS), whole(RECORDS, OF_CALLS)),
            (0.05, ORANGE),
            (0.2, RED),
            decimals=1,
        ),
        lambda: figure(
            "Time to the record",
            "Mean time from the end of an exchange to its committed record.",
            "s",
            mean(LAG, window="$__range"),
            (1, ORANGE),
            (10, RED),
        ),
        lambda: figure(
            "Pending",
            "Journal entries that the slowest follower has still to pass.",
            "short",
            f"max({PENDING}{{{JOB}}})",
            (10_000, ORANGE),
            decimals=0,
        ),
        lambda: figure(
            "Oldest pending", "Age of the oldest of them.", "s", f"max({OLDEST}{{{JOB}}})", (60, ORANGE), (300, RED)
        ),
        lambda: figure(
            "Dead letters", "Records that a target refused for good.", "short", times(DEAD), (1, RED), decimals=0
        ),
        lambda: figure(
            "Sent",
            "Records that followers handed over.",
            "short",
            whole(EXPORTED, f'{JOB}, {RESULT}="sent"'),
            decimals=0,
        ),
        lambda: curve(
            "Records, by outcome",
            "settled, reported, adjusted, expired.",
            "reqps",
            Query(per_second(RECORDS, OF_CALLS, by=OUTCOME), f"{{{{{OUTCOME}}}}}"),
            stacked=True,
            abreast=4,
        ),
        lambda: curve(
            "Records, by basis",
            "reported by the provider, counted from what passed, or estimated from the request.",
            "reqps",
            Query(per_second(RECORDS, OF_CALLS, by=BASIS), f"{{{{{BASIS}}}}}"),
            stacked=True,
            abreast=4,
        ),
        lambda: curve(
            "Oldest pending, by follower",
            "Rises while a target is away; nothing is lost meanwhile.",
            "s",
            Query(f"max by ({FOLLOWER}) ({OLDEST}{{{JOB}}})", f"{{{{{FOLLOWER}}}}}"),
            abreast=4,
        ),
        lambda: curve(
            "Handed over, by follower and result",
            "held: to be tried again; refused: for good.",
            "reqps",
            Query(
                per_second(EXPORTED, by=f"{FOLLOWER}, {RESULT}"),
                f"{{{{{FOLLOWER}}}}}: {{{{{RESULT}}}}}",
            ),
            abreast=4,
        ),
    ],
}


# The dashboard -------------------------------------------------------------------------------------------------------


def _variable(name: str, title: str, of: str, label_name: str) -> Any:
    variable = dashboard.QueryVariable(name).label(title).datasource(DATASOURCE)
    variable = variable.query(f"label_values({of}, {label_name})").refresh(models.VariableRefresh.ON_TIME_RANGE_CHANGED)
    return (
        variable.multi(True)
        .include_all(True)
        .all_value(".*")
        .current(models.VariableOption(selected=True, text=["All"], value=["$__all"]))
    )


def build_dashboard() -> str:
    """The dashboard as JSON."""
    made = (
        dashboard.Dashboard("Lava: money, gate, health")
        .uid("lava-middleware")
        .description("What lava_middleware charges, lets through and records. No series names a customer.")
        .tags(["ai", "billing", "lava"])
        .editable()
        .refresh("30s")
        .time("now-6h", "now")
        .timezone("browser")
        .tooltip(models.DashboardCursorSync.CROSSHAIR)
        .with_variable(dashboard.DatasourceVariable("datasource").label("Data source").type("prometheus"))
        .with_variable(_variable("job", "Job", RECORDS, "job"))
        .with_variable(_variable("provider", "Provider", RECORDS, PROVIDER))
        .with_variable(_variable("model", "Model", RECORDS, MODEL))
    )
    number = 0
    for question, panels in ROWS.items():
        number += 1
        made = made.with_row(dashboard.Row(question).id(number))
        for panel in panels:
            number += 1
            made = made.with_panel(panel().id(number))
    return JSONEncoder(sort_keys=True, indent=2).encode(made.build()) + "\n"


# Alerts --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Alert:
    name: str
    value: str
    """What is watched: a query that always has an answer while calls are made."""
    over: str
    """And from where on somebody should look."""
    lasting: str
    severity: str
    summary: str
    todo: str


def _had(metric: str, where: str, window: str) -> str:
    """How many in this time, by job."""
    return f"sum by (job) (increase({metric}{f'{{{where}}}' if where else ''}[{window}]))"


def _happened(metric: str, where: str, window: str) -> str:
    return f"sum by (job) ({happened(metric, where, window)})"


def _per(part: str, whole_of: str) -> str:
    return f"{part} / {whole_of}"


ALERTS_OF: dict[str, list[Alert]] = {
    # question → what should wake somebody, or be looked at by day
    "lava-money": [
        Alert(
            "LavaSoldBelowCost",
            _per(_had(CHARGED, "", "1h"), _had(COST, "", "1h")),
            "< 1",
            "15m",
            "warning",
            "Customers are charged less than providers take",
            "Compare prices and markup with the models in use: lava prices MODEL.",
        ),
        Alert(
            "LavaOverrun",
            _per(_had(OVERRUN, "", "1h"), _had(CHARGED, "", "1h")),
            "> 0.05",
            "15m",
            "warning",
            "More than 5 % of the charges are above what was held",
            "Look at the panel of causes: cap_ignored and hidden_output are the provider's, input_above_bound is ours.",
        ),
        Alert(
            "LavaDebt",
            _per(_had(DEBT, "", "1h"), _had(CHARGED, "", "1h")),
            "> 0.01",
            "15m",
            "warning",
            "More than 1 % of the charges are covered by no credit",
            "lava statement CUSTOMER shows whose; overrun=absorb makes it the operator's.",
        ),
    ],
    "lava-gate": [
        Alert(
            "LavaLedgerUnavailable",
            _happened(DECISIONS, f'{REASON}="ledger_unavailable"', "5m"),
            "> 0",
            "0m",
            "critical",
            "Calls are refused because the ledger does not answer",
            "lava doctor; the disk of the ledger, its lock, its free space.",
        ),
        Alert(
            "LavaWithoutHold",
            _happened(DECISIONS, f'{DECISION}="open"', "5m"),
            "> 0",
            "0m",
            "critical",
            "Calls go out without a hold",
            "The ledger cannot be asked and policy lets calls out; they are recorded in its pending file.",
        ),
        Alert(
            "LavaUnmetered",
            _happened(UNMETERED, f'{REASON}!="unbilled"', "1h"),
            "> 0",
            "15m",
            "warning",
            "Provider calls pass without being metered",
            "lava doctor names the hosts and the reasons.",
        ),
        Alert(
            "LavaPriceUnknown",
            _happened(DECISIONS, f'{REASON}="price_unknown"', "15m"),
            "> 0",
            "0m",
            "warning",
            "Calls are refused because a model has no price",
            "Add it to the file that LAVA_PRICES names: lava prices MODEL shows what is known.",
        ),
        Alert(
            "LavaNobodyBound",
            _happened(DECISIONS, f'{REASON}="customer_unknown"', "15m"),
            "> 0",
            "0m",
            "warning",
            "Calls are refused because nobody is named to pay for them",
            "Usually a thread that lost the context: pass it bind_context(function).",
        ),
        Alert(
            "LavaMostCallsRefused",
            _per(_had(DECISIONS, f'{DECISION}="denied"', "15m"), f"({_had(DECISIONS, '', '15m')} > 20)"),
            "> 0.5",
            "15m",
            "warning",
            "More than half of the calls are refused",
            "The panel of reasons says why: credit that ran out, a limit, or a mistake of ours.",
        ),
        Alert(
            "LavaGateSlow",
            _per(
                f'sum by (job) (rate({GATE_TIME}_sum{{{DECISION}="held"}}[5m]))',
                f'sum by (job) (rate({GATE_TIME}_count{{{DECISION}="held"}}[5m]))',
            ),
            "> 0.5",
            "10m",
            "warning",
            "The gate takes more than half a second to answer",
            "Calls wait for credit that open calls hold (LAVA_HOLD_WAIT_S), or for the ledger: lava doctor.",
        ),
    ],
    "lava-health": [
        Alert(
            "LavaRecordsRefused",
            _happened(DEAD, "", "1h"),
            "> 0",
            "0m",
            "critical",
            "A target refused usage records for good",
            "They are dead letters in the ledger, and lava doctor lists them.",
        ),
        Alert(
            "LavaExportBehind",
            f"max by (job, {FOLLOWER}) ({OLDEST})",
            "> 300",
            "5m",
            "warning",
            "A follower has not passed entries that are five minutes old",
            "Its target is away or slow; nothing is lost, and it catches up by itself.",
        ),
        Alert(
            "LavaNotReported",
            _per(_had(ESTIMATED, "", "1h"), f"({_had(RECORDS, '', '1h')} > 20)"),
            "> 0.2",
            "15m",
            "warning",
            "More than a fifth of the records rest on figures that no provider reported",
            "Streams that are left early, or a provider that is not asked for usage (asks_usage of its row).",
        ),
        Alert(
            "LavaRecordsLate",
            _per(f"sum by (job) (rate({LAG}_sum[15m]))", f"sum by (job) (rate({LAG}_count[15m]))"),
            "> 10",
            "10m",
            "warning",
            "Records are committed more than ten seconds after their exchange",
            "The ledger is slow or was away: lava doctor.",
        ),
    ],
}


def build_alerts() -> str:
    """Prometheus alerting rules as YAML."""
    groups = [{"name": name, "rules": [_rule(alert) for alert in alerts]} for name, alerts in ALERTS_OF.items()]
    head = "# Written by scripts/build_dashboard.py: change it there.\n"
    return head + yaml.safe_dump({"groups": groups}, sort_keys=False, width=1_000, allow_unicode=True)


def _rule(alert: Alert) -> dict[str, Any]:
    return {
        "alert": alert.name,
        "expr": f"{alert.value} {alert.over}",
        "for": alert.lasting,
        "labels": {"severity": alert.severity},
        "annotations": {"summary": f"{alert.summary} ({{{{ $labels.job }}}})", "description": alert.todo},
    }


def main() -> int:
    made = {DASHBOARD: build_dashboard(), ALERTS: build_alerts()}
    if "--check" in sys.argv[1:]:
        stale = [path.name for path, text in made.items() if not path.exists() or path.read_text() != text]
        print(f"stale: {', '.join(stale)}" if stale else "up to date")
        return len(stale)
    for path, text in made.items():
        path.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
