"""Records: what pyarrow and pandas read without this project, the manifest, and reading for training."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from infra.dataset.format import Counts, Manifest, code_version, latents, read_latents, read_manifest, tensors
from infra.dataset.parquet import write_table
from infra.dataset.truth import frame_columns, no_truth
from infra.errors import UserError
from infra.storage.place import Place

CHANNELS, FRAMES = 4, 6


def manifest() -> Manifest:
    numbers = tuple(float(n) for n in range(1, CHANNELS + 1))
    counts = Counts(
        songs=2,
        train_songs=2,
        validation_songs=0,
        segments=3,
        train_segments=3,
        validation_segments=0,
        rejected_songs=0,
        rejected_segments=0,
    )
    return Manifest(
        codec_id="tiny",
        codec_weights_sha256="ab" * 32,
        separator_id=None,
        sample_rate_hz=44_100,
        hop_samples=2_048,
        latent_channels=CHANNELS,
        segment_frames=FRAMES,
        vocal_mean=numbers,
        vocal_std=numbers,
        accompaniment_mean=numbers,
        accompaniment_std=numbers,
        vocal_level_db=-18.5,
        duration_h=0.01,
        counts=counts,
        content_sha256="cd" * 32,
        commit="0123456",
    )


def table(song_id: str, segments: list[int], values_RCT: np.ndarray) -> pa.Table:
    rows = len(segments)
    columns = {
        "song_id": pa.array([song_id] * rows),
        "segment": pa.array(segments, pa.int32()),
        "start_s": pa.array([0.0] * rows),
        "duration_s": pa.array([1.0] * rows),
        "valid_frames": pa.array([FRAMES - 1] * rows, pa.int32()),
        "vocal_latent": tensors(values_RCT),
        "accompaniment_latent": tensors(-values_RCT),
        "vocal_active": pa.array([0.5] * rows, pa.float32()),
        "gain_db": pa.array([0.0] * rows, pa.float32()),
        "source": pa.array(["pairs"] * rows),
        "license": pa.array(["CC0-1.0"] * rows),
        "separation_quality": pa.array([None] * rows, pa.float32()),
        **frame_columns(no_truth(rows, FRAMES), None),
    }
    return pa.table(columns, schema=latents(CHANNELS, FRAMES))


@pytest.fixture
def dataset(tmp_path: Path) -> Place:
    place = Place(str(tmp_path))
    values = np.arange(3 * CHANNELS * FRAMES, dtype=np.float16).reshape(3, CHANNELS, FRAMES)
    write_table(place / "latents/split=train/bb.parquet", table("bb", [0], values[2:]))
    write_table(place / "latents/split=train/aa.parquet", table("aa", [1, 0], values[[1, 0]]))
    (place / "manifest.json").write_bytes(manifest().to_json().encode())
    return place


def test_a_split_is_read_in_order_with_its_shapes(dataset: Place) -> None:
    rows = read_latents(dataset, "train")
    assert (rows.song_ids, rows.segments) == (("aa", "aa", "bb"), (0, 1, 0))
    assert rows.vocal_RCT.dtype == np.float16
    np.testing.assert_array_equal(rows.vocal_RCT.ravel(), np.arange(3 * CHANNELS * FRAMES))
    np.testing.assert_array_equal(rows.accompaniment_RCT, -rows.vocal_RCT)
    assert rows.valid_frames_R.tolist() == [FRAMES - 1] * 3
    empty = read_latents(dataset, "validation")
    assert len(empty) == 0
    assert empty.vocal_RCT.shape == (0, CHANNELS, FRAMES)


def test_pyarrow_alone_sees_the_tensor_and_pandas_the_flat_list(dataset: Place) -> None:
    import pandas as pd

    file = dataset.path / "latents/split=train/bb.parquet"
    column = pq.read_table(file)["vocal_latent"]
    assert column.type.shape == [CHANNELS, FRAMES]
    assert column.combine_chunks().to_numpy_ndarray().shape == (1, CHANNELS, FRAMES)
    flat = pd.read_parquet(file)["vocal_latent"][0]
    assert (flat.shape, flat.dtype) == ((CHANNELS * FRAMES,), np.float16)
    assert json.loads(pq.read_schema(file).metadata[b"backline.latent_shape"]) == [CHANNELS, FRAMES]
    whole = pq.read_table(dataset.path / "latents")
    assert set(whole["split"].to_pylist()) == {"train"}


def test_the_manifest_survives_json_and_unknown_fields(dataset: Place) -> None:
    assert read_manifest(dataset) == manifest()
    newer = {**json.loads(manifest().to_json()), "added_later": 1}
    assert Manifest.from_json(json.dumps(newer)) == manifest()


def test_the_digest_is_the_content_not_the_code() -> None:
    assert replace(manifest(), commit="other").digest == manifest().digest
    assert replace(manifest(), content_sha256="ef" * 32).digest != manifest().digest
    assert replace(manifest(), codec_weights_sha256="ef" * 32).digest != manifest().digest


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"schema_version": 1, "counts": {}}'])
def test_what_is_no_manifest_is_one_clear_error(text: str) -> None:
    with pytest.raises(UserError, match="no manifest"):
        Manifest.from_json(text)


def test_an_unfinished_dataset_another_schema_and_a_damaged_file_are_named(dataset: Place) -> None:
    (dataset / "latents/split=train/aa.parquet").write_bytes(b"PAR1 damaged")
    with pytest.raises(UserError, match=r"aa\.parquet is damaged"):
        read_latents(dataset, "train")
    (dataset / "manifest.json").write_bytes(manifest().to_json().replace('"schema_version": 1', '"schema_version": 9').encode())
    with pytest.raises(UserError, match="schema version 9"):
        read_latents(dataset, "train")
    (dataset / "manifest.json").delete()
    with pytest.raises(UserError, match="no finished dataset"):
        read_latents(dataset, "train")
    with pytest.raises(UserError, match="not one of train, validation"):
        read_latents(dataset, "test")


def test_a_half_updated_dataset_is_not_read_as_finished(dataset: Place) -> None:
    (dataset / "latents/split=train/bb.parquet").delete()
    with pytest.raises(UserError, match="cut short or is running"):
        read_latents(dataset, "train")


def test_the_code_version_follows_a_checkout(tmp_path: Path) -> None:
    assert "backline" in code_version(tmp_path)
    (tmp_path / ".git/refs/heads").mkdir(parents=True)
    (tmp_path / ".git/HEAD").write_text("ref: refs/heads/main\n")
    (tmp_path / ".git/packed-refs").write_text("# pack-refs\n" + "a" * 40 + " refs/heads/main\n")
    assert code_version(tmp_path) == "a" * 40
    (tmp_path / ".git/refs/heads/main").write_text("b" * 40 + "\n")
    assert code_version(tmp_path) == "b" * 40
