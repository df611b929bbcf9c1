"""`jaxformer import` and `export`: pretrained models become runs, and runs become models that
other libraries load."""

import argparse
from typing import Any

from jaxformer.cli.arguments import DONE, add_command, takes_overrides, takes_run
from jaxformer.paths import local_path, locate_path


def add(commands: Any) -> None:
    _add_import(commands)
    _add_export(commands)


def _add_import(commands: Any) -> None:
    parser = add_command(
        commands,
        "import",
        "Turn a pretrained model into a run, to evaluate, sample and fine-tune.",
        _import,
        "jaxformer import HuggingFaceTB/SmolLM2-135M runs/smollm2",
    )
    parser.add_argument(
        "source",
        metavar="SRC",
        help="a folder with config.json and *.safetensors, a .gguf file, or a name on the Hugging "
        "Face Hub",
    )
    parser.add_argument("out", metavar="OUT", type=locate_path, help="a new run directory")


def _import(arguments: argparse.Namespace) -> int:
    from jaxformer.checkpoint.interop.importing import import_model
    from jaxformer.checkpoint.interop.opening import open_source
    from jaxformer.model.accounting import count_parameters
    from jaxformer.model.language_model import build_model

    config = import_model(open_source(arguments.source), arguments.out)
    use, source = f"generate: jaxformer generate {arguments.out} --prompt 'Once upon'", "text:FILES"
    if config.data.kind == "images":
        use, source = f"classify: jaxformer predict {arguments.out} FILES", "imagefolder:FOLDER"
    elif config.data.kind == "audio":
        use, source = f"transcribe: jaxformer predict {arguments.out} FILES", "audiofolder:FOLDER"
    elif config.model.order == "full":
        use = f"embed:    in Python, jaxformer.load('{arguments.out}').embed(['Once upon a time'])"
    print(
        f"wrote {arguments.out}, {count_parameters(build_model(config.model)):,} parameters\n"
        f"  {use}\n"
        f"  evaluate: jaxformer eval {arguments.out} data.validation_source='{source}'"
    )
    return DONE


def _add_export(commands: Any) -> None:
    parser = add_command(
        commands,
        "export",
        "Write a run as a folder that transformers loads.",
        _export,
        "jaxformer export runs/smollm2 exported --dtype bfloat16",
    )
    takes_run(parser)
    parser.add_argument("out", metavar="OUT", type=local_path, help="a new folder")
    takes_overrides(parser)
    parser.add_argument(
        "--dtype",
        choices=("float32", "bfloat16"),
        default="float32",
        help="the dtype of the weights (default: float32)",
    )


def _export(arguments: argparse.Namespace) -> int:
    from jaxformer.checkpoint.interop.exporting import export_model

    options = export_model(arguments.run, arguments.out, arguments.dtype, arguments.overrides)
    [architecture] = options["architectures"]
    print(
        f"wrote {arguments.out}, a {options['model_type']}\n"
        f"  load: transformers.{architecture}.from_pretrained({str(arguments.out)!r})"
    )
    return DONE
