"""Fetches one picture that a user names by its URL, through the guard of the downloads."""

import re
from functools import cache
from urllib.error import HTTPError

from pipeline.command_line import printable
from pipeline.web.guarded_opener import FetchLimits, GuardedOpener, build_opener
from pipeline.web.url_guard import RefusedError, clean_url

DEADLINE_S = 30.0
MAX_BYTES = 20_000_000
MOST_TOLD = 200
"""Letters of a URL or of a fault that an error shows."""
GUARDED = re.compile(r"guard:(\w+)")
USER_AGENT = "blip2-pretraining (one picture, asked for by a person)"


def is_url(name: str) -> bool:
    return "://" in name


def fetch_picture(url: str, allow_loopback: bool = False) -> bytes:
    """The bytes behind the URL. Raises ValueError in one line when it is refused, too large, too slow or not there."""
    try:
        cleaned = clean_url(url, allow_loopback=allow_loopback)
        with _opener(allow_loopback).open(cleaned, timeout=DEADLINE_S) as answer:
            content: bytes = answer.read()
            return content
    except RefusedError as error:
        fault = error.reason
    except HTTPError as error:
        fault = f"HTTP {error.code}"
    except Exception as error:  # a hostile answer makes http.client and urllib raise many kinds
        guarded = GUARDED.search(str(error))
        fault = guarded[1] if guarded else f"{type(error).__name__}: {error}"[:MOST_TOLD]
    raise ValueError(
        f"{printable(url[:MOST_TOLD])}: cannot be fetched ({printable(fault)}); give another URL, or a file"
    )


@cache
def _opener(allow_loopback: bool) -> GuardedOpener:
    return build_opener(FetchLimits(USER_AGENT, DEADLINE_S, MAX_BYTES, allow_loopback))
