"""What is looked at before a run starts, so that it is not found out later."""

from types import SimpleNamespace

import jax
import pytest

from jaxformer.cli import main
from jaxformer.parallel.memory import device_memory
from jaxformer.schema import UserError
from jaxformer.train import preflight
from jaxformer.train.loop import train
from tests.runs import make_config, write_config


def test_a_model_beyond_the_memory_is_refused_before_anything_is_allocated(tmp_path, capsys):
    config = make_config(tmp_path, model={"ffn": {"kind": "swiglu", "d_hidden": 2**32}})
    file = write_config(config, tmp_path / "config.yaml")
    assert main(["train", str(file)]) == 2
    message = capsys.readouterr().err
    assert "parameters and optimizer state take" in message
    assert "GiB per device, but a cpu device here has" in message
    assert "mesh.preset=fsdp" in message
    assert not (tmp_path / "run").exists()


def test_a_step_beyond_the_memory_is_refused_when_it_is_compiled(tmp_path, monkeypatch):
    """With a device that holds the state of 134 KiB, and nothing for a step of it."""
    monkeypatch.setattr(preflight, "device_memory", lambda device: 150 * 1024)
    with pytest.raises(UserError) as error:
        train(make_config(tmp_path))
    assert str(error.value).startswith("a step takes ")
    assert "but a cpu device here has 150 KiB; lower train.batch_size, raise" in str(error.value)
    assert not list((tmp_path / "run" / "checkpoints").iterdir())


def test_the_memory_of_a_device_is_its_part_of_the_machine_or_the_allocators_limit():
    everywhere = sum(device_memory(device) for device in jax.local_devices())
    assert 2**28 < everywhere < 2**50
    accelerator = SimpleNamespace(platform="gpu", memory_stats=lambda: {"bytes_limit": 7})
    unknown = SimpleNamespace(platform="gpu", memory_stats=lambda: None)
    assert (device_memory(accelerator), device_memory(unknown)) == (7, None)
