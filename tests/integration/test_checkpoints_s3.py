"""Checkpoints on a real S3 server: a save that is interrupted anywhere leaves one whole checkpoint."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from infra.storage.place import Place, localise
from model.checkpoint import Checkpoint, DatasetIdentity, LatentStatistics, load_checkpoint
from model.codec.base import CodecIdentity
from model.network.unet import AccompanimentUNet, UNetConfig
from training.state import put_folder

NETWORK = UNetConfig(channels=(8, 16), vocal_blocks=(1, 1), heads=1, head_channels=8, time_channels=8)


def checkpoint(step: int) -> Checkpoint:
    torch.manual_seed(step)
    ones = (1.0,) * 64
    return Checkpoint(
        name=f"tiny-{step}", network=NETWORK, state=AccompanimentUNet(NETWORK).state_dict(), step=step, metrics={},
        statistics=LatentStatistics(vocal_mean=ones, vocal_std=ones, accompaniment_mean=ones, accompaniment_std=ones, vocal_level_db=-20.0),
        codec=CodecIdentity(id="tiny", weights_sha256="c" * 64), dataset=DatasetIdentity(uri="s3://bucket/data", digest="d" * 64),
    )  # fmt: skip


class Killed(Exception):
    pass


def test_an_interrupted_save_leaves_one_whole_checkpoint(bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = Place(bucket) / "checkpoints" / "best"

    def held() -> int:
        loaded = load_checkpoint(localise(place, tmp_path))
        expected = checkpoint(loaded.step)
        assert replace(loaded, state={}) == replace(expected, state={})
        assert all(torch.equal(value, expected.state[name]) for name, value in loaded.state.items())
        return loaded.step

    put_folder(place, checkpoint(0), {"extra.txt": b"0"})
    assert held() == 0
    interrupted = []
    for step in range(1, 12):
        changes = 0

        def counted(act, limit: int = step):
            def change(self: Place, *arguments):
                nonlocal changes
                changes += 1
                if changes == limit:
                    raise Killed
                return act(self, *arguments)

            return change

        with monkeypatch.context() as patch:
            patch.setattr(Place, "write_bytes", counted(Place.write_bytes))
            patch.setattr(Place, "delete", counted(Place.delete))
            try:
                put_folder(place, checkpoint(step), {"extra.txt": str(step).encode()})
            except Killed:
                interrupted.append(held())
            else:
                break
    # Killed before its weights or its description: the former stays. After them: the new one is there.
    assert interrupted[:2] == [0, 0]
    assert len(interrupted) >= 3
    assert interrupted[2:] == list(range(3, len(interrupted) + 1))
    assert held() == step
    put_folder(place, checkpoint(99))
    put_folder(place, checkpoint(100))
    assert held() == 100
    # The one before stays for its readers, and no more.
    assert len(place.list(prefix="model-")) == 2
