"""The dashboard asks Prometheus for what `pipelines.run.run_state` counts, under the names that Ray gives it."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipelines.run.run_state import STAGES, Ledger
from serving.observe.metrics import IngressMetrics, ReplicaMetrics

DASHBOARD = json.loads((Path(__file__).resolve().parents[2] / "infra/grafana/prepare.json").read_text())
SERVING = json.loads((Path(__file__).resolve().parents[2] / "infra/grafana/serving.json").read_text())
# What of a query is neither a metric nor a label: PromQL's words, Grafana's variables, strings and durations.
WORDS = {"sum", "by", "rate", "increase", "deriv", "on", "group_left", "or", "vector"}


def exported() -> dict[str, set[str]]:
    """Name at Prometheus → labels, of every metric of the ledger; Ray puts `ray_` before, and `_total` after a counter."""
    found = {}
    for metric in Ledger({"source": "pairs:/songs", "dataset": "/latents"}).metrics.values():
        suffix = "_total" if type(metric).__name__ == "Counter" else ""
        found[f"ray_{metric.info['name']}{suffix}"] = set(metric.info["tag_keys"])
    return found


def queries() -> Iterator[tuple[str, str]]:
    for panel in DASHBOARD["panels"]:
        for target in panel["targets"]:
            yield panel["title"], target["expr"]


def names_of(expression: str) -> set[str]:
    bare = re.sub(r'"[^"]*"|\[[^\]]*\]', " ", expression)
    return set(re.findall(r"[A-Za-z_]\w*", bare)) - WORDS


@pytest.mark.parametrize(("title", "expression"), list(queries()))
def test_a_panel_asks_for_metrics_and_labels_that_exist(title: str, expression: str) -> None:
    known = exported()
    named = names_of(expression)
    metrics = {name for name in named if name.startswith("ray_")}
    assert metrics, title
    assert metrics <= known.keys(), title
    for metric in metrics:
        assert named - metrics <= set().union(*(known[name] for name in metrics)), title
        selected = re.findall(rf"{metric}\{{([^}}]*)\}}", expression)
        assert len(selected) == len(re.findall(rf"\b{metric}\b", expression)), f"{title}: a query without the page's choice of runs"
        for labels in selected:
            assert set(re.findall(r"(\w+)=~?", labels)) <= known[metric], title
    assert all(expression.count(opening) == expression.count(closing) for opening, closing in ("()", "[]", "{}")), title
    assert set(re.findall(r'stage="(\w+)"', expression)) <= set(STAGES), title
    # A counter's pace is a rate; deriv is a gauge's.
    assert all(name.endswith("_total") for name in re.findall(r"(?:rate|increase)\((\w+)", expression)), title
    assert not any(name.endswith("_total") for name in re.findall(r"deriv\((\w+)", expression)), title


def test_every_metric_is_shown_and_every_choice_comes_from_one() -> None:
    shown = {name for _, expression in queries() for name in names_of(expression)}
    assert exported().keys() <= shown
    variables: list[dict[str, Any]] = DASHBOARD["templating"]["list"]
    assert {variable["name"] for variable in variables} == {"prometheus", "dataset", "source"}
    for variable in variables[1:]:
        metric, label = re.fullmatch(r"label_values\((\w+), (\w+)\)", variable["query"]["query"]).groups()
        assert label in exported()[metric]
    used = set(re.findall(r"\$(\w+)", " ".join(expression for _, expression in queries())))
    assert used == {"dataset", "source", "__rate_interval"}


def served() -> dict[str, set[str]]:
    """The same of the service; Ray adds what Prometheus wants of a histogram."""
    found = {}
    for metrics in (IngressMetrics(), ReplicaMetrics()):
        for metric in vars(metrics).values():
            kind = type(metric).__name__
            for suffix in {"Counter": ["_total"], "Histogram": ["_bucket", "_sum", "_count"]}.get(kind, [""]):
                labels = set(metric.info["tag_keys"])
                found[f"ray_{metric.info['name']}{suffix}"] = labels | ({"le"} if suffix == "_bucket" else set())
    return found


def test_the_service_s_panels_ask_for_what_it_counts() -> None:
    known, shown = served(), set()
    for panel in SERVING["panels"]:
        for target in panel["targets"]:
            named = names_of(target["expr"]) - {"histogram_quantile", "avg"}
            metrics = {name for name in named if name.startswith("ray_")}
            assert metrics
            assert metrics <= known.keys(), panel["title"]
            assert named - metrics <= set().union(*(known[name] for name in metrics)), panel["title"]
            shown |= metrics
    stems = {re.sub(r"_(bucket|sum|count)$", "", name) for name in shown}
    assert stems == {re.sub(r"_(bucket|sum|count)$", "", name) for name in known}


@pytest.mark.parametrize("dashboard", [DASHBOARD, SERVING], ids=["prepare", "serving"])
def test_panels_have_their_own_ids_and_places(dashboard: dict[str, Any]) -> None:
    panels = dashboard["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    cells = [
        (x, y)
        for place in (panel["gridPos"] for panel in panels)
        for x in range(place["x"], place["x"] + place["w"])
        for y in range(place["y"], place["y"] + place["h"])
    ]
    assert len(cells) == len(set(cells)), "two panels overlap"
    assert max(x for x, _ in cells) < 24
