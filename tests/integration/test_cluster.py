"""Joining Ray from a driver: what the process had before it has afterwards."""

import os
import subprocess
import sys
from contextlib import suppress
from typing import Any
from urllib.parse import urlsplit

import psutil
import pytest

from infra.cluster import Cluster

pytestmark = pytest.mark.ray
DRIVER = """
import os, signal, sys, time
from infra.cluster import connect

signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended in order"))
with connect(sys.argv[1]):
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(30)
"""
OWNER = """
from infra.cluster import connect

with connect(num_cpus=4, include_dashboard=True) as cluster:
    print(cluster.dashboard_url, flush=True)
    input()
"""


def test_a_driver_s_own_handler_is_told_of_sigterm(ray_cluster: Cluster) -> None:
    done = subprocess.run([sys.executable, "-c", DRIVER, ray_cluster.address], capture_output=True, text=True, timeout=120)
    assert done.returncode == 1, done.stderr
    assert "ended in order" in done.stderr
    assert "SIGTERM received" not in done.stderr


def test_the_dashboard_listens_on_loopback_only() -> None:
    """Its page and its jobs are everybody's who reaches it."""
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    driver = psutil.Popen([sys.executable, "-c", OWNER], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        port = urlsplit(driver.stdout.readline().strip()).port
        listening = [found.laddr for process in driver.children(recursive=True) for found in listeners(process)]
        assert {address.ip for address in listening if address.port == port} == {"127.0.0.1"}
        driver.communicate("over\n", timeout=60)
        assert driver.returncode == 0
    finally:
        for process in [*driver.children(recursive=True), driver] if driver.is_running() else []:
            with suppress(psutil.NoSuchProcess):
                process.kill()


def listeners(process: psutil.Process) -> list[Any]:
    with suppress(psutil.NoSuchProcess):
        return [found for found in process.net_connections("tcp") if found.status == psutil.CONN_LISTEN]
    return []
