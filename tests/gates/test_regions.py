"""Regions that are compared as they change say what a look at all of them would say."""

import random

from tidegate.gates.regions import REGIONS_SHOWN, Regions


def plainly(hashes: dict[str, list[str]]) -> tuple[dict[str, list[str]], int] | None:
    """The first regions that tell something and how many do, if they tell different things."""
    told = {region: sorted(found) for region, found in sorted(hashes.items()) if found}
    if len(told) < 2 or len({name for found in told.values() for name in found}) < 2:
        return None
    return dict(list(told.items())[:REGIONS_SHOWN]), len(told)


def test_a_divergence_is_what_a_look_at_all_regions_finds() -> None:
    """Whatever was noted before, also for a region whose own window says something else than it did."""
    for seed in range(40):
        rng = random.Random(seed)
        regions, hashes = Regions(), {}
        names = [f"r{n:02d}" for n in range(rng.choice([1, 2, 5, 50]))]
        for _ in range(150):
            region = rng.choice(names)
            hashes[region] = rng.sample(["h1", "h2", "h3"], rng.choice([0, 1, 1, 1, 2]))
            regions.note(region, hashes[region])
            asking, mine = rng.choice(names), rng.sample(["h1", "h4"], rng.choice([0, 1, 2]))
            found = regions.diverging(asking, mine)
            assert (found and (found.shown, found.count)) == plainly(hashes | {asking: mine}), f"seed {seed}"
