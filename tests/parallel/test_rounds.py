"""Which rows a round takes."""

import jax.numpy as jnp
import numpy as np

from jaxformer.ops.routing import slots_of_round, sort_by_expert
from jaxformer.parallel.rounds import pieces_of_round, room_of_round

COUNTS = np.array(  # [senders, receivers, experts of each]
    [
        [[3, 0], [0, 1], [2, 2]],
        [[4, 1], [0, 0], [0, 0]],
        [[0, 0], [1, 2], [1, 0]],
    ]
)


def test_a_round_has_room_for_a_quarter_more_than_an_equal_share_and_whole_blocks():
    assert room_of_round(1024, 10**6) == 1280
    assert room_of_round(1000, 10**6) == 1280
    assert room_of_round(1024, 1100) == 1100  # more cannot come


def test_every_row_goes_in_one_round_to_its_receiver_and_no_two_to_one_place():
    """Against rows that are dealt out one after another."""
    room = 3
    arriving = [
        [(sender, e) for sender in range(3) for e in range(2) for _ in range(COUNTS[sender, r, e])]
        for r in range(3)
    ]
    sent = np.zeros((3, 3), int)
    for number in range(4):
        (begin, size, place), counts = pieces_of_round(jnp.asarray(COUNTS), number, room)
        for receiver, rows in enumerate(arriving):
            here = rows[number * room : (number + 1) * room]
            for sender in range(3):
                own = [index for index, (one, _) in enumerate(here) if one == sender]
                assert size[sender, receiver] == len(own)
                for e in range(2):
                    assert counts[sender, receiver, e] == here.count((sender, e))
                if own:
                    assert place[sender, receiver] == own[0]
                    first = COUNTS[sender, :receiver].sum() + sent[sender, receiver]
                    assert begin[sender, receiver] == first
                sent[sender, receiver] += len(own)
    np.testing.assert_array_equal(sent, COUNTS.sum(2))


def test_rounds_of_slots_are_the_sorted_slots_in_pieces():
    experts = jnp.asarray([[2, 0], [0, 3], [0, 1], [3, 2]])  # the last expert is nobody
    dispatch, counts = sort_by_expert(experts, 3)
    parts = [slots_of_round(dispatch, counts, number, 3) for number in range(3)]
    source = np.concatenate([part.source for part, _ in parts])
    np.testing.assert_array_equal(source, [*dispatch.source, -1])
    np.testing.assert_array_equal([part for _, part in parts], [[3, 0, 0], [0, 1, 2], [0, 0, 0]])
    for number, (part, _) in enumerate(parts):
        here = np.asarray(dispatch.slot) // 3 == number
        here &= np.asarray(dispatch.slot) >= 0
        np.testing.assert_array_equal(np.asarray(part.slot) >= 0, here)
        np.testing.assert_array_equal(
            np.asarray(part.slot)[here], np.asarray(dispatch.slot)[here] % 3
        )
