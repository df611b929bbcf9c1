"""GGUF files, which llama.cpp runs, as a source of weights."""

import json
import re
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from jaxformer.checkpoint.interop.source import TensorInfo
from jaxformer.errors import UserError

NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
}
LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
EMBEDDING, ROPE_FACTORS = "token_embd.weight", "rope_freqs.weight"


class GGUFFile:
    """A model in one .gguf file, under Hugging Face's names.

    Tensors are read one at a time and come as float32, whatever they are quantised to.

    Raises:
        UserError: the package gguf is missing, the file is damaged, or it holds what a Hugging Face
            folder of that architecture does not.
    """

    def __init__(self, path: Path) -> None:
        if find_spec("gguf") is None:
            raise UserError(
                f"{path}: reading GGUF needs the package gguf: pip install 'jaxformer[import]'"
            )
        from jaxformer.checkpoint.interop.gguf_config import architecture_of, hugging_face_config
        from jaxformer.checkpoint.interop.gguf_reader import open_gguf
        from jaxformer.checkpoint.interop.gguf_tokenizer import tokenizer_files

        reader, metadata = open_gguf(path)
        self._path = path
        self.name = str(path)
        self._interleaved = architecture_of(metadata).interleaved
        stored = {tensor.name: tensor for tensor in reader.tensors}
        if EMBEDDING not in stored:
            raise UserError(f"{path} holds no {EMBEDDING}; is it a whole model?")
        factors = stored.pop(ROPE_FACTORS, None)
        self._stored = {_hugging_face_name(path, name): stored[name] for name in stored}
        self.tensors: Mapping[str, TensorInfo] = {
            name: TensorInfo(tuple(reversed(tensor.shape.tolist())), "float32")
            for name, tensor in self._stored.items()
        }
        self.config = hugging_face_config(
            metadata,
            self.tensors,
            vocab_size=self.tensors["model.embed_tokens.weight"].shape[0],
            rope_factors=None if factors is None else np.array(factors.data, np.float32),
        )
        self.preprocessor: dict[str, Any] = {}
        self._tokenizer = tokenizer_files(metadata)

    def read(self, name: str) -> np.ndarray:
        """One tensor, float32.

        Raises:
            UserError: its type is unknown to the package gguf.
        """
        from gguf.quants import dequantize

        stored = self._stored[name]
        try:
            tensor = np.array(dequantize(stored.data, stored.tensor_type), np.float32)
        except NotImplementedError:
            raise UserError(
                f"{self._path}: {stored.name} has the type {stored.tensor_type.name}, which the "
                f"package gguf cannot dequantise; import another quantisation of the model"
            ) from None
        if not self._interleaved:
            return tensor
        if ".q_proj." in name:
            return _halves(tensor, self.config["num_attention_heads"])
        if ".k_proj." in name:
            return _halves(tensor, self.config["num_key_value_heads"])
        return tensor

    def write_tokenizer(self, folder: Path) -> bool:
        """tokenizer.json and tokenizer_config.json into `folder`; False if the file has none."""
        for name, content in (self._tokenizer or {}).items():
            (folder / name).write_text(json.dumps(content, ensure_ascii=False, indent=1), "utf-8")
        return self._tokenizer is not None

    def write_vocabulary(self, folder: Path) -> bool:
        """False: no such file is of sound."""
        return False


def _halves(rows: np.ndarray, num_heads: int) -> np.ndarray:
    """Reorder rows [heads · head_dim, ...] whose rotated pairs are 2i and 2i + 1 of a head, so that
    they are i and i + head_dim/2."""
    pairs = rows.reshape(num_heads, -1, 2, *rows.shape[1:])
    return pairs.swapaxes(1, 2).reshape(rows.shape)


def _hugging_face_name(path: Path, name: str) -> str:
    """blk.3.attn_q.weight → model.layers.3.self_attn.q_proj.weight."""
    match = re.fullmatch(r"(?:blk\.(\d+)\.)?(\w+)\.(weight|bias)", name)
    layer, stem, kind = match.groups() if match else (None, "", "")
    names = NAMES if layer is None else LAYER_NAMES
    if stem not in names:
        raise UserError(
            f"{path}: no Llama and no Qwen has the tensor {name}; import the model's Hugging Face "
            f"folder"
        )
    prefix = "" if layer is None else f"model.layers.{layer}."
    return f"{prefix}{names[stem]}.{kind}"
