"""A run on conversations, from rows to answers."""

import json

import numpy as np
import pytest

from jaxformer.cli import main
from jaxformer.data.stores import Stores
from jaxformer.run import load
from jaxformer.train.run import train
from tests.data.chats import CHATML, chat, write_jsonl, write_tokenizer
from tests.runs import make_config

ANSWERS = {"one?": "uno", "two?": "dos", "ten?": "six"}
CONVERSATION = 46  # tokens, so that no row begins inside one


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Trained until it knows the answers by heart."""
    folder = tmp_path_factory.mktemp("chat")
    rows = [chat(question, answer) for question, answer in ANSWERS.items()] * 24
    data = {
        "source": write_jsonl(folder / "rows.jsonl", rows),
        "format": "messages",
        "tokenizer": write_tokenizer(folder / "tokenizer", CHATML),
        "sequence_length": 2 * CONVERSATION,
        "validation_fraction": 0.1,
    }
    config = make_config(
        folder,
        data=data,
        train={"steps": 120, "ema_decay": None, "z_loss": 0.0},
        optimizer={"learning_rate": 0.01},
        eval={"every": 120},
        checkpoint={"every": 120},
    )
    assert train(config) == 0
    return config


def test_the_loss_is_of_answers_alone(finished, capsys):
    run = load(finished.run.dir)
    [part] = Stores(finished.data, run.tokenizer).training
    batch = part.pack(np.arange(len(part)))
    sums, _ = run.model.apply({"params": run.params}, *batch, method="loss")
    assert int(sums.tokens) == batch.loss_mask.sum() == part.loss_tokens()
    other = batch._replace(targets=np.where(batch.loss_mask, batch.targets, 0))
    same, _ = run.model.apply({"params": run.params}, *other, method="loss")
    assert float(same.loss) == float(sums.loss)


def test_a_user_is_answered_as_in_training(finished, capsys):
    run = load(finished.run.dir)
    questions = list(ANSWERS)
    assert run.chat(questions, temperature=0, max_new_tokens=20) == list(ANSWERS.values())
    argv = ["generate", finished.run.dir, "--chat", "--prompt", "two?", "--temperature", "0"]
    assert main(argv) == 0
    assert capsys.readouterr().out == "two?\n\ndos\n"


def test_bits_per_byte_are_of_answers_alone(finished, capsys):
    assert main(["eval", finished.run.dir, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    nats = result["loss"] * result["tokens"]
    assert result["tokens"] == 8 * 4  # three letters and the end of a turn
    assert result["bits_per_byte"] == pytest.approx(nats / np.log(2) / (8 * 3))
