"""A run that is left alone, for those that are disturbed to be compared with."""

import pytest

from tests.faults.disturbed import SECRETS, Undisturbed
from tests.runs import finish, make_config, start_training, write_config

# `.ci/run` kills as often as there are ways to, `make faults` until chance has had its say.
KILLS = 3


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--kills", type=int, default=KILLS, help="how often test_kills.py kills a run")


@pytest.fixture(scope="session")
def kills(pytestconfig: pytest.Config) -> int:
    return pytestconfig.getoption("--kills", KILLS)


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory, kills) -> Undisturbed:
    """Long enough to be killed in as often as asked for, with a save every few hundredths of a
    second."""
    folder = tmp_path_factory.mktemp("faults")
    config = make_config(
        folder,
        train={"steps": 100 + 100 * kills, "log_every": 7},
        eval={"every": 60},
        checkpoint={"every": 20, "keep_newest": 3},
    )
    file = write_config(config, folder / "config.yaml")
    code, output = finish(start_training(file, environment=SECRETS), timeout=1200)
    assert code == 0, output
    return Undisturbed(file, folder / "run", config.train.steps, output)
