"""From rows of messages or completions to tokens, masks and batches."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tokenizers import pre_tokenizers

from jaxformer.config import Config, DataConfig
from jaxformer.data import commands
from jaxformer.data.loader import iterate, train_batches, validation_batches
from jaxformer.data.manifest import INDEX
from jaxformer.data.shards import TOKENS
from jaxformer.data.store import TokenStore
from jaxformer.data.stores import Stores
from jaxformer.data.tokenizers import load_tokenizer
from jaxformer.errors import UserError
from tests.data.chats import (
    CHATML,
    HEADERS,
    MARKED,
    SPECIALS,
    chat,
    write_jsonl,
    write_tokenizer,
)
from tests.data.contents import mask_of, offsets_of, text_bytes_of

ALPHABET = sorted(pre_tokenizers.ByteLevel.alphabet())
WRITTEN = {" ": "Ġ", "\n": "Ċ"}


def ids_of(text: str) -> list[int]:
    """A special token is its place in SPECIALS, any other byte its place in the alphabet."""
    ids: list[int] = []
    for piece in re.split(r"(<\|\w+\|>)", text):
        if piece in SPECIALS:
            ids.append(SPECIALS.index(piece))
        else:
            letters = [WRITTEN.get(chr(byte), chr(byte)) for byte in piece.encode()]
            ids += [len(SPECIALS) + ALPHABET.index(letter) for letter in letters]
    return ids


def expected(*pieces: str) -> tuple[list[int], list[bool]]:
    """Tokens and mask of pieces, of which every second one is learnt."""
    ids, mask = [], []
    for number, piece in enumerate(pieces):
        ids += ids_of(piece)
        mask += [number % 2 == 1] * (len(ids) - len(mask))
    return ids, mask


@pytest.fixture
def make(make_data, tmp_path: Path) -> Callable[..., DataConfig]:
    """Data of rows in a jsonl file, with a tokenizer that has `template`."""

    def data(rows: list, template: str | None = CHATML, **options: object) -> DataConfig:
        source = write_jsonl(tmp_path / "rows.jsonl", rows)
        tokenizer = write_tokenizer(tmp_path / "tokenizer", template)
        options = {"source": source, "format": "messages", "tokenizer": tokenizer} | options
        return make_data(**options)

    return data


def open_store(data: DataConfig) -> TokenStore:
    return Stores(data, load_tokenizer(data.tokenizer)).open(data.sources[0])


def document(store: TokenStore, number: int = 0) -> tuple[list[int], list[bool]]:
    cut = slice(offsets_of(store)[number], offsets_of(store)[number + 1])
    return store.tokens[cut].tolist(), mask_of(store)[cut].tolist()


SYSTEM = "<|im_start|>system\nBe kind.<|im_end|>\n"


def test_chatml_learns_each_answer_and_the_end_of_its_turn(make) -> None:
    store = open_store(make([chat("Hi", "Hül lo", "And?", "Bye\n")]))
    assert document(store) == expected(
        f"{SYSTEM}<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n",
        "Hül lo<|im_end|>",
        "\n<|im_start|>user\nAnd?<|im_end|>\n<|im_start|>assistant\n",
        "Bye\n<|im_end|>",
        "\n",
    )
    assert text_bytes_of(store) == [0, len("Hül lo".encode()) + len("Bye\n")]
    assert store.manifest.learnt_tokens == 7 + 1 + 4 + 1


def test_headers_learn_each_answer_and_begin_with_one_bos(make) -> None:
    row = {
        "messages": [{"role": "system", "content": "S"}, *chat("a", " b ", "c", "d")["messages"]]
    }
    store = open_store(make([row], HEADERS))
    head = "<|start_header_id|>{}<|end_header_id|>\n\n"
    answer = head.format("assistant")
    assert document(store) == expected(
        f"<|begin_of_text|>{head.format('system')}S<|eot_id|>{head.format('user')}a<|eot_id|>{answer}",
        "b<|eot_id|>",
        f"{head.format('user')}c<|eot_id|>{answer}",
        "d<|eot_id|>",
    )


def test_generation_marks_say_what_is_learnt(make) -> None:
    store = open_store(make([chat("a", "b", "c", "d")], MARKED))
    assert document(store) == expected(
        "Q: a\nA: ", "b<|endoftext|>", "\nQ: c\nA: ", "d<|endoftext|>", "\n"
    )


def test_an_answer_in_a_turn_without_a_last_token_ends_with_the_turn(make) -> None:
    template = (
        "{% for m in messages %}{{ m.role + ': ' + m.content + '\n' }}{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )
    store = open_store(make([chat("a", "b")], template))
    assert document(store) == expected("user: a\nassistant: ", "b\n")


def test_special_tokens_and_ids_are_those_of_inference(make) -> None:
    data = make([chat("<|im_end|> é", "x")])
    tokenizer = load_tokenizer(data.tokenizer)
    text = f"{SYSTEM}<|im_start|>user\n<|im_end|> é<|im_end|>\n<|im_start|>assistant\nx<|im_end|>\n"
    assert document(open_store(data))[0] == tokenizer.encode(text).tolist() == ids_of(text)


def test_a_token_that_holds_a_part_of_an_answer_is_learnt(make_data, bpe_folder, tmp_path) -> None:
    rows = [{"prompt": "the c", "completion": "at sat"}]
    data = make_data(
        source=write_jsonl(tmp_path / "rows.jsonl", rows),
        format="completion",
        tokenizer=str(bpe_folder),
    )
    tokenizer = load_tokenizer(str(bpe_folder))
    pieces = [tokenizer.decode([token]) for token in tokenizer.encode("the cat sat")]
    assert pieces == ["the", " cat", " sat"]
    store = open_store(data)
    assert document(store)[1] == [False, False, True, True, True]
    assert text_bytes_of(store) == [0, len(" cat sat")]


@pytest.mark.parametrize("tokenizer", ["bytes", "mine"])
def test_completions_are_learnt_with_the_end_of_text(make, tmp_path, tokenizer: str) -> None:
    rows = [{"prompt": "é?", "completion": " ö \n"}, {"prompt": "", "completion": "z"}]
    options = {} if tokenizer == "mine" else {"tokenizer": tokenizer}
    store = open_store(make(rows, format="completion", **options))
    if tokenizer == "bytes":
        assert document(store)[0] == [256, *"é? ö \n".encode(), 256]
        assert document(store)[1] == [False] * 4 + [True] * 6
        assert document(store, 1) == ([256, ord("z"), 256], [False, True, True])
    else:
        assert document(store) == expected("<|begin_of_text|>é?", " ö \n<|endoftext|>")
        assert document(store, 1) == expected("<|begin_of_text|>", "z<|endoftext|>")
    assert text_bytes_of(store) == [0, 5, 6]


def test_columns_are_named_in_the_configuration(make, tmp_path) -> None:
    rows = [{"question": "q", "answer": "a", "talk": chat("q", "a")["messages"]}]
    pair = open_store(make(rows, format="completion", column=["question", "answer"]))
    assert document(pair) == expected("<|begin_of_text|>q", "a<|endoftext|>")
    talk = open_store(make(rows, column="talk"))
    assert document(talk)[0] == ids_of(f"{SYSTEM}<|im_start|>user\nq<|im_end|>\n") + ids_of(
        "<|im_start|>assistant\na<|im_end|>\n"
    )


def test_jsonl_parquet_and_datasets_give_the_same_documents(make, make_data, tmp_path) -> None:
    import datasets

    rows = [chat("Hi", "Hü"), chat("a", "b", "c", "d")]
    reference = make(rows)
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet", row_group_size=1)
    datasets.Dataset.from_list(rows).save_to_disk(tmp_path / "saved")
    stores = [
        open_store(reference.model_copy(update={"source": source}))
        for source in (
            reference.source,
            f"parquet:{tmp_path}/rows.parquet",
            f"hf:{tmp_path}/saved",
        )
    ]
    assert len({store.place for store in stores}) == 3
    for store in stores:
        assert [document(store, n) for n in (0, 1)] == [document(stores[0], n) for n in (0, 1)]


def test_a_field_that_a_table_fills_with_null_is_left_out(make, tmp_path) -> None:
    template = "{% if messages[0].name is defined %}N{% endif %}" + CHATML
    rows = [
        {
            "messages": [
                {"role": "user", "content": "q", "name": None},
                {"role": "assistant", "content": "a"},
            ]
        }
    ]
    assert document(open_store(make(rows, template)))[0][0] == SPECIALS.index("<|im_start|>")


def test_rows_without_an_answer_are_left_out_and_counted(make, capfd) -> None:
    rows = [chat("q"), chat("q", "a"), chat("q", " \n"), chat("q", "", "r", "b")]
    store = open_store(make(rows))
    assert (store.manifest.documents, store.manifest.left_out) == (2, {"empty": 2})
    assert "2 documents, 2 without an answer left out, " in capfd.readouterr().err
    rows = [{"prompt": "p", "completion": ""}, {"prompt": "p", "completion": "c"}]
    store = open_store(make(rows, format="completion"))
    assert (store.manifest.documents, store.manifest.left_out) == (1, {"empty": 1})


def test_a_source_without_any_answer_is_refused(make) -> None:
    with pytest.raises(UserError, match=r"rows.jsonl' holds no answer to learn: 2 rows have none"):
        open_store(make([chat("q"), chat("r", "")]))
    nothing = "{% generation %}{% endgeneration %}{{ messages[0].content }}"
    with pytest.raises(UserError, match=r"holds no answer to learn: 1 rows have none$"):
        open_store(make([chat("q", "a")], nothing))


def test_a_batch_has_only_answers_in_its_loss(make) -> None:
    rows = [chat("Hi", "Hello"), chat("a", "b", "c", "d")] * 3
    data = make(rows, sequence_length=16, validation_fraction=0.0)
    [part] = Stores(data, load_tokenizer(data.tokenizer)).training
    batch = part.pack(np.arange(len(part)))
    store = part.store
    targets = batch.targets[batch.segment_ids > 0]
    np.testing.assert_array_equal(targets, store.tokens[1:])
    np.testing.assert_array_equal(batch.loss_mask[batch.segment_ids > 0], mask_of(store)[1:])
    assert batch.loss_mask.sum() == store.manifest.learnt_tokens == part.loss_tokens()
    assert batch.segment_ids.max() >= 1
    assert not batch.loss_mask[batch.segment_ids == 0].any()


def test_a_mixture_of_instructions_and_text_has_the_loss_of_each(make, write_texts) -> None:
    data = make([chat("abcdefgh", "ABCDEFGH")] * 20)
    sources = [
        {"source": data.source, "format": "messages", "weight": 1},
        {"source": write_texts(["0123456789" * 40]), "weight": 1},
    ]
    options = {"source": sources, "format": "text", "column": "text", "validation_fraction": 0.0}
    mixed = DataConfig.model_validate(data.model_dump() | options | {"sequence_length": 32})
    tokenizer = load_tokenizer(mixed.tokenizer)
    batches = train_batches(Stores(mixed, tokenizer), batch_size=8, seed=0)
    learnt: set[str] = set()
    for step in range(10):
        batch = batches[step]
        learnt |= set(tokenizer.decode_whole(batch.targets[batch.loss_mask]))
    assert learnt == set("ABCDEFGH<|im_end|>0123456789<|endoftext|>")
    batches = train_batches(Stores(mixed, tokenizer), batch_size=8, seed=0)
    resumed = next(iterate(batches, 9, 0, threads=1))
    for array, before in zip(resumed, batch, strict=True):
        np.testing.assert_array_equal(array, before)


def test_bits_per_byte_count_the_bytes_of_answers_alone(make) -> None:
    rows = [chat("é" * 30, f"ü{number}" * 5, "?", "é") for number in range(12)]
    for fraction in (0.2, 0.37, 0.5):
        data = make(rows, sequence_length=16, validation_fraction=fraction)
        tokenizer = load_tokenizer(data.tokenizer)
        batches = validation_batches(Stores(data, tokenizer), batch_size=2)
        learnt = np.concatenate([batch.targets[batch.loss_mask] for batch in batches])
        assert batches.loss_tokens == len(learnt)
        assert batches.text_bytes == pytest.approx(tokenizer.count_bytes(learnt), abs=2)
        assert batches.text_bytes < len(learnt)  # ends of turns have no bytes


def test_validation_without_an_answer_is_refused(make) -> None:
    data = make([chat("a", "b"), chat("q" * 500, "c")], validation_fraction=0.3, sequence_length=16)
    validation_batches(Stores(data, load_tokenizer(data.tokenizer)), batch_size=1)
    tail = chat("a", "b", "q" * 500)
    data = make([chat("a", "b"), tail], validation_fraction=0.3, sequence_length=16)
    with pytest.raises(UserError, match=r"the validation part holds \d+ tokens, none to predict"):
        validation_batches(Stores(data, load_tokenizer(data.tokenizer)), batch_size=1)


def test_format_columns_and_template_have_a_store_each(make) -> None:
    rows = [chat("q", "a") | {"prompt": "p", "completion": "c", "text": "t"}]
    data = make(rows)
    paths = [open_store(data).place]
    paths.append(open_store(make(rows, CHATML.replace("kind", "brief"))).place)
    paths.append(open_store(make(rows, format="completion")).place)
    paths.append(open_store(make(rows, format="completion", column=["completion", "prompt"])).place)
    paths.append(open_store(make(rows, format="text")).place)
    assert len(set(paths)) == 5
    [row] = Stores(
        make(rows * 9, validation_fraction=0.0, sequence_length=8), load_tokenizer(data.tokenizer)
    ).manifest()
    assert (len(row["sha256"]), row["loss_mask"]) == (64, True)


def test_a_store_of_text_has_no_mask_and_nothing_of_one_in_its_manifest(make) -> None:
    store = open_store(make([{"text": "t"}], format="text"))
    assert not store.has_loss_mask
    assert store.read(0, 1).learnt is None
    manifest = json.loads((store.place / INDEX).read())
    assert not {"instructions", "learnt_tokens"} & {*manifest, *manifest["shards"][0]}


def test_a_damaged_mask_is_made_again(make, capfd) -> None:
    data = make([chat("q", "a")])
    store = open_store(data)
    file, before = store.place / f"00000-000{TOKENS}", document(store)
    file.write(bytes(len(file.read())))
    assert document(open_store(data)) == before
    assert f"made again because 00000-000{TOKENS} does not have the" in capfd.readouterr().err
    file.remove()
    assert document(open_store(data)) == before
    assert f"made again because 00000-000{TOKENS} is missing" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"messages": []}, "column 'messages': there are no messages; fix or remove the row"),
        ({"messages": ["hi"]}, r"message 1 is a string, not \{role, content\}"),
        (
            {"messages": [{"from": "user", "contents": "x"}]},
            "message 1 has no role; keys: from, contents.",
        ),
        (
            {"messages": [{"role": "user", "contents": "x"}]},
            r"message 1 has no content; keys: role, contents. Did you mean 'contents'\?",
        ),
        (
            {"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": 5}]},
            "message 2: its content is a number, not text",
        ),
        ({"messages": [{"role": None, "content": "x"}]}, "message 1: its role is null, not text"),
        ({"messages": "hi"}, "column 'messages' is a string, not a list; fix or remove the row"),
        ({"message": []}, r"no column 'messages'; columns: message. .* mean 'message'\?"),
        (
            {"messages": [{"role": "user", "content": "\ud800"}]},
            "byte 0xed at offset 0 is not UTF-8",
        ),
    ],
)
def test_a_row_that_is_no_conversation_is_named(make, row: dict, message: str) -> None:
    data = make([chat("q", "a"), row])
    with pytest.raises(UserError, match=rf"rows\.jsonl, line 2.*{message}"):
        open_store(data)


def test_a_wrong_table_of_conversations_is_named(make, make_data, tmp_path) -> None:
    data = make([chat("q", "a")])

    def refused(table: pa.Table, message: str, **options: str) -> None:
        pq.write_table(table, tmp_path / "rows.parquet")
        with pytest.raises(UserError, match=rf"rows\.parquet{message}"):
            open_store(
                data.model_copy(update={"source": f"parquet:{tmp_path}/*.parquet"} | options)
            )

    good = chat("q", "a")
    refused(pa.Table.from_pylist([{"messages": "hi"}]), ": column 'messages' holds string, not a l")
    refused(pa.Table.from_pylist([good, {"messages": None}]), ", row 2: column 'messages' is null")
    refused(pa.Table.from_pylist([good, {"messages": []}]), ", row 2.*: there are no messages")
    refused(
        pa.Table.from_pylist([{"prompt": "p", "completions": "c"}]),
        r": no column 'completion'; columns: prompt, completions. .* mean 'completions'\?",
        format="completion",
        column=("prompt", "completion"),
    )
    roles, contents = pa.array(["user"]), pa.array([b"a\xff"]).view(pa.string())
    struct = pa.StructArray.from_arrays([roles, contents], ["role", "content"])
    table = pa.table({"messages": pa.ListArray.from_arrays(pa.array([0, 1], pa.int32()), struct)})
    refused(table, ", row 1: byte 0xff at offset 1 is not UTF-8")


def test_a_role_that_the_template_refuses_is_named(make) -> None:
    template = (
        "{% for m in messages %}{% if m.role == 'tool' %}"
        "{{ raise_exception('no tools') }}{% endif %}{% endfor %}" + CHATML
    )
    row = {"messages": [{"role": "tool", "content": "x"}, {"role": "assistant", "content": "y"}]}
    message = r"line 2: the chat template \(tokenizer_config.json of .*tokenizer\) says: no tools"
    with pytest.raises(UserError, match=message):
        open_store(make([chat("q", "a"), row], template))


def test_a_template_that_rewrites_history_is_named_with_the_row(make) -> None:
    template = (
        "{% for m in messages %}{{ m.role + m.content * (1 if loop.last else 2) + '<|im_end|>' }}"
        "{% endfor %}{% if add_generation_prompt %}assistant{% endif %}"
    )
    message = r"line 1: message 2, an answer, cannot be separated from its prompt: .* mark answers"
    with pytest.raises(UserError, match=message):
        open_store(make([chat("q", "a")], template))


def test_a_tokenizer_without_a_template_says_where_one_is_looked_for(make) -> None:
    message = (
        r"tokenizer' has no chat template; one is looked for in chat_template.jinja, then as "
        r"chat_template in tokenizer_config.json, both beside tokenizer.json"
    )
    with pytest.raises(UserError, match=message):
        open_store(make([chat("q", "a")], None))
    with pytest.raises(UserError, match=r"data.tokenizer 'bytes' has no chat template"):
        open_store(make([chat("q", "a")], tokenizer="bytes"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"source": "text:a.txt"}, r"'text:a.txt' has no columns, but its format is messages; al"),
        ({"validation_source": "builtin:python"}, r"'builtin:python' has no columns, but its for"),
        ({"column": ["a", "b"]}, r"format messages reads one column; give column: NAME"),
        ({"format": "completion", "column": "a"}, r"format completion reads two columns; give"),
    ],
)
def test_a_format_that_does_not_fit_its_source_is_refused(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DataConfig.model_validate({"source": "jsonl:a.jsonl", "format": "messages"} | options)


def test_inspect_shows_the_learnt_share_and_an_example_with_answers_marked(
    make, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    data = make([chat("Hi", "Hello"), chat("q")] * 9, sequence_length=32)
    model = {"d_model": 8, "num_layers": 1, "mixer": {"kind": "attention", "num_heads": 1}}
    model["ffn"] = {"kind": "swiglu", "d_hidden": 8}
    commands.inspect(Config.model_validate({"model": model, "data": data.model_dump()}))
    out = capsys.readouterr().out
    for line in (
        "│ left out            │ 9 without an answer ",
        f"│ in the loss         │ 54 ({6 / 46:.1%}) ",
        "│ bytes of answers    │ 45 ",
        f"│ bytes per token     │ {45 / 54:.3f} ",
        "document 0: 6 of 46 tokens are in the loss, between ⟦ and ⟧",
        "  | ⟦Hello<|im_end|>⟧",
        "  | <|im_start|>user",
    ):
        assert line in out


def test_a_tokenizer_is_not_trained_on_conversations(make, tmp_path) -> None:
    with pytest.raises(UserError, match=r"its format is messages, and a tokenizer is trained on t"):
        commands.train_tokenizer(make([chat("q", "a")]), tmp_path / "new", 300)
