"""The OpenAPI document against the real application: schemathesis makes requests from it, good and bad, and checks every answer by it."""

from collections import Counter, defaultdict
from collections.abc import AsyncGenerator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest
import serving_parts as parts
from fastapi import FastAPI
from hypothesis import strategies

from serving.engine.async_engine import LocalBackend
from serving.engine.engine import Engine
from serving.engine.load import load_engine
from serving.http.admission import digest
from serving.http.app import AppConfig, create_app
from serving.messages import Message
from serving.schema import AccompanimentRequest
from tests.examples import examples

if TYPE_CHECKING:
    import schemathesis
    from schemathesis.config import SchemathesisConfig
    from schemathesis.core.failures import Failure

PATH = "POST /v1/accompaniments"
KEY = "right"
MANY = 400
CHECKS = {
    "status_code_conformance", "content_type_conformance", "response_headers_conformance", "response_schema_conformance",
    "negative_data_rejection", "positive_data_acceptance", "missing_required_header", "unsupported_method", "allow_header_conformance",
    "ignored_auth", "not_a_server_error",
}  # fmt: skip


def good_vocals() -> list[bytes]:
    return [
        parts.vocal(0.2),
        parts.audio_file(parts.sung(0.1, 8_000), rate_hz=8_000),
        parts.audio_file(parts.sung(0.2), format="FLAC"),
    ]


class BriefBackend(LocalBackend):
    """The engine in this process; whatever number of steps and takes is asked for, a request is short, and any model is the tiny one."""

    async def play(self, vocal: bytes, request: AccompanimentRequest, *, timeout_s: float | None = None) -> AsyncGenerator[Message, None]:
        brief = {"model": None, "steps": min(request.steps or 2, 2), "candidates": min(request.candidates, 2)}
        async for message in super().play(vocal, request.model_copy(update=brief), timeout_s=timeout_s):
            yield message


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    folder = parts.tiny_checkpoint(tmp_path_factory.mktemp("model") / "tiny")
    engine = load_engine(checkpoint=str(folder), codec=None, device="cpu", threads=1, max_duration_s=60.0, hang_after_s=60.0)
    yield engine
    engine.close()


CONTROLS = {"style", "chords", "beats", "tempo_bpm", "first_beat_s"}


def application(engine: Engine, *, keyed: bool = False) -> FastAPI:
    return create_app(BriefBackend(engine), AppConfig(max_upload_bytes=2**20, api_key_digests=(digest(KEY),) if keyed else ()))


@contextmanager
def sent_as_vocal(files: list[bytes]) -> Iterator[None]:
    """What schemathesis sends where the document says `format: binary`."""
    import schemathesis
    from schemathesis.specs.openapi.formats import unregister_string_format

    schemathesis.openapi.format("binary", strategies.sampled_from(files))
    yield
    unregister_string_format("binary")


@dataclass
class Found:
    """What came of a run."""

    faults: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    statuses: Counter[tuple[str, int]] = field(default_factory=Counter)
    """(operation, status) of every answer to a method that the document has."""
    checks: Counter[str] = field(default_factory=Counter)


def attack(app: FastAPI, *, most: int, phases: tuple[str, ...], keyed: bool = False, refused: int | None = None) -> Found:
    """Every check of schemathesis on requests that it makes from `app`'s document.

    refused: the vocals are such as this status refuses, and then that is not held against the application.
    """
    vocals = good_vocals() if refused is None else [make() for make, status in parts.BAD_VOCALS.values() if status == refused]
    with sent_as_vocal(vocals):
        return attacked(app, settings(most=most, phases=phases, keyed=keyed, sung=refused is None))


def attacked(app: FastAPI, config: "SchemathesisConfig") -> Found:
    import schemathesis
    from schemathesis.engine import Status, events, from_schema

    schema = schemathesis.openapi.from_asgi("/openapi.json", app, config=config)
    schema.validate()
    schema.hook("filter_failure")(is_a_fault)
    found = Found()
    for event in from_schema(schema).execute():
        assert not isinstance(event, events.NonFatalError | events.FatalError), event
        if not isinstance(event, events.ScenarioFinished):
            continue
        record = event.recorder
        for id, interaction in record.interactions.items():
            case = record.cases[id].value
            if interaction.response is not None and case.method == case.operation.method.upper():
                found.statuses[case.operation.label, interaction.response.status_code] += 1
        for id, checks in record.checks.items():
            for check in checks:
                found.checks[check.name] += 1
                if check.status == Status.FAILURE and check.failure_info is not None:
                    case, failure = record.cases[id].value, check.failure_info.failure
                    sent = {name: str(value)[:80] for name, value in case.body.items()} if isinstance(case.body, dict) else case.body
                    found.faults[f"{case.operation.label}: {failure.title}"].append(f"{failure.message}; sent {sent}, {case.headers}")
    return found


def settings(*, most: int, phases: tuple[str, ...], keyed: bool, sung: bool) -> "SchemathesisConfig":
    from schemathesis.config import SchemathesisConfig

    keys = {"HTTPBearer": {"bearer": KEY}, "APIKeyHeader": {"api_key": KEY}}
    told: dict[str, Any] = {
        "seed": 1,
        "continue-on-failure": True,
        "request-timeout": 60,
        "generation": {"max-examples": most, "deterministic": True, "database": "none", "no-shrink": True},
        "phases": {name: {"enabled": name in phases} for name in ("examples", "coverage", "fuzzing", "stateful")},
        # 504 is what a caller gets who allows a request 0.001 s, as some of these do.
        "checks": {
            "not_a_server_error": {"expected-statuses": ["2xx", "3xx", "4xx", "504"]},
            "positive_data_acceptance": {"enabled": sung},
        },
    }
    return SchemathesisConfig.from_dict(told | ({"auth": {"openapi": keys}} if keyed else {}))


def is_a_fault(_: object, failure: "Failure", case: "schemathesis.Case", response: "schemathesis.Response") -> bool:
    """Two things that schemathesis counts as bad data are none: a header that nobody knows is ignored, as HTTP wants it, and a number in
    place of a text is a text, once it is a form's. And what a model follows beside the vocal is in its entry of /v1/models: none here."""
    from schemathesis.core.mutations import OperatorKind
    from schemathesis.generation.meta import CoverageScenario

    if failure.title == "Schema-valid request rejected" and response.status_code == 422:
        return not {fault["field"] for fault in response.json()["errors"]} <= CONTROLS
    if failure.title != "Schema-violating request accepted" or case.meta is None:
        return True
    made = case.meta.phase.data
    unknown_header = (
        getattr(made, "scenario", None) == CoverageScenario.OBJECT_UNEXPECTED_PROPERTIES and made.parameter_location == "header"
    )
    mutations = getattr(made, "mutations", ())
    texts = [("model",), *((name,) for name in CONTROLS)]
    number_for_text = bool(mutations) and all(one.path in texts and one.operator == OperatorKind.CHANGE_TYPE for one in mutations)
    return not unknown_header and not number_for_text


def test_every_answer_is_as_the_document_says(engine: Engine) -> None:
    found = attack(application(engine), most=25, phases=("examples", "coverage", "fuzzing"))
    assert not found.faults
    assert set(found.checks) >= CHECKS
    # Each kind of answer was really met, audio above all.
    assert found.statuses[PATH, 200] >= 20
    for answer in ((PATH, 400), (PATH, 415), (PATH, 422), ("GET /v1/models", 200), ("GET /v1/progress/{id}", 404), ("GET /readyz", 200)):
        assert found.statuses[answer], answer


@pytest.mark.hypothesis  # so that test-all tries it in full
@pytest.mark.parametrize("status", [400, 413, 415])
def test_a_refused_vocal_is_answered_as_the_document_says(engine: Engine, status: int) -> None:
    found = attack(application(engine), most=examples(MANY), phases=("fuzzing",), refused=status)
    assert not found.faults
    assert found.statuses[PATH, status]
    assert found.statuses[PATH, 422] or examples(MANY) < MANY  # a few examples may all have fields that are in range


def test_with_keys_nothing_is_answered_without_one(engine: Engine) -> None:
    """And a request is followed by the id that its answer has, as the document's link says."""
    found = attack(application(engine, keyed=True), most=10, phases=("coverage", "stateful"), keyed=True)
    assert not found.faults
    for path in (PATH, "GET /v1/models", "GET /v1/progress/{id}"):
        assert found.statuses[path, 200], path
        assert found.statuses[path, 401], path


def test_a_document_that_keeps_quiet_about_an_answer_is_found_out(engine: Engine) -> None:
    """The test above can fail: without 422, without a header's truth, with a promise too many."""

    def spoil(document: dict[str, Any]) -> None:
        post = document["paths"]["/v1/accompaniments"]["post"]
        del post["responses"]["422"]
        post["responses"]["200"]["headers"]["X-Backline-Seed"]["schema"] = {"type": "integer", "maximum": -1}
        post["requestBody"]["content"]["multipart/form-data"]["schema"]["properties"]["steps"]["maximum"] = 10_000
        document["components"]["schemas"]["ModelInfo"]["required"].append("price")

    app = application(engine)
    spoil(app.openapi())
    faults = attack(app, most=5, phases=("coverage",)).faults
    titles = {name.partition(": ")[2] for name in faults}
    assert {"Undocumented status code", "Response header does not conform to the schema", "Schema-valid request rejected"} <= titles
    assert any(name.startswith("GET /v1/models: Response violates schema") for name in faults)


@pytest.mark.parametrize("keyed", [False, True])
def test_the_document_is_openapi_3_1_and_its_schemas_are_json_schema(engine: Engine, keyed: bool) -> None:
    import jsonschema_rs
    import schemathesis

    app = application(engine, keyed=keyed)
    document = app.openapi()
    assert document["openapi"].startswith("3.1")
    schemathesis.openapi.from_dict(document).validate()
    for schema in document["components"]["schemas"].values():
        jsonschema_rs.meta.validate({"$schema": "https://json-schema.org/draft/2020-12/schema", **schema})
    secured = {path for path, operations in document["paths"].items() for operation in operations.values() if "security" in operation}
    assert secured == ({"/v1/accompaniments", "/v1/models", "/v1/progress/{id}"} if keyed else set())
    assert ("securitySchemes" in document["components"]) == keyed
