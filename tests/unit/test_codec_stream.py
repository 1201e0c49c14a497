"""Decoding a latent that arrives in pieces: the audio of the whole, bit for bit or, begun early, but for rounding; encoding with a gain."""

from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from model.codec.base import Halo, LatentStream, Span, spans
from model.codec.load import Codec, load_codec
from model.dimensions import HOP_SAMPLES
from model.errors import ModelError
from tests.codec_parts import checkpoint_document, full_checkpoint, small_weights, tiny_embedded, tiny_embedded_2, write_folder
from tests.examples import examples

# Longer than two chunks and their halos.
MOST_FRAMES = 80
# Of float32 sums of some hundred terms in another order, in audio of amplitude 1; 4e-7 is the most seen at any length up to 80.
ROUNDING = 4e-6


@pytest.fixture(scope="module", params=["embedded", "embedded-2", "stable audio"])
def codec(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Codec:
    if request.param != "stable audio":
        codec: Codec = tiny_embedded() if request.param == "embedded" else tiny_embedded_2()
        codec.chunk_frames = 21
        return codec
    folder = write_folder(tmp_path_factory.mktemp("stream") / "sao", checkpoint_document(), full_checkpoint(small_weights()))
    codec = load_codec(f"stable-audio-open:{folder}")
    codec.chunk_frames = 9
    return codec


def latent(frames: int, *, batch: int = 1) -> torch.Tensor:
    return torch.randn(batch, 64, frames, generator=torch.Generator().manual_seed(frames))


cuttings = st.lists(st.integers(0, MOST_FRAMES), min_size=1, max_size=8).filter(lambda lengths: 0 < sum(lengths) <= MOST_FRAMES)


@given(lengths=cuttings, batch=st.integers(1, 2))
@settings(max_examples=20)
def test_any_cutting_gives_the_audio_of_the_whole(codec: Codec, lengths: list[int], batch: int) -> None:
    latent_BCT = latent(sum(lengths), batch=batch)
    pieces = list(codec.decode_pieces(iter(latent_BCT.split(lengths, dim=2))))
    assert all(piece.shape[2] > 0 for piece in pieces)
    assert torch.equal(torch.cat(pieces, dim=2), codec.decode(latent_BCT))


@given(first=st.integers(1, MOST_FRAMES // 2), lengths=cuttings, batch=st.integers(1, 2))
@settings(max_examples=10)
def test_an_early_start_gives_the_audio_of_the_whole_but_for_rounding(codec: Codec, first: int, lengths: list[int], batch: int) -> None:
    latent_BCT = latent(first + sum(lengths), batch=batch)
    early = torch.cat(list(codec.decode_pieces(latent_BCT.split([first, *lengths], dim=2), early=True)), dim=2)
    torch.testing.assert_close(early, codec.decode(latent_BCT), rtol=0, atol=ROUNDING)
    other_pieces = latent_BCT.split([first, sum(lengths)], dim=2)
    assert torch.equal(torch.cat(list(codec.decode_pieces(other_pieces, early=True)), dim=2), early)


@given(chunk_frames=st.integers(1, 30), frames=st.integers(1, 60), left=st.integers(0, 9), right=st.integers(0, 9), grid=st.integers(1, 8))
@settings(max_examples=examples(200))
def test_a_stream_keeps_only_what_later_spans_read(chunk_frames: int, frames: int, left: int, right: int, grid: int) -> None:
    stream, latent_BCT = LatentStream(torch.device("cpu")), latent(frames)
    stream.append(latent_BCT)
    for span in spans(frames, chunk_frames, Halo(left=left, right=right), grid):
        stream.forget(span.read_start)
        assert stream._kept_BCT is not None
        assert stream._kept_BCT.untyped_storage().nbytes() == 64 * 4 * (frames - span.read_start)
        assert torch.equal(stream.read(span), latent_BCT[..., span.read_start : span.read_stop])


def test_audio_comes_as_soon_as_what_it_reads_is_known(codec: Codec) -> None:
    assert codec.decode_halo is not None
    first_needs = codec.chunk_frames + codec.decode_halo.right
    given_away = 0

    def frame_by_frame() -> Iterator[torch.Tensor]:
        nonlocal given_away
        for piece_BCT in latent(MOST_FRAMES).split(1, dim=2):
            given_away += 1
            yield piece_BCT

    made = codec.decode_pieces(frame_by_frame())
    assert given_away == 0
    for chunk in range((MOST_FRAMES - codec.decode_halo.right) // codec.chunk_frames):
        assert next(made).shape == (1, 2, codec.chunk_frames * HOP_SAMPLES)
        assert given_away == first_needs + chunk * codec.chunk_frames
    assert sum(piece.shape[2] for piece in made) % HOP_SAMPLES == 0
    assert given_away == MOST_FRAMES


def test_an_early_first_chunk_is_what_the_first_piece_allows(codec: Codec) -> None:
    assert codec.decode_halo is not None
    first = codec.chunk_frames + codec.decode_halo.right - 2
    pieces = list(codec.decode_pieces(latent(MOST_FRAMES).split([first, MOST_FRAMES - first], dim=2), early=True))
    assert [piece.shape[2] // HOP_SAMPLES for piece in pieces[:2]] == [codec.chunk_frames - 2, codec.chunk_frames]


def test_a_maker_may_reuse_its_buffer(codec: Codec) -> None:
    latent_BCT = latent(40)
    buffer = torch.empty(1, 64, 8)

    def overwritten() -> Iterator[torch.Tensor]:
        for piece_BCT in latent_BCT.split(8, dim=2):
            yield buffer.copy_(piece_BCT)

    assert torch.equal(torch.cat(list(codec.decode_pieces(overwritten())), dim=2), codec.decode(latent_BCT))


def test_pieces_of_any_type_on_the_way_of_a_gradient(codec: Codec) -> None:
    latent_BCT = latent(30).half()
    pieces = [latent_BCT[..., :11], latent_BCT[..., 11:].float().requires_grad_()]
    assert torch.equal(torch.cat(list(codec.decode_pieces(pieces)), dim=2), codec.decode(latent_BCT))


@pytest.mark.parametrize(
    ("pieces", "message"),
    [
        ([], "without a frame"),
        ([torch.zeros(1, 64, 0)], "without a frame"),
        ([torch.zeros(1, 63, 5)], "shape"),
        ([torch.zeros(64, 5)], "shape"),
        ([torch.zeros(1, 64, 5), torch.full((1, 64, 2), float("nan"))], "NaN"),
        ([torch.zeros(1, 64, 5), torch.zeros(2, 64, 5)], "2 latents after pieces of 1"),
    ],
)
def test_wrong_pieces_are_refused(pieces: list[torch.Tensor], message: str) -> None:
    with pytest.raises(ModelError, match=f"decode: .*{message}"):
        list(tiny_embedded().decode_pieces(pieces))


def test_a_codec_that_reads_everything_decodes_at_the_end(codec: Codec, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(codec, "decode_halo", None)
    latent_BCT = latent(40)
    (whole_BCN,) = codec.decode_pieces(latent_BCT.split(7, dim=2))
    assert torch.equal(whole_BCN, codec.decode(latent_BCT))
    assert list(spans(40, 7, None)) == [Span(start=0, stop=40, read_start=0, read_stop=40)]


@pytest.mark.parametrize("gain", [1.0, 0.3, -1.7, 0.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_gain_is_the_scaled_audio_bit_for_bit(codec: Codec, gain: float, dtype: torch.dtype) -> None:
    audio_BCN = 0.1 * torch.randn(2, 2, 50 * HOP_SAMPLES - 5, dtype=dtype, generator=torch.Generator().manual_seed(0))
    kept = audio_BCN.clone()
    assert torch.equal(codec.encode(audio_BCN, gain=gain), codec.encode(audio_BCN * gain))
    assert torch.equal(audio_BCN, kept)


@pytest.mark.parametrize("gain", [float("nan"), float("inf")])
def test_a_gain_that_is_no_number_is_refused(gain: float) -> None:
    with pytest.raises(ModelError, match="gain"):
        tiny_embedded().encode(torch.zeros(1, 2, 100), gain=gain)


def test_an_encoding_in_pieces_is_the_whole_and_waits_to_be_asked(codec: Codec, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(codec, "chunk_frames", 16)
    audio_BCN = 0.2 * torch.randn(1, 2, 70 * 2048 + 5, generator=torch.Generator().manual_seed(3))
    pieces = codec.encode_pieces(audio_BCN, gain=0.5)
    first = next(pieces)
    assert first.shape == (1, 64, 16)
    whole = codec.encode(audio_BCN, gain=0.5)
    audio_BCN[:, :, 60 * 2048 :] = 0  # what is not encoded yet is still to be read
    late = torch.cat([first, *pieces], dim=2)
    assert torch.equal(late[:, :, :32], whole[:, :, :32])
    assert not torch.equal(late, whole)
    with pytest.raises(ModelError, match="shape"):
        codec.encode_pieces(audio_BCN[0])
