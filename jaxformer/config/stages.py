"""The stages of a run: between which steps what is trained on, in batches of which size."""

from dataclasses import dataclass

from jaxformer.config.data import DataConfig, StageConfig


@dataclass(frozen=True)
class Stage:
    """The updates tried as number `start`, ..., `until` − 1, counted from 0."""

    start: int
    until: int
    data: DataConfig  # without stages
    batch_size: int  # rows per update


def stages_of(data: DataConfig, steps: int, batch_size: int) -> tuple[Stage, ...]:
    """The stages of a run of `steps` in batches of `batch_size`; one, if `data` has none.

    Raises:
        ValueError: they do not follow each other from the first step to the last.
    """
    if data.stages is None:
        return (Stage(0, steps, data, batch_size),)
    ends = _ends(data.stages, steps)
    return tuple(
        Stage(start, until, data.of_stage(stage), stage.batch_size or batch_size)
        for start, until, stage in zip([0, *ends], ends, data.stages, strict=False)
    )


def _ends(stages: tuple[StageConfig, ...], steps: int) -> list[int]:
    *before, last = (stage.until for stage in stages)
    ends: list[int] = []
    for number, until in enumerate(before):
        key = f"data.stages.{number}.until"
        if until is None:
            raise ValueError(
                f"{key} is missing, but another stage follows; give the step at which it ends"
            )
        if ends and until <= ends[-1]:
            raise ValueError(
                f"{key} is {until}, but the stage before ends at {ends[-1]}; allowed: rising steps"
            )
        if until >= steps:
            raise ValueError(
                f"{key} is {until}, so no step is left for the next stage: train.steps is {steps}"
            )
        ends.append(until)
    if last is not None and last != steps:
        where = "beyond the run" if last > steps else "short of the run's end"
        raise ValueError(
            f"data.stages.{len(before)}.until is {last}, {where}: train.steps is {steps}; leave "
            f"until out of the last stage, or give it {steps}"
        )
    return [*ends, steps]
