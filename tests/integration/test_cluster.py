"""Joining Ray from a driver: what the process had before it has afterwards."""

import subprocess
import sys

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


def test_a_driver_s_own_handler_is_told_of_sigterm(ray_cluster: Cluster) -> None:
    done = subprocess.run([sys.executable, "-c", DRIVER, ray_cluster.address], capture_output=True, text=True, timeout=120)
    assert done.returncode == 1, done.stderr
    assert "ended in order" in done.stderr
    assert "SIGTERM received" not in done.stderr
