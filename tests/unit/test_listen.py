"""Listening to songs whose truth is known; independent judges are mir_eval for beats and pyloudnorm for loudness."""

import warnings

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from listen_songs import RATE_HZ, compose, hz, pluck, sung

from model import listen


def silence(seconds: float) -> np.ndarray:
    return np.zeros(round(seconds * RATE_HZ), np.float32)


def noise(seconds: float, seed: int = 0) -> np.ndarray:
    return (0.1 * np.random.default_rng(seed).normal(size=round(seconds * RATE_HZ))).astype(np.float32)


def cents(measured_hz: np.ndarray, true_hz: np.ndarray | float) -> np.ndarray:
    return 1_200 * np.log2(measured_hz / true_hz)


@settings(max_examples=25)
@given(samples=st.integers(0, 60_000), channels=st.sampled_from([0, 1, 2, 6]), kind=st.sampled_from(["silence", "noise", "edge"]))
@example(samples=0, channels=0, kind="silence")
@example(samples=1, channels=2, kind="noise")
@example(samples=44_100 * 5, channels=2, kind="silence")
@example(samples=44_100 * 5, channels=0, kind="edge")
def test_any_length_and_any_channels_give_finite_answers_without_warnings(samples: int, channels: int, kind: str) -> None:
    shape = (channels, samples) if channels else (samples,)
    audio = np.zeros(shape, np.float32)
    if kind == "noise":
        audio = np.random.default_rng(samples).normal(size=shape).astype(np.float32)
    elif kind == "edge":  # exact zeros, then sound at once
        audio[..., samples // 2 :] = 0.5
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        chroma_12T = listen.chroma(audio)
        curves = [chroma_12T, listen.onset_strength(audio), listen.onsets(audio), listen.track_beats(audio), *listen.f0(audio)]
        curves += [listen.key_profile(chroma_12T), listen.recognise_chords(audio), listen.recognise_chords(audio, np.array([0.2, 0.5]))]
        statistics = listen.spectral_statistics(audio)
        figures = [listen.loudness_db(audio), listen.rms_db(audio), listen.tempo_bpm(audio), statistics.centroid_hz, statistics.flatness]
    assert chroma_12T.shape == (12, samples // 4_096 + 1)
    assert listen.onset_strength(audio).shape == (samples // 512 + 1,)
    assert all(np.isfinite(curve).all() for curve in curves)
    assert np.isfinite(figures).all()
    assert chroma_12T.min() >= 0


def test_silence_is_heard_as_silence() -> None:
    audio = silence(6.0)
    assert not listen.chroma(audio).any()
    assert (listen.recognise_chords(audio) == -1).all()
    assert listen.recognise_key(audio) == -1
    assert listen.track_beats(audio).size == listen.onsets(audio).size == 0
    assert listen.tempo_bpm(audio) == 0.0
    assert not listen.f0(audio)[2].any()
    assert listen.loudness_db(audio) == listen.rms_db(audio) == -120.0
    assert listen.spectral_statistics(audio).centroid_hz == 0.0


def test_three_dimensions_are_refused() -> None:
    with pytest.raises(ValueError, match="neither"):
        listen.mono(np.zeros((1, 2, 3)))


@pytest.mark.parametrize("tuning_semitones", [-0.4, -0.2, 0.0, 0.3])
def test_every_pitch_class_is_found_in_any_tuning(tuning_semitones: float) -> None:
    for midi in range(45, 81, 5):
        strong = listen.chroma(pluck(midi + tuning_semitones, 2.0)).sum(axis=1)  # type: ignore[arg-type]
        assert strong.argmax() == midi % 12
        assert strong.max() > 0.6 * strong.sum()  # overtones count for their note


@pytest.mark.parametrize("seed", range(4))
def test_chords_keys_and_beats_of_songs_with_drums(seed: int) -> None:
    import mir_eval

    song = compose(seed, minor=seed % 2 == 1)
    beats_s = listen.track_beats(song.band_N)
    assert mir_eval.beat.f_measure(song.beats_s, beats_s, f_measure_threshold=0.03) >= 0.9
    assert listen.tempo_bpm(song.band_N) == pytest.approx(60 / np.diff(song.beats_s).mean(), rel=0.02)
    labels_T = listen.recognise_chords(song.band_N)
    assert listen.chord_agreement(song.chords, labels_T) >= 0.9
    assert listen.chord_agreement(song.chords, listen.recognise_chords(song.band_N, beats_s)) >= 0.9
    wrong = [(start_s, end_s, (label + 2) % 24) for start_s, end_s, label in song.chords]
    assert listen.chord_agreement(wrong, labels_T) < 0.2


def test_chords_survive_noise_and_level() -> None:
    song = compose(1)
    quiet_N = 0.01 * song.band_N
    assert listen.chord_agreement(song.chords, listen.recognise_chords(quiet_N)) >= 0.9
    noisy_N = song.band_N + 0.3 * noise(len(song.band_N) / RATE_HZ)[: len(song.band_N)]
    assert listen.chord_agreement(song.chords, listen.recognise_chords(noisy_N)) >= 0.85


def test_transposed_chords_are_transposed_labels() -> None:
    low, high = (compose(2, tonic=tonic) for tonic in (2, 5))
    low_T, high_T = listen.recognise_chords(low.band_N), listen.recognise_chords(high.band_N)
    both_T = (low_T >= 0) & (high_T >= 0)
    assert (((low_T + 6) % 24) == high_T)[both_T].mean() > 0.9


def test_agreement_counts_only_what_is_covered() -> None:
    labels_T = np.array([-1, 5, 5, 5, 7, 7])
    second_s = 1 / listen.CHROMA_RATE_HZ
    assert listen.chord_agreement([(second_s, 3 * second_s, 5), (3 * second_s, 5 * second_s, 7)], labels_T) == pytest.approx(3 / 4)
    assert listen.chord_agreement([], labels_T) == 0.0


@pytest.mark.parametrize(("tonic", "minor"), [(0, False), (4, False), (9, False), (7, False)])
def test_the_key_is_heard_or_its_nearest_neighbour(tonic: int, minor: bool) -> None:
    key = listen.recognise_key(compose(0, tonic=tonic).band_N)
    relative_minor, dominant, subdominant = (tonic + 9) % 12 * 2 + 1, (tonic + 7) % 12 * 2, (tonic + 5) % 12 * 2
    assert key in {tonic * 2 + minor, relative_minor, dominant, subdominant}


@pytest.mark.parametrize("bpm", [70.0, 90.0, 120.0, 135.0])
def test_beats_follow_a_tempo_that_drifts(bpm: float) -> None:
    import mir_eval

    beats_s = 0.5 + np.cumsum(60 / bpm * (1 + 0.04 * np.sin(np.arange(40) / 6)))
    audio = silence(beats_s[-1] + 1)
    click = noise(0.05) * np.exp(-np.arange(2_205) / 300)
    for beat_s in beats_s:
        start = round(beat_s * RATE_HZ)
        audio[start : start + 2_205] += click
    assert mir_eval.beat.f_measure(beats_s, listen.track_beats(audio)) >= 0.95


@pytest.mark.parametrize("loud", [1, 5, 8])
@pytest.mark.parametrize("between", [(0.62,), (2 / 3,), (1 / 3, 2 / 3)])
def test_loud_chords_between_the_beats_do_not_move_the_beat(loud: float, between: tuple[float, ...]) -> None:
    import mir_eval

    rng, beat_s = np.random.default_rng(0), 0.536
    beats_s = 0.4 + beat_s * np.arange(32)
    t = np.arange(round(0.15 * RATE_HZ)) / RATE_HZ
    audio = np.zeros(round((beats_s[-1] + 1) * RATE_HZ))

    def add(sound_N: np.ndarray, at_s: float) -> None:
        start = round(at_s * RATE_HZ)
        audio[start : start + len(sound_N)] += sound_N[: len(audio) - start]

    for index, at_s in enumerate(beats_s):
        kick = 0.6 * np.sin(2 * np.pi * (50 * t + 3 * (1 - np.exp(-30 * t)))) * np.exp(-25 * t)
        add(kick if index % 2 == 0 else 0.2 * rng.normal(size=len(t)) * np.exp(-30 * t), at_s)
        add(0.06 * np.diff(rng.normal(size=len(t)), prepend=0) * np.exp(-40 * t), at_s)  # ride
        add(1.5 * pluck(36 + int(rng.integers(12)), 0.9 * beat_s, 5), at_s)  # walking bass
        for midi in (55, 59, 62, 67):
            chord = pluck(midi + index // 4 % 4 * 2, 0.25 * beat_s)
            for phase in between:
                add(loud * chord * np.minimum(1, np.arange(len(chord)) / 441), at_s + phase * beat_s)
    assert mir_eval.beat.f_measure(beats_s, listen.track_beats(audio)) >= 0.9


def test_a_drone_has_no_beats_and_the_lead_in_has_none() -> None:
    t = np.arange(10 * RATE_HZ) / RATE_HZ
    assert listen.track_beats(0.3 * np.sin(2 * np.pi * 110 * t)).size == 0
    song = compose(0)
    late_N = np.concatenate([silence(5.0), song.band_N])
    assert listen.track_beats(late_N)[0] > 5.0


def test_onsets_lie_where_notes_start() -> None:
    starts_s = np.array([0.5, 0.9, 1.4, 1.65, 2.3, 3.0])
    audio = silence(4.0)
    for index, start_s in enumerate(starts_s):
        sound = pluck(60 + 2 * index, 0.5)
        start = round(start_s * RATE_HZ)
        audio[start : start + len(sound)] += sound.astype(np.float32)
    found_s = listen.onsets(audio)
    assert len(found_s) == len(starts_s)
    np.testing.assert_allclose(found_s, starts_s, atol=0.012)


@pytest.mark.parametrize("midi", [45, 52, 59, 66, 73, 80])
def test_the_pitch_of_a_vowel_is_within_three_cents(midi: int) -> None:
    times_s, hz_T, voiced_T = listen.f0(sung(midi, 2.0, np.random.default_rng(midi)))
    assert voiced_T.mean() > 0.9
    inner_T = voiced_T & (times_s > 0.4) & (times_s < 1.9)
    # Vibrato swings evenly around the note.
    assert abs(np.median(cents(hz_T[inner_T], hz(midi)))) < 10
    still_T = listen.f0(sung(midi, 2.0, np.random.default_rng(midi), vibrato_cents=0.0))[1]
    assert np.median(np.abs(cents(still_T[voiced_T & (still_T > 0)], hz(midi)))) < 3


def test_the_pitch_follows_glides_and_vibrato() -> None:
    t = np.arange(8 * RATE_HZ) / RATE_HZ
    track_hz = 220 * 2 ** (np.sin(2 * np.pi * 0.2 * t) + 0.3 / 12 * np.sin(2 * np.pi * 5.5 * t))
    phase = 2 * np.pi * np.cumsum(track_hz) / RATE_HZ
    voice = 0.1 * sum(np.sin(k * phase) / k for k in range(1, 12))
    times_s, hz_T, voiced_T = listen.f0(voice + 0.05 * noise(8.0))
    assert voiced_T.mean() > 0.97
    error = cents(hz_T[voiced_T], np.interp(times_s[voiced_T], t, track_hz))
    assert np.median(np.abs(error)) < 3
    assert np.mean(np.abs(error) < 50) > 0.99


def test_noise_and_rests_are_unvoiced() -> None:
    assert listen.f0(noise(3.0))[2].mean() < 0.02
    voice = np.concatenate([silence(1.0), sung(60, 1.0, np.random.default_rng(0)).astype(np.float32), silence(1.0)])
    times_s, hz_T, voiced_T = listen.f0(voice)
    assert not voiced_T[(times_s < 0.95) | (times_s > 2.05)].any()
    assert (hz_T[~voiced_T] == 0).all()


@pytest.mark.parametrize("channels", [1, 2])
def test_loudness_agrees_with_an_independent_meter(channels: int) -> None:
    import pyloudnorm

    song = compose(3)
    audio_CN = np.stack([song.band_N, 0.5 * song.vocal_N][:channels])
    audio_CN[:, : 3 * RATE_HZ] *= 0.02  # gated
    expected = pyloudnorm.Meter(RATE_HZ).integrated_loudness(audio_CN.T)
    assert listen.loudness_db(audio_CN) == pytest.approx(expected, abs=0.1)
    assert listen.loudness_db(0.5 * audio_CN) == pytest.approx(expected - 6.02, abs=0.3)


def test_spectral_statistics_tell_a_tone_from_noise() -> None:
    t = np.arange(2 * RATE_HZ) / RATE_HZ
    tone = listen.spectral_statistics(np.sin(2 * np.pi * 1_000 * t))
    hiss = listen.spectral_statistics(noise(2.0))
    assert tone.centroid_hz == pytest.approx(1_000, rel=0.02)
    assert tone.rolloff_hz == pytest.approx(1_000, rel=0.05)
    assert tone.flatness < 0.01 < 0.4 < hiss.flatness
    assert hiss.centroid_hz == pytest.approx(RATE_HZ / 4, rel=0.05)
    assert tone.flux < 0.2 < hiss.flux
    assert tone.bandwidth_hz < hiss.bandwidth_hz
