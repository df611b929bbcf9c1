"""A process that makes units of a store; see `workers`."""

import json
import os
import sys

from jaxformer.config import DataConfig, SourceConfig
from jaxformer.data.making import making_folder
from jaxformer.data.plans import plan_of
from jaxformer.data.tokenizers import load_tokenizer
from jaxformer.errors import RunFailed, UserError


def main() -> None:
    spec = json.loads(sys.stdin.readline())
    try:
        data = DataConfig.model_validate_json(json.dumps(spec["data"]))
        source = SourceConfig.model_validate_json(json.dumps(spec["source"]))
        tokenizer = load_tokenizer(data.tokenizer, data.add_bos)
        plan = plan_of(source, data, tokenizer, spec["shard_bytes"])
        if plan.key != spec["key"]:
            raise UserError(f"data source '{source.source}' changed while it was read; run again")
        with making_folder(plan.recipe.place, plan.data) as folder:
            for line in sys.stdin:
                plan.write(int(line), folder, lambda done: _answer(done=done))
                _answer(unit=int(line))
    except BrokenPipeError:  # the process that started it is gone
        os._exit(1)  # nobody is left to tell
    except (UserError, RunFailed) as error:
        _answer(error=str(error))
    except OSError as error:
        _answer(error=f"{error.filename or 'a shard'}: {error.strerror}")


def _answer(**answer: int | str) -> None:
    print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
