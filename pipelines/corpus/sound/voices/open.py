"""Which singers a run has: those that are named, or the neural one where it is installed, or the computed one."""

import logging
from functools import lru_cache

from infra.errors import UserError
from infra.settings import Settings
from infra.storage.place import localise
from pipelines.corpus.sound.banks.open import parse_weighted
from pipelines.corpus.sound.singer import NUMPY_VOICE, NumpySinger, Singer, SingerSet
from pipelines.corpus.sound.voices import speech_network
from pipelines.corpus.sound.voices.neural import NeuralSinger
from pipelines.corpus.sound.voices.syllables import SyllableSinger

log = logging.getLogger(__name__)

_NEURAL = "neural:"
_SYLLABLES = "syllables:"
_BETTER = "the voice is computed; one that sings words sounds better: "


def choose_voices(named: tuple[str, ...], settings: Settings) -> tuple[str, ...]:
    """`named`, or else what BACKLINE_VOICES holds, or the neural voice where its package is installed, or numpy.

    Raises: UserError when a voice that was asked for is unusable; where the neural voice is only missing, one line says how to get it.
    """
    chosen = named or settings.voices
    if not chosen:
        lacking = speech_network.missing()
        if lacking:
            log.info("%s", _BETTER + lacking)
        chosen = ("numpy",) if lacking else ("neural",)
    open_voices(chosen)
    return chosen


@lru_cache(maxsize=4)
def open_voices(specs: tuple[str, ...]) -> SingerSet:
    """The singers, each checked; a process opens them once.

    Raises: UserError naming package or file, reason and remedy.
    """
    if specs in ((), ("numpy",)):
        return NUMPY_VOICE
    parsed = [parse_weighted(spec, "--voice") for spec in specs]
    return SingerSet(singers=tuple(_open(name) for name, _ in parsed), weights=tuple(weight for _, weight in parsed))


def _open(name: str) -> Singer:
    if name == "numpy":
        return NumpySinger()
    if name == "neural" or name.startswith(_NEURAL):
        lacking = speech_network.missing()
        if lacking:
            raise UserError(f"--voice {name}: {lacking}")
        return NeuralSinger(name.removeprefix(_NEURAL) if name != "neural" else speech_network.BUNDLED)
    if name.startswith(_SYLLABLES):
        return SyllableSinger(localise(name.removeprefix(_SYLLABLES)))
    raise UserError(f"--voice {name}: no such voice; choose numpy, neural, neural:NAME or syllables:FOLDER, each with =WEIGHT if you like")
