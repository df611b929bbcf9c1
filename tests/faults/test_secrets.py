"""What a run writes and prints is shown to others."""

from tests.faults.disturbed import SECRETS


def test_tokens_of_the_environment_reach_no_file_and_no_output(undisturbed):
    folder = undisturbed.config.parent
    written = [file for file in folder.rglob("*") if file.is_file()]
    assert {"config.yaml", "manifest.json", "metrics.jsonl"} <= {file.name for file in written}
    for secret in SECRETS.values():
        assert secret not in undisturbed.output
        assert not [file for file in written if secret.encode() in file.read_bytes()]
