"""What keeps the cores of a device busy."""

from collections import Counter
from dataclasses import dataclass

from jaxformer.plan.hlo import Shape


@dataclass(frozen=True)
class Kernel:
    """A Pallas call, for which the compiler gives no cycles."""

    name: str
    operands: tuple[Shape, ...]
    results: tuple[Shape, ...]
    flops: float | None  # as its author states them
    bytes: float
    blocks: tuple[int, int] | None = None  # of attention: queries and keys worked on at once


@dataclass(frozen=True)
class Work:
    """What keeps a device's cores busy."""

    cycles: float = 0.0
    unestimated: float = 0.0  # bytes from and to HBM that no cycles are given for
    kernels: tuple[tuple[Kernel, float], ...] = ()  # each with its count

    def since(self, before: "Work", times: int) -> "Work":
        """The work done since `before`, per execution of `times`."""
        kernels = Counter(dict(self.kernels))
        kernels.subtract(dict(before.kernels))
        return Work(
            (self.cycles - before.cycles) / times,
            (self.unestimated - before.unestimated) / times,
            tuple((kernel, count / times) for kernel, count in kernels.items() if count),
        )
