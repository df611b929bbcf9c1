"""One run, started again and again on other devices."""

import os

from tests.devices.test_processes import assert_near
from tests.runs import finish, make_config, start_training, write_config

MOVES = [
    (8, ["mesh.data=1", "mesh.fsdp=8"]),
    (4, ["mesh.data=1", "mesh.fsdp=2", "mesh.tensor=2"]),
    (1, []),
    (8, ["mesh.data=2", "mesh.fsdp=2", "mesh.tensor=2"]),
]


def train(config, run, steps: int, devices: int, *axes: str) -> str:
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={devices}"
    code, output = finish(
        start_training(
            config,
            f"run.dir={run}",
            f"train.steps={steps}",
            *axes,
            environment={"XLA_FLAGS": flags},
        ),
        timeout=600,
    )
    assert code == 0, output
    return output


def test_a_run_that_moves_between_meshes_has_the_losses_of_one_that_stayed(tmp_path):
    """From 8 devices to 4, to 1, and to 8, three steps on each. The vocabulary of 257 is divided by
    none of them."""
    config = make_config(
        tmp_path,
        train={"batch_size": 8, "log_every": 1},
        optimizer={"schedule": {"kind": "constant"}},
        eval={"every": 3},
        checkpoint={"every": 3},
    )
    file = write_config(config, tmp_path / "config.yaml")
    moved, stayed = tmp_path / "moved", tmp_path / "stayed"
    for number, (devices, axes) in enumerate(MOVES):
        output = train(file, moved, 3 * (number + 1), devices, *axes)
        assert f"{devices} × cpu" in output
        assert ("model.vocab_size=258" in output) == ("mesh.tensor=2" in axes)
        assert ("resumed from" in output) == (number > 0)
    train(file, stayed, 12, 1)
    assert_near(moved, stayed)
