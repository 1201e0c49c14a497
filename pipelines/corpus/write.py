"""The corpus on disk or in a bucket: a folder a song, finished songs kept, several processes."""

import hashlib
import io
import logging
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Annotated

import numpy as np
import soundfile as sf
from cyclopts import Parameter
from tqdm import tqdm

from infra.cli.exit_codes import LISTED
from infra.errors import UserError
from infra.settings import Settings
from infra.storage.place import Place
from model.dimensions import SAMPLE_RATE_HZ
from pipelines.corpus.bands.rearrange import MOST_BANDS, compose_bands
from pipelines.corpus.processes import in_processes
from pipelines.corpus.score.compose import DEFAULT_DURATION_S
from pipelines.corpus.score.record import Rendering, SongRecord, read_song_json, song_json
from pipelines.corpus.sound.banks.licence import bank_credit
from pipelines.corpus.sound.banks.open import choose_banks, open_banks
from pipelines.corpus.sound.dsp import level_db, loudness_lufs
from pipelines.corpus.sound.mix import side_to_mid_db
from pipelines.corpus.sound.render import GAIN_DIGITS, PCM_SCALE, RenderedSong, SungVocal, render, render_band
from pipelines.corpus.sound.voice import F0_RATE_HZ
from pipelines.corpus.sound.voices.open import choose_voices, open_voices
from pipelines.song import audio_identity

log = logging.getLogger(__name__)

AUDIO_FILES = ("vocals.wav", "accompaniment.wav", "mixture.wav")
F0_FILE = "f0.npy"
RECORD_FILE = "song.json"


@dataclass(frozen=True, kw_only=True)
class CorpusConfig:
    """What to write: `songs` songs, song i from seed `seed + i`, each with `bands_per_vocal` bands."""

    out: str
    """Local folder or s3://bucket/prefix."""
    songs: int
    """Vocals: each is composed and sung once."""
    seed: int = 0
    bands_per_vocal: int = 1
    """Bands for each vocal, 1 to 4. Those after the first lie in folders of their own (song-000007-band-1): another style, other
    instruments and other chords under the same melody."""
    workers: int = 2
    """Processes."""
    duration_s: float = DEFAULT_DURATION_S
    """About how long a song is; it ends with a whole bar."""
    bank: Annotated[tuple[str, ...], LISTED] = ()
    """What plays: URI[=WEIGHT] of soundfonts (.sf2, .sf3), folders of samples, or numpy, the computed instruments. Each part of a song is
    drawn from them by weight. Without any, BACKLINE_BANKS or the distribution's fonts, else numpy."""
    voice: Annotated[tuple[str, ...], LISTED] = ()
    """Who sings: NAME[=WEIGHT] of neural (needs the extra `voices`; neural:emma and others once hibari has downloaded them),
    syllables:FOLDER (recorded ones; needs the extra `syllables`), or numpy, the computed voice. Each song is drawn one of them by weight.
    Without any, BACKLINE_VOICES or neural, else numpy."""
    band: Annotated[str | None, Parameter(show=False)] = None

    def __post_init__(self) -> None:
        if self.songs < 1:
            raise UserError(f"--songs {self.songs}: must be at least 1")
        if self.seed < 0:
            raise UserError(f"--seed {self.seed}: must be 0 or more")
        if not 1 <= self.bands_per_vocal <= MOST_BANDS:
            raise UserError(f"--bands-per-vocal {self.bands_per_vocal}: must be from 1 to {MOST_BANDS}")
        if self.workers < 1:
            raise UserError(f"--workers {self.workers}: must be at least 1, 2 is a good start")
        if not 4 <= self.duration_s <= 600:
            raise UserError(f"--duration-s {self.duration_s}: must be from 4 to 600 seconds; 62 suits training")
        if self.band is not None:
            raise UserError(f"--band {self.band}: --bank took its place, for example --bank numpy or --bank FluidR3_GM.sf2")


@dataclass(frozen=True, kw_only=True)
class CorpusSummary:
    out: str
    songs: int
    """With every band of every vocal."""
    vocals: int
    written: int
    reused: int
    """Complete songs of an earlier run, left alone."""
    audio_s: float
    styles: tuple[str, ...]
    song_ids: tuple[str, ...]

    def __str__(self) -> str:
        vocals = f" of {self.vocals} vocals" if self.vocals < self.songs else ""
        return (
            f"{self.out}: {self.songs} songs{vocals} ({self.written} written, {self.reused} there already), "
            f"{self.audio_s / 60:.1f} minutes; {', '.join(self.styles)}"
        )


@dataclass(frozen=True)
class SongDone:
    song_id: str
    style: str
    duration_s: float
    written: bool


def write_corpus(config: CorpusConfig) -> CorpusSummary:
    """Writes the songs that are missing under `config.out`.

    A song is complete once its `song.json`, written last, holds its record's hash.
    """
    settings = Settings.from_environment()
    config = replace(config, bank=choose_banks(config.bank, settings), voice=choose_voices(config.voice, settings))
    done: list[SongDone] = []
    seeds = range(config.seed, config.seed + config.songs)
    with tqdm(total=config.songs * config.bands_per_vocal, desc="corpus", unit="song", disable=None) as bar:
        for songs in _each_vocal(config, seeds):
            for song in songs:
                log.info("%s %s: %s", "wrote" if song.written else "kept", song.song_id, song.style)
                done.append(song)
                bar.set_postfix_str(f"{song.song_id} {song.style}", refresh=False)
                bar.update()
    done.sort(key=lambda song: song.song_id)
    written = sum(song.written for song in done)
    return CorpusSummary(
        out=str(Place(config.out)),
        songs=len(done),
        vocals=config.songs,
        written=written,
        reused=len(done) - written,
        audio_s=round(sum(song.duration_s for song in done), 3),
        styles=tuple(sorted({song.style for song in done})),
        song_ids=tuple(song.song_id for song in done),
    )


def _each_vocal(config: CorpusConfig, seeds: range) -> Iterator[tuple[SongDone, ...]]:
    if config.workers == 1 or len(seeds) == 1:
        yield from (write_vocal(seed, config) for seed in seeds)
    else:
        yield from in_processes(partial(write_vocal, config=config), seeds, config.workers)


def write_vocal(seed: int, config: CorpusConfig) -> tuple[SongDone, ...]:
    """Composes, sings, renders and stores one vocal with each of its bands, those songs that are not complete. `config` names at least
    one bank and one voice."""
    banks, voices = open_banks(config.bank), open_voices(config.voice)
    original, *others = (voices.perform(record) for record in compose_bands(seed, config.bands_per_vocal, config.duration_s))
    folder = Place(config.out) / original.song_id
    made_with = (banks.renderer, voices.renderer)
    written = not is_complete(folder, original, made_with)
    if written:
        store_song(folder, original, render(original, banks, voices), made_with)
    done = [SongDone(original.song_id, original.style, original.duration_s, written=written)]
    shared: SharedVocal | None = None
    for record in others:
        place = Place(config.out) / record.song_id
        # The first song's rendering vouches for the vocal, and is one small file.
        rendering = read_song_json((folder / RECORD_FILE).read_bytes())[1]
        written = not is_complete(place, record, made_with, _pair_sha256(rendering))
        if written:
            shared = shared or _read_vocal(folder, rendering)
            store_song(place, record, render_band(record, shared.sung, banks), made_with, shared)
        done.append(SongDone(record.song_id, record.style, record.duration_s, written=written))
    return tuple(done)


@dataclass(frozen=True, kw_only=True)
class SharedVocal:
    """The first song's vocal, as its folder holds it: a band that is added later is the band that would have been made at once."""

    sung: SungVocal
    files: dict[str, bytes]
    """vocals.wav and f0.npy."""
    audio_sha256: str
    """Of the first song, as `prepare` identifies it."""


def _read_vocal(folder: Place, rendering: Rendering) -> SharedVocal:
    files = {name: (folder / name).read_bytes() for name in ("vocals.wav", F0_FILE)}
    for name, data in files.items():
        if hashlib.sha256(data).hexdigest() != rendering.sha256[name]:
            raise UserError(f"{folder / name} is not the file that {RECORD_FILE} beside it vouches for: delete {folder} and run again")
    pcm_NC, _ = sf.read(io.BytesIO(files["vocals.wav"]), dtype="int16", always_2d=True)
    return SharedVocal(
        sung=SungVocal(
            vocals_CN=np.ascontiguousarray((pcm_NC.T / PCM_SCALE).astype(np.float32)),
            f0_hz=np.load(io.BytesIO(files[F0_FILE])),
            gain_db=rendering.vocal_gain_db,
            voice=rendering.voice,
            timbre=rendering.timbre,
            doubled=rendering.doubled,
            voice_licence=rendering.bank_licences.get(rendering.voice, ""),
        ),
        files=files,
        audio_sha256=_pair_sha256(rendering),
    )


def _pair_sha256(rendering: Rendering) -> str:
    return audio_identity(bytes.fromhex(rendering.sha256[name]) for name in ("vocals.wav", "accompaniment.wav"))


def store_song(
    folder: Place, record: SongRecord, song: RenderedSong, made_with: tuple[str, str], shared: SharedVocal | None = None
) -> None:
    """The files of a song and, last, its record. made_with: what the banks and the voices are called. With a `shared` vocal its files are
    stored as they are."""
    files = {
        "vocals.wav": wav_bytes(song.vocals_CN) if shared is None else shared.files["vocals.wav"],
        "accompaniment.wav": wav_bytes(song.accompaniment_CN),
        "mixture.wav": wav_bytes(song.mixture_CN),
        F0_FILE: _npy_bytes(song.f0_hz) if shared is None else shared.files[F0_FILE],
    }
    rendering = describe(song, made_with, files)
    if shared is not None:
        rendering = replace(rendering, vocal_of_audio_sha256=shared.audio_sha256)
    # An earlier record would vouch for files of two renderings if this one is cut short.
    (folder / RECORD_FILE).delete()
    for name, data in files.items():
        (folder / name).write_bytes(data)
    (folder / RECORD_FILE).write_bytes(song_json(record, rendering))


def is_complete(folder: Place, record: SongRecord, made_with: tuple[str, str], vocal_of_audio_sha256: str = "") -> bool:
    """Whether the folder holds this very record, rendered by these banks and voices, with all of its files and, where the vocal is shared,
    with the vocal of that song."""
    if not (folder / RECORD_FILE).exists():
        return False
    try:
        _, rendering, stored = read_song_json((folder / RECORD_FILE).read_bytes())
    except (ValueError, KeyError, TypeError) as error:
        log.warning("%s is not a song record (%s): writing the song again", folder / RECORD_FILE, error)
        return False
    whole = all((folder / name).exists() for name in (*AUDIO_FILES, F0_FILE))
    shared = rendering.vocal_of_audio_sha256 == vocal_of_audio_sha256
    return whole and shared and stored == record.sha256() and (rendering.renderer, rendering.voices) == made_with


def describe(song: RenderedSong, made_with: tuple[str, str], files: dict[str, bytes]) -> Rendering:
    """Measured figures of a rendering and the hashes of its files. made_with: what the banks and the voices are called."""
    renderer, voices = made_with
    mixture = song.mixture_CN.astype(np.float64)
    return Rendering(
        renderer=renderer,
        loudness_lufs=round(loudness_lufs(mixture), 2),
        peak_dbfs=round(level_db(float(np.max(np.abs(mixture))) ** 2), 2),
        side_to_mid_db=round(side_to_mid_db(mixture), 2),
        vocal_gain_db=round(song.vocal_gain_db, GAIN_DIGITS),
        accompaniment_gain_db=round(song.accompaniment_gain_db, 3),
        samples=mixture.shape[1],
        f0_rate_hz=F0_RATE_HZ,
        sha256={name: hashlib.sha256(data).hexdigest() for name, data in files.items()},
        banks=song.banks,
        voices=voices,
        voice=song.voice,
        timbre=song.timbre,
        doubled=song.doubled,
        bank_licences=song.bank_licences,
        credit=bank_credit(song.bank_licences),
    )


def wav_bytes(audio_CN: np.ndarray) -> bytes:
    """A 16-bit WAV of samples that are multiples of 1/32768, without another rounding."""
    buffer = io.BytesIO()
    pcm = np.round(audio_CN.astype(np.float64) * 32768.0).astype(np.int16)
    sf.write(buffer, pcm.T, SAMPLE_RATE_HZ, format="WAV", subtype="PCM_16")
    return buffer.getvalue()


def _npy_bytes(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()
