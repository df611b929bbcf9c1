"""`jaxformer train`, `jaxformer plan` and `jaxformer profile`."""

import argparse
from typing import Any

import jaxformer
from jaxformer.cli.arguments import (
    DONE,
    FAILED,
    add_command,
    joined_processes,
    takes_overrides,
    takes_processes,
    whole_number,
)
from jaxformer.cli.guard import output_may_close, tell
from jaxformer.errors import RunFailed
from jaxformer.paths import locate_path


def add(commands: Any) -> None:
    _add_train(commands)
    _add_plan(commands)
    _add_profile(commands)


def _add_train(commands: Any) -> None:
    parser = add_command(
        commands,
        "train",
        "Train a model. The same command resumes a run that was stopped.",
        _train,
        "jaxformer train configs/quickstart.yaml model.d_model=128 run.dir=runs/small",
    )
    parser.add_argument("config", help="a configuration file")
    takes_overrides(parser)
    takes_processes(parser)


def _train(arguments: argparse.Namespace) -> int:
    config = jaxformer.load_config(arguments.config, arguments.overrides)
    with output_may_close():
        try:
            with joined_processes(arguments):
                from jaxformer.train.run import train

                return train(config)
        except RunFailed as error:
            from jaxformer.parallel.processes import leave

            tell(error, debug=arguments.debug)
            leave(FAILED)  # at once: threads may still try to write


def _add_plan(commands: Any) -> None:
    parser = add_command(
        commands,
        "plan",
        "Predict the memory and time of a training step on a TPU slice, without a TPU.",
        _plan,
        "jaxformer plan configs/models/llama3-8b.yaml --topology v5p-128 mesh.data=1 mesh.fsdp=64 "
        "train.batch_size=128",
    )
    parser.add_argument("config", help="a configuration file")
    takes_overrides(parser)
    parser.add_argument(
        "--topology", required=True, metavar="NAME", help="a TPU slice, such as v5p-128 or v6e-256"
    )
    parser.add_argument("--slices", type=int, default=1, metavar="N", help="(default: 1)")
    parser.add_argument(
        "--search", action="store_true", help="try combinations of train.remat, batch size and mesh"
    )
    parser.add_argument(
        "--show-sharding",
        action="store_true",
        help="only list what each chip holds of every parameter",
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")


def _plan(arguments: argparse.Namespace) -> int:
    config = jaxformer.load_config(arguments.config, arguments.overrides)
    from jaxformer.plan.plan import plan, show_sharding
    from jaxformer.plan.search import search

    if arguments.show_sharding:
        show_sharding(config, arguments.topology, arguments.slices)
        return DONE
    run = search if arguments.search else plan
    return run(config, arguments.topology, arguments.slices, as_json=arguments.json)


def _add_profile(commands: Any) -> None:
    parser = add_command(
        commands,
        "profile",
        "Print where the time of a run's steps went, from the newest profile that it has taken.",
        _profile,
        "jaxformer profile runs/quickstart",
    )
    parser.add_argument("run", type=locate_path, metavar="RUN", help="a run directory")
    parser.add_argument(
        "--process",
        type=whole_number(0),
        default=0,
        metavar="I",
        help="the process whose trace is read, of several (default: 0)",
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")


def _profile(arguments: argparse.Namespace) -> int:
    from jaxformer.profile.report import report

    report(arguments.run, arguments.process, as_json=arguments.json)
    return DONE
