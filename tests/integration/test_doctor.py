"""`backline doctor` on a machine that works, and on places that do not."""

import pytest

from infra.cluster import Cluster
from infra.doctor import doctor

pytestmark = pytest.mark.ray


def test_what_works_is_a_line_each(ray_cluster: Cluster, capsys: pytest.CaptureFixture[str]) -> None:
    assert ray_cluster.address
    assert doctor() == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines if "stable-audio-open" not in line and "htdemucs" not in line] == ["ok"] * 5
    assert all(line.startswith(("ok ", "missing ")) for line in lines)


def test_what_was_asked_for_and_is_broken_is_exit_code_1(
    ray_cluster: Cluster, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert ray_cluster.address
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    assert doctor(data="s3://bucket/latents", checkpoint="/nowhere/at/all") == 1
    broken = [line for line in capsys.readouterr().out.splitlines() if line.startswith("broken")]
    assert len(broken) == 2
    assert "s3://bucket/latents" in broken[0]
    assert "127.0.0.1:9" in broken[0]
    assert "/nowhere/at/all" in broken[1]
    assert all("remedy:" in line for line in broken)
    assert not any("secret" in line for line in broken)
