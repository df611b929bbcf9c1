"""Speed and memory are measured for every contestant, at every length and context."""

from arena.test_match import make_arena

from jaxformer.arena.efficiency import efficiency


def test_every_contestant_has_a_figure_for_every_length_and_context():
    arena = make_arena()
    configs = {name: arena.config("parity", name, {}) for name in ("attention", "retention")}
    rows = efficiency(configs, lengths=[16, 32], contexts=[16, 96])
    trained = {(row["contestant"], row["length"]): row for row in rows if "length" in row}
    decoded = {(row["contestant"], row["context"]): row for row in rows if "context" in row}
    assert len(trained) == len(decoded) == 4
    assert all(row["train_tokens_per_second"] > 0 for row in trained.values())
    assert all(row["peak_bytes"] > 1000 for row in trained.values())
    assert all(row["decode_tokens_per_second"] > 0 for row in decoded.values())
    states = {key: row["state_bytes"] for key, row in decoded.items()}
    assert states["attention", 96] > 5 * states["attention", 16]
    assert states["retention", 96] == states["retention", 16]
