import pytest

from jaxformer.plan.hlo import parse
from jaxformer.profile.parts import part_of, parts_of
from tests.runs import make_config
from tests.train.test_profiling import HYBRID

HIDDEN = "jit(train_step)/transpose(jvp(loss))/LanguageModel.loss/LanguageModel.read/stack"


@pytest.mark.parametrize(
    ("scope", "part"),
    [
        (
            f"{HIDDEN}/while/body/closed_call/groups/layer_0/mixer/exp",
            "mixer retention, layers 0, 2",
        ),
        (f"{HIDDEN}/groups/layer_1/mixer/query/dot", "mixer attention, layers 1, 3"),
        (f"{HIDDEN}/checkpoint/rematted_computation/groups/layer_1/ffn/in/dot", "ffn"),
        (f"{HIDDEN}/tail/layer_0/mixer/norm/mul", "mixer retention, layers 4"),
        (f"{HIDDEN}/tail/layer_0/ffn_norm/mul", "norms"),
        (f"{HIDDEN}/tail/layer_0/add", "scan and residual stream"),
        (f"{HIDDEN}/while/body/dynamic_slice", "scan and residual stream"),
        (
            "jit(train_step)/jvp(loss)/LanguageModel.loss/LanguageModel.hidden/final_norm/mul",
            "norms",
        ),
        (
            "jit(train_step)/jvp(loss)/LanguageModel.loss/LanguageModel.hidden/inputs/gather",
            "embedding",
        ),
        ("jit(train_step)/jvp(loss)/LanguageModel.loss/outputs.loss/while/body/dot", "loss"),
        ("jit(train_step)/optimizer/cond/branch_1_fun/mul", "optimizer"),
        ("jit(train_step)/add", "rest"),
    ],
)
def test_a_scope_belongs_to_a_part_of_the_model(tmp_path, scope, part):
    assert part_of(scope, make_config(tmp_path, model=HYBRID).model) == part


@pytest.mark.parametrize(
    ("scope", "layers"),
    [
        ("stack/before/while/body/closed_call/groups/layer_0/mixer/exp", "0"),
        ("stack/stack._loop/while/body/shared/Stack/while/body/groups/layer_0/mixer/exp", "1, 3"),
        ("stack/stack._loop/while/body/shared/Stack/tail/layer_0/mixer/exp", "5"),
    ],
)
def test_a_layer_of_a_loop_has_the_number_it_has_among_the_distinct_layers(tmp_path, scope, layers):
    depth = {"kind": "loop", "before": 1, "turns": 2}
    model = HYBRID | {"num_layers": 6, "pattern": HYBRID["pattern"][::-1], "depth": depth}
    assert part_of(scope, make_config(tmp_path, model=model).model).endswith(f"layers {layers}")


PROGRAM = """HloModule jit_train_step

fused (p: f32[2]) -> f32[2] {
  %p = f32[2]{0} parameter(0)
  %a = f32[2]{0} add(%p, %p), metadata={op_name="jit(train_step)/optimizer/add"}
  ROOT %b = f32[2]{0} multiply(%a, %p), metadata={op_name="jit(train_step)/optimizer/mul"}
}

reduced (q: f32[2]) -> f32[2] {
  %q = f32[2]{0} parameter(0)
  ROOT %r = f32[2]{0} all-reduce(%q), replica_groups={{0,1}}
}

ENTRY main (x: f32[2]) -> f32[2] {
  %x = f32[2]{0} parameter(0)
  %fusion.1 = f32[2]{0} fusion(%x), kind=kLoop, calls=%fused
  %copy.2 = f32[2]{0} copy(%b.1)
  %b.1 = f32[2]{0} negate(%x), metadata={op_name="jit(train_step)/jvp(loss)/outputs.loss/neg"}
  %start.3 = f32[2]{0} all-reduce-start(%x), metadata={op_name="jit(train_step)/optimizer/sum"}
  %fusion.4 = f32[2]{0} fusion(%x), kind=kCustom, calls=%reduced
  ROOT %rest.5 = f32[2]{0} copy(%x)
}
"""


def test_what_has_no_scope_belongs_where_what_it_holds_or_copies_does(tmp_path):
    parts = parts_of(parse(PROGRAM), make_config(tmp_path).model)
    assert parts["fusion.1"] == "optimizer"
    assert parts["copy.2"] == "loss"
    assert parts["start.3"] == parts["fusion.4"] == "collectives"
    assert parts["rest.5"] == "rest"
