"""What an evaluation is asked: its config is the command line of `backline evaluate`."""

from dataclasses import dataclass, field
from typing import Annotated, Literal

from infra.cli.exit_codes import LISTED
from model.accompany import GenerationConfig
from training.evaluation.playing import ExtraRow


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """What is scored, on how much, and where the result goes."""

    checkpoint: str
    """A checkpoint's or a training run's place, or models:/NAME@ALIAS of MLflow's registry."""
    data: str
    """The latent dataset whose validation split is played to the network."""
    out: str
    """Folder or S3 URI for evaluation.json, evaluation.md and audio/."""
    samples: int = 8
    """Held-out segments, spread over the songs."""
    seconds: float = 24.0
    """Length of each, from the segment's start; 0 = all of it."""
    audio_files: int = 3
    """Segments whose vocal, real and generated accompaniment are written as audio."""
    generation: GenerationConfig = field(default_factory=GenerationConfig)
    codec: str | None = None
    """Codec, when the checkpoint's codec id does not name it."""
    embedding: Annotated[tuple[str, ...], LISTED] = ("smoke",)
    """Of the distances, a table each: smoke (weight-free), codec (its latents), musicnn:FILE (its weights as npz), clap, a CLAP folder or
    hub name, or auto (clap where it can be had)."""
    apa: bool = True
    """Accompaniment prompt adherence in each embedding, of mixes with the vocal; it takes as long again as the distances."""
    reference: int = 32
    """Real accompaniments of the training split that distances are taken from, as long as the others; 0 = no distances."""
    baselines: bool = True
    """Score beside real and another song's accompaniments what cheats, what is no music, and what the codec costs."""
    rows: Annotated[tuple[ExtraRow, ...], LISTED] = ()
    """More rows that the network plays: ancestral (all steps of its schedule), 20-steps, best-of-4, controls (what was composed given)."""
    student: str | None = None
    """A distilled student's place, for a row of its own."""
    retrieval: int = 32
    """Segments of the training split out of which the best match by tempo and key makes a row; 0 = no such row."""
    aesthetics: Literal["auto", "on", "off"] = "auto"
    """AudioBox-Aesthetics: auto = where its package and weights are there."""
    aesthetics_weights: str | None = None
    """Its checkpoint.pt or folder; by default the hub's."""
    experiment: str = "backline"

    def __post_init__(self) -> None:
        if self.samples < 1:
            raise ValueError(f"samples is {self.samples}, below 1: give the number of held-out segments to score")
        if self.audio_files < 0:
            raise ValueError(f"audio_files is {self.audio_files}, below 0: give 0 or more")
        if self.seconds and self.seconds < 4:
            raise ValueError(f"seconds is {self.seconds}, too short to hear a fit: give 4 or more, or 0 for whole segments")
        if self.reference < 0:
            raise ValueError(f"reference is {self.reference}, below 0: give the number of training segments, or 0 for no distances")
        if isinstance(self.embedding, str):
            raise ValueError(f"embedding is the text {self.embedding!r}: give a tuple of names, as ({self.embedding!r},)")
        if not self.embedding or not all(name.strip() for name in self.embedding):
            raise ValueError("embedding is empty: give smoke, codec, musicnn:FILE, clap, auto, or a CLAP model's folder or hub name")
        if len(set(self.embedding)) < len(self.embedding):
            raise ValueError(f"embedding names one twice ({', '.join(self.embedding)}): give each once")
        if self.retrieval < 0:
            raise ValueError(f"retrieval is {self.retrieval}, below 0: give the number of training segments to pick from, or 0 for no row")
