"""Separators: what they are, what they refuse, and that songs do not meddle with each other. Parity is in tests/parity."""

import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import numpy as np
import pytest
import torch

from model.errors import ModelError
from model.separation.load import Separator, SeparatorConfig, SeparatorIdentity, SeparatorUnavailable, load_separator
from tests.demucs_parts import (
    BAG,
    FIRST,
    SECOND,
    SEGMENT,
    SOURCES,
    bag_of,
    tiny_network,
    write_bag,
    write_hub_layout,
    write_th,
    write_tiny_repository,
)

CHUNK = int(SEGMENT * 44_100)
IDENTITY = SeparatorIdentity(id="tiny", weights_sha256="0")


def song(samples: int, seed: int = 0, level: float = 0.1) -> np.ndarray:
    return (level * np.random.default_rng(seed).normal(size=(2, samples))).astype(np.float32)


def tiny(*, batch_chunks: int | None = None, networks: int = 1, **changes: Any) -> Separator:
    bag = bag_of(*(tiny_network(seed, **changes) for seed in range(networks)))
    return Separator(bag, IDENTITY, config=SeparatorConfig(batch_chunks=batch_chunks))


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Networks this small only wait where two threads meet, tenfold on cores that others use too."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def separator() -> Separator:
    return tiny(batch_chunks=4)


def apart(one: Any, other: Any) -> float:
    return max(np.abs(one.vocal_CN - other.vocal_CN).max(), np.abs(one.accompaniment_CN - other.accompaniment_CN).max())


def test_a_song_does_not_depend_on_the_others_in_its_batch(separator: Separator) -> None:
    songs = [song(2 * CHUNK + 99, 1), song(CHUNK // 2, 2, level=0.001), song(3 * CHUNK, 3, level=0.9)]
    together = separator.separate(songs)
    for mixture_CN, stems in zip(songs, together, strict=True):
        alone = separator.separate([mixture_CN])[0]
        assert apart(alone, stems) < 1e-5
        assert np.abs(alone.vocal_CN).max() > 1e-4


def test_two_runs_are_equal_bit_for_bit(separator: Separator) -> None:
    first, second = (separator.separate([song(2 * CHUNK)])[0] for _ in range(2))
    assert np.array_equal(first.vocal_CN, second.vocal_CN)
    assert np.array_equal(first.accompaniment_CN, second.accompaniment_CN)


def test_random_positions_are_held_still() -> None:
    shaken = tiny(t_sin_random_shift=500, t_layer_scale=False)
    first, second = (shaken.separate([song(CHUNK)])[0] for _ in range(2))
    assert np.array_equal(first.vocal_CN, second.vocal_CN)


@pytest.mark.parametrize("samples", [1, 2, 100, CHUNK - 1, CHUNK, CHUNK + 1, CHUNK * 3 // 4, 2 * CHUNK])
def test_silence_and_short_songs_stay_finite(separator: Separator, samples: int) -> None:
    silent, constant, noise = separator.separate([np.zeros((2, samples)), np.full((2, samples), 0.25), song(samples)])
    for stems in (silent, constant, noise):
        assert stems.vocal_CN.shape == stems.accompaniment_CN.shape == (2, samples)
        assert np.isfinite(stems.vocal_CN).all()
        assert np.isfinite(stems.accompaniment_CN).all()
    assert np.abs(silent.vocal_CN).max() < 1e-6
    assert np.abs(silent.accompaniment_CN).max() < 1e-6


@pytest.mark.parametrize("networks", [1, 2])
@pytest.mark.parametrize("samples", [CHUNK // 3, 4 * CHUNK + 777])
def test_a_stream_gives_the_same_without_gaps(tmp_path: Path, networks: int, samples: int) -> None:
    separator = tiny(batch_chunks=2, networks=networks)
    separator._networks[-1] = type(separator._networks[-1])(separator._networks[-1].module, separator._networks[-1].stems_KS, 0.4)
    mixture_CN = song(samples) + np.float32(0.05)
    wanted = separator.separate([mixture_CN])[0]
    stored = np.memmap(tmp_path / "song.f32", np.float32, "w+", shape=mixture_CN.shape)
    stored[:] = mixture_CN
    read: list[int] = []

    def function(start: int, stop: int) -> np.ndarray:
        read.append(stop - start)
        return mixture_CN[:, start:stop]

    for pieces in (list(separator.stream(stored)), list(separator.stream(function, samples=samples))):
        at = 0
        for start, stems in pieces:
            assert start == at
            at += stems.vocal_CN.shape[1]
            assert np.abs(stems.vocal_CN - wanted.vocal_CN[:, start:at]).max() < 1e-5
            assert np.abs(stems.accompaniment_CN - wanted.accompaniment_CN[:, start:at]).max() < 1e-5
            assert stems.vocal_CN.base is None or stems.vocal_CN.base.nbytes <= 2 * 2 * 2 * 4 * 2 * CHUNK, "no stretch holds the song"
        assert at == samples
    assert max(read[1:], default=0) <= CHUNK, "after the pass for statistics only chunks are read"


def test_too_large_a_batch_is_halved_and_remembered(separator: Separator) -> None:
    mixture_CN = song(8 * int(0.75 * CHUNK))
    wanted = separator.separate([mixture_CN])[0]
    narrow = tiny(batch_chunks=8)
    seen: list[int] = []
    network = narrow._networks[0].module
    forward = network.forward

    def limited(mix_BCN: torch.Tensor) -> torch.Tensor:
        seen.append(len(mix_BCN))
        if len(mix_BCN) > 2:
            raise torch.OutOfMemoryError("no room")
        return forward(mix_BCN)

    network.forward = limited
    assert apart(narrow.separate([mixture_CN])[0], wanted) < 1e-5
    assert seen == [8, 4, 2, 2, 2, 2]
    assert narrow.batch_chunks == 2
    narrow.separate([mixture_CN])
    assert seen[6:] == [2, 2, 2, 2]
    network.forward = lambda mix_BCN: limited(torch.cat([mix_BCN] * 3))
    with pytest.raises(ModelError, match=r"one chunk of 0\.9 s does not fit"):
        narrow.separate([mixture_CN])


@pytest.mark.parametrize(
    ("mixture", "said"),
    [(np.zeros((1, 99)), r"\(1, 99\)"), (np.zeros(99), r"\(99,\)"), (np.zeros((2, 0)), r"\(2, 0\)"), (np.full((2, 9), np.nan), "NaN")],
)
def test_what_is_no_song_is_refused(separator: Separator, mixture: np.ndarray, said: str) -> None:
    with pytest.raises(ModelError, match=said):
        separator.separate([mixture])
    with pytest.raises(ModelError, match=said):
        list(separator.stream(mixture))


def test_a_function_needs_its_length_and_keeps_to_it(separator: Separator) -> None:
    with pytest.raises(ModelError, match="samples=None"):
        list(separator.stream(lambda start, stop: np.zeros((2, stop - start))))
    with pytest.raises(ModelError, match="came as"):
        list(separator.stream(lambda start, stop: np.zeros((2, stop - start - 1)), samples=99))


@pytest.mark.parametrize("wrong", [{"overlap": 1.0}, {"overlap": -0.1}, {"batch_chunks": 0}])
def test_a_configuration_checks_itself(wrong: dict[str, Any]) -> None:
    with pytest.raises(ModelError, match=next(iter(wrong))):
        SeparatorConfig(**wrong)


@pytest.mark.parametrize(
    ("changes", "said"),
    [({"sources": ["drums", "bass"]}, "drums, bass"), ({"sources": ["vocals"]}, "vocals and others"), ({"samplerate": 48_000}, "48000 Hz"),
     ({"audio_channels": 1}, "1 channels")],
)  # fmt: skip
def test_a_network_of_another_kind_is_refused(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    write_th(tmp_path, FIRST, tiny_network(1, **changes))
    with pytest.raises(SeparatorUnavailable, match=said):
        load_separator(str(tmp_path))


def test_identity_is_the_weights_wherever_they_lie(tmp_path: Path) -> None:
    identity = load_separator(str(write_tiny_repository(tmp_path / "one", bag=True))).identity
    assert identity.id == BAG
    assert len(identity.weights_sha256) == 64
    assert load_separator(str(write_hub_layout(tmp_path / "hub"))).identity == identity
    single = load_separator(f"{tmp_path / 'one'}#{FIRST}").identity
    assert single.id == FIRST
    assert single != identity
    write_bag(tmp_path / "hub", signatures=(FIRST,), weights=[[2.0] * 4])
    assert load_separator(f"{tmp_path / 'hub'}#{BAG}").identity.weights_sha256 == single.weights_sha256
    write_bag(tmp_path / "one", weights=[[1.0] * 4, [1.0, 1.0, 1.0, 2.0]])
    assert load_separator(str(tmp_path / "one")).identity != identity
    other = write_th(tmp_path / "other", FIRST, tiny_network(9)).parent
    assert load_separator(str(other)).identity.weights_sha256 != single.weights_sha256


def test_a_folder_that_leaves_a_choice_asks_for_it(tmp_path: Path) -> None:
    with pytest.raises(SeparatorUnavailable, match="0 networks"):
        load_separator(str(tmp_path))
    write_tiny_repository(tmp_path)
    write_th(tmp_path, SECOND, tiny_network(2))
    with pytest.raises(SeparatorUnavailable, match=rf"2 networks in the folder \({FIRST}, {SECOND}\)"):
        load_separator(str(tmp_path))
    assert load_separator(f"{tmp_path}#{SECOND}").identity.id == SECOND
    with pytest.raises(SeparatorUnavailable, match="no nothing in"):
        load_separator(f"{tmp_path}#nothing")
    with pytest.raises(SeparatorUnavailable, match="no folder"):
        load_separator(str(tmp_path / "absent"))
    with pytest.raises(SeparatorUnavailable, match="no folder"):
        load_separator(f"{tmp_path / 'absent'}#{FIRST}")


def test_broken_files_are_said_to_be_broken(tmp_path: Path) -> None:
    folder = write_tiny_repository(tmp_path / "damaged")
    path = next(folder.glob("*.th"))
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(SeparatorUnavailable, match="checksum"):
        load_separator(str(folder))
    write_bag(tmp_path / "damaged")
    with pytest.raises(SeparatorUnavailable, match=f"{BAG} cannot be loaded"):
        load_separator(str(folder))
    (tmp_path / "short").mkdir()
    write_bag(tmp_path / "short")
    with pytest.raises(SeparatorUnavailable, match=f"no {FIRST}"):
        load_separator(str(tmp_path / "short"))
    write_tiny_repository(tmp_path / "unfair", bag=True)
    write_bag(tmp_path / "unfair", weights=[[0.0, 1.0, 1.0, 1.0], [0.0, 1.0, 1.0, 1.0]])
    with pytest.raises(SeparatorUnavailable, match="counts for one of its sources"):
        load_separator(str(tmp_path / "unfair"))


def test_demucs_does_not_end_the_process(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A quantised state needs the package diffq, without which demucs calls sys.exit."""
    network = tiny_network(1)
    content = {"klass": type(network), "args": (), "kwargs": network._init_args_kwargs[1], "state": {"__quantized": True}}
    torch.save(content, tmp_path / f"{FIRST}.th")
    with pytest.raises(SeparatorUnavailable, match="diffq"):
        load_separator(str(tmp_path))
    assert "diffq" in capsys.readouterr().err


def test_safetensors_name_only_classes_of_demucs(tmp_path: Path) -> None:
    """demucs imports and calls what the file names; a file without code must not run any."""
    with pytest.raises(SeparatorUnavailable, match=r"os\.system"):
        load_separator(str(write_hub_layout(tmp_path, klass="os.system")))


def test_a_network_that_counts_for_nothing_is_not_asked() -> None:
    idle = tiny_network(2)
    idle.forward = lambda _: pytest.fail("asked")
    separator = Separator(bag_of(tiny_network(1), idle, weights=[[1.0] * 4, [0.0] * 4]), IDENTITY)
    assert np.abs(separator.separate([song(CHUNK)])[0].vocal_CN).max() > 1e-4


def without_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, port: int = 9) -> None:
    """The hub and demucs' host stand at a port of this machine, by default one where nobody listens; caches are empty."""
    here = f"http://127.0.0.1:{port}"
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", here)
    monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", here + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr("demucs.pretrained.ROOT_URL", f"{here}/")
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "torch"))


@pytest.mark.parametrize("name", ["htdemucs", "htdemucs_ft", "mdx_extra_q", "hf://somebody/htdemucs", "nosuch"])
def test_without_a_network_one_error_names_all_that_was_tried(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str) -> None:
    without_network(monkeypatch, tmp_path)
    begin = time.monotonic()
    with pytest.raises(SeparatorUnavailable, match="--separator FOLDER") as caught:
        load_separator(name)
    # demucs alone retries for 23 s.
    assert time.monotonic() - begin < 10
    assert "hub: " in str(caught.value)
    assert ("legacy host: " in str(caught.value)) is not name.startswith("hf://")
    assert "\n" not in str(caught.value)


def test_a_network_that_does_not_answer_is_given_up(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("model.separation.load.NETWORK_TIMEOUT_S", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        without_network(monkeypatch, tmp_path, silent.getsockname()[1])
        begin = time.monotonic()
        with pytest.raises(SeparatorUnavailable, match=r"hub: .*[Tt]ime.*legacy host: .*[Tt]ime"):
            load_separator("htdemucs")
    assert time.monotonic() - begin < 5


def test_the_hubs_cache_needs_no_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    without_network(monkeypatch, tmp_path)
    for repository, name in (("adefossez--HTDemucs", "htdemucs"), ("somebody--HTDemucs-own", "htdemucs_own")):
        folder = tmp_path / f"hub/models--{repository}"
        write_hub_layout(folder / "snapshots" / ("a" * 40), name)
        (folder / "refs").mkdir()
        (folder / "refs/main").write_text("a" * 40)
    found = load_separator("htdemucs")
    assert found.identity.id == "htdemucs"
    assert load_separator("hf://somebody/htdemucs_own").identity.weights_sha256 == found.identity.weights_sha256
    (tmp_path / f"hub/models--adefossez--HTDemucs/snapshots/{'a' * 40}/{SECOND}.safetensors").unlink()
    with pytest.raises(SeparatorUnavailable, match="hub: "):
        load_separator("htdemucs")


def test_sources_are_known_by_name() -> None:
    """The same network with its sources named in another order gives another stem as the vocal."""
    mixture_CN = song(CHUNK)
    named, renamed = tiny(), tiny(sources=list(SOURCES[::-1]))
    first, second = (one.separate([mixture_CN])[0] for one in (named, renamed))
    assert apart(first, second) > 1e-3
    assert np.abs((first.vocal_CN + first.accompaniment_CN) - (second.vocal_CN + second.accompaniment_CN)).max() < 1e-5
