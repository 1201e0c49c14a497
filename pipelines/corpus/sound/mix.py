"""From dry parts to two stems: levels, space, width, loudness. One gain serves both stems, so that they still add up."""

import numpy as np
import scipy

from model.dimensions import SAMPLE_RATE_HZ
from pipelines.chance import Array
from pipelines.corpus.score.record import Mix, Section, SongRecord
from pipelines.corpus.sound.dsp import band, db, gated_loudness_lufs, k_weighted, level_db, reverberate, room, tilt

_ACTIVE_BLOCK = 4096
_DYNAMICS_DB, _DYNAMICS_S = 14.0, 0.3
# A mastered vocal is itself below the peak; a band so far below it adds nothing.
_DEEPEST_DB = 40.0
# 3.5 dB above a vocal of active level 1.
LOWEST_CEILING_DB = 3.5


def active_rms(audio_CN: Array) -> float:
    """Root mean square over the blocks within 30 dB of the loudest: how loud a part is while it plays."""
    blocks = audio_CN.shape[-1] // _ACTIVE_BLOCK
    power = np.mean(audio_CN[..., : blocks * _ACTIVE_BLOCK].reshape(-1, blocks, _ACTIVE_BLOCK) ** 2, axis=(0, 2))
    if power.max() <= 0:
        return 0.0
    return float(np.sqrt(np.mean(power[power > 1e-3 * power.max()])))


def limit(audio_CN: Array, ceiling: float) -> Array:
    """Look-ahead limiter: the least gain within 3 ms, smoothed over the same span, so that no sample passes the ceiling."""
    span = 128
    peak = np.max(np.abs(audio_CN), axis=0)
    n = peak.size
    rows = np.pad(peak, (0, -n % span)).reshape(-1, span).max(axis=1)
    held = np.maximum(np.maximum(rows, np.append(rows[1:], 0)), np.insert(rows[:-1], 0, 0))
    gain = np.minimum(1.0, ceiling / np.maximum(held, 1e-9))
    for _ in range(24):  # releases over 24 blocks: at most 0.35 dB a block on the way up
        gain[1:] = np.minimum(gain[1:], gain[:-1] * 1.041)
    centres = np.arange(rows.size) * span + span / 2
    return audio_CN * np.interp(np.arange(n), centres, gain)


def place_vocal(dry: Array, mix: Mix, beat_s: float, name: str) -> Array:
    """The vocal in its room, with a soft echo on the beat's half: shape (2, n). Zeros before the first sound stay zeros."""
    level = active_rms(dry[None])
    vocal = dry / max(level, 1e-9)
    vocal = np.tanh(0.22 * vocal) / 0.22
    delay = int(beat_s / 2 * SAMPLE_RATE_HZ)
    echo = np.zeros_like(vocal)
    echo[delay:] = band(vocal[: vocal.size - delay], 300, 4000) * db(mix.vocal_echo_db)
    wet = reverberate(band(vocal, 250, 9000) * db(mix.vocal_reverb_db), room(mix.vocal_room_s, f"vocal/{name}"))
    stereo = np.stack([vocal + 0.7 * echo, vocal + 1.2 * echo]) + wet
    first = int(np.argmax(np.abs(dry) > 0))
    stereo[:, :first] = 0.0
    return stereo


def blend(record: SongRecord, parts: dict[str, Array], kicks_s: list[float]) -> Array:
    """The accompaniment beside a vocal of active level 1: parts at their levels, sustained ones ducked by the kick, all in one room."""
    samples = next(iter(parts.values())).shape[-1]
    dry = np.zeros((2, samples))
    send = np.zeros(samples)
    duck = _duck(kicks_s, samples, record.mix.pump)
    for track in record.tracks:
        part = parts[track.name]
        if track.tilt_db:
            part = tilt(part, track.tilt_db)
        part = part * (db(track.level_db) / max(active_rms(part), 1e-9))
        if track.name in ("chords", "pad", "bass") and record.mix.pump > 0:
            part *= duck
        angle = (track.pan + 1) * np.pi / 4
        if track.pan:
            part *= np.sqrt(2) * np.array([[np.cos(angle)], [np.sin(angle)]])
        dry += part
        send += track.reverb * part.mean(axis=0)
    wet = reverberate(send * 1.6, room(record.mix.room_s, f"band/{record.band_seed}"))
    return (dry + wet) * section_gain(record.sections, samples)


def section_gain(sections: tuple[Section, ...], samples: int) -> Array:
    """How a band grows from verse to chorus: 14 dB for each unit of intensity, over 0.3 s; the mean power stays. Shape (samples,)."""
    times = np.array([section.start_s for section in sections])
    gains_db = np.array([_DYNAMICS_DB * section.intensity for section in sections])
    block = SAMPLE_RATE_HZ // 100
    now_s = np.arange(-(-samples // block) + 1) * block / SAMPLE_RATE_HZ
    steps_db = gains_db[np.maximum(np.searchsorted(times, now_s, side="right") - 1, 0)]
    smooth = 10 ** (scipy.ndimage.uniform_filter1d(steps_db, int(_DYNAMICS_S * SAMPLE_RATE_HZ / block), mode="nearest") / 20)
    smooth /= np.sqrt(np.mean(smooth**2))
    return np.interp(np.arange(samples), np.arange(now_s.size) * block, smooth)


def _duck(kicks_s: list[float], samples: int, depth: float) -> Array:
    gain = np.ones(samples)
    shape = 1 - depth * np.exp(-np.arange(int(0.35 * SAMPLE_RATE_HZ)) / (0.11 * SAMPLE_RATE_HZ))
    for time_s in kicks_s if depth > 0 else []:
        start = int(time_s * SAMPLE_RATE_HZ)
        stop = min(start + shape.size, samples)
        gain[start:stop] = np.minimum(gain[start:stop], shape[: stop - start])
    return gain


def side_to_mid_db(audio_CN: Array) -> float:
    mid, side = audio_CN[0] + audio_CN[1], audio_CN[0] - audio_CN[1]
    return level_db(float(np.mean(side**2))) - level_db(float(np.mean(mid**2)))


def master(vocals_CN: Array, accompaniment_CN: Array, mix: Mix) -> tuple[Array, Array]:
    """Widens the band to the wanted side/mid, limits it until the mixture at its peak is as loud as wanted, and scales both stems alike.

    Only the band is limited: a gain that followed the drums must never move the vocal, which would tell a model where they were.
    """
    band_CN = _widened(vocals_CN, accompaniment_CN, mix)
    sung = k_weighted(vocals_CN)
    limited, gain = band_CN, 1.0
    ceiling_db = highest_db = level_db(float(np.max(np.abs(band_CN))) ** 2)
    heard: list[tuple[float, float]] = []  # (ceiling, loudness)
    for attempt in range(6):
        limited = limit(band_CN, db(ceiling_db)) if attempt else band_CN
        mixture = vocals_CN + limited
        gain = db(mix.peak_dbfs) / float(np.max(np.abs(mixture)))
        loudness = gated_loudness_lufs((sung + k_weighted(limited)) * gain)
        if abs(loudness - mix.loudness_lufs) < 0.15 or (not attempt and loudness > mix.loudness_lufs):
            break
        heard.append((ceiling_db, loudness))
        # A decibel less ceiling makes about one more of loudness; after two attempts the secant knows better.
        slope = -1.0
        if len(heard) > 1 and abs(heard[-1][0] - heard[-2][0]) > 0.01:
            slope = min(-0.2, (heard[-1][1] - heard[-2][1]) / (heard[-1][0] - heard[-2][0]))
        ceiling_db = min(max(ceiling_db + (mix.loudness_lufs - loudness) / slope, LOWEST_CEILING_DB), highest_db)
    return vocals_CN * gain, limited * gain


def master_band(vocals_CN: Array, accompaniment_CN: Array, mix: Mix) -> Array:
    """The band for a vocal that is mastered already: widened, and limited until the mixture's peak is the wanted one, or lower.

    `accompaniment_CN` is at the vocal's level. The ceiling is found by bisection, to a twentieth of a decibel.
    """
    band_CN = _widened(vocals_CN, accompaniment_CN, mix)
    most = db(mix.peak_dbfs)
    if np.max(np.abs(vocals_CN + band_CN)) <= most:
        return band_CN
    lowest_db, highest_db = level_db(most**2) - _DEEPEST_DB, level_db(float(np.max(np.abs(band_CN))) ** 2)
    while highest_db - lowest_db > 0.05:
        middle_db = (lowest_db + highest_db) / 2
        if np.max(np.abs(vocals_CN + limit(band_CN, db(middle_db)))) <= most:
            lowest_db = middle_db
        else:
            highest_db = middle_db
    return limit(band_CN, db(lowest_db))


def _widened(vocals_CN: Array, accompaniment_CN: Array, mix: Mix) -> Array:
    """The band with as much side as brings the mixture's to the wanted one."""
    mid = (accompaniment_CN[0] + accompaniment_CN[1]) / 2
    side = (accompaniment_CN[0] - accompaniment_CN[1]) / 2
    sung_mid, sung_side = (vocals_CN[0] + vocals_CN[1]) / 2, (vocals_CN[0] - vocals_CN[1]) / 2
    wanted = np.mean((mid + sung_mid) ** 2) * 10 ** (mix.side_to_mid_db / 10)
    a, b, c = np.mean(side**2), 2 * np.mean(side * sung_side), np.mean(sung_side**2) - wanted
    width = (-b + np.sqrt(max(b * b - 4 * a * c, 0.0))) / (2 * max(a, 1e-12))
    return np.stack([mid + width * side, mid - width * side])


def quantise(vocals_CN: Array, accompaniment_CN: Array) -> tuple[np.ndarray, np.ndarray]:
    """Both stems as 16-bit integers whose sum is a 16-bit integer too, shape (2, n)."""
    vocals = np.round(vocals_CN * 32767.0).astype(np.int32)
    accompaniment = np.round(accompaniment_CN * 32767.0).astype(np.int32)
    return vocals, np.clip(accompaniment, -32768 - vocals, 32767 - vocals)
