"""How a service is configured, and what its ingress does without."""

import socket
import subprocess
import sys

import pytest

from infra.errors import UserError
from serving.deployments import ServeConfig, application, build, require_free
from serving.telemetry import Reporting


def test_the_ingress_needs_no_torch() -> None:
    """An ingress replica starts fast and small."""
    code = "import sys, serving.deployments, serving.app; print(sorted({'torch', 'scipy', 'mlflow'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"port": 70_000}, "port is 70000"),
        ({"port": 0}, "port is 0"),
        ({"replicas": 0}, "replicas 0"),
        ({"replicas": 3, "max_replicas": 2}, "max_replicas 2"),
        ({"replica_gpus": 1.5}, "replica_gpus is 1.5"),
        ({"device": "tpu"}, "device is 'tpu'"),
        ({"max_pending": 0}, "max_pending is 0"),
        ({"keep_requests": "ftp://host/kept"}, "neither a local path nor s3"),
        ({"models": ("tuned",)}, "'tuned', which is not NAME=PLACE"),
        ({"models": ("a b=c",)}, "'a b=c', which is not NAME=PLACE"),
        ({"models": ("a=b", "a=c")}, r"names one twice \(a, a\)"),
    ],
)
def test_a_config_says_what_is_wrong_with_it(fields: dict, named: str) -> None:
    with pytest.raises(UserError, match=named):
        ServeConfig(**fields)


def test_a_taken_port_is_refused() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=f"port {port}"):
            require_free("127.0.0.1", port)
    require_free("127.0.0.1", port)


def test_loopback_is_the_default() -> None:
    assert ServeConfig().host == "127.0.0.1"


def test_the_builder_is_typed() -> None:
    assert build({"checkpoint": "s3://bucket/run", "replicas": "0", "max_replicas": "2"})._bound_deployment.name == "Ingress"
    with pytest.raises(UserError, match="chekpoint"):
        build({"chekpoint": "x"})
    with pytest.raises(UserError, match="port"):
        build({"port": "many"})


def test_every_model_has_a_deployment_of_its_own() -> None:
    models = application(ServeConfig(checkpoint="runs/a", models=("tuned=runs/b", "student=s3://bucket/c=d")))._bound_deployment.init_args[
        0
    ]
    assert list(models) == ["", "tuned", "student"]
    deployed = [model._bound_deployment for model in models.values()]
    assert [one.name for one in deployed] == ["Model", "Model-tuned", "Model-student"]
    assert [one.init_args[0].checkpoint for one in deployed] == ["runs/a", "runs/b", "s3://bucket/c=d"]


def test_replicas_report_as_the_deploying_process_was_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BACKLINE_LOG_FORMAT", "json")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://collector:4318")
    models, limits, _, ingress = application(ServeConfig(checkpoint="runs/a"))._bound_deployment.init_args
    assert ingress == Reporting(log_level="INFO", log_format="json", otlp_endpoint="http://collector:4318")
    assert models[""]._bound_deployment.init_args[1] == ingress
    assert limits.keep_requests is None
    kept = application(ServeConfig(keep_requests="s3://bucket/kept"))._bound_deployment.init_args[1].keep_requests
    assert str(kept) == "s3://bucket/kept"


def test_keys_are_deployed_as_digests(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BACKLINE_API_KEYS", "top-secret,other")
    limits = application(ServeConfig(max_pending=10))._bound_deployment.init_args[1]
    assert len(limits.api_key_digests) == 2
    assert "top-secret" not in repr(limits)
    assert limits.max_pending_per_caller == 5
