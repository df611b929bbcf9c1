"""What a configuration compiles to on a mesh: the state's shape and place, and its functions."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax.core import meta
from jax.sharding import Mesh

from jaxformer.checkpoint.manager import Json, placed
from jaxformer.config import Config
from jaxformer.data.batch import Batch
from jaxformer.evaluate.perplexity import EvalStep, make_eval_step
from jaxformer.model.accounting import (
    abstract_parameters,
    count_parameters,
    flops_per_token,
    kernels,
)
from jaxformer.model.language_model import LanguageModel, build_model
from jaxformer.parallel import rules
from jaxformer.parallel.context import check_length, over_context
from jaxformer.schema import UserError
from jaxformer.train.optimizer import make_optimizer
from jaxformer.train.schedule import make_schedule
from jaxformer.train.step import Metrics, StepOptions, TrainState, init_state, make_train_step

# Fusions of matrix products are faster with half of a core's vector memory at their disposal.
TPU_OPTIONS: dict[str, str | bool] = {"xla_tpu_scoped_vmem_limit_kib": "65536"}

PyTree = Any


@dataclass(frozen=True)
class Program:
    """The functions of a run, not compiled yet. `abstract` is the state as ShapeDtypeStructs that
    say where each array lies."""

    config: Config
    mesh: Mesh
    model: LanguageModel
    abstract: TrainState
    init: Callable[[jax.Array], TrainState]
    train_step: Callable[[TrainState, Batch], tuple[TrainState, Metrics]]
    eval_step: EvalStep
    kernels: tuple[str, ...]  # what serves the layers that have some, and why

    @property
    def shardings(self) -> TrainState:
        return jax.tree.map(lambda leaf: leaf.sharding, self.abstract)

    @property
    def num_parameters(self) -> int:
        return count_parameters(self.model)

    @property
    def tokens_per_step(self) -> int:
        return self.config.train.batch_size * self.config.data.sequence_length

    @property
    def flops_per_step(self) -> float:
        """Forward and backward of the model alone: 3 × forward, without rematerialisation."""
        per_token = flops_per_token(self.model, self.config.data.sequence_length)
        return 3 * per_token * self.tokens_per_step

    def initial_state(self) -> TrainState:
        """A fresh state, made in place on the mesh; the same seed gives the same on every mesh."""
        init = jax.jit(self.init, out_shardings=self.shardings)
        with rules.use_mesh(self.mesh, self.config.mesh.table):
            return init(jax.random.key(self.config.train.seed))

    def compile(self, rows_to_evaluate: int | None) -> "Compiled":
        """Both steps, ahead of time: what is called later can never compile again."""
        with rules.use_mesh(self.mesh, self.config.mesh.table):
            train_step = jax.jit(
                self.train_step,
                donate_argnums=0,
                out_shardings=(self.shardings, rules.replicated(self.mesh)),
            )
            rows = self.config.train.batch_size
            options = TPU_OPTIONS if self.mesh.devices.flat[0].platform == "tpu" else None
            train = train_step.lower(self.abstract, self._abstract_batch(rows)).compile(options)
            if rows_to_evaluate is None:
                return Compiled(train, None)
            batch = self._abstract_batch(rows_to_evaluate)
            eval_step = jax.jit(self.eval_step).lower(self.abstract.params, batch)
            return Compiled(train, eval_step.compile(options))

    def _abstract_batch(self, rows: int) -> Batch:
        shape, sharding = (rows, self.config.data.sequence_length), rules.batch_sharding(self.mesh)
        dtypes = Batch(jnp.int32, jnp.int32, jnp.int32, jnp.int32, jnp.bool_)
        return jax.tree.map(
            lambda dtype: jax.ShapeDtypeStruct(shape, dtype, sharding=sharding), dtypes
        )


@dataclass(frozen=True)
class Compiled:
    """Executables. Called with another shape, dtype or sharding than they were compiled for, they
    raise an error that names the argument; they do not compile anew."""

    train_step: jax.stages.Compiled
    eval_step: jax.stages.Compiled | None

    @property
    def bytes_per_device(self) -> int:
        """State, batch and temporaries of the train step, as the compiler laid them out."""
        memory: Any = self.train_step.memory_analysis()
        return (
            memory.argument_size_in_bytes
            + memory.output_size_in_bytes
            - memory.alias_size_in_bytes
            + memory.temp_size_in_bytes
        )


def unrolls(config: Config, mesh: Mesh) -> bool:
    """Whether layers are compiled one by one; `auto` does so on CPU: steps are faster for it."""
    if config.train.unroll_layers == "auto":
        return mesh.devices.flat[0].platform == "cpu"
    return config.train.unroll_layers


def make_program(config: Config, mesh: Mesh, vocab_size: int) -> Program:
    """Put model, optimizer, schedule and placement together; nothing is allocated or compiled.

    Raises:
        UserError: the mesh does not divide the parameters, or the rows, or
            train.attention_kernel cannot serve.
    """
    check_length(mesh.shape["context"], config.data.sequence_length)
    train, optimizer_config = config.train, config.optimizer
    scanned = build_model(
        config.model,
        vocab_size=vocab_size,
        dtype=jnp.dtype(train.precision),
        remat=train.remat,
        attention_kernel=train.attention_kernel,
    )
    model = scanned.clone(layout="unrolled") if unrolls(config, mesh) else scanned
    boxed = abstract_parameters(model)
    optimizer = make_optimizer(optimizer_config, rules.logical_axes(boxed))

    def init(key: jax.Array) -> TrainState:
        # The scanned layout gives the same parameters, and compiles in a fraction of the time.
        params = meta.unbox(scanned.init(key, jnp.zeros((1, 2), jnp.int32))["params"])
        return init_state(params, optimizer, train.ema_decay)

    def loss_sums(params: PyTree, batch: Batch) -> PyTree:
        return model.apply({"params": params}, *batch, z_loss=train.z_loss, method="loss")

    train_step = make_train_step(
        over_context(loss_sums),
        optimizer,
        make_schedule(optimizer_config.schedule, train.steps),
        StepOptions(
            optimizer_config.learning_rate,
            train.accumulation,
            optimizer_config.clip_norm,
            train.ema_decay,
            z_loss=train.z_loss > 0,
        ),
    )
    shapes = jax.eval_shape(init, jax.random.key(0))
    shardings = rules.like_parameters(
        mesh, shapes.params, rules.parameter_shardings(mesh, boxed, config.mesh.table), shapes
    )
    return Program(
        config=config,
        mesh=mesh,
        model=model,
        abstract=placed(shapes, shardings),
        init=init,
        train_step=train_step,
        eval_step=make_eval_step(model),
        kernels=_chosen_kernels(model, mesh, config.data.sequence_length),
    )


def _chosen_kernels(model: LanguageModel, mesh: Mesh, length: int) -> tuple[str, ...]:
    try:
        with rules.use_mesh(mesh):
            return kernels(model, length)
    except ValueError as error:
        raise UserError(
            f"train.attention_kernel is {model.attention_kernel}, but {error}; auto takes a kernel "
            f"where it can serve"
        ) from None


def averaged(state: TrainState) -> PyTree:
    """The parameters to evaluate and to sample from: the moving average where one is kept."""
    return state.params if state.ema is None else state.ema


def trees(state: TrainState) -> dict[str, PyTree]:
    """The arrays of a checkpoint."""
    averaged = {} if state.ema is None else {"ema": state.ema}
    return {"params": state.params, "opt_state": state.opt_state, **averaged}


def progress(state: TrainState) -> Json:
    """The rest of a checkpoint: where the run stands. The data's place is the step itself."""
    step = int(state.step)
    return {"step": step, "data": {"next_batch": step}, "nonfinite": int(state.nonfinite)}


def restored(program: Program, arrays: dict[str, PyTree], progress: Json) -> TrainState:
    """The state that `trees` and `progress` were made from."""
    step, nonfinite = jax.device_put(
        (jnp.int32(progress["step"]), jnp.int32(progress["nonfinite"])),
        rules.replicated(program.mesh),
    )
    return TrainState(step, arrays["params"], arrays["opt_state"], arrays.get("ema"), nonfinite)
