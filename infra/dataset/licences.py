"""Licences by their SPDX identifiers: which are known, and which ask for an attribution."""

import difflib

from infra.errors import UserError

# What they ask for: whether the maker has to be named.
KNOWN: dict[str, bool] = {
    "CC0-1.0": False, "PDDL-1.0": False, "Unlicense": False,
    "CC-BY-2.0": True, "CC-BY-2.5": True, "CC-BY-3.0": True, "CC-BY-4.0": True,
    "CC-BY-SA-2.0": True, "CC-BY-SA-2.5": True, "CC-BY-SA-3.0": True, "CC-BY-SA-4.0": True,
    "CC-BY-NC-2.0": True, "CC-BY-NC-2.5": True, "CC-BY-NC-3.0": True, "CC-BY-NC-4.0": True,
    "CC-BY-NC-SA-2.0": True, "CC-BY-NC-SA-2.5": True, "CC-BY-NC-SA-3.0": True, "CC-BY-NC-SA-4.0": True,
    "CC-BY-ND-3.0": True, "CC-BY-ND-4.0": True, "CC-BY-NC-ND-3.0": True, "CC-BY-NC-ND-4.0": True,
    "ODC-By-1.0": True, "MIT": True, "ISC": True, "BSD-3-Clause": True, "Apache-2.0": True,
    "GPL-2.0-or-later": True, "GPL-3.0-or-later": True,
}  # fmt: skip
OWN = "LicenseRef-"


def known_licence(text: str) -> str:
    """The identifier as SPDX writes it; one of one's own, such as LicenseRef-by-permission, is taken as it is.

    Raises: UserError that says which are meant, the nearest first.
    """
    by_lower = {name.lower(): name for name in KNOWN}
    if text.lower() in by_lower:
        return by_lower[text.lower()]
    if text.startswith(OWN) and len(text) > len(OWN):
        return text
    guess = text.lower().replace(" ", "-").replace("_", "-")
    near = difflib.get_close_matches(guess, by_lower, n=3, cutoff=0.4) or ["cc0-1.0", "cc-by-4.0"]
    raise UserError(
        f"the licence {text!r} is not known: write its SPDX identifier, such as {', '.join(by_lower[name] for name in near)}, "
        f"or {OWN}NAME for an agreement of your own"
    )


def asks_for_credit(licence: str) -> bool:
    """Whether the maker has to be named; of a licence that nobody knows, it is assumed."""
    return KNOWN.get(licence, bool(licence))
