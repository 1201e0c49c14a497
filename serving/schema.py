"""What a request may ask and what an answer holds. Imports neither torch nor Ray: the HTTP ingress loads this and stays light."""

import json
import math
from dataclasses import dataclass, fields
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator
from pydantic.json_schema import SkipJsonSchema

from model.controls import FASTEST_BPM, SLOWEST_BPM, Controls, read_beats, read_chords
from model.errors import ControlError

# 2^53 − 1, the largest integer that a JavaScript or JSON client reads back unchanged.
MAX_SEED = 2**53 - 1
MAX_STEPS = 200
MAX_GUIDANCE = 20.0
MAX_CANDIDATES = 8
# Ten minutes with a chord or a beat every tenth of a second are longer; nobody writes them.
MAX_CONTROL_CHARS = 64 * 1024

Output = Literal["accompaniment", "mix", "stems"]
Format = Literal["wav", "flac", "mp3", "ogg"]


class AccompanimentRequest(BaseModel):
    """The optional fields of `POST /v1/accompaniments`, beside the file `vocal`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    seed: int | None = Field(
        default=None, ge=0, le=MAX_SEED, description="The same seed, vocal and model give the same audio; random when absent"
    )
    steps: int | None = Field(default=None, ge=1, le=MAX_STEPS, description="Denoising steps; the model's own number when absent")
    guidance: float | None = Field(
        default=None,
        ge=0,
        le=MAX_GUIDANCE,
        allow_inf_nan=False,
        description="How strictly the band follows the vocal; 1 is unguided, the model's own when absent",
    )
    model: str | None = Field(
        default=None,
        min_length=1,
        max_length=200,
        description="A model of `GET /v1/models`, by its id or by the operator's name for it; else the first",
    )
    candidates: int = Field(default=1, ge=1, le=MAX_CANDIDATES, description="Takes to make; the one that fits best is returned")
    style: str | None = Field(default=None, min_length=1, max_length=100, description="One of the model's `styles`, see `GET /v1/models`")
    chords: str | None = Field(
        default=None,
        max_length=MAX_CONTROL_CHARS,
        description="LAB lines `start end CHORD` in seconds, or JSON `[{start_s, end_s, chord}]`; Harte's syntax, or Am, C/E, F#m7b5",
    )
    beats: str | None = Field(
        default=None, max_length=MAX_CONTROL_CHARS, description="JSON `[{time_s, position}]`, position 1 is the downbeat"
    )
    tempo_bpm: float | None = Field(
        default=None, ge=SLOWEST_BPM, le=FASTEST_BPM, allow_inf_nan=False, description="A steady grid in place of `beats`"
    )
    first_beat_s: float | None = Field(default=None, ge=0, allow_inf_nan=False, description="With `tempo_bpm`: when a downbeat is; else 0")
    output: Output = Field(default="accompaniment", description="`stems` is a ZIP of vocal, accompaniment and mix")
    format: Format = Field(default="wav", description="Of the audio, also inside the ZIP")
    stream: bool = Field(
        default=False,
        # A form has only text: what other tools write for a truth is read, too.
        json_schema_extra={"type": ["boolean", "integer"], "minimum": 0, "maximum": 1},
        description="Send the body in chunks (transfer-encoding: chunked) instead of one piece of known length",
    )

    @field_validator("chords", "beats", "tempo_bpm", "first_beat_s")
    @classmethod
    def _understood(cls, value: str | float | None, info: ValidationInfo) -> str | float | None:
        """Fields are looked at in their order, so that the later of two that exclude each other is named."""
        if value is None:
            return value
        given: dict[str, Any] = {name: info.data.get(name) for name in ("beats", "tempo_bpm")}
        try:
            _controls(**{**given, str(info.field_name): value})
        except ControlError as error:
            raise ValueError(error.message) from error
        return value

    def controls(self) -> Controls:
        """What is asked beside the vocal. Raises ControlError only for what `model_copy` put in unseen."""
        return _controls(self.style, self.chords, self.beats, self.tempo_bpm, self.first_beat_s)

    @field_validator("seed", "steps", "guidance", "candidates", "tempo_bpm", "first_beat_s", mode="before")
    @classmethod
    def _plain(cls, value: object) -> object:
        """A form's number is text; what only Python reads as one (1_0 for 10) is no number."""
        if isinstance(value, str) and "_" in value:
            raise ValueError("Input should be a number in digits")
        return value


def _controls(
    style: str | None = None,
    chords: str | None = None,
    beats: str | None = None,
    tempo_bpm: float | None = None,
    first_beat_s: float | None = None,
) -> Controls:
    return Controls(
        style=style,
        chords=read_chords(chords) if chords is not None else (),
        beats=read_beats(beats) if beats is not None else (),
        tempo_bpm=tempo_bpm,
        first_beat_s=first_beat_s or 0.0,
    )


class Fit(BaseModel):
    """How well an accompaniment fits its vocal, each 0 to 1; `leakage` is the vocal heard in it, 0 is none."""

    model_config = ConfigDict(frozen=True)

    harmony: float
    rhythm: float
    overall: float
    leakage: float


@dataclass(frozen=True, kw_only=True)
class StageSeconds:
    """Where a request's time went, in seconds. `decode` and `render` are audio files, `encode` and `diffuse` the model."""

    queue: float = 0.0
    decode: float = 0.0
    encode: float = 0.0
    diffuse: float = 0.0
    fit: float = 0.0
    render: float = 0.0

    @property
    def work_s(self) -> float:
        """Everything but waiting."""
        return sum(getattr(self, field.name) for field in fields(self)) - self.queue

    def server_timing(self) -> str:
        """The `Server-Timing` header (W3C), in milliseconds."""
        return ", ".join(f"{field.name};dur={1000 * getattr(self, field.name):.1f}" for field in fields(self))


class RequestProgress(BaseModel):
    """`GET /v1/progress/{request id}`: how far a request is that carried this id as X-Request-Id."""

    model_config = ConfigDict(frozen=True)

    state: Literal["queued", "running", "done"]
    steps_done: int = Field(default=0, ge=0, description="Denoising steps of all windows and candidates")
    steps: int = Field(default=0, ge=0, description="Of these; 0 while it is not known")
    queue_position: int | None = Field(default=None, ge=0, description="Requests before this one, while it is queued; null where not known")


@dataclass(frozen=True, kw_only=True)
class AccompanimentResult:
    """A finished request: the file and what the headers say about it. Of a stream it is the beginning, and bytes follow."""

    audio: bytes
    more: bool = False
    """Whether `audio` is only the file's beginning; fit and stages are those of it then."""
    media_type: str
    file_name: str
    model: str
    seed: int
    fit: Fit
    candidate_fits: tuple[Fit, ...]
    duration_s: float
    stages: StageSeconds

    def fit_header(self) -> str:
        """The `X-Backline-Fit` header: JSON on one line; a score that could not be had is null."""
        return json.dumps(_scores(self.fit))

    def candidate_fits_header(self) -> str:
        """The `X-Backline-Candidate-Fits` header: a JSON list of the scores of candidate 0, 1, …"""
        return json.dumps([_scores(fit) for fit in self.candidate_fits])


def _scores(fit: Fit) -> dict[str, float | None]:
    return {name: round(value, 4) if math.isfinite(value) else None for name, value in fit}


class ModelInfo(BaseModel):
    """One model that this service answers with."""

    id: str
    step: int = Field(description="Training step of the weights")
    parameters: int
    codec: str
    dataset: str = Field(description="Place of the latent dataset that it was trained on")
    dataset_digest: str
    sample_rate_hz: int
    max_duration_s: float = Field(description="Longest vocal that is accepted")
    default_steps: int
    default_guidance: float
    controls: list[str] = Field(description="What may be given beside the vocal: style, chords, beats (or tempo_bpm)")
    styles: list[str] = Field(description="Names for `style`")
    streams_windows: bool = Field(description="Whether `stream` sends audio while later windows are still being made")


class ModelList(BaseModel):
    """`GET /v1/models`."""

    models: list[ModelInfo]


class Health(BaseModel):
    """`GET /healthz` and `GET /readyz`."""

    status: Literal["alive", "ready"]


class FieldFault(BaseModel):
    """One field of a request that cannot be accepted."""

    model_config = ConfigDict(frozen=True)

    field: str
    message: str


class ProblemDetails(BaseModel):
    """An error (RFC 9457, `application/problem+json`)."""

    type: str = "about:blank"
    title: str
    status: int
    detail: str
    errors: list[FieldFault] | SkipJsonSchema[None] = Field(default=None, description="With 422: what is wrong with each field")


class FieldsProblem(ProblemDetails):
    """422."""

    errors: list[FieldFault] = Field(min_length=1, description="What is wrong with each field")
