import pytest

from jaxformer.config import Config
from jaxformer.errors import UserError
from jaxformer.schema.overrides import apply_overrides, parse_override


def overridden(data, *overrides):
    return apply_overrides(data, overrides, Config)


def test_values_are_yaml():
    assert parse_override("optimizer.learning_rate=1e-4") == (("optimizer", "learning_rate"), 1e-4)
    assert parse_override("eval.batches=null") == (("eval", "batches"), None)
    assert parse_override("data.source=text:a=b/*.txt") == (("data", "source"), "text:a=b/*.txt")
    assert parse_override("optimizer={kind: sgd}") == (("optimizer",), {"kind": "sgd"})


def test_the_given_data_stays_as_it_was():
    shared = {"kind": "attention"}
    data = {"model": {"pattern": [{"mixer": shared}, {"mixer": shared}]}}
    new = overridden(data, "model.pattern.0.mixer.window=8")
    assert new["model"]["pattern"] == [
        {"mixer": {"kind": "attention", "window": 8}},
        {"mixer": {"kind": "attention"}},
    ]
    assert data == {"model": {"pattern": [{"mixer": shared}, {"mixer": shared}]}}
    assert shared == {"kind": "attention"}


def test_a_section_the_file_leaves_out_starts_with_its_default_kind():
    assert overridden({}, "optimizer.b1=0.8") == {"optimizer": {"kind": "adamw", "b1": 0.8}}
    assert overridden({}, "train.steps=1", "train.seed=2") == {"train": {"steps": 1, "seed": 2}}
    assert overridden({"mesh": None}, "mesh.data=1") == {"mesh": {"data": 1}}
    assert overridden({}, "model.positions.base=500") == {
        "model": {"positions": {"kind": "rope", "base": 500}}
    }


def test_the_default_pattern_is_a_list_of_one():
    assert overridden({}, "model.pattern.0.mixer.kind=attention") == {
        "model": {"pattern": [{"mixer": {"kind": "attention"}}]}
    }


def test_later_overrides_win():
    assert overridden({}, "train.steps=1", "train.steps=2") == {"train": {"steps": 2}}
    assert overridden({}, "optimizer.momentum=0.9", "optimizer.kind=sgd") == {
        "optimizer": {"kind": "sgd", "momentum": 0.9}
    }


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.steps", "'train.steps' is not an override; allowed: key.path=value"),
        ("=3", "'=3' is not an override"),
        ("train..steps=3", "'train..steps=3' is not an override"),
        ("train.steps=", "train.steps= has no value; write train.steps=null for none"),
        ("data.source=[a", "override data.source=[a: its value, line 1, column 3: "),
        (
            "model.pattern.2.mixer.kind=attention",
            "model.pattern is a list of 2, its items are 0 to 1, not '2'; to change its length "
            "give it whole, model.pattern=[...]",
        ),
        ("model.pattern.x=1", "model.pattern is a list of 2, its items are 0 to 1, not 'x'"),
        ("model.d_model.size=1", "model.d_model is 64, which has no key 'size'"),
        ("data.source.0.weight=2", "data.source is 'builtin:python', which has no key '0'"),
    ],
)
def test_an_override_that_leads_nowhere_says_where_it_ends(override, message):
    with pytest.raises(UserError) as caught:
        overridden({"model": {"d_model": 64, "pattern": [{}, {}]}}, override)
    assert message in str(caught.value)
