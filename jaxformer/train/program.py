"""What a configuration compiles to on a mesh: the state's shape and place, and its functions."""

import math
from collections.abc import Callable, Collection
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
from flax.core import meta
from jax.sharding import Mesh

from jaxformer.batch import Batch
from jaxformer.checkpoint.manager import Json, placed
from jaxformer.config import CheckpointConfig, Config, EvalConfig, RunConfig, Stage
from jaxformer.errors import DoesNotFit, UserError
from jaxformer.evaluate.perplexity import EvalStep, make_eval_step
from jaxformer.memory import program_bytes
from jaxformer.model.accounting import (
    FURTHER_PATH,
    abstract_parameters,
    active_share,
    count_active,
    count_parameters,
    kernels,
)
from jaxformer.model.language_model import LanguageModel, build_model
from jaxformer.model.parameter_paths import by_path, from_paths, join, split
from jaxformer.model.trunk_config import TrunkConfig
from jaxformer.objectives import Loss, ObjectiveConfig, Reference
from jaxformer.parallel import rules
from jaxformer.parallel.compiler import Options, compiler_options
from jaxformer.parallel.context import check_length
from jaxformer.parallel.pipeline import Pipeline, check_repetitions, make_pipeline
from jaxformer.train.optimizer import decay_mask, make_optimizer, rates_of
from jaxformer.train.reference import abstract_reference, reference_model
from jaxformer.train.schedule import make_schedule
from jaxformer.train.step import Metrics, StepOptions, TrainState, init_state, make_train_step
from jaxformer.train.trained import moved_biases, trained_paths

PyTree = Any


@dataclass(frozen=True)
class Program:
    """The functions of a run, not compiled yet. `abstract` is the state as ShapeDtypeStructs that
    say where each array lies."""

    config: Config
    mesh: Mesh
    model: LanguageModel
    abstract: TrainState
    init: Callable[[jax.Array, PyTree, dict[str, jax.Array]], TrainState]
    train_step: Callable[[TrainState, Batch], tuple[TrainState, Metrics]]
    eval_step: EvalStep
    kernels: tuple[str, ...]  # what serves the layers that have kernels, and why
    frozen_products: float  # weights that are multiplied, once per token, and get no gradient
    pipeline: Pipeline | None  # for a train step's rows, on a mesh with stages
    _made: dict[tuple, Any] = field(default_factory=dict)  # what has been compiled

    @property
    def shardings(self) -> TrainState:
        return jax.tree.map(lambda leaf: leaf.sharding, self.abstract)

    @property
    def compiler_options(self) -> Options:
        return compiler_options(self.mesh.devices.flat[0])

    @property
    def num_parameters(self) -> int:
        return count_parameters(self.model)

    @property
    def num_active(self) -> int:
        return count_active(self.model)

    @property
    def num_trained(self) -> int:
        """How many parameters updates change, biases of routers among them."""
        whole = weights(self.abstract)
        moved = moved_biases(self.config, whole)
        biases = sum(math.prod(by_path(whole)[path].shape) for path in moved)
        of_optimizer = jax.tree.leaves(self.abstract.params)
        return biases + sum(math.prod(leaf.shape) for leaf in of_optimizer)

    @property
    def tokens_per_step(self) -> int:
        return self.config.train.batch_size * self.config.data.sequence_length

    @property
    def flops_per_step(self) -> float:
        """Forward and backward of what the objective needs: 3 × forward, without
        rematerialisation, less the gradients of frozen matrices."""
        objective, length = self.config.train.objective, self.config.data.sequence_length
        per_token = objective.flops(self.model, length)
        return (3 * per_token - 2 * self.frozen_products) * self.tokens_per_step

    def initial_state(self, given: PyTree | None = None) -> TrainState:
        """The state before the first step, made in place on the mesh from the weights `given`
        (which are used up) and fresh ones for the rest; the same seed gives the same on every mesh.
        The weights of a reference are not in it.

        If a weight is given with fewer rows or columns, the missing ones are fresh.
        """
        shapes = by_path(weights(self.abstract))
        leaves = by_path(given or {})
        is_whole = all(leaf.shape == shapes[path].shape for path, leaf in leaves.items())
        donated = (1,) if is_whole else ()
        init = self._once(
            ("init", donated),
            lambda: jax.jit(
                self.init,
                out_shardings=self.shardings.replace(reference={}),
                donate_argnums=donated,
            ),
        )
        with rules.use_mesh(self.mesh, self.config.mesh.table):
            return init(jax.random.key(self.config.train.seed), given or {}, _rates(self.config))

    def for_stage(self, stage: Stage) -> "Program":
        """The same for batches of a stage, which is compiled once for each shape of a batch."""
        config, shape = self.config.at(stage), (stage.batch_size, stage.data.sequence_length)
        if shape == (self.config.train.batch_size, self.config.data.sequence_length):
            return replace(self, config=config)
        made = self._once(("stage", shape), lambda: self._made_for(config))
        return replace(made, config=config)

    def _made_for(self, config: Config) -> "Program":
        size = self.model.num_tokens or self.model.vocab_size
        return _new_program(_program_part(config), self.mesh, size, reference_model(config, size))

    def compile(self, rows_to_evaluate: int | None) -> "Compiled":
        """Compile both steps ahead of time, so that no later call compiles again."""
        if rows_to_evaluate is None:
            return Compiled(self.compile_train_step(), None)
        return Compiled(self.compile_train_step(), self.compile_eval_step(rows_to_evaluate))

    def compile_train_step(self) -> jax.stages.Compiled:
        """Compile the train step for batches of the configuration."""
        return self._once(("train_step",), self._compile_train_step)

    def compile_eval_step(self, rows: int) -> jax.stages.Compiled:
        """Compile the evaluation of `rows` rows at once."""
        return self._once(("eval_step", rows), lambda: self._compile_eval_step(rows))

    def _once(self, key: tuple, make: Callable[[], Any]) -> Any:
        if key not in self._made:
            self._made[key] = make()
        return self._made[key]

    def _compile_train_step(self) -> jax.stages.Compiled:
        with rules.use_mesh(self.mesh, self.config.mesh.table):
            train_step = jax.jit(
                self.train_step,
                donate_argnums=0,
                out_shardings=(self.shardings, rules.replicated(self.mesh)),
            )
            batch = self._abstract_batch(self.config.train.batch_size)
            return train_step.lower(self.abstract, batch).compile(self.compiler_options or None)

    def _compile_eval_step(self, rows: int) -> jax.stages.Compiled:
        with rules.use_mesh(self.mesh, self.config.mesh.table):
            batch = self._abstract_batch(rows)
            eval_step = jax.jit(self.eval_step).lower(averaged(self.abstract), batch)
            return eval_step.compile(self.compiler_options or None)

    def _abstract_batch(self, rows: int) -> Batch:
        spec = self.config.data.spec(rows)
        return placed(spec, rules.of_batch(rules.batch_sharding(self.mesh), spec))


@dataclass(frozen=True)
class Compiled:
    """Executables. Called with another shape, dtype or sharding than they were compiled for, they
    raise an error that names the argument; they do not compile anew."""

    train_step: jax.stages.Compiled
    eval_step: jax.stages.Compiled | None

    @property
    def bytes_per_device(self) -> int:
        """State, batch and temporaries of the train step, as the compiler laid them out."""
        return program_bytes(self.train_step)


def unrolls(config: Config, mesh: Mesh) -> bool:
    """Whether layers are compiled one by one; `auto` does so on CPU, where it makes steps faster,
    but not in stages, which scan their layers.

    Raises:
        UserError: train.unroll_layers is true on a mesh with stages.
    """
    stages, unroll = mesh.shape["stage"], config.train.unroll_layers
    if unroll == "auto":
        return mesh.devices.flat[0].platform == "cpu" and stages == 1
    if unroll and stages > 1:
        raise UserError(
            f"train.unroll_layers is true, but mesh.stage is {stages}, and a stage scans its "
            f"layers; leave it at auto"
        )
    return unroll


def make_program(config: Config, mesh: Mesh, vocab_size: int) -> Program:
    """Put model, optimizer, schedule and placement together; nothing is allocated or compiled.

    In one process, runs that differ only in seed, learning rate or place share what is compiled.

    Raises:
        UserError: the mesh does not divide the parameters, the layers, or the rows, or
            train.kernels cannot serve.
    """
    reference = reference_model(config, vocab_size)
    shared = _shared_program(_program_part(config), mesh, vocab_size, reference)
    return replace(shared, config=config)


def _program_part(config: Config) -> Config:
    """The configuration, with the keys that no program depends on set to constants."""
    return config.model_copy(
        update={
            "data": config.data.of_shapes,
            "train": config.train.model_copy(
                update={"profile": None} | ({} if config.keys else {"seed": 0})
            ),
            "optimizer": config.optimizer.model_copy(
                update=dict.fromkeys(rates_of(config.optimizer), 1.0)
            ),
            "eval": EvalConfig(),
            "checkpoint": CheckpointConfig(),
            "run": RunConfig(),
        }
    )


def _rates(config: Config) -> dict[str, jax.Array]:
    return {key: jnp.float32(rate) for key, rate in rates_of(config.optimizer).items()}


def _new_program(
    config: Config, mesh: Mesh, vocab_size: int, reference: LanguageModel | None
) -> Program:
    check_length(mesh.shape["context"], config.data.sequence_length)
    if config.model.encoder is not None:
        check_length(mesh.shape["context"], config.model.encoder.length, "model.encoder.length")
    train, optimizer_config = config.train, config.optimizer
    for trunk in filter(None, (config.model, config.model.encoder)):
        _check_stages(mesh.shape["stage"], trunk)
        _check_context(mesh.shape["context"], trunk)
    rows = train.batch_size // train.accumulation
    pipeline = make_pipeline(mesh.shape, rows, train.pipeline_micro_batches)
    scanned = build_model(
        config.model,
        vocab_size=vocab_size,
        dtype=jnp.dtype(train.precision),
        remat=train.remat,
        kernels=train.kernels,
        lora=config.lora,
    )
    model = scanned.clone(layout="unrolled") if unrolls(config, mesh) else scanned
    in_step = model.clone(
        micro_batches=pipeline.micro_batches if pipeline else None,
        statistics=train.layer_statistics is not None,
    )
    boxed = abstract_parameters(model)
    whole, axes = meta.unbox(boxed), rules.logical_axes(boxed)
    trained = trained_paths(config, whole)
    optimizer = make_optimizer(optimizer_config, split(axes, trained)[0])

    def init(key: jax.Array, given: PyTree, rates: dict[str, jax.Array]) -> TrainState:
        # The scanned layout gives the same parameters, and compiles in a fraction of the time.
        example = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), config.model.example)
        fresh = meta.unbox(scanned.init(key, example)["params"])
        params, rest = split(_put_in(fresh, given), trained)
        frozen, base = (rest, {}) if config.lora is None else ({}, rest)
        state = init_state(params, optimizer, train.ema_decay, frozen, base)
        return state.replace(rates=rates)

    def loss_of(
        params: PyTree, reference_params: PyTree, batch: Batch, rngs: dict[str, jax.Array]
    ) -> Loss:
        compared = None if reference is None else Reference(reference, reference_params)
        return train.objective.loss(
            in_step, params, batch, z_loss=train.z_loss, rngs=rngs, reference=compared
        )

    train_step = make_train_step(
        loss_of,
        optimizer,
        make_schedule(optimizer_config.schedule, train.steps),
        StepOptions(
            optimizer_config.learning_rate,
            train.accumulation,
            optimizer_config.clip_norm,
            train.ema_decay,
            seed=train.seed,
            keys=config.keys,
            model=config.model,
            moved_biases=moved_biases(config, whole),
            measures_layers=train.layer_statistics is not None,
        ),
    )
    with rules.use_mesh(mesh, config.mesh.table):  # as in `initial_state`, which traces no more
        shapes = jax.eval_shape(init, jax.random.key(0), {}, _rates(config))
    shardings = rules.like_parameters(
        mesh, whole, rules.parameter_shardings(mesh, boxed, config.mesh.table), shapes
    )
    return Program(
        config=config,
        mesh=mesh,
        model=model,
        abstract=placed(shapes, shardings).replace(
            reference=abstract_reference(reference, config, mesh)
        ),
        init=init,
        train_step=train_step,
        eval_step=make_eval_step(model, train.objective),
        kernels=_chosen_kernels(model, mesh, config.data.sequence_length, train.objective),
        frozen_products=_frozen_products(config, whole, axes, trained),
        pipeline=pipeline,
    )


_shared_program = lru_cache(maxsize=2)(_new_program)


def _check_stages(stages: int, model: TrunkConfig) -> None:
    if stages > 1 and not model.depth.has_stages:
        raise DoesNotFit(
            f"mesh.stage is {stages}, but stages cannot share the layers of model.depth "
            f"{model.depth.kind}; leave mesh.stage at 1"
        )
    period = model.depth.period(model.num_layers, len(model.pattern))
    check_repetitions(stages, model.num_layers, period, len(model.first))


def _check_context(context: int, model: TrunkConfig) -> None:
    if context > 1 and not model.inputs.can_be_cut:
        raise DoesNotFit(
            f"mesh.context is {context}, but rows cannot be cut below model.inputs "
            f"{model.inputs.kind}; leave mesh.context at 1"
        )


def _put_in(fresh: PyTree, given: PyTree) -> PyTree:
    leaves = by_path(fresh)
    for path, leaf in by_path(given).items():
        corner = tuple(map(slice, leaf.shape))
        same = leaf.shape == leaves[path].shape
        leaves[path] = leaf if same else leaves[path].at[corner].set(leaf)
    return from_paths(leaves)


def _frozen_products(
    config: Config, whole: PyTree, axes: PyTree, trained: Collection[str]
) -> float:
    looked_up = () if config.model.tie_embeddings else ("embedding",)
    leaves = {path: leaf for path, leaf in by_path(whole).items() if _is_used(path, config)}
    return sum(
        active_share(config.model, path) * math.prod(leaves[path].shape)
        for path, is_matrix in by_path(decay_mask(axes)).items()
        if is_matrix and path in leaves and path not in trained and path not in looked_up
    )


def _is_used(path: str, config: Config) -> bool:
    return not path.startswith(FURTHER_PATH) or config.train.objective.trains_further


def _chosen_kernels(
    model: LanguageModel, mesh: Mesh, length: int, objective: ObjectiveConfig
) -> tuple[str, ...]:
    asked = model.kernels.attention
    if objective.gives_order:
        if asked not in ("auto", "xla"):
            raise DoesNotFit(
                f"train.kernels.attention is {asked}, but train.objective is {objective.kind}, in "
                f"which tokens see later ones, and no kernel supports that; allowed: auto, xla"
            )
        return (f"attention xla: no kernel supports {objective.kind}",)
    try:
        with rules.use_mesh(mesh):
            return kernels(model, length)
    except ValueError as error:
        raise DoesNotFit(
            f"train.kernels.attention is {asked}, but {error}; auto takes a kernel where it can "
            f"serve"
        ) from None


def weights(state: TrainState) -> PyTree:
    """All weights of the model, trained or not."""
    return join(state.base, state.frozen, state.params)


def averaged(state: TrainState) -> PyTree:
    """The weights to evaluate and to sample from: the moving average where one is kept."""
    return weights(state if state.ema is None else state.replace(params=state.ema))


def trees(state: TrainState) -> dict[str, PyTree]:
    """The arrays of a checkpoint."""
    average = {} if state.ema is None else {"ema": join(state.frozen, state.ema)}
    params = join(state.frozen, state.params)
    return {"params": params, "opt_state": state.opt_state, **average}


def progress(state: TrainState) -> Json:
    """How far the run is, besides its place in the data (see `Course.progress`)."""
    return {"step": int(state.step), "nonfinite": int(state.nonfinite)}


def restored(
    program: Program, arrays: dict[str, PyTree], progress: Json, base: PyTree | None = None
) -> TrainState:
    """The state that `trees` and `progress` were made from, with the `base` under its adapters."""
    step, nonfinite, rates = jax.device_put(
        (jnp.int32(progress["step"]), jnp.int32(progress["nonfinite"]), _rates(program.config)),
        rules.replicated(program.mesh),
    )
    trained = by_path(program.abstract.params)
    params, frozen = split(arrays["params"], trained)
    ema = split(arrays["ema"], trained)[0] if "ema" in arrays else None
    return TrainState(
        step, params, arrays["opt_state"], ema, nonfinite, frozen, base or {}, rates=rates
    )
