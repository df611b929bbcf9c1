"""The errors that commands print as messages, and how those words are chosen."""

import difflib
from collections.abc import Iterable

LONGEST_SHOWN = 200


class UserError(Exception):
    """A mistake in what the user gave: the commands print its message and exit with code 2."""


class DoesNotFit(UserError):
    """A model that these devices cannot hold or cannot divide among them, however often it is
    tried."""


class RunFailed(Exception):
    """A failure that is not the user's mistake: the commands print its message and exit with
    code 1."""


def shorten(text: str) -> str:
    """Shorten a long text to its beginning, for a message."""
    return text if len(text) <= LONGEST_SHOWN else f"{text[:LONGEST_SHOWN]} ..."


def did_you_mean(word: str, allowed: Iterable[str]) -> str:
    """' Did you mean NAME?' for the nearest spelling in `allowed`, or nothing."""
    nearest = difflib.get_close_matches(word, list(allowed), n=1, cutoff=0.6)
    return f" Did you mean '{nearest[0]}'?" if nearest else ""
