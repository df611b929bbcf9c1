"""Reading a config.json so that no key is ignored, and no missing one is guessed."""

import re
import reprlib
from collections.abc import Collection, Mapping
from typing import Any

from jaxformer.errors import UserError

# What changes no logits: how a file was written, training, generation, classification heads.
HARMLESS = re.compile(
    r"_.*|unsloth_.*|architectures|auto_map|model_type|name_or_path|transformers_version|dtype"
    r"|torch_dtype|use_cache|cache_implementation|initializer_.*|pretraining_tp|(bos|eos|pad)_token_id"
    r"|(id2label|label2id|num_labels|problem_type)|task_specific_params|summary_.*|n_ctx"
    r"|(attention(_probs)?|hidden|residual|embedding|attn|embd|resid)_(dropout|pdrop|dropout_prob)|(classifier_)?dropout"
    r"|output_(attentions|hidden_states|scores)|return_dict(_in_generate)?|torchscript|use_bfloat16"
    r"|chunk_size_feed_forward|is_decoder|use_flash_attention(_2)?|attn_implementation|do_sample"
    r"|max_length|max_new_tokens|temperature|top_k|top_p|repetition_penalty|num_return_sequences"
    r"|add_bos_token|add_eos_token|mlp_implementation|is_llama_config|transformers\.js_config"
    r"|is_encoder_decoder|tie_encoder_decoder|cross_attention_hidden_size|prefix"
    r"|gradient_checkpointing|finetuning_task|tokenizer_class|tf_legacy_loss|remove_invalid_values"
    r"|(sep|decoder_start|forced_bos|forced_eos)_token_id|(begin_)?suppress_tokens|bad_words_ids"
    r"|min_length|early_stopping|num_beams|num_beam_groups|(diversity|length)_penalty|typical_p"
    r"|(encoder_)?no_repeat_ngram_size|exponential_decay_length_penalty"
    r"|output_router_logits|router_(aux_loss_coef|z_loss_coef|jitter_noise)"
)
LARGEST = 2**53  # of a number: float64 holds every whole one below it
WIDEST = 2**24  # of a size: arrays of a few times as many numbers are made before weights are read
ABSENT: Any = object()
_SHORT = reprlib.Repr()
_SHORT.maxlevel, _SHORT.maxstring, _SHORT.maxother = 3, 80, 80


class HubConfig:
    """The keys of a config.json; each is taken, is known to change no logits, or is refused.

    defaults: what transformers' configuration class has for a key that the file leaves out.
    nullable: the keys of `defaults` for which the class also allows null, with another meaning
        than the default. Null for any other key of `defaults` is refused, as it is by the class.
    """

    def __init__(
        self,
        config: Mapping[str, Any],
        name: str = "config.json",
        defaults: Mapping[str, Any] | None = None,
        nullable: Collection[str] = (),
    ) -> None:
        self.name = name
        self.defaults = defaults or {}
        self._config = config
        self._nullable = nullable
        self._taken: set[str] = set()

    def has(self, key: str) -> bool:
        """Whether the file has the key, even as null."""
        return key in self._config

    def take(self, key: str, derived: Any = ABSENT) -> Any:
        """The value of a key, or its default where it is left out.

        `derived` stands in for null, and for a key left out that has no default.

        Raises:
            UserError: it is null where that is not allowed, or left out and nothing stands in.
        """
        self._taken.add(key)
        default = self.defaults.get(key)
        value = self._config.get(key, default)
        if value is None and default is not None and key not in self._nullable:
            raise UserError(
                f"{self.name} has {key} null, which transformers refuses for {self._model}; give a "
                f"value, or leave the key out to have the default, {shown(default)}"
            )
        if value is None:
            value = derived
        if value is ABSENT:
            raise UserError(
                f"{self.name} has no '{key}', which {self._model} needs; fetch the file again from "
                f"where the model came from"
            )
        return value

    def number(self, key: str, derived: Any = ABSENT) -> Any:
        """Like `take`, for a positive number.

        Raises:
            UserError: something else.
        """
        value = self.take(key, derived)
        if value is None:
            return None
        if type(value) not in (int, float) or not 0 < value < LARGEST:
            raise self._refusal(key, value, "a positive number")
        return float(value)

    def count(self, key: str, derived: Any = ABSENT, least: int = 1, most: int = WIDEST) -> Any:
        """Like `take`, for a whole number from `least` to `most`.

        Raises:
            UserError: something else.
        """
        value = self.take(key, derived)
        if value is None:
            return None
        if type(value) not in (int, float) or not least <= value <= most or value != int(value):
            limit = "" if most == LARGEST else f" up to {most}"
            kind = "a positive whole number" if least else "a whole number from 0"
            raise self._refusal(key, value, kind + limit)
        return int(value)

    def flag(self, key: str, derived: Any = ABSENT) -> bool:
        """Like `take`, for true or false.

        Raises:
            UserError: something else.
        """
        value = self.take(key, derived)
        if type(value) is not bool:
            raise self._refusal(key, value, "true or false")
        return value

    def section(self, key: str) -> dict[str, Any]:
        """Like `take`, for keys with values; empty where it is null or left out.

        Raises:
            UserError: something else.
        """
        value = self.take(key, {})
        if not isinstance(value, dict):
            raise self._refusal(key, value, "keys with values")
        return value

    def listed(self, key: str, derived: Any = ABSENT) -> list[Any]:
        """Like `take`, for a list with something in it.

        Raises:
            UserError: something else.
        """
        value = self.take(key, derived)
        if not isinstance(value, list) or not value:
            raise self._refusal(key, value, "a list")
        return value

    def need(self, key: str, *allowed: Any) -> Any:
        """Like `take`, for a key that may have only some values, the first of them if left out.

        Raises:
            UserError: another value.
        """
        value = self.take(key, allowed[0])
        if value not in allowed:
            options = ", ".join(map(repr, allowed))
            raise UserError(
                f"{self.name} has {key} {shown(value)}, which is not supported for {self._model}; "
                f"allowed: {options}"
            )
        return value

    def need_divisible(self, key: str, value: int, by: str, divisor: int) -> None:
        """Raises UserError unless the value of `key` is divisible by that of the key `by`."""
        if value % divisor:
            raise UserError(
                f"{self.name} has {key} {value}, which is not divisible by its {by} {divisor}"
            )

    def finish(self) -> None:
        """Refuse keys that were not taken.

        Raises:
            UserError: with all such keys and their values.
        """
        unknown = {
            key: value
            for key, value in self._config.items()
            if value not in (None, {}) and key not in self._taken and not HARMLESS.fullmatch(key)
        }
        if unknown:
            pairs = ", ".join(f"{key} {shown(value)}" for key, value in unknown.items())
            raise UserError(
                f"{self.name} has options that are not supported for {self._model}: {pairs}; "
                f"without them, this would be another model. Remove a key only if you know that it "
                f"changes no logits"
            )

    def _refusal(self, key: str, value: Any, allowed: str) -> UserError:
        return UserError(f"{self.name} has {key} {shown(value)}; allowed: {allowed}")

    @property
    def _model(self) -> str:
        return str(self._config.get("model_type", "this model"))


def shown(value: Any) -> str:
    """A value of a file, for a message: at most some 80 characters of it, however deep it is."""
    return _SHORT.repr(value)
