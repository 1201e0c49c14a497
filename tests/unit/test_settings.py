"""Settings: what the environment says, and what it must not say."""

import os
import re
import subprocess
import sys

import pytest

from infra.errors import UserError
from infra.settings import Settings, export, job_environment, log_environment, ray_environment


def test_an_empty_environment_gives_the_defaults() -> None:
    settings = Settings.from_environment({"AWS_ENDPOINT_URL": " ", "BACKLINE_API_KEYS": ""})
    assert settings.s3.endpoint_url is None
    assert settings.s3.region == "us-east-1"
    assert settings.api_keys == ()
    assert settings.cache.is_absolute()


def test_every_variable_is_read() -> None:
    settings = Settings.from_environment(
        {
            "AWS_ENDPOINT_URL": "http://127.0.0.1:9000",
            "AWS_DEFAULT_REGION": "eu-north-1",
            "AWS_ACCESS_KEY_ID": "id",
            "AWS_SECRET_ACCESS_KEY": "hidden-key",
            "MLFLOW_TRACKING_URI": "http://mlflow",
            "RAY_ADDRESS": "head:6379",
            "BACKLINE_API_KEYS": "one, two,,",
            "BACKLINE_LOG_LEVEL": "debug",
            "BACKLINE_LOG_FORMAT": "JSON",
            "OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4318",
            "BACKLINE_CHECKPOINT": "s3://models/best",
            "BACKLINE_CACHE": "/somewhere",
        }
    )
    assert (settings.s3.endpoint_url, settings.s3.region) == ("http://127.0.0.1:9000", "eu-north-1")
    assert settings.api_keys == ("one", "two")
    assert (settings.log_level, settings.ray_address, settings.checkpoint) == ("DEBUG", "head:6379", "s3://models/best")
    assert (settings.log_format, settings.otlp_endpoint) == ("json", "http://collector:4318")
    assert (settings.mlflow_tracking_uri, str(settings.cache)) == ("http://mlflow", "/somewhere")
    assert "hidden" not in repr(settings)


@pytest.mark.parametrize(
    ("environment", "named"),
    [
        ({"AWS_ENDPOINT_URL": "127.0.0.1:9000"}, "AWS_ENDPOINT_URL"),
        ({"AWS_ACCESS_KEY_ID": "id"}, "AWS_SECRET_ACCESS_KEY"),
        ({"BACKLINE_API_KEYS": ","}, "BACKLINE_API_KEYS is ',', which holds no key.*everybody may ask"),
        ({"BACKLINE_API_KEYS": " , ,"}, "BACKLINE_API_KEYS"),
        ({"BACKLINE_LOG_LEVEL": "loud"}, "BACKLINE_LOG_LEVEL"),
        ({"BACKLINE_LOG_FORMAT": "xml"}, "BACKLINE_LOG_FORMAT is 'xml'.*text, json"),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "collector:4318"}, "OTEL_EXPORTER_OTLP_ENDPOINT"),
    ],
)
def test_a_wrong_variable_is_named_with_its_remedy(environment: dict[str, str], named: str) -> None:
    with pytest.raises(UserError, match=named):
        Settings.from_environment(environment)


def test_export_leaves_what_the_user_has_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "1")
    monkeypatch.delenv("AWS_REQUEST_CHECKSUM_CALCULATION", raising=False)
    export(ray_environment())
    assert os.environ["RAY_USAGE_STATS_ENABLED"] == "1"
    assert os.environ["AWS_REQUEST_CHECKSUM_CALCULATION"] == "when_required"


def test_a_driver_prints_json_lines_of_replicas_as_they_are() -> None:
    assert "RAY_DISABLE_WORKER_LOG_PREFIX" not in log_environment(Settings())
    assert log_environment(Settings(log_format="json"))["RAY_DISABLE_WORKER_LOG_PREFIX"] == "1"
    never_left_out = re.compile(log_environment(Settings())["RAY_DEDUP_LOGS_ALLOW_REGEX"])
    assert never_left_out.search("19:03:11 I serving.http.request_log: answered [7] status=200")
    assert never_left_out.search('"logger": "serving.http.request_log"')


def test_a_job_is_told_where_things_are_and_no_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MLFLOW_TRACKING_URI", "AWS_ENDPOINT_URL", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "http://there")
    monkeypatch.delenv("BACKLINE_LOG_LEVEL", raising=False)
    assert job_environment().items() >= {"MLFLOW_TRACKING_URI": "http://there", "AWS_ENDPOINT_URL": "http://there"}.items()
    assert not {"AWS_SECRET_ACCESS_KEY", "BACKLINE_LOG_LEVEL"} & job_environment().keys()


def test_the_log_goes_to_standard_error_once() -> None:
    code = (
        "import logging; from infra.logs import configure; configure('INFO'); configure('INFO'); logging.getLogger('x').info('said %d', 7)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == ""
    assert done.stderr.count("said 7") == 1
