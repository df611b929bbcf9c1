from pathlib import Path

import numpy as np

from jaxformer.checkpoint.interop.checkpoint_files import ParameterReader, ParameterWriter

SHAPES = {
    "head": (4, 6),
    "gain": (),
    "stack/groups/layer_0/mixer/kernel": (3, 4, 5, 2),
    "stack/groups/layer_0/mixer/gain": (3,),
    "stack/tail/layer_0/mixer/gain": (),
    "stack/groups/layer_0/ffn/experts_in/kernel": (3, 2, 4, 5),
    "stack/tail/layer_0/ffn/experts_in/kernel": (2, 4, 5),
}


def test_what_is_written_layer_by_layer_is_read_so(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    arrays = {path: random.normal(size=shape).astype("float32") for path, shape in SHAPES.items()}
    writer = ParameterWriter(tmp_path, SHAPES)
    places = {path: [(at,) for at in range(3)] if "groups" in path else [()] for path in SHAPES}
    for path, array in arrays.items():
        for place in places[path]:
            writer.write(path, place, np.asarray(array[place]))
    writer.finish()
    reader = ParameterReader(tmp_path)
    for path, array in arrays.items():
        for place in places[path]:
            np.testing.assert_array_equal(reader.read(path, place), array[place])
    experts = "stack/groups/layer_0/ffn/experts_in/kernel"
    np.testing.assert_array_equal(reader.read(experts, (2, 1)), arrays[experts][2, 1])
