"""From where in every source a stage of a run reads on.

If the stages before it have read rows of one of its sources, a stage continues in the order of
these rows where they stopped: no row comes twice before all have come once, and none is left out,
whatever the sizes of batches and the weights of mixtures are. Rows of the same text with another
length are other rows: they have an order of their own, which begins at its beginning.

So batch k of a stage, counted from the step at which it began, is a function of k, the seed, and
what had been read by then, which every checkpoint holds. A run that is stopped at the end of a
stage and resumed with the next one's data (run.accept_changes=[data]) reads the same batches.
"""

import dataclasses
import hashlib
import json
from dataclasses import dataclass

from jaxformer.checkpoint.manager import Json
from jaxformer.data.loader import Place, rows_per_source
from jaxformer.data.stores import Stores


def weights_of(stores: Stores, length: int) -> dict[str, float]:
    """The weight of each source to train on, by a name that stands for its rows of this length."""
    names: list[str] = []
    for rows in stores.training_manifest():
        told = {key: rows[key] for key in rows if key not in ("source", "weight")}
        text = json.dumps(told | {"sequence_length": length}, sort_keys=True)
        digest = hashlib.sha256(text.encode()).hexdigest()[:16]
        again = sum(name.startswith(digest) for name in names)  # the same text, named twice
        names.append(f"{digest}.{again}" if again else digest)
    return dict(zip(names, stores.weights, strict=True))


@dataclass(frozen=True)
class Reading:
    """What is read from the step `start` on, and what had been read by then.

    `rows` has all sources of the run up to now, in the order in which they came first, which
    numbers them, with how many of its rows had been read; `weights` those that are read now.
    """

    start: int
    batch_size: int
    sequence_length: int
    weights: dict[str, float]
    tokens: int
    rows: dict[str, int]

    def then(
        self, step: int, weights: dict[str, float], batch_size: int, sequence_length: int
    ) -> "Reading":
        """How these sources are read from `step` on: as before, if nothing is different."""
        # The order of sources counts: a mixture takes turns by it.
        if (list(weights.items()), batch_size) == (list(self.weights.items()), self.batch_size):
            return self
        rows = self.rows_by(step)
        new = {name: 0 for name in weights if name not in rows}
        return Reading(step, batch_size, sequence_length, weights, self.tokens_by(step), rows | new)

    def tokens_by(self, step: int) -> int:
        return self.tokens + (step - self.start) * self.batch_size * self.sequence_length

    def rows_by(self, step: int) -> dict[str, int]:
        read = rows_per_source([*self.weights.values()], (step - self.start) * self.batch_size)
        now = dict(zip(self.weights, read, strict=True))
        return {name: rows + now.get(name, 0) for name, rows in self.rows.items()}

    def places(self) -> list[Place]:
        numbers = list(self.rows)
        return [Place(numbers.index(name), self.rows[name]) for name in self.weights]

    def to_json(self) -> Json:
        pairs = {"weights": [*self.weights.items()], "rows": [*self.rows.items()]}
        return dataclasses.asdict(self) | pairs

    @classmethod
    def from_json(cls, saved: Json) -> "Reading":
        return cls(**saved | {"weights": dict(saved["weights"]), "rows": dict(saved["rows"])})


NOTHING_READ = Reading(0, 0, 0, {}, 0, {})
