"""What a suite is: a run in, a result per task out."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jaxformer.errors import UserError
from jaxformer.run import Run


@dataclass(frozen=True)
class Result:
    """What one task gave: metrics, their standard errors by the same names, and facts such as the
    number of samples."""

    metrics: dict[str, float]
    standard_errors: dict[str, float] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Options:
    """Further options of the command line: a folder of tasks, how many samples of each task to
    take, how many solved samples precede each, and the draft of what is generated."""

    tasks_dir: Path | None = None
    limit: int | None = None
    num_fewshot: int | None = None
    draft: str | None = None

    def refuse(self) -> None:
        """Refuse the options, where no suite takes them.

        Raises:
            UserError: one of them is given.
        """
        given = [name for name, value in vars(self).items() if value is not None]
        if given:
            flag = "--" + given[0].replace("_", "-")
            raise UserError(
                f"{flag} is an option of the suite lm_eval; add --suite lm_eval:TASK, or leave it "
                f"out"
            )


Check = Callable[[], None]  # called between batches; what it raises ends the evaluation
Suite = Callable[[Run, Check], dict[str, Result]]  # results by task name
