"""Retrieval: which band of the training set matches a vocal's key and tempo best."""

import numpy as np
import pytest

from model.listen import recognise_key
from tests.bands import band
from training.evaluation.retrieval import Fingerprint, best_match, composed, difference, fingerprint, key_steps, tempo_steps
from training.evaluation.truth import NOTHING, Truth, key_number


def steps(one: str, other: str) -> float:
    return key_steps(key_number(one), key_number(other))


def test_keys_are_near_on_the_circle_of_fifths() -> None:
    assert steps("C major", "C major") == 0
    assert steps("C major", "A minor") == 0.5
    assert steps("C major", "G major") == steps("C major", "F major") == steps("A minor", "E minor") == 1
    assert steps("C major", "E minor") == 1.5
    assert steps("C major", "F# major") == steps("F# major", "C major") == 6


def test_tempi_are_the_same_an_octave_apart() -> None:
    assert tempo_steps(120, 60) == tempo_steps(60, 120) == tempo_steps(97, 97) == 0
    assert tempo_steps(100, 100 * 2 ** (1 / 12)) == pytest.approx(1)
    assert tempo_steps(100, 100 * 2**0.5) == pytest.approx(6)


def test_the_nearest_band_is_found_from_what_is_known() -> None:
    wanted = Fingerprint(key=key_number("D minor"), tempo_bpm=100.0)
    far, near, unknown = Fingerprint(key=0, tempo_bpm=141.0), Fingerprint(key=10, tempo_bpm=102.0), Fingerprint(key=None, tempo_bpm=None)
    assert best_match(wanted, [far, unknown, near, near]) == 2
    assert difference(wanted, unknown) == 12
    assert difference(Fingerprint(key=None, tempo_bpm=None), far) == 0


def test_a_fingerprint_is_composed_where_known_and_else_heard() -> None:
    audio = band(12, root_hz=261.63, bpm=100.0)
    heard = fingerprint(audio, NOTHING)
    assert heard.key == recognise_key(audio) == key_number("C major")
    assert heard.tempo_bpm is not None
    assert tempo_steps(heard.tempo_bpm, 100.0) < 0.5
    truth = Truth(key=7, tempo_bpm=80.0)
    assert fingerprint(audio, truth) == composed(truth) == Fingerprint(key=7, tempo_bpm=80.0)
    assert fingerprint(audio, Truth(key=7)).tempo_bpm == heard.tempo_bpm
    assert composed(Truth(key=7)) is None
    assert fingerprint(np.zeros_like(audio), NOTHING) == Fingerprint(key=None, tempo_bpm=None)
