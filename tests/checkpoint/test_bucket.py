"""Runs as real processes whose directory is in a bucket, of a server on this machine."""

import signal

import gcsfs
import pytest

from jaxformer.checkpoint.manager import Checkpoints
from jaxformer.checkpoint.own_copies import keep_copies, keep_weights
from jaxformer.checkpoint.run_directory import RunDirectory
from jaxformer.checkpoint.weights import find_weights
from jaxformer.cli import main
from jaxformer.config.loading import load_config
from jaxformer.data.tokenizers import load_tokenizer
from jaxformer.errors import UserError
from jaxformer.run import load
from tests.checkpoint.interop.models import write_tokenizer
from tests.checkpoint.test_manager import like, make_trees, save
from tests.runs import (
    assert_same_arrays,
    finish,
    make_config,
    results,
    saved_arrays,
    start_training,
    write_config,
)

PLACE = "gs://runs/of/mine"


def test_a_run_in_a_bucket_stops_goes_on_and_is_evaluated_as_on_a_disk(bucket, tmp_path, capsys):
    config = make_config(tmp_path, train={"steps": 24}, eval={"every": 8}, checkpoint={"every": 8})
    config = write_config(config, tmp_path / "config.yaml")
    assert finish(start_training(config))[0] == 0
    process = start_training(config, f"run.dir={PLACE}", "train.profile={start: 2, steps: 1}")
    for line in process.stdout:
        print(line, end="")
        if "validation" in line:
            process.send_signal(signal.SIGTERM)
            break
    code, output = finish(process)
    assert code == 75, output
    code, output = finish(start_training(f"{PLACE}/config.yaml"))
    assert code == 0, output
    assert f"resumed from {PLACE}/checkpoints/" in output
    assert main(["profile", PLACE]) == 0
    assert f"{PLACE}/profile/2, process 0, 1 device\n" in capsys.readouterr().out
    copy = tmp_path / "copy"
    gcsfs.GCSFileSystem().get(PLACE, str(copy), recursive=True)
    assert results(copy) == results(tmp_path / "run")
    assert_same_arrays(saved_arrays(copy, 24), saved_arrays(tmp_path / "run", 24))
    assert load(f"{PLACE}/checkpoints/24").generate("a", seed=1) == load(copy).generate("a", seed=1)


def test_a_run_in_a_bucket_keeps_its_tokenizer_and_the_weights_under_its_adapters(bucket, tmp_path):
    """Of bases on a disk and in the bucket."""
    write_tokenizer(tmp_path)
    tokenizer = load_tokenizer(f"{tmp_path}/tokenizer.json")
    wanted = like({"params": make_trees()["params"]})["params"]
    bases = [RunDirectory(tmp_path / "base"), RunDirectory("gs://runs/base")]
    for number, base in enumerate(bases):
        base.create(make_config(tmp_path))
        with Checkpoints(base.checkpoints) as checkpoints:
            save(checkpoints, 7)
        directory = RunDirectory(f"gs://runs/adapters_{number}")
        keys = {"data": {"tokenizer": tokenizer.name}, "init": {"from": str(base.path)}}
        directory.create(make_config(tmp_path, lora={"rank": 2}, **keys))
        keep_copies(directory, tokenizer, find_weights(base.path), None)
        keep_weights(
            directory.base, find_weights(base.path), ""
        )  # again, in the place of the first
        directory.write_manifest({})
        config = load_config(f"{directory.path}/config.yaml")
        assert config.run.dir == str(directory.path)
        assert load_tokenizer(config.data.tokenizer).fingerprint == tokenizer.fingerprint
        assert config.init.source == f"{directory.path}/base"
        copy = find_weights(config.init.source)
        assert (copy.step, list(copy.manifest["trees"])) == (7, ["params"])
        restored = copy.restore(wanted).params
        assert (restored["b"] == make_trees(7)["params"]["b"]).all()


def test_a_bucket_that_is_not_there_is_named(bucket, tmp_path):
    directory = RunDirectory("gs://nowhere/run")
    with pytest.raises(UserError, match="run.dir gs://nowhere/run cannot be written"):
        directory.create(make_config(tmp_path))


def test_another_kind_of_place_is_refused(tmp_path):
    with pytest.raises(
        ValueError, match="'s3://b/run' is a place that cannot be used here; allowed: a path on a "
    ):
        make_config(tmp_path, run={"dir": "s3://b/run"})
