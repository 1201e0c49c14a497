"""How a service is configured, and what its ingress does without."""

import socket
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import yaml

from infra.errors import UserError
from serving.deployments import ServeConfig, application, build, require_free
from serving.observe.metrics import Reporting

if TYPE_CHECKING:
    from ray.serve import Deployment


def test_the_ingress_needs_no_torch() -> None:
    """An ingress replica starts fast and small."""
    code = "import sys, serving.deployments, serving.http.app; print(sorted({'torch', 'scipy', 'mlflow'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"port": 70_000}, "port is 70000"),
        ({"port": 0}, "port is 0"),
        ({"replicas": 0}, "replicas 0"),
        ({"replicas": 3, "max_replicas": 2}, "max_replicas 2"),
        ({"replica_gpus": 1.5}, "replica_gpus is 1.5"),
        ({"replica_memory_gb": 0}, "replica_memory_gb is 0"),
        ({"device": "tpu"}, "device is 'tpu'"),
        ({"max_pending": 0}, "max_pending is 0"),
        ({"allowed_hosts": ("https://band.example",)}, "allowed_hosts holds 'https://band.example': give a host alone"),
        ({"allowed_hosts": ("*", "band.example:8443")}, "allowed_hosts holds 'band.example:8443'"),
        ({"keep_requests": "ftp://host/kept"}, "neither a local path nor s3"),
        ({"models": ("tuned",)}, "'tuned', which is not NAME=PLACE"),
        ({"models": ("a b=c",)}, "'a b=c', which is not NAME=PLACE"),
        ({"models": ("a=b", "a=c")}, r"names one twice \(default, a, a\)"),
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


def test_what_a_replica_takes_and_what_may_wait_for_it() -> None:
    config = ServeConfig(
        checkpoint="runs/a", replica_gpus=0.5, replica_memory_gb=1.5, concurrent=3, max_pending=7, max_replicas=4, downscale_delay_s=9,
        drain_s=30, request_timeout_s=900,
    )  # fmt: skip
    ingress = application(config)._bound_deployment
    (model,) = (bound._bound_deployment for bound in ingress.init_args[0].values())
    assert model.ray_actor_options == {"num_cpus": 1.0, "num_gpus": 0.5, "memory": 1_500_000_000}
    assert (model._deployment_config.max_ongoing_requests, model._deployment_config.max_queued_requests) == (3, 7)
    assert (model._deployment_config.autoscaling_config.min_replicas, model._deployment_config.autoscaling_config.max_replicas) == (1, 4)
    assert model._deployment_config.autoscaling_config.downscale_delay_s == 9
    # A request that loses its replica is asked elsewhere, one that loses its ingress is lost.
    assert (model._deployment_config.graceful_shutdown_timeout_s, ingress._deployment_config.graceful_shutdown_timeout_s) == (30, 900)


def test_the_file_for_serve_deploy_is_understood() -> None:
    (deployed,) = yaml.safe_load((Path(__file__).parents[2] / "infra" / "serve.yaml").read_text())["applications"]
    assert deployed["import_path"] == "serving.deployments:build"
    assert {"replica_gpus", "replica_memory_gb", "max_pending", "concurrent"} <= set(deployed["args"])
    assert build(deployed["args"])._bound_deployment.name == "Ingress"


def deployed(config: ServeConfig) -> dict[str, "Deployment"]:
    return {name: model._bound_deployment for name, model in application(config)._bound_deployment.init_args[0].items()}


def test_every_model_has_a_deployment_of_its_own() -> None:
    models = deployed(ServeConfig(checkpoint="runs/a", models=("tuned=runs/b", "student=s3://bucket/c=d")))
    assert list(models) == ["default", "tuned", "student"]
    assert [one.name for one in models.values()] == ["Model", "Model-tuned", "Model-student"]
    assert [one.init_args[1:3] for one in models.values()] == [
        ({"default": "runs/a"}, 1),
        ({"tuned": "runs/b"}, 1),
        ({"student": "s3://bucket/c=d"}, 1),
    ]


def test_what_the_environment_names_is_what_replicas_load(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BACKLINE_CHECKPOINT", "/runs/mine")
    models = deployed(ServeConfig(models=("tuned=runs/b",)))
    assert [one.init_args[1] for one in models.values()] == [{"default": "/runs/mine"}, {"tuned": "runs/b"}]
    assert deployed(ServeConfig(checkpoint="runs/a"))["default"].init_args[1] == {"default": "runs/a"}


def test_models_may_share_replicas() -> None:
    models = deployed(ServeConfig(checkpoint="runs/a", models=("tuned=runs/b", "student=runs/c"), models_per_replica=2, replicas=3))
    assert list(models) == ["default", "tuned", "student"]
    one = models["default"]
    assert all(other is one for other in models.values())
    assert one.name == "Model"
    assert one.num_replicas == 3
    assert one.init_args[1:3] == ({"default": "runs/a", "tuned": "runs/b", "student": "runs/c"}, 2)


def test_replicas_report_as_the_deploying_process_was_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BACKLINE_LOG_FORMAT", "json")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://collector:4318")
    models, limits, *_, ingress = application(ServeConfig(checkpoint="runs/a"))._bound_deployment.init_args
    assert ingress == Reporting(log_level="INFO", log_format="json", otlp_endpoint="http://collector:4318")
    assert models["default"]._bound_deployment.init_args[-1] == ingress
    assert limits.keep_requests is None
    kept = application(ServeConfig(keep_requests="s3://bucket/kept"))._bound_deployment.init_args[1].keep_requests
    assert str(kept) == "s3://bucket/kept"


def test_keys_are_deployed_as_digests(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BACKLINE_API_KEYS", "top-secret,other")
    limits = application(ServeConfig(max_pending=10))._bound_deployment.init_args[1]
    assert len(limits.api_key_digests) == 2
    assert "top-secret" not in repr(limits)
    assert limits.max_pending_per_caller == 5
