"""Under which licence a bank's recordings are: what is known of fonts by their names, and what a file beside a bank says (REUSE 3)."""

from pathlib import Path

from infra.dataset.licences import asks_for_credit, known_licence
from infra.errors import UserError

UNKNOWN = "unknown"
VOICE = "syllables "
# How the names of fonts begin whose licence is known.
_KNOWN = {"fluidr3": "MIT", "musescore_general": "MIT"}
_LICENCE, _COPYRIGHT = "SPDX-License-Identifier:", "SPDX-FileCopyrightText:"


def bank_licence(bank: Path) -> str:
    """The SPDX identifier, and behind a comma who is to be credited, where that is known.

    NAME.license beside the font or folder, or bank.license in the folder, says it in lines as REUSE has them:
    `SPDX-License-Identifier: CC-BY-4.0` and `SPDX-FileCopyrightText: 2017 Lars Muldjord`.

    Raises: UserError for such a file without a licence, or with one that nobody knows.
    """
    beside = [bank.with_name(f"{bank.name}.license"), bank / "bank.license"]
    path = next((path for path in beside if path.is_file()), None)
    if path is None:
        return next((licence for name, licence in _KNOWN.items() if bank.name.lower().startswith(name)), UNKNOWN)
    lines = [line.strip() for line in path.read_text(errors="replace").splitlines()]
    licences = [line.removeprefix(_LICENCE).strip() for line in lines if line.startswith(_LICENCE)]
    if not licences:
        raise UserError(f"{path} names no licence: write a line {_LICENCE} CC-BY-4.0, or what it is, or remove the file")
    try:
        licence = known_licence(licences[0])
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    return ", ".join([licence, *(line.removeprefix(_COPYRIGHT).strip() for line in lines if line.startswith(_COPYRIGHT))])


def bank_credit(licences: dict[str, str]) -> str:
    """What songs played by these banks have to say; empty where no licence asks for it. Bank names end with @ and a digest."""
    asked = [(name.partition("@")[0], licence) for name, licence in sorted(licences.items()) if asks_for_credit(licence.partition(", ")[0])]
    return "; ".join(f"{name if name.startswith(VOICE) else f'instruments of {name}'} ({licence})" for name, licence in asked)
