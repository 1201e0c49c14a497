"""The demo corpus: pop songs composed, sung and played from a seed, with their truth."""

from pipelines.corpus.score.compose import compose
from pipelines.corpus.score.record import SongRecord, read_song_json
from pipelines.corpus.sound.render import RenderedSong, render
from pipelines.corpus.write import CorpusConfig, CorpusSummary, write_corpus

__all__ = [
    "CorpusConfig",
    "CorpusSummary",
    "RenderedSong",
    "SongRecord",
    "compose",
    "read_song_json",
    "render",
    "write_corpus",
]
