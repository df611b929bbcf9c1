"""`jaxformer eval`, `generate` and `plot`: what is done with a trained model."""

import argparse
from typing import Any

from jaxformer.cli.arguments import (
    DONE,
    add_command,
    joined_processes,
    takes_overrides,
    takes_processes,
    text,
    whole_number,
)
from jaxformer.paths import local_path, locate_path


def add(commands: Any) -> None:
    _add_eval(commands)
    _add_generate(commands)
    _add_plot(commands)


def _add_eval(commands: Any) -> None:
    parser = add_command(
        commands,
        "eval",
        "Loss, perplexity and bits per byte of a run or checkpoint, or what its suites measure.",
        _eval,
        "jaxformer eval runs/quickstart --suite lm_eval:hellaswag,arc_easy --limit 100 --json",
    )
    parser.add_argument("run", type=locate_path, help="a run directory, or one of its checkpoints")
    takes_overrides(parser)
    parser.add_argument(
        "--suite",
        action="append",
        metavar="NAME",
        help="validation (what is measured without any), or lm_eval:TASK[,TASK]; may be repeated",
    )
    group = parser.add_argument_group("tasks of lm_eval")
    group.add_argument(
        "--tasks-dir", type=local_path, metavar="FOLDER", help="a folder of task YAMLs of your own"
    )
    group.add_argument("--limit", type=int, metavar="N", help="only N samples of each task")
    group.add_argument("--num-fewshot", type=int, metavar="N", help="N solved examples before each")
    takes_processes(parser)
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")


def _eval(arguments: argparse.Namespace) -> int:
    with joined_processes(arguments):
        from jaxformer.evaluate.perplexity import evaluate_run
        from jaxformer.evaluate.suites import Options, evaluate_suites

        options = Options(arguments.tasks_dir, arguments.limit, arguments.num_fewshot)
        run, overrides = arguments.run, arguments.overrides
        if arguments.suite is None:
            options.refuse()
            return evaluate_run(run, overrides, json=arguments.json)
        return evaluate_suites(run, overrides, arguments.suite, options, json=arguments.json)


def _add_generate(commands: Any) -> None:
    parser = add_command(
        commands,
        "generate",
        "Continue prompts with a trained model.",
        _generate,
        "jaxformer generate runs/quickstart --prompt 'def ' --max-new-tokens 200 --temperature 0.8",
    )
    parser.add_argument("run", type=locate_path, help="a run directory, or one of its checkpoints")
    takes_overrides(parser)
    parser.add_argument(
        "--prompt",
        action="append",
        type=text,
        required=True,
        metavar="TEXT",
        help="repeat it for several prompts in one batch",
    )
    parser.add_argument(
        "--chat",
        action="store_true",
        help="a prompt is what a user says; answer it by the tokenizer's chat template",
    )
    parser.add_argument("--max-new-tokens", type=whole_number(1), default=256, metavar="N")
    parser.add_argument("--temperature", type=float, default=1.0, metavar="T", help="0 is greedy")
    parser.add_argument(
        "--top-k", type=whole_number(1), metavar="K", help="only the K likeliest tokens"
    )
    parser.add_argument("--top-p", type=float, metavar="P", help="only the likeliest, P in sum")
    parser.add_argument(
        "--min-p", type=float, metavar="P", help="only those of at least P times the likeliest's"
    )
    parser.add_argument("--seed", type=whole_number(0), default=0, metavar="S")
    parser.add_argument("--stats", action="store_true", help="print tokens per second")


def _generate(arguments: argparse.Namespace) -> int:
    from jaxformer.run import load

    run = load(arguments.run, arguments.overrides)
    generate = run.chat if arguments.chat else run.generate
    generate(
        arguments.prompt,
        max_new_tokens=arguments.max_new_tokens,
        temperature=arguments.temperature,
        top_k=arguments.top_k,
        top_p=arguments.top_p,
        min_p=arguments.min_p,
        seed=arguments.seed,
        stream=True,
        stats=arguments.stats,
    )
    return DONE


def _add_plot(commands: Any) -> None:
    parser = add_command(
        commands,
        "plot",
        "Draw the loss curves of runs.",
        _plot,
        "jaxformer plot runs/quickstart --out loss.png",
    )
    parser.add_argument("runs", nargs="+", type=locate_path, metavar="RUN", help="a run directory")
    parser.add_argument(
        "--out", type=local_path, required=True, help="an image file: .png, .svg, .pdf"
    )


def _plot(arguments: argparse.Namespace) -> int:
    from jaxformer.plot import plot_losses

    plot_losses(arguments.runs, arguments.out)
    print(f"wrote {arguments.out}")
    return DONE
