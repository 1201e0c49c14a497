"""A real S3 server for tests, as processes of its own on the loopback: Ceph's RADOS gateway where apt can fetch it, else moto's server.

Ceph is unpacked into a cache folder, never installed: one monitor, one object store on a file, one gateway. It checks keys and conditional
puts as a production server does; moto takes any keys.
"""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import boto3
from botocore.client import BaseClient
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

PACKAGES = ("radosgw", "ceph-mon", "ceph-osd", "ceph-base", "ceph-common")
CACHE = Path.home() / ".cache/backline-tests/ceph"
ACCESS_KEY_ID, SECRET_ACCESS_KEY = "backline-tests", "backline-tests-secret"
START_TIMEOUT_S = 120.0
FSID, OSD_UUID = "b1c0de00-0000-4000-8000-000000000001", "b1c0de00-0000-4000-8000-000000000002"


class NoCephError(Exception):
    """Ceph cannot be had on this machine; the message says why."""


@dataclass(frozen=True, kw_only=True)
class S3Server:
    """A running server with one key pair."""

    kind: str
    endpoint_url: str
    access_key_id: str = ACCESS_KEY_ID
    secret_access_key: str = SECRET_ACCESS_KEY

    @property
    def checks_keys(self) -> bool:
        return self.kind == "ceph"

    @property
    def environment(self) -> dict[str, str]:
        return {
            "AWS_ENDPOINT_URL": self.endpoint_url,
            "AWS_ACCESS_KEY_ID": self.access_key_id,
            "AWS_SECRET_ACCESS_KEY": self.secret_access_key,
            "AWS_DEFAULT_REGION": "us-east-1",
        }

    def client(self) -> BaseClient:
        """A client independent of the project's own."""
        return boto3.client(
            "s3",
            endpoint_url=self.endpoint_url,
            region_name="us-east-1",
            aws_access_key_id=self.access_key_id,
            aws_secret_access_key=self.secret_access_key,
            config=Config(connect_timeout=2, read_timeout=20, retries={"total_max_attempts": 1}, s3={"addressing_style": "path"}),
        )


@contextmanager
def serve(folder: Path) -> Iterator[S3Server]:
    """Ceph, or moto with a line that says why not; ended with the block."""
    with ExitStack() as stack:
        try:
            server = stack.enter_context(serve_ceph(folder / "ceph"))
        except NoCephError as reason:
            sys.stderr.write(f"\nS3 tests: no Ceph here ({reason}), moto serves\n")
            server = stack.enter_context(serve_moto(folder))
        else:
            sys.stderr.write(f"\nS3 tests: Ceph RADOS gateway serves at {server.endpoint_url}\n")
        yield server


@contextmanager
def serve_moto(folder: Path) -> Iterator[S3Server]:
    port = free_port()
    server = S3Server(kind="moto", endpoint_url=f"http://127.0.0.1:{port}")
    with _process([sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)], folder / "moto.log", dict(os.environ)):
        _until_answers(server, folder / "moto.log")
        yield server


@contextmanager
def serve_ceph(folder: Path) -> Iterator[S3Server]:
    """NoCephError where it cannot be fetched, unpacked or started."""
    root = _unpacked()
    shutil.rmtree(folder, ignore_errors=True)
    for name in ("mon", "osd", "run"):
        (folder / name).mkdir(parents=True)
    monitor, gateway = free_port(), free_port()
    libraries = root / "usr/lib" / f"{os.uname().machine}-linux-gnu"
    environment = {
        **os.environ,
        "LD_LIBRARY_PATH": f"{libraries}:{libraries}/ceph:{root}/lib/{os.uname().machine}-linux-gnu",
        "PYTHONPATH": f"{root}/usr/lib/python3/dist-packages",
        "CEPH_CONF": str(folder / "ceph.conf"),
    }
    (folder / "ceph.conf").write_text(_configuration(folder, libraries, gateway))

    def tool(name: str, *arguments: str) -> str:
        said = f"{name} {' '.join(arguments[:3])}"
        command = [str(root / "usr/bin" / name), *arguments]
        try:
            done = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, timeout=START_TIMEOUT_S)
        except subprocess.TimeoutExpired as error:
            raise NoCephError(f"{said} did not end within {START_TIMEOUT_S:.0f} s") from error
        if done.returncode:
            raise NoCephError(f"{said} ended with {done.returncode}: {(done.stderr or done.stdout).strip()[-300:]}")
        return done.stdout

    def ceph(*arguments: str) -> str:
        """On a busy machine a client may ask before it has heard the cluster's id, and is refused: it asks again."""
        deadline = time.monotonic() + START_TIMEOUT_S
        while True:
            try:
                # Debian's `ceph` is a script over a compiled module for Python 3.11.
                return tool(sys.executable, str(root / "usr/bin/ceph"), "--connect-timeout", "30", *arguments)
            except NoCephError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.2)

    with ExitStack() as stack:

        def daemon(name: str, *arguments: str) -> subprocess.Popen[bytes]:
            command = [str(root / "usr/bin" / name), "--foreground", *arguments]
            return stack.enter_context(_process(command, folder / f"{name}.log", environment))

        def object_store() -> None:
            """Where it is refused for the same reason it ends: it is started again."""
            deadline = time.monotonic() + START_TIMEOUT_S
            while time.monotonic() < deadline:
                process = daemon("ceph-osd", "-i", "0")
                while process.poll() is None and time.monotonic() < deadline:
                    if json.loads(ceph("osd", "stat", "--format=json"))["num_up_osds"]:
                        return
                    time.sleep(0.2)
            raise NoCephError(f"its object store did not start: {(folder / 'ceph-osd.log').read_text(errors='replace').strip()[-300:]}")

        tool("monmaptool", "--create", "--fsid", FSID, "--addv", "a", f"[v1:127.0.0.1:{monitor}]", "monmap")
        tool("ceph-mon", "--mkfs", "-i", "a", "--monmap", "monmap")
        daemon("ceph-mon", "-i", "a")
        ceph("osd", "new", OSD_UUID)
        tool("ceph-osd", "-i", "0", "--mkfs", "--osd-uuid", OSD_UUID)
        object_store()
        keys = (f"--access-key={ACCESS_KEY_ID}", f"--secret={SECRET_ACCESS_KEY}")
        tool("radosgw-admin", "-n", "client.rgw", "user", "create", "--uid=tests", "--display-name=tests", *keys)
        daemon("radosgw", "-n", "client.rgw")
        server = S3Server(kind="ceph", endpoint_url=f"http://127.0.0.1:{gateway}")
        _until_answers(server, folder / "radosgw.log")
        yield server


def free_port() -> int:
    """A port that nobody listens on now; the kernel goes round them, so two calls give two ports."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _unpacked() -> Path:
    """The folder with Ceph's files, fetched once."""
    root = CACHE / "root"
    if (root / "usr/bin/radosgw").exists():
        return root
    if sys.version_info[:2] != (3, 11) or not all(shutil.which(tool) for tool in ("apt-get", "dpkg")):
        raise NoCephError("it needs apt-get, dpkg and Python 3.11")
    archives = CACHE / "debs"
    archives.mkdir(parents=True, exist_ok=True)
    fetch = [
        "apt-get",
        "install",
        "--download-only",
        "--yes",
        "--no-install-recommends",
        "-o",
        f"Dir::Cache::archives={archives}",
        *PACKAGES,
    ]
    done = subprocess.run(fetch, capture_output=True, text=True, timeout=300)
    if done.returncode:
        raise NoCephError(f"apt-get: {(done.stderr.strip() or 'failed').splitlines()[-1]}")
    arriving = CACHE / "root.part"
    shutil.rmtree(arriving, ignore_errors=True)
    for archive in sorted(archives.glob("*.deb")):
        subprocess.run(["dpkg", "-x", str(archive), str(arriving)], check=True, timeout=120)
    arriving.rename(root)
    return root


def _configuration(folder: Path, libraries: Path, gateway: int) -> str:
    return f"""
[global]
fsid = {FSID}
monmap = {folder}/monmap
auth_cluster_required = none
auth_service_required = none
auth_client_required = none
ms_bind_msgr2 = false
public_addr = 127.0.0.1
cluster_addr = 127.0.0.1
ms_bind_ipv6 = false
run_dir = {folder}/run
admin_socket = {folder}/run/$name.asok
pid_file = {folder}/run/$name.pid
log_file = {folder}/$name.log
plugin_dir = {libraries}/ceph
erasure_code_dir = {libraries}/ceph/erasure-code
osd_class_dir = {libraries}/rados-classes
osd_pool_default_size = 1
osd_pool_default_min_size = 1
osd_pool_default_pg_num = 4
osd_pool_default_pgp_num = 4
osd_pool_default_pg_autoscale_mode = off
osd_crush_chooseleaf_type = 0
mon_allow_pool_size_one = true
mon_max_pg_per_osd = 1000
mon_data_avail_crit = 1
mon_data_avail_warn = 2
[mon.a]
mon_data = {folder}/mon
[osd.0]
osd_data = {folder}/osd
osd_objectstore = bluestore
bluestore_block_path =
bluestore_block_size = 4294967296
osd_memory_target = 939524096
bluestore_fsck_on_mount = false
[client.rgw]
rgw_data = {folder}/rgw
rgw_frontends = beast endpoint=127.0.0.1:{gateway}
rgw_thread_pool_size = 16
rgw_enable_ops_log = false
rgw_enable_usage_log = false
"""


@contextmanager
def _process(command: list[str], log: Path, environment: dict[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    """A process of our own, ended by its id."""
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, env=environment, cwd=log.parent, start_new_session=True
        )
    try:
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _until_answers(server: S3Server, log: Path) -> None:
    client = server.client()
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline:
        try:
            client.list_buckets()
            return
        except (BotoCoreError, ClientError):
            time.sleep(0.3)
    said = log.read_text(errors="replace")[-500:]
    if server.kind == "ceph":
        raise NoCephError(f"the gateway did not answer within {START_TIMEOUT_S:.0f} s: {said}")
    raise RuntimeError(f"moto did not answer within {START_TIMEOUT_S:.0f} s: {said}")
