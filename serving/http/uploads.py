"""Reading the multipart form of a request with its limits held while it arrives, and into no more memory than allowed."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass

from fastapi import Request
from pydantic import ValidationError
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect

from serving.problems import Problem, ProblemError, fields_problem, validation_problem
from serving.schema import MAX_CONTROL_CHARS, AccompanimentRequest, FieldFault

MAX_FIELDS = 32
MAX_FIELD_BYTES = MAX_CONTROL_CHARS
# Room beside the file for boundaries, part headers and the other fields.
FORM_OVERHEAD_BYTES = 64 * 1024 + 2 * MAX_FIELD_BYTES
MISSING_VOCAL = FieldFault(field="vocal", message="missing; send the audio file as a part named vocal of a multipart form")


@dataclass(frozen=True, kw_only=True)
class Upload:
    """A form that has arrived and is within its limits; whether the file is audio is not known yet."""

    vocal: bytes
    request: AccompanimentRequest


async def read_upload(request: Request, *, max_bytes: int, timeout_s: float) -> Upload:
    """The vocal and the fields of `request`.

    Raises ProblemError: 400 broken multipart, 408 too slow, 413 too large, 415 another content type, 422 fields. The stated length is
    only a shortcut to a refusal; what counts is what arrives. The parser closes its files when it is stopped.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind in ("", "application/x-www-form-urlencoded"):
        raise ProblemError(fields_problem([MISSING_VOCAL]))
    if kind != "multipart/form-data":
        raise ProblemError(
            Problem(status=415, title="Not a form", detail=f"the body is {kind}; send multipart/form-data with a file named vocal")
        )
    allowed = max_bytes + FORM_OVERHEAD_BYTES
    stated = request.headers.get("content-length", "")
    if stated.isdecimal() and int(stated) > allowed:
        raise ProblemError(_too_large(max_bytes))
    try:
        async with asyncio.timeout(timeout_s):
            parser = _Parser(
                request.headers, _limited(request.stream(), allowed), max_files=4, max_fields=MAX_FIELDS, max_part_size=MAX_FIELD_BYTES
            )
            form = await parser.parse()
        if not parser.ended:
            await form.close()
            raise MultiPartException("it has no closing boundary, so its end may be missing")
    except TimeoutError as error:
        raise ProblemError(
            Problem(status=408, detail=f"the upload took more than {timeout_s:g} s; send a shorter or smaller file")
        ) from error
    except _BodyTooLargeError as error:
        raise ProblemError(_too_large(max_bytes)) from error
    except ClientDisconnect as error:
        raise ProblemError(Problem(status=400, title="Upload cut short", detail="the connection ended before the form did")) from error
    except (MultiPartException, UnicodeError) as error:
        # UnicodeError: a charset that is one of Python's stranger codecs.
        reason = error.message if isinstance(error, MultiPartException) else "its charset is not UTF-8"
        raise ProblemError(Problem(status=400, title="Broken form", detail=f"the multipart form cannot be read: {reason}")) from error
    try:
        return await _fields(form.multi_items(), max_bytes)
    finally:
        await form.close()


class _Parser(MultiPartParser):
    """Notes whether the form came to its end; Starlette's own takes a form that was cut short for whole, without its last field."""

    ended = False

    def on_end(self) -> None:
        self.ended = True


class _BodyTooLargeError(Exception):
    """More has arrived than is allowed."""


async def _limited(body: AsyncIterator[bytes], allowed: int) -> AsyncGenerator[bytes, None]:
    arrived = 0
    async for chunk in body:
        arrived += len(chunk)
        if arrived > allowed:
            raise _BodyTooLargeError
        yield chunk


async def drop_upload(request: Request, *, max_bytes: int, timeout_s: float) -> None:
    """Reads what is left of a refused upload, keeping nothing: many clients read no answer before they have sent everything.

    A body far over the limit is not waited for; its client meets a closed connection.
    """
    at_most = 4 * (max_bytes + FORM_OVERHEAD_BYTES)
    stated = request.headers.get("content-length", "")
    if stated.isdecimal() and int(stated) > at_most:
        return
    dropped = 0
    try:
        async with asyncio.timeout(timeout_s):
            async for chunk in request.stream():
                dropped += len(chunk)
                if dropped > at_most:
                    return
    except (TimeoutError, RuntimeError, ClientDisconnect):
        return  # too slow, gone, or consumed to the end already: the refusal goes out either way


def _too_large(max_bytes: int) -> Problem:
    return Problem(
        status=413,
        title="File too large",
        detail=f"the upload is larger than {max_bytes / 2**20:g} MiB; send FLAC or MP3, or a shorter vocal",
    )


async def _fields(items: list[tuple[str, UploadFile | str]], max_bytes: int) -> Upload:
    faults: list[FieldFault] = []
    values: dict[str, str] = {}
    vocal: UploadFile | None = None
    for name, value in items:
        if name in values or (name == "vocal" and vocal is not None):
            faults.append(FieldFault(field=name, message="given more than once"))
        elif isinstance(value, UploadFile):
            if name == "vocal":
                vocal = value
            else:
                faults.append(FieldFault(field=name, message="is a file; only vocal may be one"))
        elif name == "vocal":
            faults.append(FieldFault(field=name, message="is text; send it as a file, with a filename"))
        else:
            values[name] = value
    if vocal is None and not any(fault.field == "vocal" for fault in faults):
        faults.append(MISSING_VOCAL)
    try:
        request = AccompanimentRequest.model_validate(values)
    except ValidationError as error:
        faults += validation_problem(error).errors
    if faults or vocal is None:
        raise ProblemError(fields_problem(faults))
    if (vocal.size or 0) > max_bytes:
        raise ProblemError(_too_large(max_bytes))
    return Upload(vocal=await vocal.read(), request=request)
