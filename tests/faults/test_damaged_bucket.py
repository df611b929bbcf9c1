"""A damaged checkpoint of a run whose directory is in a bucket, of a server on this machine."""

from jaxformer.checkpoint.manager import Checkpoints
from jaxformer.checkpoint.run_directory import RunDirectory
from jaxformer.cli import main
from tests.checkpoint.test_manager import cut, save
from tests.runs import make_config


def test_a_damaged_checkpoint_in_a_bucket_is_passed_over_kept_and_removed_when_asked(
    bucket, tmp_path, capsys
):
    directory = RunDirectory("gs://runs/damaged")
    directory.create(make_config(tmp_path))
    with Checkpoints(directory.checkpoints, keep_newest=2) as checkpoints:
        for step in (1, 2, 3):
            save(checkpoints, step)
    newest = directory.checkpoints / "3"
    cut(newest / "params" / "_METADATA")
    with Checkpoints(directory.checkpoints, keep_newest=2) as checkpoints:
        assert checkpoints.newest_good() == 2
        assert f"warning: checkpoint {newest} is damaged: params/_M" in capsys.readouterr().err
        save(checkpoints, 3)
    assert main(["checkpoint", "ls", "gs://runs/damaged", "--verify"]) == 0
    words = [line.split() for line in capsys.readouterr().out.splitlines()[1:]]
    assert [[line[0], line[-1]] for line in words if line[-1] == "complete"] == [
        ["2", "complete"],
        ["3", "complete"],
    ]
    assert main(["checkpoint", "rm", "gs://runs/damaged", "2", "3.damaged"]) == 0
    assert [each.name for each in directory.checkpoints.iterdir()] == ["3"]
