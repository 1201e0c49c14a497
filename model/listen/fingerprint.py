"""Audio fingerprints: the same recording is found again across encodings, gain, rates, small offsets and cuts at the ends.

After Haitsma & Kalker 2002, "A highly robust audio fingerprinting system": 32 bits a frame, each the sign of a difference of band energies
along frequency and time (their equation 1).

Shape legend: C channels, N samples, T frames, F frequency bins, M bands, W words of a sketch.
"""

import math
from dataclasses import dataclass

import numpy as np
import scipy
import soxr

from model.dimensions import SAMPLE_RATE_HZ
from model.errors import ModelError
from model.listen.spectrum import mono

# The paper's own rate, frame and hop: 0.37 s every 11.6 ms, so that a copy moved by half a hop still has 98% of its bits.
RATE_HZ = SAMPLE_RATE_HZ / 8
FRAME_SAMPLES, HOP_SAMPLES = 2_048, 64
WORDS_PER_S = RATE_HZ / HOP_SAMPLES
BANDS = 33
LOW_HZ, HIGH_HZ = 300.0, 2_000.0
# Energies are compared 93 ms apart: next frames share 97% of their samples, whose difference an encoder's noise would drown.
LAG_FRAMES = 8
SILENT = 0
"""The word of a frame without sound: it says nothing, and every song has it."""
_SILENCE_DB, _QUIET_DB = -80.0, -55.0  # full scale; under the song's loudest frame

SKETCH_WORDS = 64
# A word that stays for three frames has no bit near its threshold, so copies keep it.
_STEADY_FRAMES = 3

# Midway between the worst copy (0.154) and the nearest other recording (0.190): `same_recording`.
MOST_BIT_ERRORS = 0.17
_BLOCK_WORDS = 256  # the paper's block, 3 s
_MOST_REPEATS = 8
_ALIGNMENTS = 8
_CHANCE = 0.5
_FRESH_SONGS = 1_024


def fingerprint(audio: np.ndarray, *, sample_rate_hz: float = SAMPLE_RATE_HZ) -> np.ndarray:
    """(T,) uint32, 86 words a second, of audio (N,) or (C, N) at any rate; 0 stands for silence. Empty under 0.5 s.

    345 bytes a second of audio, 83 KB for four minutes, 0.2 s of one core for them. Raises ModelError on another shape or no rate.
    """
    if np.ndim(audio) not in (1, 2) or not sample_rate_hz > 0:
        raise ModelError(f"fingerprint: audio of shape {np.shape(audio)} at {sample_rate_hz} Hz; want (N,) or (C, N) and a rate over 0")
    heard_N = soxr.resample(mono(audio), sample_rate_hz, RATE_HZ, quality="LQ")
    if len(heard_N) < FRAME_SAMPLES + LAG_FRAMES * HOP_SAMPLES:
        return np.zeros(0, np.uint32)
    energy_TM = _band_energies(heard_N)
    slope_TM = energy_TM[:, :-1] - energy_TM[:, 1:]
    bits_TM = slope_TM[LAG_FRAMES:] > slope_TM[:-LAG_FRAMES]
    words_T = np.packbits(bits_TM, axis=1, bitorder="little").view("<u4")[:, 0].astype(np.uint32)
    level_T = energy_TM.sum(axis=1)
    sounding_T = level_T > max(10 ** (_SILENCE_DB / 10), level_T.max() * 10 ** (_QUIET_DB / 10))
    words_T[~(sounding_T[LAG_FRAMES:] & sounding_T[:-LAG_FRAMES])] = SILENT
    return words_T


def _band_energies(heard_N: np.ndarray) -> np.ndarray:
    """(T, 33) float32: energies of logarithmic bands; a full-scale sine gives about 1."""
    edges_F = np.round(LOW_HZ * (HIGH_HZ / LOW_HZ) ** (np.arange(BANDS + 1) / BANDS) * FRAME_SAMPLES / RATE_HZ).astype(int)
    window_N = scipy.signal.get_window("hann", FRAME_SAMPLES).astype(np.float32)
    window_N *= 2 / window_N.sum()
    frames_TN = np.lib.stride_tricks.sliding_window_view(heard_N, FRAME_SAMPLES)[::HOP_SAMPLES]
    energy_TM = np.empty((len(frames_TN), BANDS), np.float32)
    for start in range(0, len(frames_TN), _BLOCK_WORDS):
        spectrum_TF = scipy.fft.rfft(frames_TN[start : start + _BLOCK_WORDS] * window_N, axis=1)[:, edges_F[0] : edges_F[-1]]
        power_TF = spectrum_TF.real**2 + spectrum_TF.imag**2
        energy_TM[start : start + len(power_TF)] = np.add.reduceat(power_TF, edges_F[:-1] - edges_F[0], axis=1)
    return energy_TM


def sketch(words_T: np.ndarray, *, words: int = SKETCH_WORDS) -> np.ndarray:
    """(W,) uint32, sorted, at most `words`: the smallest hashes of the fingerprint's steady words (bottom-k, Cohen & Kaplan 2007).

    Of two copies each sketch holds the same words as far as they have survived, wherever they stand. 256 bytes a song.
    """
    steady_T = words_T[: max(0, len(words_T) - _STEADY_FRAMES + 1)]
    keep_T = steady_T != SILENT
    for ahead in range(1, _STEADY_FRAMES):
        keep_T = keep_T & (steady_T == words_T[ahead : ahead + len(steady_T)])
    return np.sort(_hashed(np.unique(steady_T[keep_T])))[:words]


def _hashed(words: np.ndarray) -> np.ndarray:
    """One to one on 32 bits, so that "the smallest" favours no pattern of bits (MurmurHash3's finaliser)."""
    mixed = words.astype(np.uint32)
    mixed ^= mixed >> np.uint32(16)
    mixed *= np.uint32(0x85EBCA6B)
    mixed ^= mixed >> np.uint32(13)
    mixed *= np.uint32(0xC2B2AE35)
    mixed ^= mixed >> np.uint32(16)
    return mixed


def bit_error_rate(first_T: np.ndarray, second_T: np.ndarray) -> float:
    """0 to 0.5: the share of bits that differ in the worst quarter of the song's 3 s blocks, at the best of the alignments that shared
    words give; 0.5, which is chance, where no alignment covers half of what sounds in the shorter one, and 3 s at least.

    The worst quarter, because an encoder errs everywhere alike, and another vocal where it sings.
    """
    rates = [_errors(first_T, second_T, shift) for shift in _alignments(first_T, second_T)]
    return min(rates) if rates else _CHANCE


def same_recording(first_T: np.ndarray, second_T: np.ndarray) -> bool:
    """Whether two fingerprints are of one recording: `bit_error_rate` under MOST_BIT_ERRORS.

    Measured on 12 demo songs of a minute: none of 144 copies missed, none of 174 others taken for one. Error rates, and how many of the 64
    words of a sketch are shared (least, median):

    | copy | bit errors | shared |
    |---|---|---|
    | MP3 at 160, 96, 56 kbit/s | up to 0.052, 0.085, 0.120 | 27, 33; 15, 19; 8, 13 |
    | OGG at 159, 90, 72 kbit/s | up to 0.062, 0.107, 0.132 | 23, 28; 10, 12; 5, 10 |
    | MP3 at 56, cut, halved, then OGG at 90 kbit/s | 0.091 to 0.154 | 4, 7 |
    | MP3 at 96 kbit/s, 16 s cut off, 14 dB down | up to 0.081 | 12, 15 |
    | the middle 40% alone; half a hop late; at 22.05 kHz; noise at −30 dB | up to 0.025, 0.032, 0.001, 0.042 | 14 or more |

    | no copy | bit errors | shared |
    |---|---|---|
    | the same band with another's vocal, as loud or 6 dB down | 0.275 to 0.397 | 7, 11 |
    | the band alone | 0.190 to 0.280 | 9, 16 |
    | 1, 2 or 6% faster or 6% slower | 0.5 | 0, 0 |
    | another song (66 pairs) | 0.49 or more | 1 at most |

    Six songs of 21 to 29 s through the MP3 and OGG encoders, 24 copies: up to 0.145, 3 words or more.
    One channel of a wide stereo mix is no copy of both (0.168 to 0.380).
    """
    return bit_error_rate(first_T, second_T) < MOST_BIT_ERRORS


def _alignments(first_T: np.ndarray, second_T: np.ndarray) -> list[int]:
    """Shifts s at which most words of the first stand as word t + s of the second, best first; with a neighbour on either side."""
    order = np.argsort(second_T, kind="stable")
    sorted_T = second_T[order]
    left, right = np.searchsorted(sorted_T, first_T, "left"), np.searchsorted(sorted_T, first_T, "right")
    times = right - left
    # A word found everywhere tells no place, and pairs would grow with the square of a drone's length.
    usable_T = (times <= _MOST_REPEATS) & (first_T != SILENT)
    found = [np.zeros(0, np.int64)]
    for nth in range(_MOST_REPEATS):
        at = np.flatnonzero(usable_T & (times > nth))
        found.append(order[left[at] + nth] - at)
    shifts, votes = np.unique(np.concatenate(found), return_counts=True)
    best = shifts[np.argsort(-votes, kind="stable")[:_ALIGNMENTS]]
    return sorted({int(shift) + near for shift in best for near in (-1, 0, 1)})


def _errors(first_T: np.ndarray, second_T: np.ndarray, shift: int) -> float:
    """`bit_error_rate` at one alignment: word t of the first beside word t + shift of the second."""
    start, stop = max(0, -shift), min(len(first_T), len(second_T) - shift)
    one_T, two_T = first_T[start : max(start, stop)], second_T[start + shift : max(start, stop) + shift]
    both_T = (one_T != SILENT) & (two_T != SILENT)
    shorter = min(int(np.count_nonzero(words_T)) for words_T in (first_T, second_T))
    if np.count_nonzero(both_T) < max(_BLOCK_WORDS, shorter // 2):
        return _CHANCE
    wrong_T = np.bitwise_count(one_T[both_T] ^ two_T[both_T])
    blocks = len(wrong_T) // _BLOCK_WORDS
    rates = np.sort(wrong_T[: blocks * _BLOCK_WORDS].reshape(blocks, _BLOCK_WORDS).mean(axis=1)) / 32
    return min(_CHANCE, float(rates[-math.ceil(blocks / 4) :].mean()))


@dataclass(frozen=True, kw_only=True)
class _Run:
    """Sketch words of many songs, sorted, beside the number of the song that each is of."""

    words_W: np.ndarray
    songs_W: np.ndarray

    def joined(self, other: "_Run") -> "_Run":
        words_W = np.concatenate([self.words_W, other.words_W])
        order = np.argsort(words_W, kind="stable")  # merges what is sorted already
        return _Run(words_W=words_W[order], songs_W=np.concatenate([self.songs_W, other.songs_W])[order])

    def songs(self, words_W: np.ndarray) -> np.ndarray:
        """Numbers of the songs that hold the words, once for each word held."""
        left, right = (np.searchsorted(self.words_W, words_W, side=side) for side in ("left", "right"))
        return np.concatenate([self.songs_W[first:last] for first, last in zip(left, right, strict=True)] or [self.songs_W[:0]])


class FingerprintIndex:
    """Which songs may be copies of one another: those whose sketches share words. Ask `same_recording` about each.

    A song of 64 words takes 512 bytes beside its id (about 70): 0.6 GB a million songs. Runs of sorted words are joined as they grow
    (O'Neil et al. 1996, the log-structured merge-tree), so that adding a song takes the time of a few sorted words in the mean.
    """

    def __init__(self) -> None:
        self._ids: list[str] = []
        self._runs: list[_Run] = []  # each more than twice as long as the next
        self._fresh: dict[int, list[int]] = {}
        self._fresh_songs = 0

    def __len__(self) -> int:
        return len(self._ids)

    def add(self, song_id: str, words_W: np.ndarray) -> None:
        """Adds a song by its sketch (W,) uint32."""
        for word in words_W.tolist():
            self._fresh.setdefault(word, []).append(len(self._ids))
        self._ids.append(song_id)
        self._fresh_songs += 1
        if self._fresh_songs == _FRESH_SONGS:
            self._seal()

    def _seal(self) -> None:
        """The fresh songs become a run: 8 bytes a word instead of about 100."""
        words = np.array(sorted(self._fresh), np.uint32)
        counts = [len(self._fresh[word]) for word in words.tolist()]
        songs = [song for word in words.tolist() for song in self._fresh[word]]
        run = _Run(words_W=np.repeat(words, counts), songs_W=np.array(songs, np.uint32))
        while self._runs and len(self._runs[-1].words_W) <= 2 * len(run.words_W):
            run = self._runs.pop().joined(run)
        self._runs.append(run)
        self._fresh, self._fresh_songs = {}, 0

    def candidates(self, words_W: np.ndarray, *, at_least: int = 2) -> list[str]:
        """Ids of the songs that share `at_least` words or more with a sketch, most first.

        Raises ModelError on at_least under 1.
        """
        if at_least < 1:
            raise ModelError(f"at_least={at_least}; a candidate shares 1 word or more")
        fresh = [song for word in words_W.tolist() for song in self._fresh.get(word, ())]
        found = np.concatenate([np.array(fresh, np.uint32), *(run.songs(words_W) for run in self._runs)])
        songs, shared = np.unique(found, return_counts=True)
        order = np.argsort(-shared, kind="stable")
        return [self._ids[songs[at]] for at in order if shared[at] >= at_least]
