import json
import math
from pathlib import Path

import jax
import jsonschema
import pytest
import yaml

from jaxformer.checkpoint.interop.families import choose_family
from jaxformer.config.json_schema import json_schema
from jaxformer.config.loading import load_config
from jaxformer.model.accounting import abstract_parameters, count_active, count_parameters
from jaxformer.model.language_model import build_model

CONFIGS = Path(__file__).parents[1] / "configs"
# Arenas are of another schema: tests/arena/test_configs.py.
FILES = sorted(
    str(file.relative_to(CONFIGS))
    for file in CONFIGS.rglob("*.yaml")
    if "arena" not in file.relative_to(CONFIGS).parts
)

# Of the published weights; where there are none, the sum of the shapes in the authors' code.
PUBLISHED = {
    "gpt2-124m": 124_439_808,
    "gpt2-350m": 354_823_168,
    "gpt2-774m": 774_030_080,
    "gpt2-1.5b": 1_557_611_200,
    "llama2-7b": 6_738_415_616,
    "llama3-8b": 8_030_261_248,
    "llama3-70b": 70_553_706_496,
    "llama3.2-1b": 1_235_814_400,
    "qwen3-0.6b": 596_049_920,
    "mistral-7b": 7_241_732_096,
    "gemma-2b": 2_506_172_416,
    "gemma3-1b": 999_885_952,
    "smollm2-135m": 134_515_008,
    "smollm3-3b": 3_075_098_624,
    "olmo3-7b": 7_298_011_136,
    "granite-3.0-2b": 2_533_531_648,
    "phi4-mini": 3_836_021_760,
    "ministral-8b": 8_019_808_256,
    "mamba-130m": 129_135_360,
    "mamba2-130m": 128_989_632,
    "recurrentgemma-2b": 2_682_862_080,
    "mamba2-1.3b": 1_343_757_312,
    "gla-1.3b": 1_365_514_240,
    "samba-1.3b": 1_330_207_488,
    "xlstm-7b": 6_865_424_896,
    "deepseek-v2-lite-dense": 2_606_624_256,
    "mixtral-8x7b": 46_702_792_704,
    "qwen3-30b-a3b": 30_532_122_624,
    "olmoe-1b-7b": 6_919_161_856,
    "granite-3.0-1b-a400m": 1_334_628_352,
    "deepseek-v2-lite": 15_706_484_224,
    "deepseek-v3": 671_026_404_352 + 58 * 256,  # and a bias for every expert
    "gpt-oss-20b": 20_914_757_184,
    "gpt-oss-120b": 116_829_156_672,
    "qwen3-next-80b-a3b": 79_674_391_296,
    "kimi-linear-48b-a3b": 49_122_675_072 + 26 * 256,
    "jamba-mini": 51_570_323_328,
    "jamba-like": 1_364_275_392,
    "bert-base": 109_514_298,
    "t5-small": 60_506_624,
    "transformer-base": 63_045_632,
    "transformer-big": 214_171_648,
    "vit-ti16": 5_717_416,
    "vit-s16": 22_050_664,
    "vit-b16": 86_567_656,
    "vit-l16": 304_326_632,
    "clip-b32": 151_277_313,
    "siglip-b16": 203_155_970,
    "modernbert-base": 149_655_232,
    # Without an embedding of hidden places, and a length for each place of weight norm.
    "wav2vec2-base": 94_396_320 - 768 - 128,
    "hubert-large": 315_471_520 - 1024 - 128,
    # Without the sines and cosines of 1,500 positions, which are not trained.
    "whisper-tiny": 37_760_640 - 1500 * 384,
    "whisper-base": 72_593_920 - 1500 * 512,
    "whisper-small": 241_734_912 - 1500 * 768,
}
# Of these, the parameters that a token meets: with the embedding's table, and without it.
ACTIVE = {
    "mixtral-8x7b": (12_879_925_248, 12_748_853_248),
    "qwen3-30b-a3b": (3_353_032_704, 3_041_867_776),
    "olmoe-1b-7b": (1_282_017_280, 1_178_994_688),
    "granite-3.0-1b-a400m": (428_658_688, 378_323_968),
    "deepseek-v2-lite": (2_661_150_208, 2_451_435_008),
    "deepseek-v3": (37_552_282_624 + 58 * 256, 36_625_603_584 + 58 * 256),
    "gpt-oss-20b": (4_187_440_704, 3_608_307_264),
    "gpt-oss-120b": (5_711_982_912, 5_132_849_472),
    "qwen3-next-80b-a3b": (3_874_929_408, 3_563_764_480),
    "kimi-linear-48b-a3b": (3_484_453_248 + 26 * 256, 3_106_965_888 + 26 * 256),
    "jamba-mini": (12_110_311_296, 11_841_875_840),
}

# The same, of models some of whose parts ours leave out: which, the header of each file says.
CLOSE = {
    "retnet-1.3b": 1_351_727_104,
    "gated-deltanet-1.3b": 1_309_295_776,
    "gated-deltanet-h1-1.3b": 1_316_608_452,
    "gated-deltanet-h2-1.3b": 1_352_959_464,
    "rwkv7-0.1b": 191_034_624,
    "rwkv7-1.5b": 1_527_404_544,
}

# Models whose mechanisms only one family of transformers has.
OWN_FAMILY = {
    "gemma3-1b": "gemma3_text",
    "olmo3-7b": "olmo3",
    "smollm3-3b": "smollm3",
    "granite-3.0-2b": "granite",
    "granite-3.0-1b-a400m": "granitemoe",
    "phi4-mini": "phi3",
    "ministral-8b": "ministral",
    "clip-b32": "clip",
    "siglip-b16": "siglip",
    "whisper-tiny": "whisper",
}


def stated_count(name: str) -> int:
    """How many parameters a model file makes, which its header must state."""
    file = CONFIGS / "models" / f"{name}.yaml"
    count = count_parameters(build_model(load_config(file).model))
    assert f": {count:,} parameters" in file.read_text()
    return count


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_model_has_exactly_the_published_parameters(name):
    assert stated_count(name) == PUBLISHED[name]


@pytest.mark.parametrize("name", ACTIVE)
def test_a_token_meets_exactly_the_published_parameters(name):
    file = CONFIGS / "models" / f"{name}.yaml"
    config = load_config(file).model
    active = count_active(build_model(config))
    assert (active, active - config.vocab_size * config.d_model) == ACTIVE[name]
    assert f"{active:,} of them active per token" in file.read_text()


@pytest.mark.parametrize("name", OWN_FAMILY)
def test_a_model_can_be_exported_as_the_published_one(name):
    model = load_config(CONFIGS / "models" / f"{name}.yaml").model
    assert choose_family(model)[0].model_type == OWN_FAMILY[name]


@pytest.mark.parametrize("name", CLOSE)
def test_a_model_that_leaves_parts_out_is_within_one_percent_of_the_published_one(name):
    assert abs(stated_count(name) / CLOSE[name] - 1) <= 0.01
    assert f"{CLOSE[name]:,}" in (CONFIGS / "models" / f"{name}.yaml").read_text()


def test_every_model_file_has_its_published_count():
    models = sorted(Path(file).stem for file in FILES if file.startswith("models/"))
    assert models == sorted([*PUBLISHED, *CLOSE])


def test_latent_attention_has_the_parameters_of_deepseek_v2_lites():
    file = CONFIGS / "models" / "deepseek-v2-lite-dense.yaml"
    parameters = abstract_parameters(build_model(load_config(file).model))
    leaves = jax.tree_util.tree_leaves_with_path(parameters)
    mixers = [leaf for path, leaf in leaves if "['mixer']" in jax.tree_util.keystr(path)]
    q_proj, kv_a_proj_with_mqa, kv_a_layernorm = 3072 * 2048, 576 * 2048, 512
    kv_b_proj, o_proj = 4096 * 512, 2048 * 2048
    layer = q_proj + kv_a_proj_with_mqa + kv_a_layernorm + kv_b_proj + o_proj
    assert sum(math.prod(leaf.shape) for leaf in mixers) == 27 * layer


@pytest.mark.parametrize("name", FILES)
def test_a_configuration_loads_and_fits_the_schema(name):
    text = (CONFIGS / name).read_text()
    load_config(CONFIGS / name)
    jsonschema.validate(yaml.safe_load(text), json.loads((CONFIGS / "schema.json").read_text()))


@pytest.mark.parametrize("name", FILES)
def test_a_configuration_tells_editors_its_schema_and_readers_what_it_is(name):
    first, second, *_ = (CONFIGS / name).read_text().splitlines()
    target = first.removeprefix("# yaml-language-server: $schema=")
    assert ((CONFIGS / name).parent / target).resolve() == (CONFIGS / "schema.json").resolve()
    assert second.startswith("# ")
    assert second.endswith((".", "`.", ","))


def test_the_schema_file_is_current():
    assert (CONFIGS / "schema.json").read_text() == json_schema(), (
        "run: jaxformer schema > configs/schema.json"
    )


def test_the_schema_refuses_what_loading_refuses():
    schema = json.loads(json_schema())
    good = yaml.safe_load((CONFIGS / "quickstart.yaml").read_text())
    jsonschema.validate(good, schema)
    for section, key, value in [
        ("train", "stpes", 1),
        ("train", "steps", 0),
        ("train", "precision", "float8"),
        ("optimizer", "kind", "adamq"),
        ("mesh", "modle", 1),
    ]:
        bad = good | {section: good.get(section, {}) | {key: value}}
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(bad, schema)


def test_two_runs_never_share_a_directory_by_default():
    directories = [load_config(CONFIGS / name).run.dir for name in FILES]
    assert len(set(directories)) == len(directories)
