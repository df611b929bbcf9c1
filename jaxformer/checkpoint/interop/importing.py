"""Import of a pretrained model as a run, which everything that loads runs can load."""

import hashlib
import json
import math
import shutil
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError

from jaxformer.checkpoint import integrity
from jaxformer.checkpoint.interop.checkpoint_files import ParameterWriter, leaf_of
from jaxformer.checkpoint.interop.families import family_of
from jaxformer.checkpoint.interop.family import Family
from jaxformer.checkpoint.interop.folder import VOCABULARY
from jaxformer.checkpoint.interop.pictures import class_names, preparation
from jaxformer.checkpoint.interop.quantized import dequantised
from jaxformer.checkpoint.interop.rules import Rule
from jaxformer.checkpoint.interop.sound import recordings_of_whisper, sample_rate
from jaxformer.checkpoint.interop.source import Source
from jaxformer.checkpoint.interop.table import Table
from jaxformer.checkpoint.manifest import git_revision, source_hash, versions
from jaxformer.checkpoint.run_directory import RunDirectory
from jaxformer.config import Config
from jaxformer.data.class_names import ClassNames
from jaxformer.data.tokenizers import Tokenizer, load_tokenizer
from jaxformer.errors import UserError
from jaxformer.model.inputs import RawConfig
from jaxformer.paths import is_remote, nearest_existing
from jaxformer.reading import read_json_object
from jaxformer.run_files import CLASSES, TOKENIZER
from jaxformer.schema.explanations import explain
from jaxformer.terminal import progress, say

Json = dict[str, Any]

LONGEST_ROW = 1024  # tokens, in the run's configuration for fine-tuning; users may set more
FINE_TUNING: Json = {
    "train": {"steps": 1000, "batch_size": 8},
    "optimizer": {
        "kind": "adamw",
        "learning_rate": 2e-5,
        "weight_decay": 0.0,
        "b2": 0.999,
        "schedule": {"kind": "cosine", "warmup_steps": 50},
    },
}


def import_model(source: Source, out: Path) -> Config:
    """Make the run directory `out` from a model: configuration, tokenizer, and `checkpoints/0`.

    Numbers become float32, which holds them exactly. No more than two tensors of the source are in
    memory at a time: one is written while the next is read.

    Raises:
        UserError: `out` is used, or the model or a part of it is not supported; nothing is left.
    """
    if is_remote(out):
        raise UserError(f"{out} is in a bucket; import into a folder, and copy it there")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} exists already; give a new folder")
    if not (there := nearest_existing(out)).is_dir():
        raise UserError(f"{out} cannot be made: {there} is a file; give another folder")
    source = dequantised(source)
    family = family_of(source.config, source.name)
    stored = family.as_stored(source.config, source.tensors)
    model = family.read(stored, f"{source.name}: config.json")

    kinds = {"images": _of_pictures, "audio": _of_sound, "pairs": _of_pairs}
    if model.get("encoder") is not None:
        kinds |= {"images": _of_pictures_and_texts, "audio": _of_sound_and_texts}
    make_sections = kinds.get(family.reads, _of_text)
    building = out.with_name(f".{out.name}.importing")
    shutil.rmtree(building, ignore_errors=True)
    try:
        building.mkdir(parents=True)
        sections = make_sections(source, family, model, building / TOKENIZER, out)
        train = _training(family, building / TOKENIZER, source)
        run = {"dir": str(out)}
        config = _config({**FINE_TUNING, **sections, "train": train, "run": run}, source.name)
        tokenizer = _tokenizer(config, building, source.name)
        table = Table(family, config.model)
        rules = table.rules_of(source.tensors, source.name)
        _check_copies(source, table)
        checkpoint = building / "checkpoints" / "0"
        hashes = _write_parameters(source, table, rules, checkpoint / "params")
        known = {f"params/{name}": digest for name, digest in hashes.items()}
        integrity.seal(checkpoint, _manifest(source.name, config, tokenizer, table), known)
        RunDirectory(building).create(config)
        if out.exists():
            out.rmdir()
        building.rename(out)
    finally:
        shutil.rmtree(building, ignore_errors=True)
    return config


def _of_text(source: Source, family: Family, model: Json, tokenizer: Path, out: Path) -> Json:
    """The sections of a model of text, whose tokenizer is written."""
    tokenizer.mkdir()
    has_tokenizer = source.write_tokenizer(tokenizer)
    if not has_tokenizer:
        tokenizer.rmdir()
        say(
            f"{source.name} has no tokenizer.json: data.tokenizer of {out} is 'bytes'; set the "
            f"right one in its config.yaml"
        )
    longest = model["positions"].get("max_length") or LONGEST_ROW
    data = {
        "tokenizer": str(out.absolute() / TOKENIZER) if has_tokenizer else "bytes",
        "sequence_length": min(longest, LONGEST_ROW),
    }
    return {"model": model, "data": data}


def _of_pictures(source: Source, family: Family, model: Json, tokenizer: Path, out: Path) -> Json:
    """The sections of a model of pictures, whose classes are written. Its source of pictures is a
    folder in the run that nobody has made yet."""
    inputs = model["inputs"]
    normalization, images = preparation(source, inputs["size"], family.image_processor)
    names = class_names(source.config, model["vocab_size"], source.name)
    tokenizer.mkdir()
    classes = ClassNames("classes", names)
    (tokenizer / CLASSES).write_text(classes.as_json() + "\n", "utf-8")
    data = {
        "kind": "images",
        "source": f"imagefolder:{out.absolute() / 'pictures'}",
        "images": {**images, "channels": inputs["channels"]},
        "tokenizer": str(out.absolute() / TOKENIZER),
        "sequence_length": model["positions"]["max_length"] - 1,
    }
    return {"model": {**model, "inputs": inputs | normalization}, "data": data}


def _of_pictures_and_texts(
    source: Source, family: Family, model: Json, tokenizer: Path, out: Path
) -> Json:
    """The sections of a model that compares pictures with texts, whose tokenizer is written. Its
    source is a folder in the run that nobody has made yet."""
    encoder = model["encoder"]
    inputs = encoder["inputs"]
    normalization, images = preparation(source, inputs["size"], family.image_processor)
    sections = _of_text(source, family, model, tokenizer, out)
    data = {
        **sections["data"],
        "kind": "images",
        "source": f"imagefolder:{out.absolute() / 'pictures'}",
        "images": {
            **images,
            "channels": inputs["channels"],
            "text": "text",
            "fill": _padding(source, tokenizer) if model["order"] == "full" else None,
        },
    }
    encoder = {**encoder, "inputs": inputs | normalization}
    return {"model": {**model, "encoder": encoder}, "data": data}


def _of_pairs(source: Source, family: Family, model: Json, tokenizer: Path, out: Path) -> Json:
    """The sections of a model that reads a text and writes another, whose tokenizer is written. Its
    source is a file in the run that nobody has made yet."""
    sections = _of_text(source, family, model, tokenizer, out)
    length = model["encoder"]["length"]
    data = {
        **sections["data"],
        "kind": "pairs",
        "source": f"jsonl:{out.absolute() / 'pairs.jsonl'}",
        "pairs": {
            "source": "source",
            "target": "target",
            "source_length": length,
            "start": source.config.get("decoder_start_token_id", 0),
        },
        "sequence_length": length,
    }
    return {**sections, "data": data}


def _padding(source: Source, folder: Path) -> int:
    """The id that the text model sees behind the end of texts."""
    tokenizer = load_tokenizer(str(folder)) if folder.exists() else None
    name = getattr(tokenizer, "named_specials", {}).get("pad_token")
    if tokenizer is not None and name is not None and name in tokenizer.specials:
        return tokenizer.specials[name]
    stated = source.config.get("text_config", {}).get("pad_token_id")
    return 1 if stated is None else stated  # SigLIP's


def _of_sound(source: Source, family: Family, model: Json, tokenizer: Path, out: Path) -> Json:
    """The sections of a model of sound, whose tokenizer is written. Its source of recordings is a
    folder in the run that nobody has made yet."""
    rate = sample_rate(source)
    tokenizer.mkdir()
    has_tokenizer = source.write_vocabulary(tokenizer)
    if not has_tokenizer:
        tokenizer.rmdir()
        say(
            f"{source.name} has no {VOCABULARY}: data.tokenizer of {out} is 'bytes'; to train on "
            f"texts of your own, give init.from={out} init.partial=[head,head_bias] "
            f"data.tokenizer=characters model.vocab_size=null train.objective.blank=null"
        )
    inputs = {**model["inputs"], "sample_rate": rate}
    data = {
        "kind": "audio",
        "source": f"audiofolder:{out.absolute() / 'recordings'}",
        "audio": {
            "sample_rate": rate,
            "samples_per_place": RawConfig.model_validate(inputs).samples,
            "text": "text",
        },
        "tokenizer": str(out.absolute() / TOKENIZER) if has_tokenizer else "bytes",
        "sequence_length": LONGEST_ROW,
    }
    return {"model": {**model, "inputs": inputs}, "data": data}


def _of_sound_and_texts(
    source: Source, family: Family, model: Json, tokenizer: Path, out: Path
) -> Json:
    """The sections of a model that writes what is said, whose tokenizer is written. Its source of
    recordings is a folder in the run that nobody has made yet."""
    sections = _of_text(source, family, model, tokenizer, out)
    recordings = {
        "kind": "audio",
        "source": f"audiofolder:{out.absolute() / 'recordings'}",
        "audio": recordings_of_whisper(source, model["encoder"]),
    }
    return {**sections, "data": sections["data"] | recordings}


def _training(family: Family, tokenizer: Path, source: Source) -> Json:
    """The section `train`, with the family's objective: the tokenizer has the mask, and config.json
    the blank, which is the padding."""
    train, objective = FINE_TUNING["train"], family.objective
    if objective is None:
        return train
    if objective["kind"] == "masked_tokens":
        objective = {**objective, "mask_id": _mask_id(tokenizer, source.name)}
    if objective["kind"] == "ctc":
        objective = {**objective, "blank": source.config.get("pad_token_id", 0)}
    return {**train, "objective": objective}


def _mask_id(folder: Path, name: str) -> int:
    tokenizer = load_tokenizer(str(folder)) if folder.exists() else None
    named = getattr(tokenizer, "named_specials", {})
    if tokenizer is None or named.get("mask_token") not in tokenizer.specials:
        raise UserError(
            f"{name} has no tokenizer.json with a mask_token, which stands for hidden tokens; in "
            f"transformers, AutoTokenizer.from_pretrained(NAME).save_pretrained(FOLDER) writes it"
        )
    return tokenizer.specials[named["mask_token"]]


def _config(sections: Json, name: str) -> Config:
    try:
        return Config.model_validate(sections)
    except ValidationError as error:
        lines = [mistake.text for mistake in explain(error, Config)]
        raise UserError(
            f"{name}: its config.json describes a model that is not possible here (the keys are "
            f"those of the run's configuration):\n  " + "\n  ".join(lines)
        ) from error


def _tokenizer(config: Config, building: Path, source: str) -> Tokenizer:
    """The run's tokenizer, from where it lies now."""
    name = config.data.tokenizer
    is_text = (building / TOKENIZER / "tokenizer.json").exists()
    if is_text:
        _leave_out_beyond(building / TOKENIZER / "tokenizer.json", config.model.vocab_size or 0)
    tokenizer = load_tokenizer(name if name == "bytes" else str(building / TOKENIZER))
    if is_text:
        _check_vocabulary(tokenizer, config.model.vocab_size or 0, source)
    return tokenizer


def _leave_out_beyond(file: Path, vocab_size: int) -> None:
    """Take special tokens without a row in the embedding out of a tokenizer.json, such as Gemma 3's
    for images. If others have none either, all stay, to be refused."""
    content = read_json_object(file.read_bytes(), str(file))
    added = content.get("added_tokens") or []
    beyond = [token for token in added if token["id"] >= vocab_size]
    names = {token["content"] for token in beyond}
    vocab = content["model"].get("vocab")
    if not isinstance(vocab, dict) or not all(token.get("special") for token in beyond):
        return
    kept = {token: at for token, at in vocab.items() if token not in names}
    if not beyond or max(kept.values(), default=0) >= vocab_size:
        return
    content["model"]["vocab"] = kept
    content["added_tokens"] = [token for token in added if token not in beyond]
    file.write_text(json.dumps(content, ensure_ascii=False), "utf-8")
    say(f"leaving out special tokens without a row in the embedding: {', '.join(sorted(names))}")


def _check_vocabulary(tokenizer: Tokenizer, vocab_size: int, source: str) -> None:
    """Refuse a tokenizer with more ids than the embedding has rows."""
    if tokenizer.vocab_size > vocab_size:
        raise UserError(
            f"{source}: its tokenizer has {tokenizer.vocab_size} ids, but vocab_size of its "
            f"config.json is {vocab_size}: tokens were added, or it is another model's. In "
            f"transformers, model.resize_token_embeddings({tokenizer.vocab_size}) makes room for "
            f"them; without a tokenizer.json, the model is imported alone"
        )


def _write_parameters(
    source: Source, table: Table, rules: dict[str, Rule], folder: Path
) -> dict[str, str]:
    """Write all parameters; → the hashes of the files, by their places in `folder`."""
    writer = ParameterWriter(
        folder, {path: tuple(leaf["shape"]) for path, leaf in table.leaves.items()}
    )
    sizes = {name: math.prod(source.tensors[name].shape) for name in rules}
    done = 0
    with (
        progress(f"importing {source.name}", sum(sizes.values())) as report,
        ThreadPoolExecutor(1, "write") as pool,
    ):
        writing: Future[None] | None = None
        for names, rule in _together(rules, table, source):
            theirs = [source.read(name) for name in names]
            if writing is not None:
                writing.result()
            writing = pool.submit(_write_tensors, writer, table, rule, theirs)
            del theirs  # or it would stay in memory while the one after the next is read
            done += sum(sizes[name] for name in names)
            report(done)
        if writing is not None:
            writing.result()
    if fresh := table.fresh(source.tensors):
        say(f"{source.name} has no {' and no '.join(fresh)}: they start at zero")
        for rule in table.rules:
            if rule.theirs in fresh:
                zeros = [np.zeros(shape, np.float32) for shape in table.stored(rule).values()]
                _write_tensors(writer, table, rule, zeros)
    writer.finish()
    return writer.hashes


def _together(
    rules: dict[str, Rule], table: Table, source: Source
) -> Iterator[tuple[list[str], Rule]]:
    """The tensors that are read at once, in the order of the first of each, and their rule."""
    for name, rule in rules.items():
        names = [table.name(each, source.tensors) for each in rule.names]
        if name == names[0]:
            yield names, rule


def _write_tensors(
    writer: ParameterWriter, table: Table, rule: Rule, theirs: list[np.ndarray]
) -> None:
    arrays = rule.to_ours(theirs, table.shapes(rule))
    for path, array in zip(rule.ours, arrays, strict=True):
        writer.write(*leaf_of(path, table.model), array)


def _manifest(source: str, config: Config, tokenizer: Tokenizer, table: Table) -> dict[str, Any]:
    return {
        "config": config.model_dump(mode="json"),
        "tokenizer": {"name": config.data.tokenizer, "fingerprint": tokenizer.fingerprint},
        "data": {"imported": source},
        "imported": table.family.model_type,
        "versions": versions(),
        "git_revision": git_revision(),
        "source": source_hash(),
        "step": 0,
        "saved_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "metrics": {"eval/loss": None},
        "state": {"step": 0},
        "trees": {"params": table.leaves},
    }


def _check_copies(source: Source, table: Table) -> None:
    """Refuse a tensor that should be a copy and differs, such as a head from its tied embedding; an
    equal one is left out."""
    for names in table.copies(source.tensors):
        copy, original = (
            hashlib.sha256(source.read(name).view(np.uint8).data).digest() for name in names
        )
        if copy == original:
            continue
        mend = "this file is of another kind of model"
        if names[0] == "lm_head.weight":
            mend = "set tie_word_embeddings to false in config.json, or remove the tensor"
        raise UserError(
            f"{source.name}: {names[0]} differs from {names[1]}, of which it should be a copy; "
            f"{mend}"
        )
