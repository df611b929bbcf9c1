"""A run as a folder that transformers loads."""

import json
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxformer.checkpoint.interop import sound
from jaxformer.checkpoint.interop.blocks import contiguous_blocks
from jaxformer.checkpoint.interop.checkpoint_files import ParameterReader, leaf_of
from jaxformer.checkpoint.interop.ctc_tokenizer import to_vocabulary
from jaxformer.checkpoint.interop.families import choose_family
from jaxformer.checkpoint.interop.family import Family
from jaxformer.checkpoint.interop.folder import (
    INDEX,
    PREPROCESSOR,
    TOKENIZER_CONFIG,
    VOCABULARY,
)
from jaxformer.checkpoint.interop.merged import MergedParameters
from jaxformer.checkpoint.interop.pictures import labels, preprocessor_config
from jaxformer.checkpoint.interop.rules import Rule
from jaxformer.checkpoint.interop.safetensors import size_of, write_file
from jaxformer.checkpoint.interop.source import TensorInfo
from jaxformer.checkpoint.interop.table import Table
from jaxformer.checkpoint.interop.tokenizer_folder import write_tokenizer_folder
from jaxformer.checkpoint.interop.towers import TEXT
from jaxformer.checkpoint.manifest import differences
from jaxformer.checkpoint.weights import Weights, find_weights
from jaxformer.config import Config
from jaxformer.data.class_names import ClassNames
from jaxformer.data.tokenizers import Tokenizer, load_tokenizer, start_id
from jaxformer.errors import UserError
from jaxformer.model.accounting import FURTHER_PATH
from jaxformer.model.config import ModelConfig
from jaxformer.model.inputs import FramesConfig, RawConfig
from jaxformer.paths import is_remote, nearest_existing
from jaxformer.terminal import progress, say

SHARD_BYTES = 5_000_000_000

Json = dict[str, Any]

NO_ENDS: Json = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}

# Depths whose parameters are those of all layers once; transformers does not know their exits.
SAME_LAYERS = ("fixed", "exits")
SAME_INPUTS = ("tokens", "typed_tokens", "patches", "raw")


def export_model(
    run: Path, out: Path, dtype: str = "float32", overrides: Sequence[str] = ()
) -> Json:
    """Write the newest checkpoint of `run`, or the one that it names, into the folder `out`.

    Parameters are those that `jaxformer.load` would give: their moving average, if there is one,
    and adapters merged; those of `model.further` are left out if no family has them. Except with
    adapters, only one layer's tensor is in memory at a time.

    Args:
        overrides: `key.path=value` each, on top of the run's configuration.

    Returns:
        config.json.

    Raises:
        UserError: `out` is used; no such checkpoint; no family has such a model.
    """
    if is_remote(out):
        raise UserError(f"{out} is in a bucket; give a folder on a disk")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} already exists; give a new folder")
    weights = find_weights(run, overrides)
    config = weights.config
    tokenizer = load_tokenizer(config.data.tokenizer, config.data.add_bos)
    inputs = config.model.inputs.kind
    if config.model.depth.kind not in SAME_LAYERS or inputs not in SAME_INPUTS:
        raise UserError(
            f"{weights.where} has model.depth {config.model.depth.kind} and model.inputs "
            f"{inputs}, which no model of transformers has; allowed: depth "
            f"{' or '.join(SAME_LAYERS)}, inputs {' or '.join(SAME_INPUTS)}"
        )
    vocab_size = config.model.vocab_size or tokenizer.vocab_size
    model = config.model.model_copy(update={"vocab_size": vocab_size})
    model, family, options = _with_family(model, weights.manifest.get("imported"))
    table = Table(family, model)
    described = weights.description()
    if model.further is None:
        further = {path for path in described if path.startswith(FURTHER_PATH)}
        described = {path: leaf for path, leaf in described.items() if path not in further}
    if faults := differences(described, table.leaves):
        raise UserError(
            f"{weights.where} does not have the parameters of a {family.model_type}:\n  "
            + "\n  ".join(faults[:20])
        )
    reader: ParameterReader | MergedParameters
    if config.lora is None:
        with weights.checkpoints as checkpoints:
            checkpoints.verify(weights.step)
        reader = ParameterReader(weights.where / weights.item)
    else:
        reader = MergedParameters(weights)

    if not (there := nearest_existing(out)).is_dir():
        raise UserError(f"{out} cannot be made: {there} is a file; give another folder")
    building = out.with_name(f".{out.name}.exporting")
    shutil.rmtree(building, ignore_errors=True)
    try:
        building.mkdir(parents=True)
        options = {"architectures": [family.architecture], **options, "dtype": dtype}
        if "max_position_embeddings" in family.defaults:
            longest = max(stage.sequence_length for stage in config.data.of_stages)
            options.setdefault("max_position_embeddings", longest)
        stands_in = tokenizer.vocab_size > vocab_size or _has_none(weights)
        if isinstance(tokenizer, ClassNames):
            del options["num_labels"]
            options |= labels(tokenizer.names, vocab_size)
        elif isinstance(model.inputs, RawConfig):
            options |= _ends_of_sound(config, tokenizer)
            _write_json(building / PREPROCESSOR, sound.preprocessor_config(model.inputs))
            if not stands_in:
                _write_vocabulary(building, tokenizer)
        else:
            ends = dict(NO_ENDS)
            if config.data.writes:
                # Also where another tokenizer stands in, which may not have the id.
                ends["decoder_start_token_id"] = (config.data.start or (start_id(tokenizer),))[0]
            if not stands_in:
                ends |= {"bos_token_id": tokenizer.bos_id, "eos_token_id": tokenizer.eos_id}
                _write_json(building / "generation_config.json", ends)
                write_tokenizer_folder(tokenizer, building)
                if TEXT in family.parts and config.data.images is not None:
                    # Where transformers looks for the end of a text.
                    options[TEXT] |= ends | {"pad_token_id": config.data.images.fill}
            options |= ends
        if config.data.images is not None:
            preprocessor = preprocessor_config(config, family.image_processor)
            _write_json(building / PREPROCESSOR, preprocessor)
        if model.encoder is not None and isinstance(model.encoder.inputs, FramesConfig):
            size = (model.encoder.inputs.mels, model.encoder.length)
            _write_json(building / PREPROCESSOR, sound.preprocessor_of_whisper(*size))
        _write_json(building / "config.json", options)
        _write_tensors(table, reader, building, dtype, str(run))
        if out.exists():
            out.rmdir()
        building.rename(out)
    finally:
        shutil.rmtree(building, ignore_errors=True)
    return options


def _ends_of_sound(config: Config, tokenizer: Tokenizer) -> Json:
    """The blank of CTC as the padding, as transformers calls it."""
    blank = getattr(config.train.objective, "blank", None)
    return NO_ENDS | {"pad_token_id": tokenizer.vocab_size - 1 if blank is None else blank}


def _write_vocabulary(folder: Path, tokenizer: Tokenizer) -> None:
    files = to_vocabulary(tokenizer)
    if files is None:
        say(f"leaving out the tokenizer: it is not of characters, and no {VOCABULARY} can hold it")
        return
    for file, content in zip((VOCABULARY, TOKENIZER_CONFIG), files, strict=True):
        _write_json(folder / file, content)


def _has_none(weights: Weights) -> bool:
    """Whether the model was imported without a tokenizer, for which bytes stand in."""
    return "imported" in weights.manifest and weights.config.data.tokenizer == "bytes"


def _with_family(model: ModelConfig, first: str | None) -> tuple[ModelConfig, Family, Json]:
    """The model, without `model.further` if no family has that, with its family and config.json;
    for `first` see `choose_family`."""
    try:
        return model, *choose_family(model, first)
    except UserError:
        if model.further is None:
            raise
    alone = model.model_copy(update={"further": None})
    family, options = choose_family(alone, first)
    say(
        f"leaving out model.further {model.further.kind}, which a {family.model_type} does not "
        f"have: the export predicts the next token alone"
    )
    return alone, family, options


def _write_tensors(
    table: Table,
    reader: ParameterReader | MergedParameters,
    folder: Path,
    dtype: str,
    title: str,
) -> None:
    """Write in the order of our arrays, each of which holds those of several layers."""
    rules = sorted(
        table.rules, key=lambda rule: [leaf_of(path, table.model)[0] for path in rule.ours[:1]]
    )
    infos = {
        name: TensorInfo(shape, dtype)
        for rule in rules
        for name, shape in table.stored(rule).items()
    }
    shards = _shards(infos)
    done = 0
    with progress(f"exporting {title}", sum(map(size_of, infos.values()))) as report:

        def values(name: str, rule: Rule) -> Iterator[np.ndarray]:
            nonlocal done
            arrays = [reader.read(*leaf_of(path, table.model)) for path in rule.ours]
            theirs = rule.to_theirs(arrays)[rule.names.index(name)]
            yield from contiguous_blocks(theirs, dtype)
            done += size_of(infos[name])
            report(done)

        rule_of = {name: rule for rule in rules for name in rule.names}
        for file, tensors in shards.items():
            write_file(folder / file, tensors, (values(name, rule_of[name]) for name in tensors))
    if len(shards) > 1:
        index = {name: file for file, tensors in shards.items() for name in tensors}
        total = {"total_size": sum(map(size_of, infos.values()))}
        _write_json(folder / INDEX, {"metadata": total, "weight_map": index})


def _shards(infos: dict[str, TensorInfo]) -> dict[str, dict[str, TensorInfo]]:
    """The tensors by file, each file with up to SHARD_BYTES or with one tensor."""
    shards: list[dict[str, TensorInfo]] = [{}]
    used = 0
    for name, info in infos.items():
        if shards[-1] and used + size_of(info) > SHARD_BYTES:
            shards.append({})
            used = 0
        shards[-1][name] = info
        used += size_of(info)
    if len(shards) == 1:
        return {"model.safetensors": shards[0]}
    return {
        f"model-{index:05}-of-{len(shards):05}.safetensors": shard
        for index, shard in enumerate(shards, 1)
    }


def _write_json(file: Path, content: Json) -> None:
    file.write_text(json.dumps(content, indent=2) + "\n", "utf-8")
