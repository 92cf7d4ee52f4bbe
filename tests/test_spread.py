from collections import Counter

import pytest

from pixscribe.spread import Spread


def spread(count: int, size: int, seed: int = 0) -> list[int]:
    taken = Spread[int](size, seed=seed)
    for number in range(count):
        taken.add(number)
    return taken.take()


@pytest.mark.parametrize("count", [0, 1, 9, 10])
def test_few_things_are_all_taken(count: int):
    assert spread(count, 10) == list(range(count))


@pytest.mark.parametrize("count", [11, 19, 20, 21, 39, 40, 41, 1000, 12_345])
def test_many_are_taken_from_every_stretch_in_their_order(count: int):
    taken = spread(count, 10)
    assert len(taken) == 10
    assert taken == sorted(set(taken))
    # each stretch has one, at its beginning or its end; the last stretches may be shorter
    gaps = [late - early for early, late in zip([0, *taken], [*taken, count], strict=True)]
    assert max(gaps) <= 3 * count / 10


def test_the_same_things_give_the_same_choice_and_another_seed_another():
    assert spread(1000, 10) == spread(1000, 10) != spread(1000, 10, seed=1)


def test_each_thing_is_as_likely_as_any_other():
    # 400 times 5 of 20: each is expected 100 times, give or take 9
    counts = Counter(number for seed in range(400) for number in spread(20, 5, seed))
    assert set(counts) == set(range(20))
    assert all(60 < count < 140 for count in counts.values())


def test_fewer_than_may_be_can_be_taken():
    taken = Spread[int](10)
    for number in range(8):
        taken.add(number)
    first, second = taken.take(2)
    assert first < 4 <= second
