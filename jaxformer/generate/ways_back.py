"""How a model takes back tokens that it has read and that do not stay.

Keys and values are shortened. A recurrent state cannot be, so for a call of n tokens there are two
ways. Kept states: mixers with a state read the n tokens one by one, everything else reads them at
once, and the state after each is kept. Replay: all parts read the n tokens at once, and if some do
not stay, those that do are read again from the caches before the call.

Few rows are decoded at the speed at which weights are read. With r the share of a token's FLOPs in
such mixers, a call takes, in steps with one token,

    kept states:  S (1 − r) + ρ n r,        replay:  2 S,

S for a call with a few tokens, and ρ for reading a layer's weights again at once, see `Costs`. The
cheaper way is chosen. It follows from the configuration and n
alone, not from times, so that a seed decides a sample, and all processes choose the same. Rows
that keep different numbers of tokens would read pieces of different lengths again, so replay is
for one row.
"""

from enum import Enum
from typing import NamedTuple

import jax

from jaxformer.model.language_model import LanguageModel


class Way(Enum):
    LENGTH = "keys and values are taken back by length"
    STATES = "recurrent states are kept after every token"
    REPLAY = "tokens that stay are read again if others do not"
    CACHES = "tokens are read one by one and whole caches are kept"


class Choice(NamedTuple):
    way: Way
    reason: str

    def __str__(self) -> str:
        return self.way.value + self.reason


class Costs(NamedTuple):
    """In steps with one token."""

    several: float  # S, a call with a few tokens
    again: float  # ρ, a token that is read right after another, all layers alike


def costs() -> Costs:
    """Measured on a CPU (width 384, 8 layers): for a product with several rows it rearranges the
    weights, for one row it does not, and the weights of one layer stay in its cache."""
    return Costs(1.7, 0.6) if jax.default_backend() == "cpu" else Costs(1.0, 1.0)


def choose_way(model: LanguageModel, rows: int, tokens: int) -> Choice:
    """The way for calls with so many tokens in each of so many rows."""
    depth, config = model.depth(parent=None), model.config
    if not depth.takes_back:
        return Choice(
            Way.CACHES,
            f", because a depth of kind {config.depth.kind} cannot take tokens back, so nothing is "
            f"gained",
        )
    of_states = sum(mixer.kept_flops() for mixer in depth.mixers())
    if of_states == 0:
        return Choice(Way.LENGTH, "")
    # For one token, two FLOPs are one weight.
    share = of_states / (depth.flops(1) + 2 * config.d_model * model.vocab_size)
    several, again = costs()
    kept, replay = several * (1 - share) + tokens * again * share, 2 * several
    if rows > 1:
        return Choice(Way.STATES, ", because replay is for one row")
    return Choice(
        Way.STATES if kept <= replay else Way.REPLAY,
        f", because {tokens} tokens take about {kept:.1f} steps with kept states and up to "
        f"{replay:.1f} with replay",
    )
