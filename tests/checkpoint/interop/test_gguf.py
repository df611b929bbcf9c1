"""GGUF files written by the package gguf come back as Hugging Face's tensors and tokenizer."""

import json

import gguf
import numpy as np
import pytest
import tokenizers
from gguf.quants import quantize

import jaxformer as jf
from jaxformer.checkpoint.interop.gguf import GGUFFile
from jaxformer.checkpoint.interop.opening import open_source
from jaxformer.cli import main
from jaxformer.data.tokenizers import load_tokenizer
from jaxformer.errors import UserError
from jaxformer.model.positions import Llama3ScalingConfig, RoPEConfig, rope_frequencies

D_MODEL, HEADS, KV_HEADS, HEAD_DIM, D_HIDDEN = 32, 4, 2, 8, 64
BYTES = tokenizers.pre_tokenizers.ByteLevel.alphabet()
MERGES = ["h e", "l l", "he ll", "hell o", "Ġ hello", "1 2"]
TOKENS = [
    *sorted(BYTES),
    *(merge.replace(" ", "") for merge in MERGES),
    "<|end|>",
    "<think>",
    "[PAD]",
]
END, THINK, PAD = (TOKENS.index(token) for token in ("<|end|>", "<think>", "[PAD]"))


def weights(tied: bool = True) -> dict[str, np.ndarray]:
    """A layer of Llama as llama.cpp names it."""
    rng = np.random.default_rng(0)
    shapes = {
        "token_embd.weight": (len(TOKENS), D_MODEL),
        "output_norm.weight": (D_MODEL,),
        "blk.0.attn_norm.weight": (D_MODEL,),
        "blk.0.attn_q.weight": (HEADS * HEAD_DIM, D_MODEL),
        "blk.0.attn_k.weight": (KV_HEADS * HEAD_DIM, D_MODEL),
        "blk.0.attn_v.weight": (KV_HEADS * HEAD_DIM, D_MODEL),
        "blk.0.attn_output.weight": (D_MODEL, HEADS * HEAD_DIM),
        "blk.0.ffn_norm.weight": (D_MODEL,),
        "blk.0.ffn_gate.weight": (D_HIDDEN, D_MODEL),
        "blk.0.ffn_up.weight": (D_HIDDEN, D_MODEL),
        "blk.0.ffn_down.weight": (D_MODEL, D_HIDDEN),
    }
    if not tied:
        shapes["output.weight"] = (len(TOKENS), D_MODEL)
    return {name: rng.standard_normal(shape, np.float32) for name, shape in shapes.items()}


def write(
    path, tensors, architecture="llama", model="gpt2", pre="smollm", edit=lambda writer: None
):
    """A GGUF file; `edit` adds to it."""
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_block_count(1)
    writer.add_context_length(64)
    writer.add_embedding_length(D_MODEL)
    writer.add_feed_forward_length(D_HIDDEN)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(50000.0)
    writer.add_rope_dimension_count(HEAD_DIM)
    writer.add_tokenizer_model(model)
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(TOKENS)
    kinds = {END: gguf.TokenType.CONTROL, THINK: gguf.TokenType.USER_DEFINED}
    kinds[PAD] = gguf.TokenType.UNUSED
    writer.add_token_types(
        [kinds.get(index, gguf.TokenType.NORMAL) for index in range(len(TOKENS))]
    )
    writer.add_token_merges(MERGES)
    writer.add_eos_token_id(END)
    writer.add_chat_template("{{ messages }}")
    for name, tensor in tensors.items():
        writer.add_tensor(name, tensor)
    edit(writer)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def tokenizer(path, **options):
    """The rebuilt tokenizer of a file written with `options`."""
    folder = path.parent / "tokenizer"
    folder.mkdir()
    assert GGUFFile(write(path, weights(), **options)).write_tokenizer(folder)
    return load_tokenizer(str(folder))


def test_metadata_become_a_config(tmp_path):
    config = GGUFFile(write(tmp_path / "model.gguf", weights())).config
    assert config == {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": len(TOKENS),
        "hidden_size": D_MODEL,
        "intermediate_size": D_HIDDEN,
        "num_hidden_layers": 1,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "head_dim": HEAD_DIM,
        "hidden_act": "silu",
        "max_position_embeddings": 64,
        "rms_norm_eps": 1e-5,
        "rope_theta": 50000.0,
        "rope_scaling": None,
        "tie_word_embeddings": True,
        "bos_token_id": None,
        "eos_token_id": END,
    }


def test_a_head_of_its_own_is_told_from_a_tied_one(tmp_path):
    source = GGUFFile(write(tmp_path / "model.gguf", weights(tied=False)))
    assert not source.config["tie_word_embeddings"]
    np.testing.assert_array_equal(
        source.read("lm_head.weight"), weights(tied=False)["output.weight"]
    )


def test_tensors_come_back_under_hugging_face_names(tmp_path):
    stored = weights()
    source = GGUFFile(write(tmp_path / "model.gguf", stored))
    assert len(source.tensors) == len(stored)
    for theirs, name in {
        "token_embd.weight": "model.embed_tokens.weight",
        "output_norm.weight": "model.norm.weight",
        "blk.0.attn_norm.weight": "model.layers.0.input_layernorm.weight",
        "blk.0.attn_v.weight": "model.layers.0.self_attn.v_proj.weight",
        "blk.0.attn_output.weight": "model.layers.0.self_attn.o_proj.weight",
        "blk.0.ffn_norm.weight": "model.layers.0.post_attention_layernorm.weight",
        "blk.0.ffn_gate.weight": "model.layers.0.mlp.gate_proj.weight",
        "blk.0.ffn_up.weight": "model.layers.0.mlp.up_proj.weight",
        "blk.0.ffn_down.weight": "model.layers.0.mlp.down_proj.weight",
    }.items():
        assert source.tensors[name].shape == stored[theirs].shape
        np.testing.assert_array_equal(source.read(name), stored[theirs])


@pytest.mark.parametrize(("name", "heads"), [("q", HEADS), ("k", KV_HEADS)])
def test_rotating_halves_equals_rotating_neighbours_in_the_file(tmp_path, name, heads):
    source = GGUFFile(write(tmp_path / "model.gguf", weights()))
    rotation = np.exp(1j * np.arange(1, 1 + HEAD_DIM // 2))
    theirs = weights()[f"blk.0.attn_{name}.weight"].reshape(heads, HEAD_DIM // 2, 2, D_MODEL)
    theirs = (theirs[:, :, 0] + 1j * theirs[:, :, 1]) * rotation[:, None]
    ours = source.read(f"model.layers.0.self_attn.{name}_proj.weight")
    ours = ours.reshape(heads, 2, HEAD_DIM // 2, D_MODEL)
    ours = (ours[:, 0] + 1j * ours[:, 1]) * rotation[:, None]
    np.testing.assert_array_equal(ours, theirs)


def test_qwen_files_keep_the_order_of_their_rows_and_their_biases(tmp_path):
    stored = weights() | {"blk.0.attn_q.bias": np.arange(HEADS * HEAD_DIM, dtype=np.float32)}
    source = GGUFFile(write(tmp_path / "model.gguf", stored, architecture="qwen2", pre="qwen2"))
    assert source.config["architectures"] == ["Qwen2ForCausalLM"]
    for kind in ("weight", "bias"):
        np.testing.assert_array_equal(
            source.read(f"model.layers.0.self_attn.q_proj.{kind}"), stored[f"blk.0.attn_q.{kind}"]
        )


def test_quantised_tensors_come_as_float32(tmp_path):
    kind = gguf.GGMLQuantizationType.Q8_0
    stored = weights()
    tensor = stored.pop("blk.0.ffn_down.weight")
    path = write(
        tmp_path / "model.gguf",
        stored,
        edit=lambda writer: writer.add_tensor(
            "blk.0.ffn_down.weight", quantize(tensor, kind), raw_dtype=kind
        ),
    )
    source = GGUFFile(path)
    name = "model.layers.0.mlp.down_proj.weight"
    assert source.tensors[name] == (tensor.shape, "float32")
    read = source.read(name)
    assert read.dtype == np.float32
    np.testing.assert_allclose(read, tensor, atol=np.abs(tensor).max() / 127, rtol=0)  # half a step


def test_llama3_scaling_is_found_from_its_factors(tmp_path):
    def factors(original_max_length: int) -> np.ndarray:
        scaling = Llama3ScalingConfig(factor=32.0, original_max_length=original_max_length)
        plain, _ = rope_frequencies(RoPEConfig(base=50000.0), HEAD_DIM)
        scaled, _ = rope_frequencies(RoPEConfig(base=50000.0, scaling=scaling), HEAD_DIM)
        return (plain / scaled).astype(np.float32)

    stored = weights() | {"rope_freqs.weight": factors(8192)}
    source = GGUFFile(write(tmp_path / "model.gguf", stored))
    assert len(source.tensors) == len(stored) - 1
    assert source.config["rope_scaling"] == {
        "rope_type": "llama3",
        "factor": 32.0,
        "original_max_position_embeddings": 8192,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
    }
    stored["rope_freqs.weight"] = factors(4096)
    with pytest.raises(UserError, match="rope_freqs.weight are not those of Llama 3"):
        GGUFFile(write(tmp_path / "other.gguf", stored))


def test_yarn_is_read_from_the_metadata(tmp_path):
    def scale(writer):
        writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
        writer.add_rope_scaling_factor(4.0)
        writer.add_rope_scaling_orig_ctx_len(16)

    source = GGUFFile(write(tmp_path / "model.gguf", weights(), edit=scale))
    assert source.config["rope_scaling"] == {
        "rope_type": "yarn",
        "factor": 4.0,
        "original_max_position_embeddings": 16,
    }


def test_the_original_length_of_yarn_is_the_context_where_nothing_else_is_said(tmp_path):
    def scale(writer):
        writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
        writer.add_rope_scaling_factor(4.0)

    source = GGUFFile(write(tmp_path / "model.gguf", weights(), edit=scale))
    assert source.config["rope_scaling"]["original_max_position_embeddings"] == 64


def test_a_factor_without_a_type_is_linear_as_in_llama_cpp(tmp_path):
    def scale(writer):
        writer.add_rope_scaling_factor(4.0)

    path = tmp_path / "model.gguf"
    assert GGUFFile(write(path, weights(), edit=scale)).config["rope_scaling"] == {
        "rope_type": "linear",
        "factor": 4.0,
    }
    stored = weights() | {"rope_freqs.weight": np.ones(HEAD_DIM // 2, np.float32)}
    with pytest.raises(UserError, match="rope.scaling.factor 4 beside rope_freqs.weight"):
        GGUFFile(write(path, stored, edit=scale))


def test_a_type_without_a_factor_scales_nothing_as_in_llama_cpp(tmp_path):
    for kind in (gguf.RopeScalingType.NONE, gguf.RopeScalingType.LINEAR):
        path = tmp_path / f"{kind.value}.gguf"
        write(path, weights(), edit=lambda writer, kind=kind: writer.add_rope_scaling_type(kind))
        assert GGUFFile(path).config["rope_scaling"] is None


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("attention.head_count_kv", {"num_key_value_heads": HEADS}),
        ("rope.freq_base", {"rope_theta": 10000.0}),
        ("rope.dimension_count", {"head_dim": HEAD_DIM}),
        ("context_length", None),
        ("embedding_length", None),
        ("feed_forward_length", None),
        ("block_count", None),
        ("attention.head_count", None),
        ("attention.layer_norm_rms_epsilon", None),
    ],
)
def test_a_key_left_out_is_llama_cpps_default_or_is_named(tmp_path, key, expected):
    path = tmp_path / "model.gguf"
    write(path, weights(), edit=lambda writer: writer.kv_data[0].pop(f"llama.{key}"))
    if expected is None:
        with pytest.raises(UserError, match=f"its metadata lacks 'llama.{key}'"):
            GGUFFile(path)
    else:
        assert GGUFFile(path).config.items() >= expected.items()


def test_the_tokenizer_merges_as_its_file_says(tmp_path):
    found = tokenizer(tmp_path / "model.gguf")
    assert [TOKENS[i] for i in found.encode("hello hello12")] == ["hello", "Ġhello", "1", "2"]
    text = "héllo 日本 🙂\n\n\tx = 123  "
    assert found.decode(found.encode(text)) == text


def test_special_tokens_are_single_ids_unless_in_documents(tmp_path):
    found = tokenizer(tmp_path / "model.gguf")
    assert (found.bos_id, found.eos_id, found.vocab_size) == (None, END, THINK + 1)
    assert found.encode("<think>a<|end|>").tolist() == [THINK, TOKENS.index("a"), END]
    assert END not in found.encode_documents(["a<|end|>"])[0]
    assert found.decode([THINK, END]) == "<think>"


@pytest.mark.parametrize(
    ("pre", "said", "added"),
    [
        ("smollm", None, False),
        ("smollm", True, True),
        ("llama-bpe", None, True),  # as llama.cpp has it where a file does not say
        ("llama-bpe", False, False),
    ],
)
def test_a_beginning_of_text_is_added_as_the_file_says(tmp_path, pre, said, added):
    def edit(writer):
        writer.add_bos_token_id(THINK)
        if said is not None:
            writer.add_add_bos_token(said)

    found = tokenizer(tmp_path / "model.gguf", pre=pre, edit=edit)
    assert found.prefix_ids == ((THINK,) if added else ())
    assert found.bos_id == THINK


@pytest.mark.parametrize(
    ("pre", "pieces"),
    [
        ("gpt-2", ["I", "'", "LL", "Ġpay", "Ġ1234", "ĠĊ", "Ġnow"]),
        ("smollm", ["I", "'", "LL", "Ġpay", "Ġ", "1", "2", "3", "4", "ĠĊ", "Ġnow"]),
        ("llama-bpe", ["I", "'LL", "Ġpay", "Ġ", "123", "4", "ĠĊ", "Ġnow"]),
        ("qwen2", ["I", "'LL", "Ġpay", "Ġ", "1", "2", "3", "4", "ĠĊ", "Ġnow"]),
    ],
)
def test_text_is_cut_as_the_pre_tokenizer_says(tmp_path, pre, pieces):
    GGUFFile(write(tmp_path / "model.gguf", weights(), pre=pre)).write_tokenizer(tmp_path)
    cut = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json")).pre_tokenizer
    assert [piece for piece, _ in cut.pre_tokenize_str("I'LL pay 1234 \n now")] == pieces


def test_the_chat_template_lies_in_the_tokenizers_configuration(tmp_path):
    tokenizer(tmp_path / "model.gguf")
    config = json.loads((tmp_path / "tokenizer" / "tokenizer_config.json").read_text())
    assert config["chat_template"] == "{{ messages }}"
    assert config["eos_token"] == "<|end|>"


def test_a_file_without_a_tokenizer_writes_none(tmp_path):
    source = GGUFFile(write(tmp_path / "model.gguf", weights(), model="none"))
    assert not source.write_tokenizer(tmp_path)
    assert not (tmp_path / "tokenizer.json").exists()


@pytest.mark.parametrize("kept", [0.0, 0.01, 0.1, 0.3, 0.6, 0.999])
def test_a_truncated_file_is_refused(tmp_path, kept):
    path = write(tmp_path / "model.gguf", weights())
    whole = path.read_bytes()
    path.write_bytes(whole[: int(kept * len(whole))])
    with pytest.raises(UserError, match="not a whole GGUF file"):
        GGUFFile(path)


def test_a_list_longer_than_the_file_is_refused(tmp_path):
    path = write(tmp_path / "model.gguf", weights())
    whole = path.read_bytes()
    at = whole.index(b"tokenizer.ggml.token_type") + len(b"tokenizer.ggml.token_type") + 8
    path.write_bytes(whole[:at] + (2**60).to_bytes(8, "little") + whole[at + 8 :])
    with pytest.raises(UserError, match="not a whole GGUF file"):
        GGUFFile(path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"architecture": "mamba"}, "general.architecture 'mamba' cannot be imported"),
        ({"architecture": "qwen22"}, "Did you mean 'qwen2'?"),
        ({"model": "llama"}, "tokenizer.ggml.model 'llama' cannot be imported; allowed: gpt2"),
        ({"pre": "smolm"}, "tokenizer.ggml.pre 'smolm' is unknown.* Did you mean 'smollm'?"),
        ({"edit": lambda writer: writer.add_expert_count(4)}, "llama.expert_count, which the"),
        ({"edit": lambda writer: writer.add_key_length(16)}, "dimension_count is 8, but a head's"),
        ({"edit": lambda writer: writer.add_bos_token_id(999)}, "bos_token_id is 999"),
    ],
)
def test_what_cannot_be_imported_is_named(tmp_path, options, message):
    with pytest.raises(UserError, match=message):
        GGUFFile(write(tmp_path / "model.gguf", weights(), **options))


def test_an_unknown_tensor_is_named(tmp_path):
    stored = weights() | {"blk.0.ssm_in.weight": np.zeros((4, 4), np.float32)}
    with pytest.raises(UserError, match="no Qwen has the tensor blk.0.ssm_in.weight"):
        GGUFFile(write(tmp_path / "model.gguf", stored))


def test_a_folder_with_one_gguf_file_is_that_file(tmp_path):
    write(tmp_path / "model.gguf", weights())
    assert open_source(str(tmp_path)).name == str(tmp_path / "model.gguf")
    write(tmp_path / "other.gguf", weights())
    with pytest.raises(UserError, match="several GGUF files, model.gguf, other.gguf"):
        open_source(str(tmp_path))


def test_an_imported_file_is_a_run_that_generates(tmp_path):
    assert (
        main(["import", str(write(tmp_path / "model.gguf", weights())), str(tmp_path / "run")]) == 0
    )
    run = jf.load(tmp_path / "run")
    np.testing.assert_array_equal(run.params["embedding"], weights()["token_embd.weight"])
    assert run.config.model.positions.base == 50000.0
    assert isinstance(run.generate("hello", max_new_tokens=2, temperature=0.0), str)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match="absent.gguf: no such file"):
        open_source(str(tmp_path / "absent.gguf"))


def test_without_the_package_its_installation_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr("jaxformer.checkpoint.interop.gguf.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'jaxformer\[import\]'"):
        GGUFFile(tmp_path / "model.gguf")
