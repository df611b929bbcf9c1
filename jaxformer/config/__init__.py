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

from jaxformer.config.data import DataConfig, NumRows, SourceConfig, StageConfig
from jaxformer.config.mesh import MeshConfig
from jaxformer.config.model_inputs import check_inputs
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
from jaxformer.config.stages import Stage, stages_of
from jaxformer.config.trackers import TrackerName
from jaxformer.model.config import ModelConfig
from jaxformer.model.dims import AUTOMATIC, KernelsConfig
from jaxformer.model.lora import LoRAConfig
from jaxformer.objectives import NextTokenConfig, ObjectiveConfig
from jaxformer.schema.base import Schema

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
    "ProfileConfig",
    "RunConfig",
    "SGDConfig",
    "ScheduleConfig",
    "SourceConfig",
    "Stage",
    "StageConfig",
    "StartConfig",
    "TrainConfig",
]


class LayerStatisticsConfig(Schema):
    """Root mean squares of each layer's activations, gradients, updates and weights."""

    every: PositiveInt = Field(100, description="how often, in steps; and after the last step")


class ProfileConfig(Schema):
    """A trace of a few steps, and what is in the devices' memory after them."""

    start: PositiveInt = Field(description="the first step of the profile; the run's first is 1")
    steps: PositiveInt = Field(3, description="how many steps")

    @property
    def window(self) -> range:
        return range(self.start, self.start + self.steps)


class TrainConfig(Schema):
    """The training step."""

    steps: PositiveInt = Field(1000, description="the number of updates")
    batch_size: NumRows = Field(
        32, description="rows per update, over all devices and micro-batches"
    )
    accumulation: PositiveInt = Field(
        1, description="the number of micro-batches whose gradients are added for one update"
    )
    seed: NonNegativeInt = Field(
        0, description="for the initial parameters, the order of the rows and dropout"
    )
    precision: Literal["float32", "bfloat16"] = Field(
        "float32",
        description="the dtype of activations; parameters and optimizer state stay float32",
    )
    remat: Literal["none", "dots", "full"] = Field(
        "none",
        description="what a layer keeps for its backward pass: all, matrix products, or its input",
    )
    unroll_layers: bool | Literal["auto"] = Field(
        "auto",
        description="auto: unrolled on CPU, where it makes steps faster, and scanned elsewhere",
    )
    pipeline_micro_batches: PositiveInt | None = Field(
        None,
        description="micro-batches at once in the pipeline of mesh.stage; if null, as many as the "
        "rows allow, up to 4 per stage",
    )
    kernels: KernelsConfig = Field(AUTOMATIC, description="the kernel for each operation")
    objective: ObjectiveConfig = Field(NextTokenConfig(), description="what training minimizes")
    freeze: tuple[str, ...] = Field(
        (), strict=False, description="patterns of the paths of parameters that are not trained"
    )
    z_loss: NonNegativeFloat = Field(
        0.0, description="the weight of log²Z, which keeps logits from drifting (arXiv:2204.02311)"
    )
    ema_decay: Annotated[float, Field(gt=0.0, lt=1.0)] | None = Field(
        None,
        description="the decay of a moving average of the parameters, which evaluation and "
        "generation use; null for none",
    )
    log_every: PositiveInt = Field(10, description="how often metrics are written, in steps")
    layer_statistics: LayerStatisticsConfig | None = Field(
        None,
        description="writes root mean squares of every layer to metrics.jsonl and the trackers",
    )
    max_nonfinite_steps: PositiveInt = Field(
        10, description="stop after this many skipped updates in a row"
    )
    profile: ProfileConfig | None = Field(
        None, description="writes a profile of a few steps; jaxformer profile reads it"
    )

    @model_validator(mode="before")
    @classmethod
    def _read_former_key(cls, given: Any) -> Any:
        """Runs of earlier versions have `attention_kernel`."""
        if not isinstance(given, dict) or "attention_kernel" not in given:
            return given
        if "kernels" in given:
            raise ValueError("attention_kernel is kernels.attention now; give only that one")
        rest = {key: value for key, value in given.items() if key != "attention_kernel"}
        return {"kernels": {"attention": given["attention_kernel"]}} | rest

    @model_validator(mode="after")
    def _profile_is_within_the_run(self) -> "TrainConfig":
        if self.profile is not None and (last := self.profile.window[-1]) > self.steps:
            raise ValueError(
                f"profile.start {self.profile.start} and profile.steps {self.profile.steps} lead "
                f"to step {last}, but steps is {self.steps}; start earlier, or take fewer"
            )
        return self

    @model_validator(mode="after")
    def _micro_batches_are_equal(self) -> "TrainConfig":
        if self.batch_size % self.accumulation:
            raise ValueError(
                f"batch_size {self.batch_size} is not divisible by accumulation {self.accumulation}"
            )
        return self


class EvalConfig(Schema):
    """Validation during training, every `every` steps and at the end."""

    every: PositiveInt = Field(
        250, description="how often, in steps; the end of the run is always evaluated"
    )
    batches: PositiveInt | None = Field(
        20, description="batches per evaluation; null for the whole validation text"
    )
    batch_size: NumRows | None = Field(None, description="rows at once; train.batch_size if null")
    suites: Annotated[tuple[str, ...], Field(strict=False)] = Field(
        (), description="suites to measure, such as lm_eval:hellaswag; see eval --suite"
    )
    suites_every: PositiveInt | None = Field(
        None, description="how often suites are measured, in steps; null for the end alone"
    )
    suites_limit: PositiveInt | None = Field(
        None, description="use only the first N samples of each task"
    )
    tasks_dir: LocalPlace | None = Field(None, description="a folder of task YAMLs for lm_eval")
    sample_tokens: NonNegativeInt = Field(
        256,
        description="the length of the sample at the end of a run, which of pictures and "
        "recordings are a few of those to validate on; 0 for none",
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
    """When checkpoints are saved, and which are kept."""

    every: PositiveInt = Field(
        250, description="how often, in steps; the end of the run is always saved"
    )
    every_minutes: PositiveFloat | None = Field(
        None, description="saves also when so many minutes have passed since the newest save"
    )
    keep_newest: PositiveInt = Field(2, description="how many of the newest checkpoints are kept")
    keep_best: NonNegativeInt = Field(
        1, description="how many checkpoints of lowest validation loss are kept besides"
    )
    keep_every: PositiveInt | None = Field(
        None, description="checkpoints at multiples of this step are always kept; null for none"
    )
    local: LocalPlace | None = Field(
        None,
        description="a folder on a disk of each host, for copies of the newest states; null for "
        "none",
    )
    local_every: PositiveInt = Field(50, description="how often a local copy is made, in steps")

    @model_validator(mode="after")
    def _what_is_kept_is_saved(self) -> "CheckpointConfig":
        if self.keep_every is not None and self.keep_every % self.every:
            raise ValueError(
                f"keep_every {self.keep_every} is not a multiple of every {self.every}, so not all "
                f"of its steps would be saved; give a multiple"
            )
        return self


class StartConfig(Schema):
    """The weights from which a new run starts, and the state of the optimizer if that is kept too.

    The learning rate begins its schedule anew in any case, and data are read from the beginning.
    """

    model_config = ConfigDict(serialize_by_alias=True)

    source: AnyPlace | None = Field(
        None, alias="from", description="a run, or RUN/checkpoints/STEP"
    )
    partial: tuple[str, ...] = Field(
        (),
        strict=False,
        description="patterns of the paths of parameters that may differ; these start fresh, "
        "except for the rows of a vocabulary that has grown",
    )
    state: Literal["weights", "optimizer"] = Field(
        "weights",
        description="weights: those to evaluate with, and a new optimizer; optimizer: the trained "
        "weights, the optimizer's moments, and the moving average if both runs keep one",
    )

    @model_validator(mode="after")
    def _keys_need_a_source(self) -> "StartConfig":
        keeps = self.state == "optimizer"
        if self.source is None and (self.partial or keeps):
            key = "partial is given" if self.partial else "state is optimizer"
            raise ValueError(f"{key}, but from is not; name the run to start from")
        if self.partial and keeps:
            raise ValueError(
                "state is optimizer, which takes moments for every trained parameter, but partial "
                "lets some start fresh; leave one of them out"
            )
        return self


class RunConfig(Schema):
    """Where the run is kept, and how it resumes."""

    dir: AnyPlace = Field("runs/run", description="the run directory, or gs://BUCKET/FOLDER")
    resume: Literal["auto", "never"] = Field(
        "auto", description="auto: resume from the newest checkpoint in run.dir, if there is one"
    )
    accept_changes: Annotated[
        tuple[Literal["data", "schedule", "seed"], ...],
        Field(
            strict=False,
            description="what this start may change in a run that has begun, from here on: its "
            "text, rows and batches; its learning rates; or the order of its text",
        ),
    ] = ()
    trackers: Annotated[tuple[TrackerName, ...], Field(strict=False)] = Field(
        ("tensorboard",), description="where metrics are shown besides metrics.jsonl"
    )
    group: str | None = Field(
        None, description="trackers show the runs of a group together; an arena is one"
    )

    @field_validator("dir")
    @classmethod
    def _is_safe(cls, value: str) -> str:
        if not value.strip() or ".." in PurePosixPath(value).parts or "\0" in value:
            raise ValueError(f"'{value}' is not a safe run directory; name a folder, without '..'")
        return value


class Config(Schema):
    """A whole run: one YAML file, and overrides `key.path=value`."""

    model: ModelConfig = Field(description="the network")
    data: DataConfig = Field(DataConfig(), description="the training and validation text")
    train: TrainConfig = Field(TrainConfig(), description="the training step")
    optimizer: OptimizerUnion = Field(AdamWConfig(), description="the optimizer and its schedule")
    eval: EvalConfig = Field(EvalConfig(), description="validation and suites during training")
    checkpoint: CheckpointConfig = Field(
        CheckpointConfig(), description="how often to save, and what to keep"
    )
    mesh: MeshConfig = Field(MeshConfig(), description="how devices are arranged")
    init: StartConfig = Field(StartConfig(), description="the weights from which a new run starts")
    lora: LoRAConfig | None = Field(
        None, description="low-rank adapters, which freeze everything else; null for none"
    )
    run: RunConfig = Field(RunConfig(), description="the run directory, and how to resume")

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
        for key, length in self._row_lengths():
            if length > longest:
                raise ValueError(
                    f"{key} is {length}, but model.positions has max_length {longest}, or a "
                    f"layer's positions do; shorten the rows or raise it"
                )
        return self

    @model_validator(mode="after")
    def _inputs_read_the_data(self) -> "Config":
        check_inputs(self.model, self.data, self.train.objective)
        return self

    @model_validator(mode="after")
    def _experts_are_there(self) -> "Config":
        if self.mesh.expert in (None, 1) or any(mixer.experts for mixer in self.model.ffns()):
            return self
        raise ValueError(
            f"mesh.expert is {self.mesh.expert}, but the model has no experts; use mesh.data or "
            f"mesh.fsdp"
        )

    @model_validator(mode="after")
    def _objective_suits_the_model(self) -> "Config":
        objective = self.train.objective
        objective.check(self.model)
        if self.model.order == "causal" and "causal" not in objective.orders:
            raise ValueError(
                f"model.order is causal, but train.objective {objective.kind} predicts from both "
                f"sides; give model.order=full"
            )
        if self.model.order not in objective.orders:
            raise ValueError(
                f"model.order is {self.model.order}, where tokens see those behind them, but "
                f"train.objective {objective.kind} predicts these; give model.order=causal, or "
                f"another objective, such as classes"
            )
        if self.model.outputs.of_rows and not objective.of_rows:
            raise ValueError(
                f"model.outputs {self.model.outputs.kind} gives every row one output, but "
                f"train.objective {objective.kind} needs one per token; give "
                f"train.objective={{kind: classes}}"
            )
        if self.model.outputs.reads_source and not objective.compares_rows:
            raise ValueError(
                f"model.outputs is {self.model.outputs.kind}, which compares both sides of pairs, "
                f"but train.objective is {objective.kind}; give "
                f"train.objective={{kind: contrastive}}"
            )
        if objective.compares_rows:
            self._check_comparison()
        if self.model.outputs.of_numbers and not objective.of_numbers:
            raise ValueError(
                f"model.outputs {self.model.outputs.kind} predicts what stands at hidden places, "
                f"but train.objective {objective.kind} needs logits; give another output, or "
                f"train.objective={{kind: masked_patches}} or masked_frames"
            )
        if self.train.z_loss and objective.of_numbers:
            raise ValueError(
                f"train.z_loss is {self.train.z_loss:g}, but train.objective {objective.kind} has "
                f"no logits, and so no Z; leave it out"
            )
        if not objective.sees_whole_rows and not all(ffn.is_causal for ffn in self.model.ffns()):
            raise ValueError(
                f"model.ffn has routing expert_choice, where what a token gets depends on all of "
                f"its row, but predictions of train.objective {objective.kind} must not; give "
                f"model.ffn.predictor_weight=0.01, which trains a predictor of the choice for "
                f"evaluation and decoding, or use token_choice"
            )
        for key, length in self._row_lengths():
            if length < objective.shortest_row:
                raise ValueError(
                    f"{key} is {length}, but train.objective {objective.kind} needs rows of at "
                    f"least {objective.shortest_row} tokens, a whole block; lengthen them"
                )
        return self

    def _check_comparison(self) -> None:
        """Refuse options that have no meaning where the rows of a batch are compared."""
        kind, train = self.train.objective.kind, self.train
        if train.accumulation > 1:
            raise ValueError(
                f"train.accumulation is {train.accumulation}, but train.objective {kind} compares "
                f"all rows of a batch, and micro-batches have fewer of them; leave it at 1. "
                f"train.remat=full and more devices save memory, too"
            )
        if train.z_loss:
            raise ValueError(
                f"train.z_loss is {train.z_loss:g}, but the logits of train.objective {kind} are "
                f"of no vocabulary; leave it out"
            )

    @property
    def instead(self) -> str | None:
        """The command that uses a run which continues no text, without `jaxformer`."""
        if self.data.kind == "pairs":
            return 'predict RUN --text "..."'
        if self.data.writes:
            return "predict RUN FILE"
        return self.train.objective.instead

    @property
    def eval_rows(self) -> int:
        """How many rows a batch of an evaluation has."""
        return self.eval.batch_size or self.train.batch_size

    @property
    def most_evaluated(self) -> int | None:
        """How many rows an evaluation reads at most; None for all."""
        return None if self.eval.batches is None else self.eval.batches * self.eval_rows

    @property
    def keys(self) -> tuple[str, ...]:
        """The random keys that training draws from besides the order of the data."""
        dropout = ("dropout",) if self.lora is not None and self.lora.dropout else ()
        of_ffns = (key for ffn in self.model.ffns() for key in ffn.keys)
        trunks = filter(None, (self.model, self.model.encoder))
        of_trunks = (part for t in trunks for part in (t.residual, t.depth, t.inputs))
        parts = (*of_trunks, self.train.objective)
        every = (*dropout, *of_ffns, *(key for part in parts for key in part.keys))
        return tuple(dict.fromkeys(every))

    def _row_lengths(self) -> list[tuple[str, int]]:
        """Every length of rows, with its key."""
        data = self.data
        return [
            ("data.sequence_length", data.sequence_length),
            *(
                (f"data.stages.{number}.sequence_length", stage.sequence_length)
                for number, stage in enumerate(data.stages or ())
                if stage.sequence_length is not None
            ),
        ]

    @model_validator(mode="after")
    def _stages_fit_the_run(self) -> "Config":
        accumulation = self.train.accumulation
        for number, stage in enumerate(self.stages):
            if stage.batch_size % accumulation:
                raise ValueError(
                    f"data.stages.{number}.batch_size {stage.batch_size} is not divisible by "
                    f"train.accumulation {accumulation}"
                )
        return self

    @property
    def stages(self) -> tuple[Stage, ...]:
        """What the run trains on, from its first step to its last; one stage if there are none."""
        return stages_of(self.data, self.train.steps, self.train.batch_size)

    def at(self, stage: Stage) -> "Config":
        """The configuration of a run of one stage alone, validation apart."""
        train = self.train.model_copy(update={"batch_size": stage.batch_size})
        return self.model_copy(update={"data": stage.data, "train": train})

    @model_validator(mode="after")
    def _adapters_have_a_base(self) -> "Config":
        if self.lora is None:
            return self
        if self.init.source is None:
            raise ValueError("lora needs a base to adapt: give init.from, a run or a checkpoint")
        if self.init.state == "optimizer":
            raise ValueError(
                "init.state is optimizer, but lora trains new adapters, which have no moments yet; "
                "leave init.state out"
            )
        if self.init.partial or self.train.freeze:
            key = "init.partial" if self.init.partial else "train.freeze"
            raise ValueError(f"{key} cannot be given with lora, which freezes all but its adapters")
        return self
