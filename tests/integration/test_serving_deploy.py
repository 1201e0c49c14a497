"""`serve build` and `serve deploy` as an operator runs them: a cluster of its own, the project's file, a rollout under load, the page."""

import os
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx
import page_browser
import pytest
import serving_parts as parts
import yaml
from conftest import needs
from playwright.sync_api import expect
from test_submit import BIN, REPOSITORY, free_ports, wait_for

from model.checkpoint import load_checkpoint, save_checkpoint

pytestmark = pytest.mark.ray
FILE = REPOSITORY / "infra" / "serve.yaml"
TIMEOUT_S = 120
# As in a shell whose virtual environment is active; what the cluster imports is this checkout.
ENVIRONMENT = {
    **os.environ, "PATH": f"{BIN}:{os.environ['PATH']}", "PYTHONPATH": str(REPOSITORY),
    "RAY_AUTH_MODE": "token", "RAY_USAGE_STATS_ENABLED": "0",
}  # fmt: skip


@dataclass
class Operator:
    """Somebody with the project's file for `serve deploy` and a cluster to put it on."""

    dashboard: str
    config: dict[str, Any]
    folder: Path

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.config['http_options']['port']}"

    def serve(self, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
        """Ray's command `serve`."""
        return subprocess.run(
            [BIN / "serve", *arguments], env=ENVIRONMENT, cwd=self.folder, capture_output=True, text=True, timeout=TIMEOUT_S, check=False
        )

    def deploy(self, **args: Any) -> None:
        """The file with these fields changed."""
        self.config["applications"][0]["args"].update(args)
        file = self.folder / "serve.yaml"
        file.write_text(yaml.safe_dump(self.config))
        deployed = self.serve("deploy", file, "--address", self.dashboard)
        assert deployed.returncode == 0, deployed.stderr

    def status(self) -> dict[str, Any]:
        """Of the application."""
        told = self.serve("status", "--address", self.dashboard)
        assert told.returncode == 0, told.stderr
        return yaml.safe_load(told.stdout)["applications"]["backline"]

    def ask(self, **fields: str) -> httpx.Response:
        files = {"vocal": ("vocal.wav", parts.vocal())}
        return httpx.post(f"{self.url}/v1/accompaniments", files=files, data={**parts.QUICK, **fields}, timeout=TIMEOUT_S)


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The tiny network under two names."""
    folder = tmp_path_factory.mktemp("models")
    first = parts.tiny_checkpoint(folder / "first")
    save_checkpoint(folder / "second", replace(load_checkpoint(first), name="second"))
    return {parts.MODEL_NAME: first, "second": folder / "second"}


@pytest.fixture(scope="module")
def operator(checkpoints: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Operator]:
    """A head node with its dashboard, in a process group that ends with the tests, and the file as it ships, but for size and port."""
    port, dashboard, client, agent, http = free_ports(5)
    folder = tmp_path_factory.mktemp("operator")
    log = folder / "head.log"
    own = tempfile.mkdtemp(prefix="ray-")  # short: sockets lie in it
    with log.open("w") as sink:
        process = subprocess.Popen(
            [BIN / "ray", "start", "--head", "--block", "--include-dashboard=true", "--dashboard-host=127.0.0.1", "--num-cpus=4",
             f"--port={port}", f"--dashboard-port={dashboard}", f"--ray-client-server-port={client}",
             f"--dashboard-agent-listen-port={agent}", f"--temp-dir={own}"],
            env=ENVIRONMENT, cwd=folder, stdout=sink, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
        try:
            address = f"http://127.0.0.1:{dashboard}"
            wait_for(address, process, log)
            config = yaml.safe_load(FILE.read_text())
            config["http_options"]["port"] = http
            config["applications"][0]["args"].update(
                checkpoint=str(checkpoints[parts.MODEL_NAME]), max_replicas=1, replica_memory_gb=0.5, replica_threads=1, drain_s=30
            )
            yield Operator(address, config, folder)
        finally:
            os.killpg(process.pid, signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                process.wait(5)
            # Nothing of it is wanted any more: not waited for as long as replicas may take over their last requests.
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait(30)
            shutil.rmtree(own, ignore_errors=True)


@pytest.fixture(scope="module")
def deployed(operator: Operator) -> Operator:
    operator.deploy()
    until(lambda: httpx.get(f"{operator.url}/readyz", timeout=10).status_code == 200)
    return operator


def until(is_so: Callable[[], bool]) -> None:
    end_s = time.monotonic() + TIMEOUT_S
    while True:
        with suppress(httpx.TransportError):
            if is_so():
                return
        assert time.monotonic() < end_s
        time.sleep(0.3)


def test_serve_build_writes_what_serve_deploy_takes(tmp_path: Path) -> None:
    """Every option of the deployments, to be tuned in a file; `serve build` itself gives the application another name and host 0.0.0.0."""
    file = tmp_path / "built.yaml"
    built = subprocess.run(
        [BIN / "serve", "build", "serving.deployments:app", "-o", file], env=ENVIRONMENT, cwd=tmp_path, capture_output=True, text=True,
        timeout=TIMEOUT_S, check=False,
    )  # fmt: skip
    assert built.returncode == 0, built.stderr
    (app,) = yaml.safe_load(file.read_text())["applications"]
    options = {deployment["name"]: deployment for deployment in app["deployments"]}
    assert set(options) == {"Model", "Ingress"}
    assert options["Model"]["max_queued_requests"] == 32
    assert options["Model"]["ray_actor_options"]["num_gpus"] == 0


def test_a_deployed_service_plays(deployed: Operator) -> None:
    answer = deployed.ask()
    assert answer.status_code == 200, answer.text
    assert answer.headers["x-backline-model"] == parts.MODEL_NAME
    assert answer.headers["x-request-id"]


def test_the_page_of_a_deployed_service(deployed: Operator, tmp_path: Path) -> None:
    """A vocal is dropped, the page tells how far its band is, and plays it."""
    vocal = tmp_path / "my vocal.wav"
    vocal.write_bytes(parts.vocal(6.0))
    chromium = needs(page_browser.CHROMIUM, page_browser.REMEDY)
    with page_browser.browser(chromium) as browser, browser.new_context() as context:
        watch, page = page_browser.Watch(context), context.new_page()
        page.goto(deployed.url)
        expect(page.locator("#service")).to_have_text("ready")
        page.locator("#drop").drop({"files": vocal})
        expect(page.locator("#go")).to_be_enabled()
        # Every state of the bar is kept, for it is gone when the take is there.
        page.locator("#progress").evaluate("""bar => {
            window.shares = [];
            new MutationObserver(() => shares.push(bar.value)).observe(bar, { attributes: true });
        }""")
        page.get_by_text("Finer settings").click()
        page.locator("#steps").fill("200")
        page.locator("#candidates").get_by_role("radio").last.check()  # several: it takes long enough for its progress to be seen
        page.locator("#go").click()
        expect(page.locator(".take")).to_have_count(1, timeout=60_000)
        shares = page.evaluate("shares")
        assert len({share for share in shares if 0 < share < 1}) >= 2, shares
        page.locator("#play").click()
        page_browser.until_player(page, "player.position_s > 0.3")
        page_browser.until_player(page, "player.level('band') > 1e-3")
        assert watch.complaints() == []


def test_a_changed_file_is_rolled_out_without_a_lost_request(deployed: Operator, checkpoints: dict[str, Path]) -> None:
    """Short requests one after the other and long ones that are in flight meanwhile: all are answered, by one model or the other. As long
    as the old model takes new ones, `/readyz` says that the service is ready."""
    over, answers, taken_s, unready_s = threading.Event(), [], dict[str, float](), list[float]()

    def keep_asking(steps: str) -> None:
        while not over.is_set():
            began_s = time.monotonic()
            answers.append(answer := deployed.ask(steps=steps))
            if answer.status_code == 200:
                model = answer.headers["x-backline-model"]
                taken_s[model] = max(taken_s.get(model, 0), began_s)
            time.sleep(0.1)  # a core is left to the replica that is loading

    def keep_looking() -> None:
        while not over.is_set():
            began_s = time.monotonic()
            if httpx.get(f"{deployed.url}/readyz", timeout=TIMEOUT_S).status_code != 200:
                unready_s.append(began_s)
            time.sleep(0.3)

    with ThreadPoolExecutor(3) as threads:
        asking = [threads.submit(keep_asking, steps) for steps in ("2", "200")] + [threads.submit(keep_looking)]
        try:
            until(lambda: len(answers) > 3)
            deployed.deploy(checkpoint=str(checkpoints["second"]))
            until(lambda: answers[-1].headers.get("x-backline-model") == "second")
            until(lambda: [one.status_code for one in answers[-5:]] == [200] * 5)
        finally:
            over.set()
        for one in asking:
            one.result()
    assert {answer.status_code for answer in answers} == {200}
    assert {answer.headers["x-backline-model"] for answer in answers} == {parts.MODEL_NAME, "second"}
    assert deployed.ask().headers["x-backline-model"] == "second"
    # Serve takes a replica's name from the ingress within a moment after it has decided that the replica stops.
    assert not [at_s for at_s in unready_s if at_s + 1 < taken_s[parts.MODEL_NAME]]


def test_a_wrong_field_is_said_and_changes_nothing(deployed: Operator) -> None:
    """Last in this file: the application keeps this status."""
    model = deployed.ask().headers["x-backline-model"]
    deployed.deploy(chekpoint="somewhere")
    told: list[dict[str, Any]] = []
    until(lambda: told.append(deployed.status()) or told[-1]["status"] == "DEPLOY_FAILED")
    message = told[-1]["message"]
    assert message.count("args of serving.deployments:build: chekpoint") == 1, message
    time.sleep(3)  # the ingress, too, has heard by now that Serve knows no deployments of this application
    assert httpx.get(f"{deployed.url}/readyz", timeout=TIMEOUT_S).status_code == 200
    with ThreadPoolExecutor(4) as threads:  # more than a replica takes to at a time, and so long that the ingress looks what became of it
        answers = list(threads.map(lambda seed: deployed.ask(steps="200", candidates="8", seed=str(seed)), range(4)))
    assert [answer.status_code for answer in answers] == [200] * 4
    assert {answer.headers["x-backline-model"] for answer in answers} == {model}
