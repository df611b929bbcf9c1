"""Reading a config.json so that nothing in it is ignored."""

import math
import re
from typing import Any

from jaxformer.schema import UserError

# What changes no logits: how a file was written, training, generation, classification heads.
HARMLESS = re.compile(
    r"_.*|unsloth_.*|architectures|auto_map|model_type|name_or_path|transformers_version|dtype"
    r"|torch_dtype|use_cache|cache_implementation|initializer_.*|pretraining_tp|(bos|eos|pad)_token_id"
    r"|(id2label|label2id|num_labels|problem_type)|task_specific_params|summary_.*|n_ctx"
    r"|(attention|hidden|residual|embedding|attn|embd|resid)_(dropout|pdrop|dropout_prob)|dropout"
    r"|output_(attentions|hidden_states|scores)|return_dict(_in_generate)?|torchscript|use_bfloat16"
    r"|chunk_size_feed_forward|is_decoder|use_flash_attention(_2)?|attn_implementation|do_sample"
    r"|max_length|max_new_tokens|temperature|top_k|top_p|repetition_penalty|num_return_sequences"
    r"|add_bos_token|add_eos_token|mlp_implementation|is_llama_config|transformers\.js_config"
)
ABSENT: Any = object()


class HubConfig:
    """The keys of a config.json; each is taken, is known to change no logits, or is refused."""

    def __init__(self, config: dict[str, Any], name: str = "config.json") -> None:
        self.name = name
        self._config = config
        self._taken: set[str] = set()

    def has(self, key: str) -> bool:
        """Whether it is there, be it as null."""
        return key in self._config

    def take(self, key: str, default: Any = ABSENT) -> Any:
        """The value of a key; null counts as left out.

        Raises:
            UserError: it is left out and has no default.
        """
        self._taken.add(key)
        value = self._config.get(key)
        if value is None:
            value = default
        if value is ABSENT:
            raise UserError(f"{self.name} has no '{key}', which {self._model} needs")
        return value

    def number(self, key: str, default: Any = ABSENT) -> float:
        """Like `take`, for a positive number.

        Raises:
            UserError: something else.
        """
        value = self.take(key, default)
        if type(value) not in (int, float) or not 0 < value < math.inf:
            raise UserError(f"{self.name} has {key} {value!r}; allowed: a positive number")
        return float(value)

    def count(self, key: str, default: Any = ABSENT) -> int:
        """Like `take`, for a positive whole number.

        Raises:
            UserError: something else.
        """
        value = self.number(key, default)
        if value != int(value):
            raise UserError(f"{self.name} has {key} {value!r}; allowed: a positive whole number")
        return int(value)

    def need(self, key: str, *allowed: Any, default: Any = ABSENT) -> Any:
        """Like `take`, for a key that may have only some values.

        Raises:
            UserError: another value.
        """
        value = self.take(key, allowed[0] if default is ABSENT else default)
        if value not in allowed:
            options = ", ".join(map(repr, allowed))
            raise UserError(
                f"{self.name} has {key} {value!r}, which is not supported for {self._model}; "
                f"allowed: {options}"
            )
        return value

    def finish(self) -> None:
        """Refuse what nobody has taken.

        Raises:
            UserError: all such keys, with their values.
        """
        unknown = {
            key: value
            for key, value in self._config.items()
            if value is not None and key not in self._taken and not HARMLESS.fullmatch(key)
        }
        if unknown:
            pairs = ", ".join(f"{key} {str(value)[:80]}" for key, value in unknown.items())
            raise UserError(
                f"{self.name} has options that are not supported for {self._model}: {pairs}; "
                f"their models would be other ones here. Remove a key only if you know that it "
                f"changes no logits"
            )

    @property
    def _model(self) -> str:
        return str(self._config.get("model_type", "this model"))
