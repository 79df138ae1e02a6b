"""check PROMETHEUS SENT DASHBOARD [PICTURE]: what Prometheus knows against what was sent; then every query of the dashboard
is asked, must be understood and, but for those that are empty when all is well, have an answer; and is drawn."""
import json, sys, time, urllib.parse, urllib.request

prometheus, sent, dashboard = sys.argv[1], json.load(open(sys.argv[2])), json.load(open(sys.argv[3]))
picture = sys.argv[4] if len(sys.argv) > 4 else None
failed = 0


def check(name, holds, detail=""):
    global failed
    failed += not holds
    print(f"{'passed' if holds else 'FAILED'}  {name} {detail}")


def ask(path, **parameters):
    with urllib.request.urlopen(f"{prometheus}/api/v1/{path}?{urllib.parse.urlencode(parameters)}") as answer:
        return json.load(answer)["data"]


def counted(query, label):
    result = ask("query", query=query)["result"]
    return {series["metric"].get(label, ""): float(series["value"][1]) for series in result if float(series["value"][1])}


targets = ask("targets")["activeTargets"]
check("it is scraped", [target["health"] for target in targets] == ["up"], targets[0].get("lastError", ""))
update = 'grpc_service="sqril.customer.v1.CustomerService"'
names = {"OK": "OK", "CANCELLED": "Canceled"}
codes = {names.get(code, code.title().replace("_", "")): count for code, count in sent["codes"].items()}
check("codes", counted(f"sum by (grpc_code) (grpc_server_handled_total{{{update}}})", "grpc_code") == codes, codes)
check("calls", counted(f"grpc_server_started_total{{{update}}}", "") == {"": sent["calls"]}, sent["calls"])
check("times", counted(f"grpc_server_handling_seconds_count{{{update}}}", "") == {"": sent["calls"]})
outcomes = counted("sqril_update_outcomes_total", "outcome")
check("outcomes", outcomes == sent["outcomes"], outcomes)
callers = counted("sum by (allowed_by) (sqril_caller_outcomes_total)", "allowed_by")
check("callers", sum(callers.values()) == sent["calls"] and len(callers) == 3, callers)
exemplars = ask("query_exemplars", query="grpc_server_handling_seconds_bucket", start=time.time() - 86400, end=time.time())
labels = [exemplar["labels"] for series in exemplars for exemplar in series["exemplars"]]
check("exemplars", any("trace_id" in each and "request_id" in each for each in labels), len(labels))
rules = [rule for group in ask("rules")["groups"] for rule in group["rules"]]
check("rules", len(rules) > 30 and all(rule["health"] == "ok" for rule in rules), len(rules))
firing = {alert["labels"]["alertname"] for alert in ask("alerts")["alerts"] if alert["state"] == "firing"}
wanted = {"SqrilUnknownOutcomes", "SqrilErrorBudgetBurnsFast", "SqrilCredentialsRejected", "SqrilUnrecognizedCodes"}
check("alerts", wanted <= firing, sorted(firing))

now = time.time()
first = float(ask("query", query="min(process_start_time_seconds)")["result"][0]["value"][1])
step = max(1, (now - first) / 300)
MAY_BE_EMPTY = ("panics", "log lines", "budget used up", "connections that failed", "reload of", "OVERLOADED", "spans", "pauses")
panels, understood, empty = [], 0, []
for panel in dashboard["panels"]:
    if panel["type"] == "row":
        panels.append((panel, []))
        continue
    drawn = []
    for target in panel["targets"]:
        query = target["expr"].replace("$job", ".*").replace("$instance", ".*").replace("$__range", f"{int(now - first)}s")
        series = ask("query_range", query=query, start=first + 5, end=now, step=step)["result"]
        understood += 1
        if not series and not any(text in target["legendFormat"] + query for text in MAY_BE_EMPTY):
            empty.append(f"{panel['title']}: {query}")
        drawn += [(target["legendFormat"], each) for each in series]
    panels.append((panel, drawn))
check("queries of the dashboard", understood > 35 and not empty, f"{understood} asked; empty: {empty}")

if picture:
    import matplotlib
    matplotlib.use("Agg")
    import matplotlib.pyplot as plot
    from matplotlib.dates import DateFormatter
    from datetime import datetime, timezone

    UNITS = {"percentunit": lambda v: f"{v:.2%}", "s": lambda v: f"{v * 1000:.0f} ms" if v < 1 else f"{v:.1f} s",
             "bytes": lambda v: f"{v / 2**20:.1f} MiB", "reqps": lambda v: f"{v:.3g}/s", "d": lambda v: f"{v:.0f} d"}
    COLOURS = {"green": "#56a64b", "orange": "#f2a52b", "red": "#d63b3b"}
    plot.rcParams.update({"font.size": 7, "axes.edgecolor": "#444", "text.color": "#ddd", "axes.labelcolor": "#aaa",
                          "xtick.color": "#aaa", "ytick.color": "#aaa", "axes.facecolor": "#181b1f"})
    height = max(panel["gridPos"]["y"] + panel["gridPos"]["h"] for panel, _ in panels)
    figure = plot.figure(figsize=(19, height * 0.36), facecolor="#111217")
    for panel, drawn in panels:
        at, defaults = panel["gridPos"], panel.get("fieldConfig", {}).get("defaults", {})
        box = [at["x"] / 24 + 0.005, 1 - (at["y"] + at["h"]) / height, at["w"] / 24 - 0.01, at["h"] / height]
        if panel["type"] == "row":
            figure.text(box[0], box[1] + box[3] * 0.35, panel["title"], fontsize=11, weight="bold")
            continue
        show = UNITS.get(defaults.get("unit"), lambda v: f"{v:.4g}")
        if panel["type"] == "stat":
            axes = figure.add_axes([box[0], box[1] + box[3] * 0.06, box[2], box[3] * 0.86])
            axes.set_xticks([]), axes.set_yticks([])
            values = [(legend, float(each["values"][-1][1]), each["metric"]) for legend, each in drawn] or [("", float("nan"), {})]
            steps, colour = defaults.get("thresholds", {}).get("steps", []), "#181b1f"
            for each in steps:
                if each["value"] is None or max(value for _, value, _ in values) >= each["value"]:
                    colour = COLOURS[each["color"]]
            axes.set_facecolor(colour)
            mapped = {key: text["text"] for mapping in defaults.get("mappings", []) for key, text in mapping["options"].items()}
            text = "\n".join(f"{' '.join(metric.values())} {mapped.get(f'{value:g}', show(value))}".strip() for _, value, metric in values)
            axes.text(0.5, 0.42, text, ha="center", va="center", fontsize=17 if len(values) == 1 else 12, color="white")
            axes.set_title(panel["title"], fontsize=8, loc="left")
            continue
        axes = figure.add_axes([box[0] + 0.022, box[1] + box[3] * 0.30, box[2] - 0.026, box[3] * 0.58])
        axes.set_title(panel["title"], fontsize=8, loc="left")
        for legend, each in drawn[:10]:
            for key, value in each["metric"].items():
                legend = legend.replace("{{" + key + "}}", value)
            times = [datetime.fromtimestamp(float(at), timezone.utc) for at, _ in each["values"]]
            axes.plot(times, [float(value) for _, value in each["values"]], linewidth=1, label=legend[:44])
        axes.set_xlim(datetime.fromtimestamp(first, timezone.utc), datetime.fromtimestamp(now, timezone.utc))
        axes.set_ylim(0, axes.get_ylim()[1] * 1.05)
        axes.yaxis.set_major_formatter(lambda value, _, show=show: show(value))
        axes.xaxis.set_major_formatter(DateFormatter("%H:%M"))
        axes.grid(color="#2c3036", linewidth=0.5)
        if drawn:
            axes.legend(loc="upper left", bbox_to_anchor=(-0.06, -0.16), ncol=2, fontsize=5.5, frameon=False, labelcolor="#ccc")
        else:
            axes.text(0.5, 0.5, "nothing, as it should be", transform=axes.transAxes, ha="center", color="#777")
    figure.savefig(picture, dpi=80, facecolor=figure.get_facecolor())
sys.exit(1 if failed else 0)
