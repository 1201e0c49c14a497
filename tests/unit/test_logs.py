"""Log lines in both forms: one a line, with the facts and the request that they belong to."""

import json
import logging
import subprocess
import sys
from contextvars import copy_context
from datetime import datetime
from threading import Thread

import pytest

from infra.logs import JsonLines, TextLines, about


def record(message: str, **extra: object) -> logging.LogRecord:
    return logging.getLogger("serving.test").makeRecord("serving.test", logging.INFO, __file__, 1, message, ("%",), None, extra=extra)


def in_a_request(formatter: logging.Formatter, record: logging.LogRecord, id: str) -> str:
    """The line, as a thread prints it that has a copy of the request's context."""
    lines: list[str] = []

    def log() -> None:
        about(id)
        thread = Thread(target=copy_context().run, args=(lambda: lines.append(formatter.format(record)),))
        thread.start()
        thread.join()

    copy_context().run(log)
    return lines[0]


def test_a_json_line_is_an_object_with_time_request_and_facts() -> None:
    asked = record("100 %s\nof it", status=200, seconds=1.5, fit={"harmony": float("nan"), "rhythm": 0.5}, level="mine", _mark=1)
    line = in_a_request(JsonLines(), asked, "abc-123")
    assert "\n" not in line
    found = json.loads(line, parse_constant=lambda constant: pytest.fail(constant))
    time = found.pop("time")
    assert time.endswith("Z")
    assert datetime.fromisoformat(time).timestamp() == pytest.approx(asked.created, abs=0.001)
    assert found == {
        "level": "INFO", "logger": "serving.test", "message": "100 %\nof it", "request_id": "abc-123", "status": 200, "seconds": 1.5,
        "fit": {"harmony": None, "rhythm": 0.5},
    }  # fmt: skip
    assert "request_id" not in json.loads(JsonLines().format(record("outside %s")))


def test_a_json_line_has_the_traceback() -> None:
    try:
        raise ValueError("wrong")
    except ValueError:
        failed = logging.LogRecord("x", logging.ERROR, __file__, 1, "failed", (), sys.exc_info())
    line = JsonLines().format(failed)
    assert "\n" not in line
    assert "ValueError: wrong" in json.loads(line)["error"]


def test_a_text_line_has_the_request_and_the_facts() -> None:
    asked = record("answered %s", status=200, seconds=1.23456, stages={"queue": 0.5}, reason="not a form", model=None)
    line = in_a_request(TextLines(), asked, "abc-123")
    assert line.endswith('I serving.test: answered % [abc-123] status=200 seconds=1.235 stages.queue=0.500 reason="not a form"')


def test_configured_again_it_is_still_one_line() -> None:
    code = (
        "import logging; from infra.logs import configure; configure('WARNING'); configure('INFO', 'json'); "
        "logging.getLogger('x').info('said %d', 7, extra={'fact': 1})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    (line,) = done.stderr.splitlines()
    assert json.loads(line)["message"] == "said 7"
    assert json.loads(line)["fact"] == 1
