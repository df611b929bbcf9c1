"""How many tokens are drafted at once.

With a share a of drafted tokens that stay, each alike, a verification of γ gives on average

    E(γ) = (1 − a^{γ+1}) / (1 − a)

tokens (Leviathan et al., 2022, arXiv:2211.17192, equation 1), and takes S + γ (c + v) steps of the
target: c for a drafted token, v for verifying it, and S for a call with several tokens. The γ with
the most tokens per step is chosen.
"""

from jaxformer.generate.ways_back import costs

# Every one is a program to compile, so there are few.
DRAFT_LENGTHS = (2, 4, 8)
MOST_DRAFTED = 32
# What reading one more token in the same call takes, as a share of a step.
VERIFICATION_COST = 0.07
# By how much another γ must be better to be worth compiling.
LEAST_GAIN = 1.1
# Verifications that the first guess of a, one half, counts as much as.
PRIOR = 4.0


class DraftLength:
    """γ, chosen anew between dispatches. It depends on what was accepted alone, not on times, so
    that a seed decides a sample, and all processes choose the same."""

    def __init__(self, draft_cost: float, fixed: int | None = None) -> None:
        """`draft_cost` is c; `fixed` a γ that stays."""
        self._cost = draft_cost + VERIFICATION_COST
        self._is_fixed = fixed is not None
        self._stayed, self._examined = PRIOR / 2, PRIOR
        self.now = 4 if fixed is None else fixed

    def learn(self, verifications: int, accepted: int, whole: int) -> None:
        """Count what was accepted of `verifications`, `whole` of which refused nothing."""
        self._stayed += accepted
        self._examined += accepted + verifications - whole
        best = max(DRAFT_LENGTHS, key=self.speed)
        if not self._is_fixed and self.speed(best) > LEAST_GAIN * self.speed(self.now):
            self.now = best

    def speed(self, length: int) -> float:
        """Tokens per step of the target."""
        share = self._stayed / self._examined
        tokens = sum(share**place for place in range(length + 1))
        return tokens / (costs().several + length * self._cost)
