"""The gateway's statistics as Prometheus reads them, read back by Prometheus' own parser."""

from __future__ import annotations

from prometheus_client.parser import text_string_to_metric_families

from jupyter_mlops.serving import metrics
from jupyter_mlops.serving.stats import Stats

BLUE = {
    "requests": 10, "errors": {"4xx": 1, "5xx": 0, "model": 2, "timeout": 0, "rejected": 3},
    "queued": 4, "in_flight": 5,
    "latency_ms": {"count": 10, "sum": 123.5, "p50": 1, "p95": 2, "p99": 3,
                   "buckets": [[0.5, 1], [10, 7], [2500, 10]]},
    "rows": 100, "batches": 9, "retried": 1, "instances": {"ready": 1, "wanted": 2},
    "captured": 1, "capture_dropped": 0,
    "mirror": {"compared": 3, "different": 1, "failed": 0, "dropped": 0},
}
STATS = {"endpoints": {"digits": {"deployments": {"blue": BLUE}}, "other": {"deployments": {"green": {"requests": 1}}}},
         "requests": 20, "rss_bytes": 3e7, "started_at": 1790000000.25}


def parsed(text: bytes):
    families = {f.name: f for f in text_string_to_metric_families(text.decode())}
    samples = {(s.name, tuple(sorted(s.labels.items()))): s.value for f in families.values() for s in f.samples}
    return families, samples


def test_one_endpoint_has_its_own_metrics_only():
    families, samples = parsed(metrics.for_endpoint(STATS, "digits"))
    at = (("deployment", "blue"), ("endpoint", "digits"))
    assert samples["mlops_endpoint_requests_total", at] == 10
    assert samples["mlops_endpoint_errors_total", (("code", "424"), *at)] == 2
    assert samples["mlops_endpoint_errors_total", (("code", "429"), *at)] == 3
    assert samples["mlops_endpoint_mirror_total", (*at, ("result", "different"))] == 1
    assert samples["mlops_endpoint_queued", at] == 4 and samples["mlops_endpoint_instances_wanted", at] == 2
    name = "mlops_endpoint_request_duration_seconds"
    buckets = {dict(k)["le"]: v for (n, k), v in samples.items() if n == name + "_bucket"}
    assert buckets == {"0.0005": 1, "0.01": 7, "2.5": 10, "+Inf": 10}
    assert samples[name + "_sum", at] == 0.1235 and samples[name + "_count", at] == 10
    assert families[name].type == "histogram" and families["mlops_endpoint_requests"].type == "counter"
    assert not any("other" in dict(labels).values() for _, labels in samples)
    assert metrics.for_endpoint(STATS, "nobody") == b"" and metrics.for_endpoint({}, "digits") == b""


def test_all_endpoints_and_the_gateway():
    families, samples = parsed(metrics.for_all(STATS))
    assert samples["mlops_gateway_requests_total", ()] == 20
    assert samples["mlops_gateway_start_time_seconds", ()] == 1790000000.25
    assert samples["mlops_endpoint_requests_total", (("deployment", "green"), ("endpoint", "other"))] == 1
    assert all(f.documentation for f in families.values())
    assert metrics.for_all({}) == b""


def test_labels_are_escaped():
    name = 'a"b\\c\nd{}'
    _, samples = parsed(metrics.for_all({"endpoints": {name: {"deployments": {"d": {"requests": 1}}}}}))
    assert samples["mlops_endpoint_requests_total", (("deployment", "d"), ("endpoint", name))] == 1


def test_errors_are_told_by_their_kind():
    stats = Stats()
    for status, count in {200: 5, 400: 1, 404: 2, 424: 3, 429: 4, 500: 1, 503: 5, 504: 6}.items():
        for _ in range(count):
            stats.count(status, 1.5)
    told = stats.describe()
    assert told["requests"] == 27 and told["latency_ms"]["count"] == 5
    assert told["errors"] == {"4xx": 3, "5xx": 6, "model": 3, "timeout": 6, "rejected": 4}
    assert Stats().describe()["errors"] == {"4xx": 0, "5xx": 0, "model": 0, "timeout": 0, "rejected": 0}
