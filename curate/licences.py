"""Which licences are known to allow commercial use. What is not known is not allowed."""

from collections.abc import Iterable
from fnmatch import fnmatchcase

from curate.recipe import Licences

COMMERCIAL = (
    "apache-2.0",
    "apache 2.0",
    "mit",
    "bsd*",
    "isc",
    "cc0*",
    "cc-by-[0-9]*",
    "cc by [0-9]*",
    "cc-by",
    "cc by",
    "cc-by-sa*",
    "cc by-sa*",
    "unlicense",
    "public domain",
    "public-domain",
    "own",
    "pexels*",
    "pixabay*",
)
"""Globs on lower-case names. `own` is for footage that is the user's."""


def refusal(knobs: Licences, pixels: str | None, annotators: Iterable[str]) -> str:
    """Why these terms do not do; empty if they do."""
    name = (pixels or "").strip().lower()
    if knobs.allowed is not None and not _matches(name, [glob.lower() for glob in knobs.allowed]):
        return f"licences: {pixels or 'no licence'} of the pixels is not among those allowed"
    if not knobs.commercial_ok:
        return ""
    if not _matches(name, COMMERCIAL):
        return f"licences: {pixels or 'no licence'} of the pixels is not known to allow commercial use"
    for licence in annotators:
        if not _matches(licence.strip().lower(), COMMERCIAL):
            return f"licences: {licence} of an annotator is not known to allow commercial use"
    return ""


def _matches(name: str, globs: Iterable[str]) -> bool:
    return any(fnmatchcase(name, glob) for glob in globs)
