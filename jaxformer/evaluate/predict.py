"""`jaxformer predict`: the classes of pictures and recordings that a user names, what is said in
recordings, which of a few texts tell of pictures, or translations."""

import json as json_format
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jaxformer.batch import Batch, Source
from jaxformer.data.audio.decoding import check_soundfile
from jaxformer.data.audio.decoding import decode as decode_recording
from jaxformer.data.audio.rows import batch_of as batch_of_recordings
from jaxformer.data.images.decoding import check_pillow
from jaxformer.data.images.decoding import decode as decode_picture
from jaxformer.data.images.rows import batch_of as batch_of_pictures
from jaxformer.data.media.records import wanted_of
from jaxformer.data.rows import BadRow
from jaxformer.errors import UserError
from jaxformer.evaluate.retrieval import vectors_of_texts
from jaxformer.generate.beam_search import BeamSearch
from jaxformer.generate.ctc import merged
from jaxformer.generate.targets import AT_ONCE
from jaxformer.model.language_model import LanguageModel
from jaxformer.objectives import ContrastiveConfig
from jaxformer.objectives.ctc import CTCConfig, likeliest
from jaxformer.parallel.mesh import data_shards
from jaxformer.parallel.rules import put_rows, use_mesh, whole
from jaxformer.run import BEAM_SEARCH, Run, load
from jaxformer.terminal import progress

Step = Callable[[Any, Batch], jax.Array]
FILES_AT_ONCE = 64


class Prediction(NamedTuple):
    """The likeliest classes of a picture or recording, and their probabilities."""

    file: str
    classes: list[tuple[str, float]]


class Transcript(NamedTuple):
    """What is said in a recording, by the likeliest label of every place or by a decoder."""

    file: str
    text: str


class Translation(NamedTuple):
    """What the decoder of a run writes of a text."""

    source: str
    text: str


class Texts(NamedTuple):
    """Texts to translate, or those that pictures are compared with, each put into the template; and
    how a decoder searches."""

    texts: Sequence[str] = ()
    template: str = "{}"
    search: BeamSearch = BEAM_SEARCH


NO_TEXTS = Texts()


def predict(
    run: Run, files: Sequence[Path], top: int, given: Texts = NO_TEXTS
) -> list[Prediction] | list[Transcript]:
    """The `top` likeliest classes of every file, or all if there are fewer; or, for a run that was
    trained on what is said, the text; or, for one that compares pictures with texts, which of the
    texts are likeliest.

    Raises:
        UserError: a file is missing, damaged, or too long for a row of the run, or the run was
            trained on text, or to predict what is hidden; texts are given for a run that compares
            with none, or are missing.
    """
    data, model, objective = run.config.data, run.model, run.config.train.objective
    texts = given.texts
    if data.kind == "text":
        raise UserError(
            f"this run was trained on data.kind {data.kind}, and predict takes pictures or "
            f'recordings; jaxformer generate RUN --prompt "..." continues text'
        )
    if objective.of_numbers:
        raise UserError(
            f"this run was trained with {objective.kind}, which predicts what is hidden and names "
            f"nothing; train a run with classes or ctc from it, with init.from"
        )
    if not files:
        raise UserError(f"there is no file to read; give the names of {wanted_of(data).noun} files")
    if objective.compares_rows != bool(texts):
        what = "compares pictures with texts; give" if not texts else "knows no texts; leave out"
        raise UserError(
            f"this run was trained with train.objective {objective.kind}, which {what} --text"
        )
    if data.writes:
        parts = (files[first : first + AT_ONCE] for first in range(0, len(files), AT_ONCE))
        sources = (_source(_batch(run, part)) for part in parts)
        said = run.write(sources, len(files), given.search)
        return [Transcript(str(file), text) for file, text in zip(files, said, strict=True)]
    if isinstance(objective, ContrastiveConfig):
        written = vectors_of_texts(run, [given.template.replace("{}", text) for text in texts])
        rows = _results(run, files, partial(_of_texts, model, objective, written))
        return [
            Prediction(str(file), [(texts[at], float(row[at])) for at in _likeliest(row, top)])
            for file, row in zip(files, rows, strict=True)
        ]
    if isinstance(objective, CTCConfig):
        blank = objective.blank_of(model)
        paths = _results(run, files, lambda params, batch: _path(model, blank, params, batch))
        said = [run.tokenizer.decode(merged(path, blank)) for path in paths]
        return [Transcript(str(file), text) for file, text in zip(files, said, strict=True)]
    names = _names(run)
    rows = _results(run, files, lambda params, batch: _probabilities(model, params, batch))
    return [
        Prediction(str(file), [(names[index], float(row[index])) for index in _likeliest(row, top)])
        for file, row in zip(files, (row[: len(names)] for row in rows), strict=True)
    ]


def answers(run: Run, batch: Batch) -> list[str]:
    """The likeliest class of every row of a batch, which each process has whole; or, for a run that
    was trained on what is said, the text."""
    model, objective = run.model, run.config.train.objective
    if run.config.data.writes:
        return run.write([batch.inputs.source], len(batch.targets))
    rows = len(batch.inputs)
    size = rows + -rows % data_shards(run.mesh.shape)
    placed = jax.tree.map(partial(_put, size=size, mesh=run.mesh), batch)
    with use_mesh(run.mesh, run.config.mesh.table):
        if isinstance(objective, CTCConfig):
            blank = objective.blank_of(model)
            paths = whole(jax.jit(partial(_path, model, blank))(run.params, placed))[:rows]
            return [run.tokenizer.decode(merged(path, blank)) for path in paths]
        found = whole(jax.jit(partial(_probabilities, model))(run.params, placed))[:rows]
    names = _names(run)
    return [names[row[: len(names)].argmax()] for row in found]


def _source(batch: Batch) -> Source:
    """What an encoder reads of recordings."""
    return Source(batch.inputs, batch.positions, batch.segment_ids)


def _names(run: Run) -> list[str]:
    return [run.tokenizer.decode([index]) for index in range(run.tokenizer.vocab_size)]


def _probabilities(model: LanguageModel, params: Any, batch: Batch) -> jax.Array:
    """[rows, classes]"""
    rows = (batch.inputs, batch.positions, batch.segment_ids)
    logits, _ = model.apply({"params": params}, *rows, method="classify")
    return jax.nn.softmax(logits)


def _of_texts(
    model: LanguageModel,
    objective: ContrastiveConfig,
    texts: np.ndarray,
    params: Any,
    batch: Batch,
) -> jax.Array:
    """[rows, texts], which add up to 1 where the objective has one text for every picture."""
    pictures = model.apply({"params": params}, batch.inputs, method="source_vectors")
    scale, bias = model.apply({"params": params}, method="head")
    logits = scale * pictures @ texts.T + bias
    return jax.nn.softmax(logits) if objective.form == "softmax" else jax.nn.sigmoid(logits)


def _path(model: LanguageModel, blank: int, params: Any, batch: Batch) -> jax.Array:
    """The likeliest label or blank of every place [rows, places]."""
    rows = (batch.inputs, batch.positions, batch.segment_ids)
    x, head, _ = model.apply({"params": params}, *rows, method="read")
    return jnp.where(batch.segment_ids != 0, likeliest(model, x, head), blank)


def _results(run: Run, files: Sequence[Path], step: Step) -> Iterator[np.ndarray]:
    """What a step gives for every file, from batches of one shape that the mesh divides."""
    compiled = jax.jit(step)
    size = min(FILES_AT_ONCE, len(files))
    size += -size % data_shards(run.mesh.shape)
    with use_mesh(run.mesh, run.config.mesh.table), progress("predicting", len(files)) as report:
        for start in range(0, len(files), size):
            part = files[start : start + size]
            batch = jax.tree.map(partial(_put, size=size, mesh=run.mesh), _batch(run, part))
            yield from whole(compiled(run.params, batch))[: len(part)]
            report(start + len(part))


def _put(array: np.ndarray, size: int, mesh: Mesh) -> jax.Array:
    """An array of a batch, with rows of zeros so that there are `size`."""
    missing = [(0, size - len(array))] + [(0, 0)] * (array.ndim - 1)
    return put_rows(np.pad(array, missing), mesh)


def _likeliest(row: np.ndarray, top: int) -> list[int]:
    order: list[int] = np.argsort(-row, kind="stable")[:top].tolist()
    return order


def _batch(run: Run, files: Sequence[Path]) -> Batch:
    """The files as rows; what is in no file, such as their classes, is 0."""
    data = run.config.data
    contents = [_content(file) for file in files]
    if data.images is not None:
        check_pillow()
        images, nothing = data.images, np.zeros((len(files), 1), np.int32)
        pictures = [_decoded(decode_picture, *each, images) for each in contents]
        return batch_of_pictures(np.stack(pictures), nothing, data.sequence_length)
    assert data.audio is not None
    check_soundfile()
    rate, length = data.audio.sample_rate, data.source_length
    waveforms = [_decoded(decode_recording, *each, rate).samples for each in contents]
    for file, samples in zip(files, waveforms, strict=True):
        if len(samples) > (longest := length * data.audio.samples_per_place):
            raise UserError(
                f"{file} lasts {len(samples) / rate:.2f} s, and rows of this run hold "
                f"{longest / rate:.2f} s; cut it, or give "
                f"data.{'audio.source_length' if data.writes else 'sequence_length'}"
            )
    return batch_of_recordings(waveforms, data.audio, length)


def _content(file: Path) -> tuple[bytes, str]:
    try:
        return file.read_bytes(), str(file)
    except OSError as error:
        raise UserError(f"{file}: {error.strerror}; give files that can be read") from None


def _decoded(decode: Callable[..., Any], *given: Any) -> Any:
    try:
        return decode(*given)
    except BadRow as error:
        raise UserError(str(error).partition("; fix or remove it")[0]) from None


def predict_files(
    path: Path,
    overrides: Sequence[str],
    files: Sequence[Path],
    top: int,
    texts: Texts,
    *,
    json: bool,
) -> int:
    """Print what a run's newest checkpoint, or the one named, says of files or texts.

    Returns:
        The exit code, 0.

    Raises:
        UserError: see `load`, `predict` and `Run.translate`.
    """
    run = load(path, overrides)
    predictions: Sequence[Prediction | Transcript | Translation]
    if run.config.data.kind == "pairs":
        predictions = translations(run, files, texts)
    else:
        predictions = predict(run, files, top, texts)
    if json:
        print(json_format.dumps([_record(each) for each in predictions], ensure_ascii=False))
        return 0
    for each in predictions:
        print(each.text if isinstance(each, Translation) else f"{each.file}: {_said(each)}")
    return 0


def translations(run: Run, files: Sequence[Path], texts: Texts) -> list[Translation]:
    """The targets of the texts, and of every line of the files that is not empty.

    Raises:
        UserError: there is none, a file cannot be read, or see `Run.translate`.
    """
    lines = [line for file in files for line in _lines(file)]
    sources = [*texts.texts, *(line for line in lines if line.strip())]
    if not sources:
        raise UserError("there is nothing to translate; give --text, or files of sentences")
    written = run.translate(sources, texts.search)
    return [Translation(*pair) for pair in zip(sources, written, strict=True)]


def _lines(file: Path) -> list[str]:
    content, _ = _content(file)
    try:
        return content.decode().splitlines()
    except UnicodeDecodeError:
        raise UserError(
            f"{file} is no text in UTF-8; give files of sentences, one per line"
        ) from None


def _record(each: Prediction | Transcript | Translation) -> dict[str, Any]:
    if not isinstance(each, Prediction):
        return each._asdict()
    return {"file": each.file, "classes": dict(each.classes)}


def _said(each: Prediction | Transcript) -> str:
    if isinstance(each, Transcript):
        return each.text
    return ", ".join(f"{name} {probability:.1%}" for name, probability in each.classes)
