"""`jaxformer eval`, `generate`, `predict` and `plot`: the commands that use a trained model."""

import argparse
from typing import Any

from jaxformer.cli.arguments import (
    DONE,
    add_command,
    joined_processes,
    search_of,
    takes_beams,
    takes_draft,
    takes_overrides,
    takes_processes,
    takes_run,
    text,
    whole_number,
)
from jaxformer.paths import local_path, locate_path


def add(commands: Any) -> None:
    _add_eval(commands)
    _add_generate(commands)
    _add_predict(commands)
    _add_plot(commands)


def _add_eval(commands: Any) -> None:
    parser = add_command(
        commands,
        "eval",
        "Measure the loss and bits per byte of a run's text, the accuracy of its classes, the word "
        "errors of its recordings or what its pictures' texts find, or run benchmark suites.",
        _eval,
        "jaxformer eval runs/quickstart --suite lm_eval:hellaswag,arc_easy --limit 100 --json",
    )
    takes_run(parser)
    takes_overrides(parser)
    parser.add_argument(
        "--suite",
        action="append",
        metavar="NAME",
        help="validation (the default), lm_eval:TASK[,TASK] or synthetic:TASK[,TASK]; "
        "repeat the option for several",
    )
    group = parser.add_argument_group("lm_eval tasks")
    group.add_argument(
        "--tasks-dir", type=local_path, metavar="FOLDER", help="a folder of your own task files"
    )
    group.add_argument(
        "--limit", type=int, metavar="N", help="use only the first N samples of each task"
    )
    group.add_argument(
        "--num-fewshot", type=int, metavar="N", help="put N solved examples before each sample"
    )
    takes_draft(group)
    takes_beams(parser)
    takes_processes(parser)
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")


def _eval(arguments: argparse.Namespace) -> int:
    with joined_processes(arguments):
        from jaxformer.evaluate.commands import evaluate_run, evaluate_suites
        from jaxformer.evaluate.suite import Options

        options = Options(
            arguments.tasks_dir, arguments.limit, arguments.num_fewshot, arguments.draft
        )
        run, overrides = arguments.run, arguments.overrides
        if arguments.suite is None:
            options.refuse()
            return evaluate_run(run, overrides, search_of(arguments), json=arguments.json)
        return evaluate_suites(run, overrides, arguments.suite, options, json=arguments.json)


def _add_generate(commands: Any) -> None:
    parser = add_command(
        commands,
        "generate",
        "Continue prompts with a trained model, or answer them with --chat.",
        _generate,
        "jaxformer generate runs/quickstart --prompt 'def ' --max-new-tokens 200 --temperature 0.8",
    )
    takes_run(parser)
    takes_overrides(parser)
    parser.add_argument(
        "--prompt",
        action="append",
        type=text,
        required=True,
        metavar="TEXT",
        help="the text to continue; repeat the option for several prompts in one batch",
    )
    parser.add_argument(
        "--chat",
        action="store_true",
        help="treat prompts as a user's messages, and answer with the tokenizer's chat template",
    )
    parser.add_argument(
        "--max-new-tokens",
        type=whole_number(1),
        default=256,
        metavar="N",
        help="per prompt (default: 256)",
    )
    parser.add_argument(
        "--temperature",
        type=float,
        default=1.0,
        metavar="T",
        help="0 picks the most likely token (default: 1)",
    )
    parser.add_argument(
        "--top-k", type=whole_number(1), metavar="K", help="sample from the K most likely tokens"
    )
    parser.add_argument(
        "--top-p",
        type=float,
        metavar="P",
        help="sample from the most likely tokens whose probabilities add up to P",
    )
    parser.add_argument(
        "--min-p",
        type=float,
        metavar="P",
        help="sample from tokens at least P times as likely as the most likely one",
    )
    parser.add_argument(
        "--steps",
        type=whole_number(1),
        metavar="N",
        help="passes over the continuation, or over each block of one, for models trained by "
        "diffusion (default: one per token)",
    )
    parser.add_argument(
        "--entropy-bound",
        type=float,
        metavar="NATS",
        help="instead of --steps: decide as many tokens in a pass as have less entropy together",
    )
    parser.add_argument("--seed", type=whole_number(0), default=0, metavar="S", help="(default: 0)")
    takes_draft(
        parser.add_argument_group(
            "speculative decoding",
            "A draft proposes tokens, and the run verifies several at once. The output is that of\n"
            "the run alone: the same tokens at --temperature 0, the same law otherwise. Try\n"
            "--draft self:2 --stats.",
        )
    )
    parser.add_argument(
        "--draft-tokens",
        type=whole_number(1),
        metavar="N",
        help="how many tokens are drafted at once (default: 2, 4 or 8, by what is accepted)",
    )
    group = parser.add_argument_group(
        "early exit",
        "A token skips the remaining layers when the model is sure. The output may change.",
    )
    group.add_argument(
        "--exit-confidence",
        type=float,
        metavar="X",
        help="leave when the confidence after a repetition of the pattern is above X; 1 never does",
    )
    group.add_argument(
        "--exit-by",
        choices=["margin", "state"],
        help="the confidence: the margin between the two likeliest tokens' probabilities (the "
        "default), or the cosine of the state before and after the repetition",
    )
    parser.add_argument(
        "--stats",
        action="store_true",
        help="print tokens per second, and what a draft or early exits were worth",
    )


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
        steps=arguments.steps,
        entropy_bound=arguments.entropy_bound,
        seed=arguments.seed,
        draft=arguments.draft,
        draft_tokens=arguments.draft_tokens,
        exit_confidence=arguments.exit_confidence,
        exit_by=arguments.exit_by,
        stream=True,
        stats=arguments.stats,
    )
    return DONE


def _add_predict(commands: Any) -> None:
    parser = add_command(
        commands,
        "predict",
        "Classify pictures or recordings, transcribe recordings, translate sentences, or compare "
        "pictures with texts, with a trained model.",
        _predict,
        "jaxformer predict runs/vit_fashion shoe.png coat.jpg --top 3",
    )
    takes_run(parser)
    parser.add_argument(
        "words",
        nargs="*",
        metavar="FILE",
        help="a picture, a recording, or a text with a sentence per line, or several; a "
        "key.path=value that is no file overrides a key of the configuration",
    )
    parser.add_argument(
        "--text",
        action="append",
        type=text,
        default=[],
        help="a sentence to translate, or a class in words that pictures are compared with; repeat "
        "the option for several",
    )
    parser.add_argument(
        "--top",
        type=whole_number(1),
        default=5,
        metavar="N",
        help="print the N likeliest classes (default: 5)",
    )
    parser.add_argument(
        "--template",
        default="{}",
        metavar="TEMPLATE",
        help="what every TEXT is put into where pictures are compared with them, as 'a photo of a "
        "{}'",
    )
    takes_beams(parser)
    parser.add_argument("--json", action="store_true", help="print JSON")


def _predict(arguments: argparse.Namespace) -> int:
    from jaxformer.evaluate.predict import Texts, predict_files

    files = {word: local_path(word) for word in arguments.words}
    overrides = [word for word, file in files.items() if "=" in word and not file.exists()]
    given = [file for word, file in files.items() if word not in overrides]
    texts = Texts(arguments.text, arguments.template, search_of(arguments))
    return predict_files(arguments.run, overrides, given, arguments.top, texts, json=arguments.json)


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
        "--out", type=local_path, required=True, help="an image file: .png, .svg or .pdf"
    )


def _plot(arguments: argparse.Namespace) -> int:
    from jaxformer.plot import plot_losses

    plot_losses(arguments.runs, arguments.out)
    print(f"wrote {arguments.out}")
    return DONE
