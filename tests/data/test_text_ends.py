"""What stands before a text and after it, by what a tokenizer's files say."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from jaxformer.data.documents import CompletionFormat, TextFormat
from jaxformer.data.huggingface_tokenizer import HuggingFaceTokenizer
from jaxformer.data.rows import Row
from jaxformer.data.stores import Stores
from jaxformer.data.tokenizers import load_tokenizer, prompt_ids, start_id
from jaxformer.errors import UserError
from tests.data.tokenizer_kinds import write_kind

WORDS = ["<unk>", "<s>", "</s>", "<end>", "yes", "no"]
UNK, BOS, EOS, END, YES, NO = range(6)


def definition(before: str = "", after: str = "", processor: bool = True) -> bytes:
    """Words; the post-processor puts these tokens before a text and after it."""
    model = models.WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token="<unk>")
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens(WORDS[:3])
    if processor:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{before} $A {after}".strip(),
            pair=f"{before} $A {after} $B".replace("  ", " ").strip(),
            special_tokens=[(token, WORDS.index(token)) for token in (before, after) if token],
        )
    return tokenizer.to_str().encode()


SILENT = definition(processor=False)
NAMED = {"bos_token": "<s>", "eos_token": {"content": "</s>"}}


@pytest.mark.parametrize(
    ("file", "settings", "prefix", "bos", "eos"),
    [
        # Nothing at all is said: as `data train-tokenizer` leaves it.
        (SILENT, {}, (BOS,), BOS, EOS),
        (SILENT, {"chat_template": "..."}, (BOS,), BOS, EOS),
        # add_bos_token decides where there is one.
        (SILENT, {**NAMED, "add_bos_token": True}, (BOS,), BOS, EOS),
        (SILENT, {**NAMED, "add_bos_token": False}, (), BOS, EOS),
        (definition("<s>"), {**NAMED, "add_bos_token": False}, (), BOS, EOS),
        (definition("<s>"), {"bos_token": None, "add_bos_token": True}, (BOS,), None, EOS),
        # A token that is null is none, and nothing takes its place.
        (SILENT, {"bos_token": None, "eos_token": "</s>"}, (), None, EOS),
        (SILENT, {"bos_token": None, "eos_token": "</s>", "add_bos_token": True}, (), None, EOS),
        # Then the post-processor does.
        (SILENT, NAMED, (), BOS, EOS),
        (SILENT, {"eos_token": "<end>"}, (), None, END),
        (definition(), {}, (), None, EOS),
        (definition("<s>"), NAMED, (BOS,), BOS, EOS),
        (definition("<end>"), NAMED, (END,), BOS, EOS),
        # An end of text without a name is the post-processor's, or that of an id.
        (definition("<s>", "<end>"), {}, (BOS,), None, END),
        (SILENT, {"eos_token_id": END}, (), None, END),
        (SILENT, {"eos_token": "</s>", "eos_token_id": END}, (), None, EOS),
        (SILENT, {"eos_token": "</s>", "add_bos_token": True}, (BOS,), BOS, EOS),
    ],
)
def test_the_files_say_what_stands_before_and_after_a_text(file, settings, prefix, bos, eos):
    tokenizer = HuggingFaceTokenizer("t", file, settings)
    assert (tokenizer.prefix_ids, tokenizer.bos_id, tokenizer.eos_id) == (prefix, bos, eos)
    assert prompt_ids(tokenizer, "yes") == [*prefix, YES]
    assert start_id(tokenizer) == (bos if bos is not None else [eos, *prefix][-1])


@pytest.mark.parametrize(
    ("file", "settings", "added"),
    [
        (definition("<end>"), NAMED, END),
        (definition(), NAMED, BOS),
        (SILENT, {"bos_token": None}, BOS),
        (SILENT, {**NAMED, "add_bos_token": False}, BOS),
    ],
)
def test_the_configuration_overrules_the_files(file, settings, added) -> None:
    assert HuggingFaceTokenizer("t", file, settings, add_bos=True).prefix_ids == (added,)
    assert HuggingFaceTokenizer("t", file, settings, add_bos=False).prefix_ids == ()


def test_a_tokenizer_without_any_beginning_may_be_told_to_take_its_end() -> None:
    folder = {"bos_token": None, "eos_token": "c"}
    model = models.WordLevel({"c": 0, "d": 1}, unk_token="d")
    file = Tokenizer(model).to_str().encode()
    assert HuggingFaceTokenizer("t", file, folder).prefix_ids == ()
    assert HuggingFaceTokenizer("t", file, folder, add_bos=True).prefix_ids == (0,)


def test_an_end_that_only_other_files_name_is_found(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_bytes(SILENT)
    files = {
        "config.json": ({"eos_token_id": NO}, NO),
        "generation_config.json": ({"eos_token_id": [YES, NO]}, YES),
        "special_tokens_map.json": ({"eos_token": {"content": "<end>"}, "bos_token": "no"}, END),
        "tokenizer_config.json": ({"added_tokens_decoder": {}, "eos_token": "</s>"}, EOS),
    }
    for file, (content, eos) in files.items():
        (tmp_path / file).write_text(json.dumps(content))
        assert load_tokenizer(str(tmp_path)).eos_id == eos
    assert load_tokenizer(str(tmp_path)).bos_id == NO


def test_the_older_file_counts_unless_the_newer_one_lists_added_tokens(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_bytes(SILENT)
    (tmp_path / "special_tokens_map.json").write_text('{"eos_token": "<end>"}')
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": "</s>"}')
    assert load_tokenizer(str(tmp_path)).eos_id == END
    newer = {"eos_token": "</s>", "added_tokens_decoder": {}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(newer))
    assert load_tokenizer(str(tmp_path)).eos_id == EOS
    (tmp_path / "special_tokens_map.json").write_text("[]")
    with pytest.raises(UserError, match=r"special_tokens_map.json is not a JSON object"):
        load_tokenizer(str(tmp_path))


def test_a_named_token_is_special_though_the_file_does_not_call_it_so() -> None:
    tokenizer = HuggingFaceTokenizer("t", SILENT, {"eos_token": "<end>"})
    assert tokenizer.specials["<end>"] == END
    assert tokenizer.encode("yes<end>no").tolist() == [YES, END, NO]
    assert END not in tokenizer.encode_documents(["yes<end>no"])[0]
    assert tokenizer.decode([YES, END]) == "yes"


def test_a_prompt_that_is_written_with_its_beginning_has_one() -> None:
    tokenizer = HuggingFaceTokenizer("t", definition("<s>"), NAMED)
    assert prompt_ids(tokenizer, "<s> yes") == [BOS, YES]
    assert prompt_ids(tokenizer, "yes <s>") == [BOS, YES, BOS]
    assert prompt_ids(tokenizer, "") == [BOS]


def test_a_fingerprint_changes_with_the_ends_alone() -> None:
    """Where texts are as they were, the fingerprint is too, so that old runs still load."""
    found = {
        add_bos: HuggingFaceTokenizer("t", definition("<s>"), NAMED, add_bos).fingerprint
        for add_bos in ("auto", True, False)
    }
    before = hashlib.sha256(definition("<s>") + f"bos {BOS} eos {EOS}".encode()).hexdigest()
    assert found["auto"] == found[True] == before != found[False]
    for name in ("bytes", "ids:9"):
        assert load_tokenizer(name).fingerprint == load_tokenizer(name, True).fingerprint
        assert load_tokenizer(name).fingerprint != load_tokenizer(name, False).fingerprint
    told = b"jaxformer bytes: 0-255 bytes, 256 bos and eos"
    assert load_tokenizer("bytes").fingerprint == hashlib.sha256(told).hexdigest()


def encoded(tokenizer, form, *values: str):
    [document] = form.documents([Row(values, "row 1", 1)])
    [found] = form.encode([document], tokenizer)
    return found


def test_documents_without_a_beginning_learn_all_but_their_first_token(bpe_folder) -> None:
    plain = load_tokenizer(str(bpe_folder), add_bos=False)
    ids = plain.encode("the cat").tolist()
    found = encoded(plain, TextFormat("text"), "the cat")
    assert found.ids.tolist() == [*ids, plain.eos_id]
    assert found.text_bytes == len(" cat")
    found = encoded(plain, CompletionFormat("p", "c"), "", "the cat")
    assert found.loss_mask.tolist() == [False, True, True]
    assert found.text_bytes == len(" cat")
    found = encoded(plain, CompletionFormat("p", "c"), "the", " cat")
    assert found.loss_mask.tolist() == [False, True, True]
    assert found.text_bytes == len(" cat")
    begun = encoded(load_tokenizer(str(bpe_folder)), TextFormat("text"), "the cat")
    assert begun.ids.tolist() == [0, *ids, 0]
    assert begun.text_bytes == len("the cat")


def test_bytes_are_those_of_the_loss_tokens_whether_documents_begin_or_not(
    make_data, write_texts
) -> None:
    source = write_texts(["abcdefgh", "ij", "k", "lmnopq"])
    paths = set()
    for add_bos in (True, False):
        data = make_data(source=source, add_bos=add_bos, validation_fraction=0.0, sequence_length=4)
        tokenizer = load_tokenizer(data.tokenizer, data.add_bos)
        paths.add(Stores(data, tokenizer).open(data.sources[0]).place)
        [part] = Stores(data, tokenizer).training
        batch = part.pack(np.arange(len(part)))
        learnt = batch.targets[batch.loss_mask]
        assert part.loss_tokens() == len(learnt)
        assert part.text_bytes(tokenizer) == np.count_nonzero(learnt < 256)
        assert np.count_nonzero(learnt == 256) == 4
    assert len(paths) == 2


def test_a_store_is_not_used_again_where_texts_begin_otherwise(make_data, tmp_path) -> None:
    (tmp_path / "a.txt").write_text("yes no")
    paths = []
    for add_bos_token in (True, False):
        config = {"bos_token": "<s>", "eos_token": "</s>", "add_bos_token": add_bos_token}
        tokenizer = write_kind("metaspace", tmp_path / "tokenizer", tokenizer_config=config)
        data = make_data(source=f"text:{tmp_path}/a.txt", tokenizer=tokenizer)
        store = Stores(data, load_tokenizer(data.tokenizer)).open(data.sources[0])
        assert (store.tokens[0] == 1) == add_bos_token
        paths.append(store.place)
    assert paths[0] != paths[1]
