"""Models in MLflow's registry: a version for each training, aliases that say which to use, `models:/NAME@ALIAS` as a checkpoint's place.

`champion` is what is served; it moves by itself only to a version that is better where the two can be compared. MLflow keeps the alias
`latest` for itself: it is the version with the highest number.
"""

import hashlib
import json
import logging
import re
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from infra.errors import UserError
from infra.settings import Settings
from infra.storage.atomic import PARTIAL_SUFFIX
from infra.tracking.client import answer_of, client_of, download

log = logging.getLogger(__name__)

SCHEME, CHAMPION, LATEST = "models:/", "champion", "latest"
LOSS_TAG, DIGEST_TAG, CODEC_TAG, MEASURE_TAG, STEP_TAG, NAME_TAG = (
    f"backline.{name}" for name in ("validation_loss", "dataset", "codec", "measure", "step", "checkpoint")
)
MODEL_NAME = re.compile(r"[^/:@]+")
ADDRESS = re.compile(r"models:/(?P<model>[^/:@]+)(?:@(?P<alias>[^/:@]+)|/(?P<version>\d+|latest))")
RUN_FILE = "run.json"  # as in a training run's place


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A checkpoint that becomes a version."""

    model: str
    folder: str
    """Of the run's artifacts."""
    name: str
    """The checkpoint's own."""
    step: int
    validation_loss: float | None
    dataset_digest: str
    codec: str
    measure: str
    """Of whatever else makes validation losses comparable: the loss, the crops, the timesteps."""
    description: str
    registry_uri: str | None = None

    @property
    def tags(self) -> dict[str, str]:
        loss = {} if self.validation_loss is None else {LOSS_TAG: repr(self.validation_loss)}
        rest = {STEP_TAG: self.step, DIGEST_TAG: self.dataset_digest, CODEC_TAG: self.codec, MEASURE_TAG: self.measure, NAME_TAG: self.name}
        return loss | {name: str(value) for name, value in rest.items()}


@dataclass(frozen=True, kw_only=True)
class Version:
    """A version of a model, as a registry answers."""

    model: str
    version: str
    run_id: str | None
    source: str

    @property
    def address(self) -> str:
        return f"{SCHEME}{self.model}/{self.version}"


def register(tracking_uri: str, run_id: str, candidate: Candidate) -> str:
    """Makes a version of the candidate, once, and the champion of it where it is better; the version's number."""
    client = client_of(tracking_uri, candidate.registry_uri)
    model = candidate.model
    if answer_of(lambda: client.get_registered_model(model)) is None:
        client.create_registered_model(model, description="Plays the band behind a sung vocal: checkpoints of backline.")
    mine = [found for found in _versions(client, model) if found.run_id == run_id and found.tags.get(STEP_TAG) == str(candidate.step)]
    if mine:
        made = mine[0]
    else:
        source = f"{client.get_run(run_id).info.artifact_uri}/{candidate.folder}"
        made = client.create_model_version(
            model, source, run_id, tags=candidate.tags, description=candidate.description[:5000], await_creation_for=0
        )
    number = str(made.version)
    champion = client.get_registered_model(model).aliases.get(CHAMPION)
    present = None if champion is None else client.get_model_version(model, str(champion)).tags
    why = _not_better(candidate, present)
    if str(champion) == number or why is None:
        client.set_registered_model_alias(model, CHAMPION, number)
        log.info("%s version %s is the champion: %s%s@%s loads it", model, number, SCHEME, model, CHAMPION)
    else:
        log.info(
            "%s version %s is registered; version %s stays the champion, %s. To promote it by hand: backline promote %s %s",
            model, number, champion, why, model, number,
        )  # fmt: skip
    return number


def _not_better(candidate: Candidate, champion: dict[str, str] | None) -> str | None:
    """Why a candidate is not known to be better; None when it is."""
    if champion is None:
        return None
    tags = candidate.tags
    differs = [name.partition(".")[2] for name in (DIGEST_TAG, CODEC_TAG, MEASURE_TAG) if tags[name] != champion.get(name)]
    if differs:
        return f"since losses of another {' and '.join(differs)} say nothing about each other"
    if LOSS_TAG not in tags or LOSS_TAG not in champion:
        return "since one of them has no validation loss"
    if float(tags[LOSS_TAG]) < float(champion[LOSS_TAG]):
        return None
    return f"with a validation loss of {float(champion[LOSS_TAG]):.4f} against {float(tags[LOSS_TAG]):.4f}"


def promote(model: str, version: str, alias: str, settings: Settings) -> Version:
    """Gives a version an alias; UserError where either cannot be."""
    found = look_up(f"{SCHEME}{model}/{version}", settings)
    if alias == LATEST or re.fullmatch(r"v\d+", alias) or not re.fullmatch(r"[\w-]+", alias):
        raise UserError(f"--alias {alias}: MLflow keeps `latest` and v1, v2 … for itself: choose a word, for example {CHAMPION}")
    with _Registry(found.address, settings) as registry:
        registry.client.set_registered_model_alias(model, alias, found.version)
    return found


def look_up(address: str, settings: Settings) -> Version:
    """The version that an address means now. UserError, with its remedy, where there is none or nobody answers."""
    match = ADDRESS.fullmatch(address)
    if match is None:
        raise UserError(f"{address} names no registered model: write models:/NAME@ALIAS, models:/NAME/NUMBER or models:/NAME/latest")
    model, alias, number = match["model"], match["alias"], match["version"]
    with _Registry(address, settings) as registry:
        client = registry.client
        found = answer_of(lambda: client.get_registered_model(model))
        if found is None:
            names = ", ".join(sorted(other.name for other in client.search_registered_models(max_results=20))) or "none yet"
            raise UserError(
                f"{address}: the registry at {registry.uri} has no model {model!r} (it has {names}): train one, or name another"
            )
        if LATEST in (alias, number):
            number = str(max((int(version.version) for version in _versions(client, model)), default=0))
        elif alias is not None:
            if alias not in found.aliases:
                known = ", ".join(f"{name} (version {version})" for name, version in sorted(found.aliases.items())) or "none"
                raise UserError(
                    f"{address}: {model} has no alias {alias!r} (it has {known}): name one of them, or `backline promote {model} VERSION "
                    f"--alias {alias}`"
                )
            number = str(found.aliases[alias])
        version = answer_of(lambda: client.get_model_version(model, str(number)))
        if version is None:
            raise UserError(f"{address}: {model} has no version {number}: its latest is models:/{model}/latest")
        source = str(client.get_model_version_download_uri(model, str(number)))
    return Version(model=model, version=str(number), run_id=version.run_id or None, source=source)


def pinned(address: str, settings: Settings) -> str:
    """The address of the version that is meant now, so that all who load it load the same."""
    return look_up(address, settings).address


def fetch(address: str, settings: Settings) -> Path:
    """The folder of a registered checkpoint in the cache, brought there once for each version.

    A version that is in the cache already is used while the registry is away; an alias is not, since it may have moved.
    """
    match = ADDRESS.fullmatch(address)
    numbered = match is not None and match["version"] not in (None, LATEST)
    try:
        version = look_up(address, settings)
    except _UnreachableError as error:
        kept = sorted(_room(address, settings).glob("*/checkpoint")) if numbered else []
        if not kept:
            raise
        log.warning("%s; what the cache holds of %s is used", error, address)
        return kept[-1]
    room = _room(version.address, settings) / hashlib.sha256(version.source.encode()).hexdigest()[:12]
    if not (room / "checkpoint").exists():
        room.parent.mkdir(parents=True, exist_ok=True)
        arriving = Path(tempfile.mkdtemp(dir=room.parent, suffix=PARTIAL_SUFFIX))
        try:
            _bring(version, arriving, settings)
            arriving.rename(room)
        except OSError:
            if not room.exists():  # otherwise another process was first
                raise
        finally:
            shutil.rmtree(arriving, ignore_errors=True)
    return room / "checkpoint"


def _bring(version: Version, folder: Path, settings: Settings) -> None:
    """checkpoint/ and, so that its evaluation finds the training, run.json."""
    with _Registry(version.address, settings) as registry:
        found = download(version.source, folder / "arrived", registry.tracking_uri)
    if not (found / "checkpoint.json").exists():
        raise UserError(f"{version.address}: {version.source} holds no checkpoint.json: register a checkpoint that backline train wrote")
    found.rename(folder / "checkpoint")
    handle = {"tracking_uri": settings.mlflow_tracking_uri, "run_id": version.run_id}
    if version.run_id:
        (folder / RUN_FILE).write_text(json.dumps({"mlflow": handle}))


def _room(address: str, settings: Settings) -> Path:
    server = settings.mlflow_registry_uri or settings.mlflow_tracking_uri
    return settings.cache / "models" / hashlib.sha256(f"{server} {address}".encode()).hexdigest()[:24]


def _versions(client: Any, model: str) -> list[Any]:
    found, token = [], None
    while True:
        page = client.search_model_versions(f"name='{model}'", max_results=1_000, page_token=token)
        found += page
        token = page.token
        if not token:
            return found


class _UnreachableError(UserError):
    """Nobody answers."""


class _Registry:
    """A client of the registry that the settings name; what it raises inside comes out as one line with its remedy."""

    def __init__(self, address: str, settings: Settings) -> None:
        if settings.mlflow_tracking_uri is None:
            raise UserError(
                f"{address}: MLFLOW_TRACKING_URI is not set: set it to the server, or sqlite:///RUN/mlflow.db, that holds the model"
            )
        self._address = address
        self.tracking_uri = settings.mlflow_tracking_uri
        self.uri = settings.mlflow_registry_uri or self.tracking_uri
        self._settings = settings

    def __enter__(self) -> "_Registry":
        database = self.uri.removeprefix("sqlite:///")
        if database != self.uri and not Path(database).exists():  # opening it would make one
            raise UserError(f"{self._address}: there is no {database}: check MLFLOW_TRACKING_URI and MLFLOW_REGISTRY_URI")
        self.client = client_of(self.tracking_uri, self._settings.mlflow_registry_uri)
        return self

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        if error is None or isinstance(error, UserError) or not isinstance(error, Exception):
            return
        said = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        raise _UnreachableError(
            f"{self._address}: the registry at {self.uri} cannot be used ({said}): start it, or check MLFLOW_TRACKING_URI "
            "and MLFLOW_REGISTRY_URI"
        ) from error
