from pathlib import Path

from jaxformer.checkpoint.interop.folder import HuggingFaceFolder
from jaxformer.checkpoint.interop.importing import import_model
from tests.checkpoint.interop.models import write_model
from tests.devices.simulated import run_on_devices


def test_an_imported_run_is_restored_on_any_mesh_each_device_with_its_part(tmp_path: Path) -> None:
    import_model(HuggingFaceFolder(write_model(tmp_path / "model")), tmp_path / "run")
    seen = run_on_devices(8, "imported", str(tmp_path / "run"))
    assert len({mesh["hash"] for mesh in seen.values()}) == 1
    assert {name: mesh["query"] for name, mesh in seen.items()} == {
        "one": [3, 16, 4, 4],
        "fsdp": [3, 2, 4, 4],
        "tensor": [3, 4, 2, 4],
    }
