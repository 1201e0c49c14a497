"""`backline doctor` on a machine that works, and on places that do not."""

import pytest

from infra.cli.doctor import doctor, object_storage
from infra.cluster import Cluster
from infra.settings import Settings

pytestmark = pytest.mark.ray


def test_what_works_is_a_line_each(ray_cluster: Cluster, capsys: pytest.CaptureFixture[str]) -> None:
    assert ray_cluster.address
    assert doctor() == 0
    lines = capsys.readouterr().out.splitlines()
    optional = ("stable-audio-open", "htdemucs", "object storage", "instrument banks")
    assert [line.split()[0] for line in lines if not any(name in line for name in optional)] == ["ok"] * 5
    assert sum("object storage" in line for line in lines) == sum("instrument banks" in line for line in lines) == 1
    assert all(line.startswith(("ok ", "missing ")) for line in lines)


def test_a_server_that_answers_is_enough_without_a_bucket(bucket: str) -> None:
    assert bucket
    assert object_storage(Settings.from_environment()).endswith("answers")


def test_what_was_asked_for_and_is_broken_is_exit_code_1(
    ray_cluster: Cluster, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert ray_cluster.address
    monkeypatch.setenv("BACKLINE_BANKS", "/nowhere/font.sf2")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    assert doctor(data="s3://bucket/latents", checkpoint="/nowhere/at/all") == 1
    broken = [line for line in capsys.readouterr().out.splitlines() if line.startswith("broken")]
    assert len(broken) == 4
    assert "object storage" in broken[0]
    assert "instrument banks: /nowhere/font.sf2 does not exist" in broken[1]
    assert "s3://bucket/latents" in broken[2]
    assert all("127.0.0.1:9" in line for line in (broken[0], broken[2]))
    assert "/nowhere/at/all" in broken[3]
    assert all("remedy:" in line for line in broken)
    assert not any("secret" in line for line in broken)
