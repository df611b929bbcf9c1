"""What is looked at before a run starts, so that it is not found out later."""

import pytest

from jaxformer import memory
from jaxformer.checkpoint.run_directory import RunDirectory
from jaxformer.cli import main
from jaxformer.config import Config
from jaxformer.errors import UserError
from jaxformer.train.preflight import schedule_notes
from jaxformer.train.run import train
from tests.runs import make_config, write_config


def test_a_model_beyond_the_memory_is_refused_before_anything_is_allocated(tmp_path, capsys):
    config = make_config(tmp_path, model={"ffn": {"kind": "swiglu", "d_hidden": 2**31}})
    file = write_config(config, tmp_path / "config.yaml")
    assert main(["train", str(file)]) == 2
    message = capsys.readouterr().err
    assert "parameters and optimizer state take" in message
    assert "GiB per device, but a cpu device here has" in message
    assert "mesh.preset=fsdp" in message
    assert not (tmp_path / "run").exists()


def test_a_step_beyond_the_memory_is_refused_when_it_is_compiled(tmp_path, monkeypatch):
    """With a device that holds the state of 134 KiB, and nothing for a step of it."""
    monkeypatch.setattr(memory, "device_memory", lambda device, held: 150 * 1024)
    with pytest.raises(UserError) as error:
        train(make_config(tmp_path))
    assert str(error.value).startswith("a step takes ")
    assert "but a cpu device here has 150 KiB; lower train.batch_size, raise" in str(error.value)
    assert not list((tmp_path / "run" / "checkpoints").iterdir())


def test_a_longer_run_whose_learning_rate_would_jump_is_refused_with_both_rates(tmp_path):
    schedule = {"kind": "cosine", "warmup_steps": 3, "final_fraction": 0.1}
    optimizer = {"learning_rate": 1e-3, "schedule": schedule}
    directory = run_at_step(12, make_config(tmp_path, optimizer=optimizer))
    longer = {"optimizer": optimizer, "train": {"steps": 21}}
    with pytest.raises(UserError) as error:
        schedule_notes(directory, make_config(tmp_path, **longer))
    change = (
        f"at step 12, from which the run in {directory.path} resumes, the learning rate was 0.0001 "
        f"(cosine over 12 steps) and would be 0.00055 (cosine over 21 steps)"
    )
    assert str(error.value).startswith(f"{change}; give run.accept_changes=[schedule] to resume")
    accepted = make_config(tmp_path, **longer, run={"accept_changes": ["schedule"]})
    assert schedule_notes(directory, accepted) == [f"accepted: {change}"]


@pytest.mark.parametrize(
    ("schedule", "step", "is_same"),
    [
        ({"kind": "constant", "warmup_steps": 3}, 2, True),
        ({"kind": "constant", "warmup_steps": 3}, 12, True),
        ({"kind": "cosine", "warmup_steps": 3}, 2, True),
        ({"kind": "cosine", "warmup_steps": 3}, 8, False),
        ({"kind": "linear"}, 8, False),
        ({"kind": "wsd", "decay_steps": 4}, 8, True),
        ({"kind": "wsd", "decay_steps": 4}, 9, False),
        ({"kind": "wsd", "decay_steps": 4}, 12, False),
    ],
)
def test_a_longer_run_needs_no_word_where_its_learning_rate_stays(
    tmp_path, schedule, step, is_same
):
    directory = run_at_step(step, make_config(tmp_path, optimizer={"schedule": schedule}))
    longer = {"optimizer": {"schedule": schedule}, "train": {"steps": 24}}
    if is_same:
        assert schedule_notes(directory, make_config(tmp_path, **longer)) == []
    else:
        with pytest.raises(UserError, match=f"at step {step}, from which the run in"):
            schedule_notes(directory, make_config(tmp_path, **longer))


def run_at_step(step: int, config: Config) -> RunDirectory:
    directory = RunDirectory(config.run.dir)
    directory.create(config)
    (directory.checkpoints / str(step)).mkdir(parents=True)
    return directory
