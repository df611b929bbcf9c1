"""What an arena says before it runs: what is equal, what is not, and how long it will take."""

from collections.abc import Sequence

from jaxformer.arena.cells import Cell
from jaxformer.arena.config import ArenaConfig, MatchConfig
from jaxformer.arena.match import Matched, sizes
from jaxformer.parallel.mesh import find_devices
from jaxformer.train.mfu import peak_flops

UTILISATION = 0.17  # of the measured peak, reached by the small models of quick.yaml
PROGRAM_SECONDS = 15.0  # to compile what the cells of one contestant on one task share
CELL_SECONDS = 2.0  # to start, save and measure


def describe_match(arena: ArenaConfig, matched: Matched) -> str:
    """A table of every contestant's sizes on every task, and their distance from the baseline's,
    without the state if the baseline is an encoder, which has none."""
    context = (arena.match or MatchConfig()).context
    titles = {
        "parameters": "parameters",
        "training_flops": "FLOPs/token",
        "state_bytes": f"state at {context:,}",
    }
    lines = [_matching(arena)]
    width = max(len(name) for name in arena.contestants) + 2
    for task in arena.tasks:
        baseline = matched.sizes[task, arena.baseline]
        lines.append(f"{task}:")
        columns = [column for column in titles if baseline.of(column)]
        heading = "".join(f"{titles[column]:>24}" for column in columns)
        lines.append(f"  {'':<{width}}{heading}  chosen")
        for contestant in arena.contestants:
            own, chosen = matched.sizes[task, contestant], matched.solved[task, contestant]
            cells = "".join(
                f"{own.of(column):>15,.0f} ({own.of(column) / baseline.of(column) - 1:+6.1%})"
                for column in columns
            )
            said = ", ".join(f"{key}={value}" for key, value in chosen.items())
            lines.append(f"  {contestant:<{width}}{cells}  {said or 'as given'}")
    return "\n".join(lines)


def _matching(arena: ArenaConfig) -> str:
    if arena.match is None:
        return "nothing is matched: contestants are as they are given"
    match = arena.match
    return (
        f"matched in {match.budget} to {arena.baseline} within {match.tolerance:.1%}, by "
        f"{match.solve}; in brackets, the difference from {arena.baseline}"
    )


def predicted_seconds(arena: ArenaConfig, left: Sequence[Cell]) -> float:
    """Estimate from the cells' FLOPs and the share of the measured peak that small models reach."""
    if not left:
        return 0.0
    programs = {(cell.task, cell.contestant): cell.config for cell in left}
    peak = peak_flops(find_devices(), left[0].config.train.precision).flops
    flops = 0.0
    for (task, contestant), config in programs.items():
        tokens = config.train.batch_size * config.data.sequence_length * config.train.steps
        runs = sum((cell.task, cell.contestant) == (task, contestant) for cell in left)
        flops += runs * tokens * sizes(config, 1).training_flops
    fixed = PROGRAM_SECONDS * len(programs) + CELL_SECONDS * len(left)
    return fixed + flops / (UTILISATION * peak)
