"""What a PromQL expression uses, and what is wrong with it by the registry."""

import re

import promql_parser as promql
from queries import EVERYWHERE, RAY

from condu_ray.orchestration.watch.meters import METRICS, PREFIX

COUNTERS_ONLY = {"rate", "irate", "increase"}
GAUGES_ONLY = {"avg_over_time", "min_over_time", "max_over_time", "deriv", "delta", "predict_linear"}


def filled(expression):
    """An expression of a panel with Grafana's variables filled in."""
    return expression.replace("$__rate_interval", "1m").replace("$__range", "1h").replace("$run", ".*")


def known(name):
    """(labels, kind) of an exported name; None when neither the registry nor the list of Ray's has it."""
    if name in RAY:
        return {*RAY[name], *EVERYWHERE}, "gauge"
    found = METRICS.get(name.removeprefix(PREFIX))
    if found is not None and found.kind != "histogram":
        return {*found.tags, *EVERYWHERE}, found.kind
    base = METRICS.get(re.sub(r"_(bucket|count)$", "", name.removeprefix(PREFIX)))
    if base is not None and base.kind == "histogram" and found is None:
        return {*base.tags, *EVERYWHERE} | ({"le"} if name.endswith("_bucket") else set()), "histogram"
    return None


def selectors(node):
    """All vector selectors below a node."""
    found = []
    promql.walk(node, lambda below: found.append(below) if isinstance(below, promql.VectorSelector) else None)
    return found


def problems(expression):
    """What is wrong with an expression: unknown names, labels that a metric has not, functions for another kind."""
    tree, wrong = promql.parse(filled(expression)), []
    if not selectors(tree):
        wrong.append("asks for nothing")
    for selector in selectors(tree):
        if known(selector.name) is None:
            return [f"nobody exports {selector.name}"]
        labels = {matcher.name for matcher in selector.matchers.matchers}
        wrong += [f"{selector.name} has no {label}" for label in labels - known(selector.name)[0]]

    def look(node):
        if isinstance(node, promql.AggregateExpr) and node.modifier is not None:
            for selector in selectors(node.expr):
                missing = set(node.modifier.labels) - known(selector.name)[0]
                wrong.extend(f"by ({label}): {selector.name} has none" for label in missing)
        if isinstance(node, promql.Call):
            for selector in (below for argument in node.args for below in selectors(argument)):
                kind = known(selector.name)[1]
                if (node.func.name in COUNTERS_ONLY and kind == "gauge") or (
                    node.func.name in GAUGES_ONLY and kind != "gauge"
                ):
                    wrong.append(f"{node.func.name} of the {kind} {selector.name}")
                if node.func.name == "histogram_quantile" and not selector.name.endswith("_bucket"):
                    wrong.append(f"a quantile of {selector.name}, which are no buckets")

    promql.walk(tree, look)
    return wrong


def names(expression):
    """Names of the metrics that an expression asks for."""
    return {selector.name for selector in selectors(promql.parse(filled(expression)))}


def outer_labels(expression):
    """Labels that the result may have: those of the outermost groupings."""
    found = set()

    def look(node):
        # `topk`, which has a parameter, chooses among series and keeps all of their labels.
        if isinstance(node, promql.AggregateExpr) and node.modifier is not None and node.param is None:
            found.update(set(node.modifier.labels) - {"le"})

    promql.walk(promql.parse(filled(expression)), look)
    return found
