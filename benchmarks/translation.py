"""Translation by an encoder and a decoder against a decoder alone, in equal time.

    python benchmarks/translation.py wesnoth_en_de [--minutes 10] [--out runs/translation]

Both models of the recipe translate_wesnoth_cpu.yaml have the same width and nearly as many
parameters, are trained for the same time at the rates of their own steps, and translate the test
set greedily. The decoder alone continues the source and a line break, and learns the target alone.
"""

import argparse
import json
import time
from pathlib import Path

from sacrebleu.metrics.bleu import BLEU
from sacrebleu.metrics.chrf import CHRF

import jaxformer as jf
from jaxformer.config import Config
from jaxformer.generate.beam_search import BeamSearch
from jaxformer.model.accounting import count_parameters
from jaxformer.run import Run
from jaxformer.train.metrics import read_rows
from jaxformer.train.run import train

RECIPE = Path(__file__).parents[1] / "configs" / "recipes" / "translate_wesnoth_cpu.yaml"
TRIED = 40  # steps that tell how long one takes
AT_ONCE = 40  # prompts
OF_TWO_STACKS = ("encoder", "pattern")


def pairs_of(folder: Path, name: str) -> list[dict[str, str]]:
    return [json.loads(line) for line in (folder / f"{name}.jsonl").read_text().splitlines()]


def as_completions(folder: Path, out: Path) -> None:
    """The same pairs as prompts and completions."""
    for name in ("train", "validation"):
        lines = (
            json.dumps({"prompt": f"{pair['en']}\n", "completion": pair["de"]})
            for pair in pairs_of(folder, name)
            if pair["en"] and pair["de"]
        )
        (out / f"{name}.jsonl").write_text("\n".join(lines))


def configs(folder: Path, out: Path) -> dict[str, Config]:
    whole = jf.load_config(str(RECIPE)).model_dump(mode="json", by_alias=True, exclude_unset=True)
    data = whole["data"] | {
        "source": f"jsonl:{folder / 'train.jsonl'}",
        "validation_source": f"jsonl:{folder / 'validation.jsonl'}",
        "tokenizer": str(folder / "tokenizer"),
    }
    model = {key: value for key, value in whole["model"].items() if key not in OF_TWO_STACKS}
    alone = {
        "source": f"jsonl:{out / 'train.jsonl'}",
        "validation_source": f"jsonl:{out / 'validation.jsonl'}",
        "format": "completion",
        "column": ["prompt", "completion"],
        "tokenizer": str(folder / "tokenizer"),
        "sequence_length": 2 * data["sequence_length"],
    }
    # As many tokens are read per step, and ten layers have nearly as many weights as four with
    # four of cross-attention.
    alone_sections = {"data": alone, "model": model | {"num_layers": 10}}
    sections = {
        "encoder and decoder": whole | {"data": data},
        "decoder alone": whole | alone_sections,
    }
    return {name: Config.model_validate(section) for name, section in sections.items()}


def shortened(config: Config, steps: int, place: Path) -> Config:
    schedule = config.optimizer.schedule.model_copy(update={"warmup_steps": min(200, steps // 5)})
    return config.model_copy(
        update={
            "train": config.train.model_copy(update={"steps": steps}),
            "optimizer": config.optimizer.model_copy(update={"schedule": schedule}),
            "eval": config.eval.model_copy(update={"every": steps, "sample_tokens": 0}),
            "checkpoint": config.checkpoint.model_copy(update={"every": steps}),
            "run": config.run.model_copy(update={"dir": str(place)}),
        }
    )


def seconds_per_step(config: Config, place: Path) -> float:
    train(shortened(config, TRIED, place))
    rows = [row for row in read_rows(place / "metrics.jsonl") if "tokens_per_second" in row]
    rates = sorted(row["tokens_per_second"] for row in rows)
    return config.train.batch_size * config.data.sequence_length / rates[len(rates) // 2]


def translated(run: Run, sources: list[str]) -> list[str]:
    if run.config.data.kind == "pairs":
        return run.translate(sources, BeamSearch(beams=1))
    prompts = [f"{source}\n" for source in sources]
    return [
        text
        for start in range(0, len(prompts), AT_ONCE)
        for text in run.generate(
            prompts[start : start + AT_ONCE], temperature=0, max_new_tokens=128
        )
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--out", type=Path, default=Path("runs/translation"))
    arguments = parser.parse_args()
    folder, out = arguments.folder.absolute(), arguments.out.absolute()
    out.mkdir(parents=True, exist_ok=True)
    as_completions(folder, out)
    test = pairs_of(folder, "test")
    lines = []
    for name, config in configs(folder, out).items():
        place = out / name.replace(" ", "_")
        each = seconds_per_step(config, place.with_name(f"{place.name}_tried"))
        steps = max(TRIED, round(60 * arguments.minutes / each))
        start = time.perf_counter()
        train(shortened(config, steps, place))
        minutes = (time.perf_counter() - start) / 60
        run = jf.load(place)
        written = translated(run, [pair["en"] for pair in test])
        targets = [[pair["de"] for pair in test]]
        lines.append(
            f"{name:20} {count_parameters(run.model):>10,} parameters {steps:>6,} steps in "
            f"{minutes:4.1f} min  BLEU {BLEU().corpus_score(written, targets).score:5.2f}  "
            f"chrF {CHRF().corpus_score(written, targets).score:5.2f}"
        )
        print(lines[-1])
    print("\n".join(lines))


if __name__ == "__main__":
    main()
