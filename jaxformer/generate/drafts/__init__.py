"""Drafts of speculative decoding: what proposes tokens, a file a kind."""

from jaxformer.generate.drafts.base import Draft, Proposal, Turn, Verified, Weights
from jaxformer.generate.drafts.first_layers import FirstLayers
from jaxformer.generate.drafts.further import FurtherPredictions
from jaxformer.generate.drafts.ngram import NGram
from jaxformer.generate.drafts.other_model import OtherModel

__all__ = [
    "Draft",
    "FirstLayers",
    "FurtherPredictions",
    "NGram",
    "OtherModel",
    "Proposal",
    "Turn",
    "Verified",
    "Weights",
]
