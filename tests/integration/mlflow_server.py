"""A real MLflow server for tests, as a process of its own on the loopback, that can be killed and started again with what it knew."""

import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from s3_server import free_port

START_TIMEOUT_S = 120.0


class MlflowServer:
    """One server; its database and its port stay the same over restarts."""

    def __init__(self, folder: Path, artifacts: str, *, proxied: bool) -> None:
        """artifacts: an S3 address. proxied: clients reach it through the server, else by themselves."""
        self._folder, self._port = folder, free_port()
        self.uri = f"http://127.0.0.1:{self._port}"
        where = ["--artifacts-destination", artifacts] if proxied else ["--no-serve-artifacts", "--default-artifact-root", artifacts]
        self._command = [
            sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self._port), "--workers", "1",
            "--backend-store-uri", f"sqlite:///{folder}/server.db", *where,
        ]  # fmt: skip
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        # Without this it starts seven more processes, for jobs that nobody asks for.
        environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
        with (self._folder / "server.log").open("ab") as output:
            self._process = subprocess.Popen(
                self._command, stdout=output, stderr=subprocess.STDOUT, cwd=self._folder, env=environment, start_new_session=True
            )
        deadline = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < deadline and self._process.poll() is None:
            try:
                urllib.request.urlopen(f"{self.uri}/health", timeout=2).close()
                return
            except OSError:
                time.sleep(0.2)
        raise RuntimeError(f"MLflow did not answer: {(self._folder / 'server.log').read_text(errors='replace')[-800:]}")

    def kill(self) -> None:
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None


@contextmanager
def mlflow_server(folder: Path, artifacts: str, *, proxied: bool) -> Iterator[MlflowServer]:
    """Not started yet; killed with the block."""
    server = MlflowServer(folder, artifacts, proxied=proxied)
    try:
        yield server
    finally:
        server.kill()
