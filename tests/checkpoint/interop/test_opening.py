from pathlib import Path

import pytest

from jaxformer.checkpoint.interop.opening import open_source
from jaxformer.errors import UserError
from tests.checkpoint.interop.models import CONFIG, write_model


def cached(cache: Path) -> Path:
    """A snapshot as the Hub's cache holds it: links to files beside it."""
    blobs = write_model(cache / "models--nobody--small" / "blobs")
    snapshot = blobs.parent / "snapshots" / "0123"
    snapshot.mkdir(parents=True)
    for file in blobs.iterdir():
        (snapshot / file.name).symlink_to(Path("../../blobs") / file.name)
    return snapshot


def test_a_model_of_the_hub_is_read_from_its_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = {}

    def download(name: str, **options: object) -> str:
        asked[name] = options["allow_patterns"]
        return str(cached(tmp_path))

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    source = open_source("nobody/small")
    assert source.config == CONFIG
    assert len(source.read("model.norm.weight")) == 16
    assert not any("bin" in pattern for pattern in asked["nobody/small"])


def test_a_snapshot_given_as_a_folder_may_not_lead_out_of_it(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is a link to"):
        open_source(str(cached(tmp_path)))
