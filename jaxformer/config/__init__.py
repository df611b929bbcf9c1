"""The typed schema of a configuration, and what must hold across its sections."""

from pathlib import PurePosixPath
from typing import Annotated, Any, Literal

from pydantic import (
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveInt,
    field_validator,
    model_validator,
)

from jaxformer.config.data import DataConfig, SourceConfig
from jaxformer.config.mesh import MeshConfig
from jaxformer.config.optimizer import (
    AdafactorConfig,
    AdamWConfig,
    LionConfig,
    MuonConfig,
    OptimizerUnion,
    ScheduleConfig,
    SGDConfig,
)
from jaxformer.config.places import AnyPlace, LocalPlace
from jaxformer.model.config import ModelConfig
from jaxformer.model.dims import AUTOMATIC, KernelsConfig
from jaxformer.model.lora import LoRAConfig
from jaxformer.objectives import NextTokenConfig, ObjectiveConfig
from jaxformer.schema import Schema

__all__ = [
    "AdafactorConfig",
    "AdamWConfig",
    "CheckpointConfig",
    "Config",
    "DataConfig",
    "EvalConfig",
    "LionConfig",
    "MeshConfig",
    "MuonConfig",
    "OptimizerUnion",
    "RunConfig",
    "SGDConfig",
    "ScheduleConfig",
    "SourceConfig",
    "StartConfig",
    "TrainConfig",
]


NumRows = Annotated[int, Field(ge=1, le=1 << 24)]


class LayerStatisticsConfig(Schema):
    every: PositiveInt = Field(100, description="steps")


class TrainConfig(Schema):
    """The step and how often it is taken. `batch_size` counts rows of one update, all
    micro-batches together; `precision` is that of activations, parameters stay float32."""

    steps: PositiveInt = 1000
    batch_size: NumRows = 32
    accumulation: PositiveInt = 1
    seed: NonNegativeInt = 0
    precision: Literal["float32", "bfloat16"] = "float32"
    remat: Literal["none", "dots", "full"] = Field(
        "none",
        description="what a layer keeps for its gradient: all, matrix products, or its input",
    )
    unroll_layers: bool | Literal["auto"] = Field(
        "auto", description="auto: unrolled on CPU (faster steps), scanned elsewhere"
    )
    pipeline_micro_batches: PositiveInt | None = Field(
        None,
        description="at once over mesh.stage; as many as rows allow, up to 4 a stage, if not given",
    )
    kernels: KernelsConfig = AUTOMATIC
    objective: ObjectiveConfig = NextTokenConfig()
    freeze: tuple[str, ...] = Field(
        (), strict=False, description="patterns of the paths of parameters that stay as they are"
    )
    z_loss: NonNegativeFloat = 0.0
    ema_decay: Annotated[float, Field(gt=0.0, lt=1.0)] | None = None
    log_every: PositiveInt = 10
    layer_statistics: LayerStatisticsConfig | None = Field(
        None, description="root mean squares of every layer, in metrics.jsonl and the trackers"
    )
    max_nonfinite_steps: PositiveInt = Field(
        10, description="stop after this many skipped updates in a row"
    )

    @model_validator(mode="before")
    @classmethod
    def _read_former_key(cls, given: Any) -> Any:
        """Runs of earlier versions have `attention_kernel`."""
        if not isinstance(given, dict) or "attention_kernel" not in given:
            return given
        rest = {key: value for key, value in given.items() if key != "attention_kernel"}
        return {"kernels": {"attention": given["attention_kernel"]}} | rest

    @model_validator(mode="after")
    def _micro_batches_are_equal(self) -> "TrainConfig":
        if self.batch_size % self.accumulation:
            raise ValueError(
                f"batch_size {self.batch_size} is not divisible by accumulation {self.accumulation}"
            )
        return self


class EvalConfig(Schema):
    """Validation during training, every `every` steps and at the end."""

    every: PositiveInt = 250
    batches: PositiveInt | None = Field(20, description="null: the whole validation text")
    batch_size: NumRows | None = Field(
        None, description="rows at once; train.batch_size if not given"
    )
    suites: Annotated[tuple[str, ...], Field(strict=False)] = Field(
        (), description="measured at the end, such as lm_eval:hellaswag; see eval --suite"
    )
    suites_every: PositiveInt | None = Field(None, description="steps; null: only at the end")
    suites_limit: PositiveInt | None = Field(None, description="only so many samples of a task")
    tasks_dir: LocalPlace | None = Field(None, description="a folder of task YAMLs for lm_eval")
    sample_tokens: NonNegativeInt = Field(
        256, description="of the sample that a run ends with; 0: none"
    )

    @model_validator(mode="after")
    def _suites_are_named(self) -> "EvalConfig":
        if self.suites_every is not None and not self.suites:
            raise ValueError(
                f"suites_every is {self.suites_every}, but there are no suites; give eval.suites, "
                f"such as [lm_eval:hellaswag], or leave it out"
            )
        return self


class CheckpointConfig(Schema):
    every: PositiveInt = 250
    keep_newest: PositiveInt = 2
    keep_best: NonNegativeInt = Field(1, description="by eval/loss, kept beside the newest")


class StartConfig(Schema):
    """The weights a new run starts from: those of `from`, a run or a checkpoint. Parameters whose
    paths match a pattern of `partial` start fresh, or with rows of a vocabulary that has grown."""

    model_config = ConfigDict(serialize_by_alias=True)

    source: AnyPlace | None = Field(None, alias="from", description="a run or RUN/checkpoints/STEP")
    partial: tuple[str, ...] = Field((), strict=False)

    @model_validator(mode="after")
    def _partial_needs_a_source(self) -> "StartConfig":
        if self.partial and self.source is None:
            raise ValueError("partial is given without from; name the run to start from")
        return self


class RunConfig(Schema):
    dir: AnyPlace = "runs/run"
    resume: Literal["auto", "never"] = Field(
        "auto", description="auto: go on from the newest checkpoint of run.dir, if there is one"
    )
    accept_changes: Annotated[
        tuple[Literal["data", "schedule", "seed"], ...],
        Field(
            strict=False,
            description="what may differ, in this start, from the run's beginning: its text, the "
            "learning rate from here on, the order of the text",
        ),
    ] = ()

    @field_validator("dir")
    @classmethod
    def _is_safe(cls, value: str) -> str:
        if not value.strip() or ".." in PurePosixPath(value).parts or "\0" in value:
            raise ValueError(f"'{value}' is no safe run directory; name a folder, without '..'")
        return value


class Config(Schema):
    """A whole run: one YAML file, and overrides `key.path=value`."""

    model: ModelConfig
    data: DataConfig = DataConfig()
    train: TrainConfig = TrainConfig()
    optimizer: OptimizerUnion = AdamWConfig()
    eval: EvalConfig = EvalConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    mesh: MeshConfig = MeshConfig()
    init: StartConfig = StartConfig()
    lora: LoRAConfig | None = None
    run: RunConfig = RunConfig()

    @model_validator(mode="after")
    def _sections_agree(self) -> "Config":
        schedule, steps = self.optimizer.schedule, self.train.steps
        if schedule.warmup_steps > steps:
            raise ValueError(
                f"optimizer.schedule.warmup_steps is {schedule.warmup_steps}, longer than the run: "
                f"train.steps is {steps}"
            )
        if (schedule.decay_steps or 0) + schedule.warmup_steps > steps:
            raise ValueError(
                f"optimizer.schedule.decay_steps {schedule.decay_steps} and warmup_steps "
                f"{schedule.warmup_steps} are longer than the run: train.steps is {steps}"
            )
        longest = self.model.longest_row
        if self.data.sequence_length > longest:
            raise ValueError(
                f"data.sequence_length is {self.data.sequence_length}, but model.positions has "
                f"max_length {longest}, or those of a layer have; shorten the rows or raise it"
            )
        return self

    @model_validator(mode="after")
    def _adapters_have_a_base(self) -> "Config":
        if self.lora is None:
            return self
        if self.init.source is None:
            raise ValueError("lora needs a base to adapt: give init.from, a run or a checkpoint")
        if self.init.partial or self.train.freeze:
            key = "init.partial" if self.init.partial else "train.freeze"
            raise ValueError(f"{key} has no place beside lora, which freezes all but its adapters")
        return self
