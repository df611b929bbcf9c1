"""Finds the files of a path or pattern, on a disk or anywhere that `fsspec` serves."""

import glob
import os
import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path

from jaxformer.errors import UserError, did_you_mean, shorten
from jaxformer.file_formats import irregular
from jaxformer.paths import local_path
from jaxformer.storage import Place, Stored, is_url

LOOKED_UP_AT_ONCE = 16
MOST_NAMES = 1_000_000
RANGE = re.compile(r"(\d+)\.\.(\d+)")

Found = dict[Place, Stored]


def find_files(name: str, where: str) -> Found:
    """The files that the source `name` has in `where`, sorted.

    Raises:
        UserError: a file is missing or denied, a pattern matches nothing, or a web server would
            have to list its files.
    """
    found = _found_remotely(name, where) if is_url(where) else _found_here(name, where)
    if not found:
        here = "" if is_url(where) else f"working directory {os.getcwd()}; "
        raise UserError(
            f"data source '{name}': the pattern matches no file ({here}** crosses folders, "
            f"{{a,b}} is a or b)"
        )
    return {place: found[place] for place in sorted(found, key=str)}


def absolute_pattern(where: str) -> str:
    """The same for all who name the same files from different folders."""
    return where if is_url(where) else os.path.abspath(local_path(where))


def _found_remotely(name: str, where: str) -> Found:
    if not where.partition("://")[2]:
        raise UserError(f"data source '{name}' names no file; give one, as in {name}BUCKET/a.txt")
    found: Found = {}
    named: list[Place] = []
    for pattern in expand_braces(where):
        place = Place(pattern)
        if place.is_on_the_web and "*" in pattern:
            raise UserError(
                f"data source '{name}': a web server tells no list of its files; name them, as in "
                f"https://HOST/FOLDER/{{00000..00099}}.jsonl.gz"
            )
        if not place.is_on_the_web and glob.has_magic(pattern):
            found |= _matched(name, place)
        else:
            named.append(place)

    return found | look_up(name, named)


def _matched(name: str, pattern: Place) -> Found:
    try:
        return {Place(file): stored for file, stored in pattern.glob().items()}
    except FileNotFoundError:
        raise UserError(
            f"data source '{name}': there is no bucket or folder of {pattern}; check the address"
        ) from None


def look_up(name: str, places: Sequence[Place]) -> Found:
    """What remote files of the source `name` are.

    Raises:
        UserError: one is missing, denied or a folder.
    """

    def stored(place: Place) -> Stored:
        try:
            return place.stored()
        except FileNotFoundError:
            raise UserError(
                f"data source '{name}': there is no file {place}; check the address"
            ) from None
        except IsADirectoryError:
            raise UserError(
                f"data source '{name}': {place} is a folder; name its files, as in "
                f"{name.rstrip('/')}/**"
            ) from None

    first = [stored(place) for place in places[:1]]  # the Hub's list of files comes with one
    with ThreadPoolExecutor(LOOKED_UP_AT_ONCE) as pool:
        rest = pool.map(stored, places[1:])
        return dict(zip(places, (*first, *rest), strict=True))


def _found_here(name: str, where: str) -> Found:
    """A file of exactly that name takes precedence over what it may mean as a pattern."""
    pattern = absolute_pattern(where)
    try:
        if Path(pattern).is_file():
            files = {pattern}
        else:
            files = {
                file for each in expand_braces(pattern) for file in _matches(name, where, each)
            }
        return {place: place.stored() for place in map(Place, files)}
    except OSError as error:  # such as a name that is too long
        raise UserError(
            f"data source '{shorten(name)}' cannot be looked for: {error.strerror}"
        ) from None


def _matches(name: str, where: str, pattern: str) -> list[str]:
    """The files of a pattern without braces; none if it has wildcards and they match nothing."""
    path = Path(pattern)
    if path.is_file():
        return [pattern]
    if path.is_dir():
        raise UserError(
            f"data source '{name}': {where} is a folder; name its files, as in "
            f"{name.rstrip('/')}/**/*.txt"
        )
    if kind := irregular(path):
        raise UserError(f"data source '{name}': {where} is {kind}; name files")
    if path.is_symlink():
        raise UserError(f"data source '{name}': {where} is a link that leads to no file")
    if not glob.has_magic(pattern):
        siblings = os.listdir(path.parent) if path.parent.is_dir() else []
        raise UserError(
            f"data source '{name}': no such file in {path.parent}."
            f"{did_you_mean(path.name, siblings)}"
        )
    return [match for match in glob.glob(pattern, recursive=True) if os.path.isfile(match)]


def expand_braces(pattern: str) -> list[str]:
    """`a{b,c}d` → `abd`, `acd`, and so on inside, and `{08..10}` → `08`, `09`, `10`; braces with
    neither a comma nor a range stand for themselves.

    Raises:
        UserError: these are more names than anybody means.
    """
    depth, start, commas = 0, 0, []
    for place, character in enumerate(pattern):
        if character == "{":
            depth += 1
            if depth == 1:
                start, commas = place, [place]
        elif character == "," and depth == 1:
            commas.append(place)
        elif character == "}" and depth:
            depth -= 1
            if depth:
                continue
            cuts = zip(commas, [*commas[1:], place], strict=True)
            choices = [pattern[begin + 1 : end] for begin, end in cuts]
            numbers = RANGE.fullmatch(choices[0])
            if len(choices) == 1 and numbers is None:
                continue
            if len(choices) == 1 and numbers is not None:
                choices = list(_numbers(pattern, *numbers.groups()))
            before = pattern[:start]
            inside = [each for choice in choices for each in expand_braces(choice)]
            after = expand_braces(pattern[place + 1 :])
            _check_count(pattern, len(inside) * len(after))
            return [before + "".join(parts) for parts in product(inside, after)]
    return [pattern]


def _numbers(pattern: str, first: str, last: str) -> Iterator[str]:
    begin, end = int(first), int(last)
    step = 1 if begin <= end else -1
    _check_count(pattern, abs(end - begin) + 1)
    width = max(len(first), len(last)) if first[0] == "0" or last[0] == "0" else 0
    return (f"{number:0{width}d}" for number in range(begin, end + step, step))


def _check_count(pattern: str, count: int) -> None:
    if count > MOST_NAMES:
        raise UserError(
            f"'{shorten(pattern)}' stands for {count:,} names; allowed: {MOST_NAMES:,} at most"
        )
