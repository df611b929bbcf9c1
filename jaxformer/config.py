"""The typed schema of a configuration, and what must hold across its sections."""

from pathlib import PurePosixPath
from typing import Annotated, Any, Literal

from pydantic import (
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    field_validator,
    model_validator,
)

from jaxformer.model.config import ModelConfig
from jaxformer.model.lora import LoRAConfig
from jaxformer.ops.kernels.choice import Kernel
from jaxformer.parallel.mesh import AXES
from jaxformer.parallel.rules import Rules, overridden
from jaxformer.paths import BUCKET, is_remote
from jaxformer.schema import Schema
from jaxformer.tasks import TaskUnion

Fraction = Annotated[float, Field(ge=0.0, lt=1.0)]
Format = Literal["text", "messages", "completion"]
ColumnPair = Annotated[tuple[str, ...], Field(min_length=2, max_length=2, strict=False)]
COLUMNS: dict[str, str | tuple[str, ...]] = {
    "text": "text",
    "messages": "messages",
    "completion": ("prompt", "completion"),
}


class SourceConfig(Schema):
    """One source of a mixture; `weight` is its share of the rows, relative to the others'. Its
    format is that of `data` if not given, and so is its column, or else the format's usual one."""

    source: str
    weight: PositiveFloat = 1.0
    format: Format | None = None
    column: str | ColumnPair | None = None


class DataConfig(Schema):
    """Where text comes from and how it becomes rows of `sequence_length` tokens.

    A source is `builtin:python`, `text:GLOB`, `jsonl:GLOB`, `parquet:GLOB` or `hf:NAME[/CONFIG]`.
    Validation text is `validation_source`, or else the last `validation_fraction` of every source.
    Of `messages` the assistant's answers are learnt, of `completion` what follows the prompt.
    A `task` takes the place of text with rows made from random numbers.
    """

    task: TaskUnion | None = None

    source: str | Annotated[tuple[SourceConfig, ...], Field(min_length=1, strict=False)] = (
        "builtin:python"
    )
    validation_source: str | None = None
    validation_fraction: Fraction = 0.05
    tokenizer: str = Field(
        "bytes", description="bytes, ids:N for a task, a tokenizer.json file, or a Hub name"
    )
    sequence_length: Annotated[int, Field(ge=2)] = 256
    format: Format = Field("text", description="what a row of jsonl, parquet and hf sources holds")
    column: str | ColumnPair = Field(
        "text", description="where it is: text, messages, or [prompt, completion] if not given"
    )
    invalid_utf8: Literal["error", "replace", "skip"] = "error"
    cache_dir: str = Field("~/.cache/jaxformer", description="where token stores are kept")
    prefetch: NonNegativeInt = Field(4, description="batches made ahead of the step")

    @model_validator(mode="after")
    def _task_fits_its_rows(self) -> "DataConfig":
        if self.task is not None:
            self.task.check(self.sequence_length)
        return self

    @property
    def sources(self) -> tuple[SourceConfig, ...]:
        """What is trained on, each with its format and column."""
        if isinstance(self.source, str):
            return (self._whole(SourceConfig(source=self.source)),)
        return tuple(self._whole(entry) for entry in self.source)

    @property
    def held_out(self) -> SourceConfig | None:
        """The validation source, with its format and column."""
        if self.validation_source is None:
            return None
        return self._whole(SourceConfig(source=self.validation_source))

    def _whole(self, entry: SourceConfig) -> SourceConfig:
        kind = entry.format or self.format
        column = self.column if kind == self.format else COLUMNS[kind]
        return entry.model_copy(update={"format": kind, "column": entry.column or column})

    @model_validator(mode="before")
    @classmethod
    def _column_of_the_format(cls, data: Any) -> Any:
        if isinstance(data, dict) and "column" not in data:
            return {**data, "column": COLUMNS.get(str(data.get("format")), "text")}
        return data

    @model_validator(mode="after")
    def _formats_fit_their_sources(self) -> "DataConfig":
        for entry in (*self.sources, *([self.held_out] if self.held_out else [])):
            is_pair = not isinstance(entry.column, str)
            if is_pair != (entry.format == "completion"):
                raise ValueError(
                    f"source '{entry.source}': format {entry.format} reads "
                    f"{'one column' if is_pair else 'two columns'}; give column: NAME, or "
                    f"for completion column: [PROMPT, COMPLETION]"
                )
            if entry.format != "text" and entry.source.startswith(("text:", "builtin:")):
                raise ValueError(
                    f"source '{entry.source}' has no columns, but its format is {entry.format}; "
                    f"allowed: jsonl:GLOB, parquet:GLOB, hf:NAME[/CONFIG], or format text"
                )
        return self


class TrainConfig(Schema):
    """The step and how often it is taken. `batch_size` counts rows of one update, all
    micro-batches together; `precision` is that of activations, parameters stay float32."""

    steps: PositiveInt = 1000
    batch_size: PositiveInt = 32
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
    attention_kernel: Kernel = Field(
        "auto",
        description="auto: splash on TPU and cudnn on NVIDIA where they can serve, else xla",
    )
    freeze: tuple[str, ...] = Field(
        (), strict=False, description="patterns of the paths of parameters that stay as they are"
    )
    z_loss: NonNegativeFloat = 0.0
    ema_decay: Annotated[float, Field(gt=0.0, lt=1.0)] | None = None
    log_every: PositiveInt = 10
    max_nonfinite_steps: PositiveInt = Field(
        10, description="stop after this many skipped updates in a row"
    )

    @model_validator(mode="after")
    def _micro_batches_are_equal(self) -> "TrainConfig":
        if self.batch_size % self.accumulation:
            raise ValueError(
                f"batch_size {self.batch_size} is not divisible by accumulation {self.accumulation}"
            )
        return self


class ScheduleConfig(Schema):
    """The learning rate's factor: a linear warm-up from 0 to 1, then by `kind` to `final_fraction`.

    `cosine` and `linear` fall over the rest of the run, `constant` stays, and `wsd` stays and
    then falls linearly over the last `decay_steps`.
    """

    kind: Literal["cosine", "linear", "constant", "wsd"] = "cosine"
    warmup_steps: NonNegativeInt = 0
    final_fraction: Annotated[float, Field(ge=0.0, le=1.0)] = 0.0
    decay_steps: PositiveInt | None = Field(
        None, description="wsd only; a fifth of the run if not given"
    )

    @model_validator(mode="after")
    def _decay_steps_belong_to_wsd(self) -> "ScheduleConfig":
        if self.decay_steps is not None and self.kind != "wsd":
            raise ValueError(f"decay_steps is an option of wsd, not of {self.kind}")
        return self


class OptimizerBase(Schema):
    """What every optimizer has. Weight decay is decoupled and applies to matrices alone."""

    learning_rate: PositiveFloat = 1e-3
    weight_decay: NonNegativeFloat = 0.1
    clip_norm: PositiveFloat | None = 1.0
    schedule: ScheduleConfig = ScheduleConfig()


class AdamWConfig(OptimizerBase):
    """Adam with decoupled weight decay (Loshchilov and Hutter, 2017, arXiv:1711.05101)."""

    kind: Literal["adamw"] = "adamw"
    b1: Fraction = 0.9
    b2: Fraction = 0.95
    eps: PositiveFloat = 1e-8


class LionConfig(OptimizerBase):
    """The sign of an average of gradients (Chen et al., 2023, arXiv:2302.06675)."""

    kind: Literal["lion"] = "lion"
    b1: Fraction = 0.9
    b2: Fraction = 0.99


class AdafactorConfig(OptimizerBase):
    """Second moments kept by row and column (Shazeer and Stern, 2018, arXiv:1804.04235)."""

    kind: Literal["adafactor"] = "adafactor"
    decay_rate: Fraction = 0.8


class MuonConfig(OptimizerBase):
    """Orthogonalised momentum for the layers' matrices (Jordan et al., 2024,
    kellerjordan.github.io/posts/muon), and AdamW at `adamw_learning_rate` for the rest."""

    kind: Literal["muon"] = "muon"
    learning_rate: PositiveFloat = 0.02
    momentum: Fraction = 0.95
    adamw_learning_rate: PositiveFloat = 3e-3
    b1: Fraction = 0.9
    b2: Fraction = 0.95
    eps: PositiveFloat = 1e-8


class SGDConfig(OptimizerBase):
    """Gradient descent with momentum."""

    kind: Literal["sgd"] = "sgd"
    momentum: Fraction = 0.9


OptimizerUnion = Annotated[
    AdamWConfig | LionConfig | AdafactorConfig | MuonConfig | SGDConfig,
    Field(discriminator="kind"),
]


class EvalConfig(Schema):
    """Validation during training, every `every` steps and at the end."""

    every: PositiveInt = 250
    batches: PositiveInt | None = Field(20, description="null: the whole validation text")
    batch_size: PositiveInt | None = Field(
        None, description="rows at once; train.batch_size if not given"
    )
    suites: Annotated[tuple[str, ...], Field(strict=False)] = Field(
        (), description="measured at the end, such as lm_eval:hellaswag; see eval --suite"
    )
    suites_every: PositiveInt | None = Field(None, description="steps; null: only at the end")
    suites_limit: PositiveInt | None = Field(None, description="only so many samples of a task")
    tasks_dir: str | None = Field(None, description="a folder of task YAMLs for lm_eval")
    sample_tokens: NonNegativeInt = Field(
        256, description="of the sample that a run ends with; 0: none"
    )


class CheckpointConfig(Schema):
    every: PositiveInt = 250
    keep_newest: PositiveInt = 2
    keep_best: NonNegativeInt = Field(1, description="by eval/loss, kept beside the newest")


AxisSize = int | None
Axis = Literal["data", "stage", "fsdp", "expert", "tensor", "context"]
Axes = Axis | Annotated[tuple[Axis, ...], Field(strict=False)] | None


class RulesConfig(Schema):
    """Over which mesh axes a dimension of the parameters lies, in place of the usual ones; null:
    whole on every device."""

    vocab: Axes = "tensor"
    heads: Axes = "tensor"
    kv_heads: Axes = "tensor"
    d_hidden: Axes = "tensor"
    d_model: Axes = "fsdp"
    head_dim: Axes = None
    state: Axes = None
    layers: Axes = "stage"


class MeshConfig(Schema):
    """Devices along each axis; at most one −1 takes what the others leave.

    What is not given is up to the preset: `ddp` copies parameters to all devices, `fsdp` splits
    them, `fsdp_tensor` also splits heads and hidden widths over the devices of a host, `hsdp`
    copies them to every slice, or host, and splits them inside it. `stage` splits the repetitions
    of the pattern into a pipeline.
    """

    preset: Literal["ddp", "fsdp", "fsdp_tensor", "hsdp"] = "ddp"
    data: AxisSize = None
    stage: AxisSize = None
    fsdp: AxisSize = None
    expert: AxisSize = None
    tensor: AxisSize = None
    context: AxisSize = None
    rules: RulesConfig = RulesConfig()

    @property
    def table(self) -> Rules:
        """Every logical axis, those of activations too, with its mesh axes."""
        return overridden(self.rules.model_dump())

    @property
    def sizes(self) -> dict[str, AxisSize]:
        return {axis: getattr(self, axis) for axis in AXES}

    @model_validator(mode="after")
    def _sizes_are_sizes(self) -> "MeshConfig":
        given = {axis: size for axis, size in self.sizes.items() if size is not None}
        for axis, size in given.items():
            if size < 1 and size != -1:
                raise ValueError(
                    f"axis '{axis}' is {size}; allowed: a positive count, or -1 for the rest"
                )
        open_axes = [axis for axis, size in given.items() if size == -1]
        if len(open_axes) > 1:
            raise ValueError(f"axes {' and '.join(open_axes)} are both -1; at most one may be")
        return self


class StartConfig(Schema):
    """The weights a new run starts from: those of `from`, a run or a checkpoint. Parameters whose
    paths match a pattern of `partial` start fresh, or with rows of a vocabulary that has grown."""

    model_config = ConfigDict(serialize_by_alias=True)

    source: str | None = Field(None, alias="from", description="a run or RUN/checkpoints/STEP")
    partial: tuple[str, ...] = Field((), strict=False)

    @model_validator(mode="after")
    def _partial_needs_a_source(self) -> "StartConfig":
        if self.partial and self.source is None:
            raise ValueError("partial is given without from; name the run to start from")
        return self


class RunConfig(Schema):
    dir: str = "runs/run"
    resume: Literal["auto", "never"] = Field(
        "auto", description="auto: go on from the newest checkpoint of run.dir, if there is one"
    )
    accept_changes: Annotated[
        tuple[Literal["data", "seed"], ...],
        Field(
            strict=False,
            description="what may differ from the run's beginning: its text, the order of it",
        ),
    ] = ()

    @field_validator("dir")
    @classmethod
    def _is_safe(cls, value: str) -> str:
        if not value.strip() or ".." in PurePosixPath(value).parts or "\0" in value:
            raise ValueError(f"'{value}' is no safe run directory; name a folder, without '..'")
        if "://" in value and not is_remote(value):
            raise ValueError(f"'{value}' is no place for a run; allowed: a folder or {BUCKET}...")
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
                f"max_length {longest}; shorten the rows or raise max_length"
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
