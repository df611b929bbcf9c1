"""What tells that two texts are the same, or nearly: numbers per text, and who shares them.

`exact`: one hash per text. `minhash`: bands of a MinHash signature of the text's shingles, its runs
of SHINGLE words; two texts of Jaccard similarity J share at least one of b bands of r rows with
probability 1 − (1 − Jʳ)ᵇ, which passes 1/2 near (1/b)^(1/r), the threshold. (Broder, "On the
resemblance and containment of documents", 1997; bands: Leskovec, Rajaraman and Ullman, "Mining of
massive datasets", chapter 3.)
"""

import hashlib
import importlib.util
import re
from collections.abc import Callable, Iterable, Iterator

import numpy as np

from jaxformer.config.data import DeduplicateConfig
from jaxformer.data.long_text import Text, blocks_of
from jaxformer.errors import UserError

SHINGLE = 5  # words
PERMUTATIONS = 112  # 14 bands of 8 rows find similarities of 0.72 and more, as FineWeb does
WORD = re.compile(r"\w+")
# Hashes compared at once; more are compared in several rounds, by their remainders.
HASHES_AT_ONCE = 1 << 23


def bands_and_rows(threshold: float) -> tuple[int, int]:
    """The bands and rows, of at most PERMUTATIONS in all, whose threshold is nearest."""
    choices = [(PERMUTATIONS // rows, rows) for rows in range(1, PERMUTATIONS // 2 + 1)]
    return min(choices, key=lambda each: abs((1 / each[0]) ** (1 / each[1]) - threshold))


class Signer:
    """Signs texts as a configuration asks: uint64 [numbers].

    Raises:
        UserError: minhash is asked for, and its package is missing.
    """

    def __init__(self, config: DeduplicateConfig) -> None:
        self._bands, self._rows = 1, 0
        if config.kind == "minhash":
            if importlib.util.find_spec("datasketch") is None:
                raise UserError(
                    "data.deduplicate.kind minhash needs another package: pip install "
                    "'jaxformer[dedup]'"
                )
            self._bands, self._rows = bands_and_rows(config.threshold)

    @property
    def numbers(self) -> int:
        """How many a text gets."""
        return self._bands

    def sign(self, text: Text) -> np.ndarray:
        if not self._rows:
            return np.frombuffer(self._digest(text)[:8], "<u8")
        import xxhash
        from datasketch import MinHash

        signature = MinHash(PERMUTATIONS, hashfunc=xxhash.xxh32_intdigest)
        for shingles in _shingles(text):
            signature.update_batch(shingles)
        if signature.is_empty():  # of signs alone: like nothing but itself
            signature.update(self._digest(text))
        rows = signature.hashvalues[: self._bands * self._rows].astype("<u4")
        bands = rows.reshape(self._bands, self._rows)
        return np.array([xxhash.xxh64_intdigest(band.tobytes()) for band in bands], np.uint64)

    def _digest(self, text: Text) -> bytes:
        digest = hashlib.sha256()
        for block in blocks_of(text):
            digest.update(block.encode("utf-8"))
        return digest.digest()


def _shingles(text: Text) -> Iterator[list[bytes]]:
    """The shingles of each block; those across two blocks are in the second."""
    before: list[str] = []
    for block in blocks_of(text):
        words = before + WORD.findall(block.lower())
        last = max(len(words) - SHINGLE + 1, 1) if words else 0
        yield [" ".join(words[at : at + SHINGLE]).encode() for at in range(last)]
        before = words[1 - SHINGLE :]


def first_of_each(
    tables: Callable[[], Iterable[np.ndarray]], known: np.ndarray, documents: int
) -> np.ndarray:
    """Which documents to keep, bool [documents]: those that share no number, at the same place,
    with an earlier document or with a `known` one.

    Args:
        tables: gives the numbers of all documents in order, uint64 [some, numbers] at a time.
        known: uint64 [others, numbers].
    """
    keep = np.ones(documents, bool)
    rounds = -(-max(documents, 1) // HASHES_AT_ONCE)
    for column in range(known.shape[1]):
        for part in range(rounds):
            places, hashes, start = [], [], 0
            for table in tables():
                mine = np.flatnonzero(table[:, column] % rounds == part)
                places.append(start + mine)
                hashes.append(table[mine, column])
                start += len(table)
            place, value = np.concatenate(places), np.concatenate(hashes)
            _, first = np.unique(value, return_index=True)
            is_first = np.zeros(len(value), bool)
            is_first[first] = True
            keep[place[~is_first | np.isin(value, known[:, column])]] = False
    return keep
