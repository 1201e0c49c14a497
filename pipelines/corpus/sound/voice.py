"""The sung vocal: a glottal source of harmonics through moving formants, with aspiration, consonants and breaths.

Source and filter after Fant (1960); formants in parallel with the amplitudes that the cascade would give them (Klatt 1980). The filter
is evaluated at the harmonics themselves, so that pitch is exact and nothing aliases.
"""

from dataclasses import dataclass

import numpy as np

from model.dimensions import SAMPLE_RATE_HZ
from pipelines.chance import Array, Chance, noise
from pipelines.corpus.score.record import SongRecord, VocalNote, Voice
from pipelines.corpus.sound.dsp import band, db, hertz
from pipelines.corpus.sound.phones import CONSONANTS, glide, nucleus

F0_RATE_HZ = 200
HOP = 128
FRAME_RATE_HZ = SAMPLE_RATE_HZ / HOP
_CHUNK_FRAMES = 96
_TOP_HZ = 14_000.0
_CASCADE = 5
_FORMANTS = 7
_SPOKEN_FALL_SEMITONES = 3.0
_BREATH = (620.0, 1500.0, 2500.0)


@dataclass(frozen=True)
class Targets:
    """What the articulators aim at, one value a frame of 128 samples."""

    formants_FT: Array
    voicing_T: Array
    hiss_T: Array
    hiss_low_T: Array
    hiss_high_T: Array
    effort_T: Array


def sing(record: SongRecord, samples: int) -> tuple[Array, Array]:
    """The dry vocal, shape (samples,), and its F0 in Hz at 200 Hz, 0 where unvoiced. Exact zeros before the first breath."""
    targets = articulate(record, -(-samples // HOP) + 2)
    pitch_midi = pitch_curve(record, samples)
    f0_hz = hertz(pitch_midi)
    track = np.arange(f0_hz.size) / F0_RATE_HZ
    voiced = np.interp(track, np.arange(targets.voicing_T.size) / FRAME_RATE_HZ, targets.voicing_T) > 0.05
    tone, phase = _voiced(targets, f0_hz, record.voice, samples)
    air = _noise(targets, record, phase, samples)
    start = max(0, int((record.vocal[0].onset_s - 0.7) * SAMPLE_RATE_HZ))
    vocal = tone + air
    vocal[:start] = 0.0
    return vocal, np.where(voiced, f0_hz, 0.0)


def pitch_curve(record: SongRecord, samples: int) -> Array:
    """Pitch in MIDI at 200 Hz: steps between notes smoothed into glides, scoops into phrases, late vibrato, a slow drift.

    Spoken notes fall through their syllable and have neither scoop nor vibrato.
    """
    voice, chance = record.voice, Chance("pitch", record.seed)
    size = int(samples / SAMPLE_RATE_HZ * F0_RATE_HZ) + 1
    t = np.arange(size) / F0_RATE_HZ
    lead = 0.5 * voice.glide_s
    curve = np.full(size, float(record.vocal[0].midi))
    for note in record.vocal:
        curve[t >= note.onset_s - lead] = note.midi
    taps = max(3, 2 * int(voice.glide_s * F0_RATE_HZ / 2) + 1)
    kernel = np.hanning(taps + 2)[1:-1]
    half = taps // 2
    curve = np.convolve(np.pad(curve, half, mode="edge"), kernel / kernel.sum(), mode="valid")
    rate = voice.vibrato_hz * (1 + 0.04 * _wander(size, 0.8, f"rate/{record.seed}"))
    wave = np.sin(2 * np.pi * np.cumsum(rate) / F0_RATE_HZ)
    previous = -1
    for note in record.vocal:
        inside = (t >= note.onset_s - lead) & (t < note.offset_s + 0.05)
        since = t[inside] - note.onset_s
        length = note.offset_s - note.onset_s
        if note.spoken:
            # A syllable's fall runs through its own middle, so that its mean stays what the note says.
            curve[inside] += _SPOKEN_FALL_SEMITONES * (0.5 - np.clip(since / length, 0, 1))
            previous = note.phrase
            continue
        if note.phrase != previous and chance.happens(0.6):
            curve[inside] -= voice.scoop_semitones * np.exp(-np.maximum(since + lead, 0) / 0.035)
        if length > 0.45:
            depth = voice.vibrato_cents / 100 * np.clip((since - 0.3) / 0.25, 0, 1) * chance.uniform(0.7, 1.1)
            curve[inside] += depth * wave[inside]
        previous = note.phrase
    return curve + 0.04 * _wander(size, 3.0, f"drift/{record.seed}") + 0.012 * _wander(size, 25.0, f"jitter/{record.seed}")


def _wander(size: int, rate_hz: float, name: str) -> Array:
    """A smooth random curve of about ±1 that turns some rate_hz times a second."""
    knots = noise(int(size / F0_RATE_HZ * rate_hz) + 3, "wander", name)
    return np.asarray(np.interp(np.arange(size) / F0_RATE_HZ * rate_hz, np.arange(knots.size), knots))


def _frame(time_s: float) -> int:
    return max(0, round(time_s * FRAME_RATE_HZ))


def articulate(record: SongRecord, frames: int) -> Targets:
    """Lays phones on the time line (vowels start on the notes, consonants before them), then lets the targets flow into each other."""
    formants = np.tile(np.array(_BREATH)[:, None], (1, frames))
    voicing, hiss, effort = np.zeros(frames), np.zeros(frames), np.full(frames, 0.8)
    low, high = np.zeros(frames), np.zeros(frames)
    chance = Chance("articulation", record.seed)

    def lay(phone: str, start_s: float, end_s: float, velocity: float, following: tuple[float, float, float]) -> None:
        consonant = CONSONANTS[phone]
        a, b = _frame(start_s), _frame(end_s)
        place = consonant.formants_hz if consonant.formants_hz[0] else following
        formants[:, a:b] = np.array(place)[:, None]
        voicing[a:b] = consonant.voicing * velocity
        noisy = slice(max(a, b - max(3, round(0.4 * (b - a)))), b) if consonant.manner == "stop" else slice(a, b)
        hiss[noisy] = db(consonant.hiss_db)
        low[noisy], high[noisy] = consonant.hiss_hz

    for index, note in enumerate(record.vocal):
        before = record.vocal[index - 1] if index else None
        after = record.vocal[index + 1] if index + 1 < len(record.vocal) else None
        centre = nucleus(note.phones)
        first, second = glide(note.phones[centre])
        joined = before is not None and note.onset_s - before.offset_s < 0.08
        onset_s = _fit(note.phones[:centre], note, before if joined else None)
        begin = note.onset_s - sum(onset_s)
        time_s = begin
        for phone, length in zip(note.phones[:centre], onset_s, strict=True):
            lay(phone, time_s, time_s + length, note.velocity, first)
            time_s += length
        coda_s = _fit(note.phones[centre + 1 :], None, note)
        next_joined = after is not None and after.onset_s - note.offset_s < 0.08
        end = note.offset_s
        if after is not None and next_joined:
            end = after.onset_s - sum(_fit(after.phones[: nucleus(after.phones)], after, note))
        vowel_end = max(end - sum(coda_s), note.onset_s + 0.05)
        a, b = _frame(note.onset_s), _frame(vowel_end)
        shape = np.clip((np.linspace(0, 1, max(b - a, 1)) - 0.45) / 0.45, 0, 1)[None, : b - a]
        formants[:, a:b] = (1 - shape) * np.array(first)[:, None] + shape * np.array(second)[:, None]
        swell = np.linspace(0, 1, max(b - a, 1))[: b - a]
        voicing[a:b] = note.velocity * (0.92 + 0.1 * np.sin(np.pi * swell) - 0.1 * swell * (not next_joined))
        time_s = vowel_end
        for phone, length in zip(note.phones[centre + 1 :], coda_s, strict=True):
            lay(phone, time_s, time_s + length, 0.8 * note.velocity, second)
            time_s += length
        effort[_frame(begin) : _frame(end)] = note.velocity
        rest = begin - before.offset_s if before is not None else begin
        if rest > 0.5:
            length = min(chance.uniform(0.22, 0.34), rest - 0.2)
            a, b = _frame(begin - 0.05 - length), _frame(begin - 0.05)
            hiss[a:b] = db(chance.uniform(-36, -31)) * np.sin(np.pi * np.linspace(0, 1, b - a)) ** 0.7
            low[a:b], high[a:b] = 0, 0
    return Targets(
        formants_FT=np.stack([_smooth(row, 0.045) for row in formants]),
        voicing_T=_smooth(voicing, 0.03),
        hiss_T=_smooth(hiss, 0.012),
        hiss_low_T=low,
        hiss_high_T=high,
        effort_T=_smooth(effort, 0.2),
    )


def _fit(phones: tuple[str, ...], note: VocalNote | None, owner: VocalNote | None) -> list[float]:
    """Lengths of consonants, shortened where the note that they take their time from (`owner`) is short."""
    lengths = [CONSONANTS[phone].length_s for phone in phones]
    room_s = 0.3 * (owner.offset_s - owner.onset_s) if owner is not None else 0.25
    if note is None and owner is not None:
        room_s = min(room_s, 0.16)
    scale = min(1.0, room_s / max(sum(lengths), 1e-9))
    return [length * scale for length in lengths]


def _smooth(row: Array, width_s: float) -> Array:
    taps = 2 * int(width_s * FRAME_RATE_HZ / 2) + 3
    kernel = np.hanning(taps + 2)[1:-1]
    return np.convolve(np.pad(row, taps // 2, mode="edge"), kernel / kernel.sum(), mode="valid")


def _tract(formants_FT: Array, voice: Voice) -> tuple[Array, Array, Array]:
    """Frequencies, bandwidths and amplitudes of seven formants, shape (7, T): the amplitudes that a cascade would have at its peaks."""
    frames = formants_FT.shape[1]
    upper = np.array([[3350.0], [3950.0], [5300.0], [7600.0]]) * np.ones((1, frames))
    f = np.concatenate([formants_FT, upper]) * voice.tract
    b = np.array([[75.0], [95.0], [130.0], [170.0], [240.0], [700.0], [1500.0]]) * (0.8 + 0.2 * voice.tract) + 0.012 * f
    gain = np.zeros_like(f)
    for i in range(_CASCADE):
        gain[i] = f[i] / b[i]
        for j in range(_CASCADE):
            if j != i:
                gain[i] *= f[j] ** 2 / np.hypot(f[j] ** 2 - f[i] ** 2, f[i] * b[j])
    # Presence: what pop vocals are equalised to; above the cascade, two wide bands of air.
    gain *= np.array([[1.0], [1.2], [1.8], [1.7], [1.7], [0.0], [0.0]])
    gain[5], gain[6] = 2.2 * gain[4], 1.4 * gain[4]
    return f, b, gain


def _voiced(targets: Targets, f0_hz: Array, voice: Voice, samples: int) -> tuple[Array, Array]:
    """Harmonics k of sin(k φ), each with the complex gain of source and tract, cross-faded between frames; and the phase φ.

    sin(kφ) and cos(kφ) come from the recurrence s_k = 2 cos φ s_(k-1) - s_(k-2).
    """
    total = _frame(samples / SAMPLE_RATE_HZ) + 2
    at_frames = np.interp(np.arange(total) / FRAME_RATE_HZ, np.arange(f0_hz.size) / F0_RATE_HZ, f0_hz)
    per_sample = np.interp(np.arange(samples) / SAMPLE_RATE_HZ, np.arange(f0_hz.size) / F0_RATE_HZ, f0_hz)
    phase = np.cumsum(per_sample) * (2 * np.pi / SAMPLE_RATE_HZ)
    f, b, gain = _tract(targets.formants_FT[:, :total], voice)
    # Singers open the jaw so that the first formant stays above the note (Sundberg 1975), and it is as wide as a harmonic or so.
    f[0] = np.maximum(f[0], 1.5 * at_frames)
    b[0] = np.maximum(b[0], 0.3 * at_frames)
    out = np.zeros(samples)
    ramp = np.arange(HOP) / HOP
    for start in range(0, samples // HOP, _CHUNK_FRAMES):
        stop = min(start + _CHUNK_FRAMES, samples // HOP)
        active = targets.voicing_T[start : stop + 1]
        if not np.any(active > 1e-4):
            continue
        size = stop + 1 - start
        pitch = at_frames[start : start + size]
        count = int(_TOP_HZ / pitch.min())
        k = np.arange(1, count + 1)[:, None]
        hz = k * pitch[None, :]
        response = np.zeros((count, size), dtype=np.complex128)
        for i in range(_FORMANTS):
            fi, bi, gi = f[i, start : start + size], b[i, start : start + size], gain[i, start : start + size]
            # The first passes lows, as the cascade does; the others are bands, so that their skirts leave the first alone.
            response += (-1) ** i * gi * (hz if i else fi) * bi / (fi**2 - hz**2 + 1j * hz * bi)
        tilt = voice.tilt + 0.55 * (0.9 - targets.effort_T[start : start + size])
        response *= k ** -tilt[None, :] / (1 + (hz / 9_000.0) ** 4)
        response[0] *= 1.25
        power = np.sum(np.abs(response) ** 2, axis=0)
        response *= active[:size] * 0.2 * power**-0.42 * np.median(power) ** -0.08
        block = phase[start * HOP : stop * HOP].reshape(-1, HOP)
        twice = 2 * np.cos(block)
        sine, cosine = np.sin(block), np.cos(block)
        sine_before, cosine_before = np.zeros_like(block), np.ones_like(block)
        here = np.zeros_like(block)
        there = np.zeros_like(block)
        for row in response:
            here += row[:-1, None].real * sine
            here += row[:-1, None].imag * cosine
            there += row[1:, None].real * sine
            there += row[1:, None].imag * cosine
            sine, sine_before = twice * sine - sine_before, sine
            cosine, cosine_before = twice * cosine - cosine_before, cosine
        out[start * HOP : stop * HOP] = ((1 - ramp) * here + ramp * there).reshape(-1)
    return out, phase


def _noise(targets: Targets, record: SongRecord, phase: Array, samples: int) -> Array:
    """White noise shaped frame by frame: aspiration and breath through the formants, hiss through its own band."""
    white = noise(samples + 4 * HOP, "air", record.seed)
    frames = min(samples // HOP, targets.voicing_T.size - 1)
    window = np.sqrt(np.hanning(2 * HOP + 1)[:-1])
    hz = np.fft.rfftfreq(2 * HOP, 1 / SAMPLE_RATE_HZ)[None, :]
    f, b, gain = _tract(targets.formants_FT, record.voice)
    breath = db(record.voice.breathiness_db)
    out = np.zeros(samples + 4 * HOP)
    for start in range(0, frames, 2048):
        span = slice(start, min(start + 2048, frames))
        through = np.zeros((span.stop - start, hz.size))
        for i in range(_FORMANTS):
            fi, bi, gi = (x[i, span][:, None] for x in (f, b, gain))
            through += gi / gain[0, span][:, None] * hz * bi * 2 / np.hypot(fi**2 - hz**2, hz * bi * 2)
        through /= np.sqrt(1 + (hz / 3000.0) ** 2)
        through /= np.sqrt(np.mean(through**2, axis=1, keepdims=True))
        lo, hi = targets.hiss_low_T[span][:, None], targets.hiss_high_T[span][:, None]
        own = (lo > 0) / np.sqrt((1 + (np.maximum(lo, 1) / np.maximum(hz, 1)) ** 6) * (1 + (hz / np.maximum(hi, 1)) ** 6))
        own /= np.sqrt(np.maximum(np.mean(own**2, axis=1, keepdims=True), 1e-9))
        hiss = targets.hiss_T[span][:, None]
        shape = through * (breath * targets.voicing_T[span][:, None] + hiss * (lo == 0)) + own * hiss
        rows = np.arange(start, span.stop)[:, None] * HOP + np.arange(2 * HOP)
        grains = np.fft.irfft(np.fft.rfft(white[rows] * window, axis=1) * shape, axis=1) * window
        even, odd = grains[::2], grains[1::2]
        for offset, part in ((0, even), (1, odd)):
            at = (start + offset) * HOP
            out[at : at + part.size] += part.reshape(-1)
    modulation = 0.75 + 0.25 * np.cos(phase)
    return band(out[HOP : HOP + samples] * modulation, 150, 12_000)
