"""What devices may tell each other in a training step: no more than the weights and gradients."""

import pytest

from tests.devices.simulated import run_on_devices

SCALARS = 64  # bytes: the sums of losses and counts, and of the gradient's square


@pytest.fixture(scope="module")
def seen() -> dict:
    """By case: bytes of the weights, and bytes of each kind of collective a step."""
    return run_on_devices(8, "budgets")


def test_data_parallelism_reduces_gradients_and_nothing_else(seen):
    weights, bytes_of = seen["data"]["weights"], seen["data"]["bytes"]
    assert set(bytes_of) == {"all-reduce"}
    assert 0 < bytes_of["all-reduce"] - sum(weights.values()) <= SCALARS


def layers_of(weights: dict) -> int:
    """Bytes of what is split over fsdp in the layers."""
    split = [name for name in weights if name.startswith("stack/") and not name.endswith("scale")]
    return sum(weights[name] for name in split)


@pytest.mark.parametrize("case", ["fsdp", "fsdp, remat", "fsdp, tied"])
def test_fsdp_gathers_a_layer_twice_the_head_once_and_no_activation(seen, case):
    weights, bytes_of = seen[case]["weights"], seen[case]["bytes"]
    layers, head = layers_of(weights), weights.get("head", weights["embedding"])
    # Of the look-up and its gradient: every device gets all token ids, and hands what it has of
    # each token's row to whom the token belongs. The table stays where it is.
    assert bytes_of["all-gather"] == 2 * layers + head + 2 * seen[case]["token_ids"]
    assert bytes_of["all-to-all"] == 2 * seen[case]["activations"]
    # Every gradient is reduced once; the look-up's is whole where it arises. The head's goes in two
    # stages, of four devices and of two, the second of which takes a quarter of it.
    looked_up = weights["embedding"] if "head" in weights else 0
    reduced = bytes_of["all-reduce"] + bytes_of["reduce-scatter"]
    assert 0 < reduced - (sum(weights.values()) - looked_up + head / 4) <= SCALARS
    assert set(bytes_of) == {"all-gather", "all-to-all", "all-reduce", "reduce-scatter"}


def test_tensor_parallelism_gathers_the_stream_before_a_sub_layer_and_repeats_no_product(seen):
    weights, gathered = seen["tensor"]["weights"], seen["tensor"]["across"]["tensor"]["all-gather"]
    # Before each of two sub-layers and before each gradient of one, in three layers; after the last
    # layer, and for the gradient of the first.
    stream, times = 2 * seen["tensor"]["activations"], 4 * 3 + 2
    assert 0 <= gathered - times * stream <= weights["embedding"] + weights["head"]
    assert seen["tensor"]["flops"] == seen["fsdp"]["flops"]


def test_a_padded_vocabulary_is_split_over_tensor_and_its_logits_are_never_gathered(seen):
    """602 logits for a vocabulary of 601, as if the parameters had been padded."""
    padded, even = seen["tensor, padded"], seen["tensor"]
    tokens, d_model = even["token_ids"] // 4 // 4, 16  # of a shard of rows
    assert padded["flops"] - even["flops"] == 3 * 2 * tokens * d_model
    weights = padded["weights"]["embedding"] + padded["weights"]["head"]
    more = padded["across"]["tensor"]["all-gather"] - even["across"]["tensor"]["all-gather"]
    assert more <= weights < 4 * tokens * 602 / 2


def test_a_cut_sequence_gathers_the_head_once_and_reduces_its_gradient_once(seen):
    weights, bytes_of = seen["context"]["weights"], seen["context"]["bytes"]
    head, token_ids = weights["head"], seen["context"]["token_ids"] / 4  # of one piece
    assert bytes_of["all-gather"] == 2 * layers_of(weights) + head + 2 * token_ids
    assert bytes_of["reduce-scatter"] == head


def test_stages_hand_micro_batches_on_and_leave_their_weights_where_they_are(seen):
    """16 rows on 2 shards are 8 micro-batches, which take 4 stages 11 turns."""
    weights, between = seen["stages"]["weights"], seen["stages"]["across"]["stage"]
    turns, activations = 11, seen["stages"]["activations"]
    ids = 2 * seen["stages"]["token_ids"] / 16  # positions and documents of a row
    # A turn passes a micro-batch on and one back, and so does its gradient, without the ids.
    assert between["collective-permute"] == turns * (4 * activations / 2 + 2 * ids)
    # Of what all stages share, gradients are added up.
    shared = sum(size for name, size in weights.items() if not name.startswith("stack/"))
    assert 0 < between["all-reduce"] <= shared + 2 * SCALARS
    assert set(between) == {"collective-permute", "all-reduce"}
