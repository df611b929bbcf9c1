"""What a token store holds, as whole arrays."""

import numpy as np

from jaxformer.data.shards import END, TEXT_BYTES
from jaxformer.data.store import TokenStore


def tokens_of(store: TokenStore) -> np.ndarray:
    return store.tokens[:]


def offsets_of(store: TokenStore) -> np.ndarray:
    """Where each document begins, and the end: [documents + 1]."""
    return np.concatenate([[0], store.document_tables()[:, END]])


def text_bytes_of(store: TokenStore) -> list[int]:
    """UTF-8 bytes of text before each document, and in all."""
    return [0, *store.document_tables()[:, TEXT_BYTES].tolist()]


def mask_of(store: TokenStore) -> np.ndarray:
    """Which tokens are in the loss."""
    learnt = store.read(0, store.manifest.tokens).learnt
    assert learnt is not None
    return learnt
