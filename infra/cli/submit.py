"""A command of this project as a Ray job: the repository is shipped as the working directory, the logs come back."""

import shlex
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from infra.dataset.format import code_version
from infra.errors import UserError
from infra.settings import client_environment, export, job_environment

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

REPOSITORY = Path(__file__).resolve().parents[2]
ROOMS = {"prepare": "pipelines", "train": "training", "evaluate": "training", "sweep": "training"}
AGENT_TIMEOUT_S = 60.0
# Never shipped: environments, results, history. (.gitignore is honoured besides.)
EXCLUDES = [".git", ".venv", "runs", ".cache", "tests", "infra/benchmarks"]


def submit(
    address: str,
    command: Literal["prepare", "train", "evaluate", "sweep"],
    /,
    *arguments: Annotated[str, Parameter(allow_leading_hyphen=True)],
    wait: bool = True,
) -> int:
    """Run prepare, train, evaluate or sweep as a job on the Ray cluster at ADDRESS (http://host:8265).

    Parameters
    ----------
    address: The cluster's dashboard address.
    command: What to run.
    arguments: The command's own options, as on this command line.
    wait: Follow the job's log until it ends; its exit code becomes this command's.
    """
    if not address.startswith(("http://", "https://")):
        raise UserError(f"{address!r} is no dashboard's address: give scheme, host and port, for example http://127.0.0.1:8265")
    export(client_environment())
    import ray.job_submission as jobs

    try:
        client = jobs.JobSubmissionClient(address)
    except (ConnectionError, RuntimeError) as error:
        raise UserError(
            f"no Ray dashboard answers at {address}: start one with `ray start --head`, or give its address ({error})"
        ) from error
    entrypoint = shlex.join(["python", "-m", ROOMS[command], command, *arguments])
    job = _submitted(client, entrypoint, address)
    sys.stdout.write(f"submitted {job}: {entrypoint}\n")
    if not wait:
        return 0
    return follow(client, job)


def _submitted(client: "JobSubmissionClient", entrypoint: str, address: str) -> str:
    """The job's id. A head node answers some seconds before its agent takes jobs."""
    give_up_s = time.monotonic() + AGENT_TIMEOUT_S
    environment = {
        "working_dir": str(REPOSITORY),
        "excludes": EXCLUDES,
        "env_vars": {**job_environment(), "BACKLINE_COMMIT": code_version()},
    }
    while True:
        try:
            return client.submit_job(entrypoint=entrypoint, runtime_env=environment)
        except RuntimeError as error:
            if "No available agent" not in str(error) or time.monotonic() > give_up_s:
                first_line = str(error).strip().partition("\n")[0]
                raise UserError(f"the cluster at {address} did not take the job: {first_line}") from error
            time.sleep(1.0)


def follow(client: "JobSubmissionClient", job: str) -> int:
    """Prints the job's log as it grows; the exit code of its command, or 1 where the job failed without one."""
    shown = 0
    while True:
        status = client.get_job_status(job)
        text = client.get_job_logs(job)
        sys.stdout.write(text[shown:])
        sys.stdout.flush()
        shown = len(text)
        if status.is_terminal():
            break
        time.sleep(1.0)
    sys.stdout.write(f"{job}: {status.value}\n")
    if status.value == "SUCCEEDED":
        return 0
    return client.get_job_info(job).driver_exit_code or 1
