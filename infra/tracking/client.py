"""Clients of MLflow, and what its stores are asked by several."""

from pathlib import Path
from typing import Any

from infra.settings import export

# MLflow's defaults keep trying for minutes, and report usage to a host outside.
MLFLOW_ENVIRONMENT = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
}
MISSING = "RESOURCE_DOES_NOT_EXIST"


def prepare() -> None:
    """Imports MLflow in the caller's thread: two threads that import large packages at once may meet half-made modules."""
    export(MLFLOW_ENVIRONMENT)
    import mlflow  # noqa: F401


def client_of(tracking_uri: str, registry_uri: str | None = None) -> Any:
    """Imports MLflow, which takes seconds. A SQLite store is opened, and made where it is not there."""
    export(MLFLOW_ENVIRONMENT)
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri, registry_uri)


def experiment_of(client: Any, name: str, artifacts: str | None) -> str:
    """The experiment's id; it is made where it is not there, for the view of the page that is for training."""
    found = client.get_experiment_by_name(name)
    if found is not None:
        return str(found.experiment_id)
    return str(client.create_experiment(name, artifact_location=artifacts, tags={"mlflow.experimentKind": "custom_model_development"}))


def exists(client: Any, run_id: str) -> bool:
    return answer_of(lambda: client.get_run(run_id)) is not None


def answer_of(question: Any) -> Any:
    """What MLflow answers; None where it answers that there is no such thing. Raises MlflowException for everything else."""
    from mlflow.exceptions import MlflowException

    try:
        return question()
    except MlflowException as error:
        if error.error_code == MISSING:
            return None
        raise


def download(uri: str, folder: Path, tracking_uri: str) -> Path:
    """Copies the artifacts at `uri` below a folder; where they are."""
    export(MLFLOW_ENVIRONMENT)
    from mlflow.artifacts import download_artifacts

    return Path(download_artifacts(artifact_uri=uri, dst_path=str(folder), tracking_uri=tracking_uri))
