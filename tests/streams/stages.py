"""Sequential evidence once more, in the simplest form: all rows of a stage in lists, every bound from its formula.

Written from the rulebook and the papers' formulas and not from the code that it checks, on the panes of ``reference``.
It knows one unit of a rollout that reads traffic, whose rows have all metrics, whose evidence has no other problem
than late events, up to its first pass at the last stage or its end.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

from tests.streams.reference import Cell, Partition, Seen, quantile

Interval = tuple[float | None, float | None]
SOFT = ("latency_p95_uplift_max", "cost_uplift_max")


def log_beta(a: float, b: float) -> float:
    return math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)


def log_m(s: float, v: float, g: float, h: float, alpha: float, n_opt: float) -> float:
    """The two-sided beta-binomial mixture (Howard et al. 2021), as it is printed there."""
    rho = g * h * n_opt / (2 * math.log(1 / alpha) + math.log(1 + 2 * math.log(1 / alpha)))
    r, w = max(rho - g * h, 1e-3 * g * h), g + h
    return (
        v / (g * h) * math.log(w)
        - (v + h * s) / (h * w) * math.log(g)
        - (v - g * s) / (g * w) * math.log(h)
        + log_beta((r + v - g * s) / (g * w), (r + v + h * s) / (h * w))
        - log_beta(r / (g * w), r / (h * w))
    )


def refuted(k: float, n: float, p: float, alpha: float, n_opt: float) -> bool:
    return log_m(k - n * p, p * (1 - p) * n, p, 1 - p, alpha, n_opt) > math.log(1 / alpha)


def n_opt(limit: float) -> float:
    return max(200.0, 3 / limit) if limit > 0 else 200.0


def surely_over(k: float, n: float, limit: float, alpha: float) -> bool:
    if limit <= 0:
        return k > 1
    return k > n * limit and refuted(k, n, limit, alpha, n_opt(limit))


def surely_under(k: float, n: float, limit: float, alpha: float) -> bool:
    return k < n * limit and refuted(k, n, limit, alpha, n_opt(limit))


def last(holds: Callable[[float], bool], yes: float, no: float) -> float:
    """Where between the two ``holds`` ends, very nearly."""
    for _ in range(60):
        middle = (yes + no) / 2
        yes, no = (middle, no) if holds(middle) else (yes, middle)
    return yes


def lower_end(k: float, n: float, alpha: float, best: float) -> float:
    return 0.0 if k <= 1 else last(lambda p: not refuted(k, n, p, alpha, best), k / n, 1e-300)


def upper_end(k: float, n: float, alpha: float, best: float) -> float:
    return 1 - lower_end(n - k, n, alpha, best)


def order_statistics(values: list[float], q: float, alpha: float) -> Interval:
    """Howard & Ramdas 2022: infinite ends are None."""
    n, v = len(values), q * (1 - q) * len(values)

    def reach(g: float, h: float) -> float | None:
        def within(s: float) -> bool:
            return log_m(s, v, g, h, alpha, 1000) < math.log(1 / alpha)

        return None if within(v / g - 1e-9) else last(within, 0.0, v / g - 1e-9)

    down, up = reach(1 - q, q), reach(q, 1 - q)
    low = None if down is None else math.floor(n * q - down) + 1
    high = None if up is None else math.floor(n * q + up) + 1
    ordered = sorted(values)
    return (
        ordered[low - 1] if low is not None and low >= 1 else None,
        ordered[high - 1] if high is not None and high <= n else None,
    )


def half_width(n: int, variance: float, alpha: float) -> float:
    """Waudby-Smith et al. 2024."""
    rr = (-2 * math.log(alpha) + math.log(-2 * math.log(alpha)) + 1) / 1000
    return math.sqrt(variance * 2 * (n * rr + 1) / (n * n * rr) * math.log(math.sqrt(n * rr + 1) / alpha))


@dataclass
class Arm:
    """All rows of one arm in some panes; λ groups by window."""

    cells: list[tuple[int, Cell]] = field(default_factory=list)

    def __add__(self, other: "Arm") -> "Arm":
        return Arm(self.cells + other.cells)

    def count(self, name: str) -> int:
        return sum(cell.counts[name] for _, cell in self.cells)

    def values(self, name: str) -> list[float]:
        return [value for _, cell in self.cells for value in getattr(cell, name)]

    def total(self, name: str) -> Fraction:
        return sum((getattr(cell, name) for _, cell in self.cells), Fraction(0))

    @property
    def groups(self) -> list[dict[int, bool]]:
        """Runs of each λ group, one in each window that saw it."""
        found: dict[tuple[int, int], dict[int, bool]] = {}
        for window, cell in self.cells:
            for name, runs in cell.groups.items():
                known = found.setdefault((window, name), {})
                for run, converged in runs.items():
                    known[run] = known.get(run, True) and converged
        return list(found.values())

    @property
    def flips(self) -> tuple[int, int, int]:
        """Groups, those with a flip, and those that are complete."""
        groups = self.groups
        flipped = sum(not all(runs.values()) for runs in groups)
        return len(groups), flipped, sum(len(runs) == 6 for runs in groups)

    @property
    def cost(self) -> float | None:
        solved = self.count("solved")
        return float(self.total("cost")) / solved if solved else None

    @property
    def cost_variance(self) -> float:
        """Of Σcost ÷ Σsolved, times n: the delta method (Deng, Knoblich & Lu 2018)."""
        n, solved = self.count("requests"), Fraction(self.count("solved"))
        c, s = self.total("cost") / n, solved / n
        cc, ss = self.total("square") / n - c * c, s - s * s
        cs = self.total("solved_cost") / n - c * s
        return float(cc / s**2 + ss * c**2 / s**4 - 2 * cs * c / s**3)


@dataclass
class Said:
    """A decision: verdict, whether at a window's end, when (pane), and what each gate says: status and bounds."""

    verdict: str
    closed: bool
    pane: int
    gates: dict[str, tuple[str, float | None, float | None]]


@dataclass
class Gate:
    """What a gate knows of its stage."""

    status: str
    lower: float | None
    upper: float | None
    over: bool


class Stage:
    """Both arms of some rows under the rules."""

    def __init__(self, rules: dict[str, Any], canary: Arm, baseline: Arm) -> None:
        self.rules, self.canary, self.baseline = rules, canary, baseline
        self.least: int = rules["window"]["min_requests"]

    def gates(self, level: Callable[[str], float], promote: float) -> dict[str, Gate]:
        limits, worst = self.rules["gates"], self.rules["policy"]["rule_out"]
        drift, c, b = limits["delta_s"], self.canary, self.baseline
        return {
            "delta_s.median_max": self._two(
                "delta_s", 0.5, drift["median_max"], worst["delta_s_median"], level("delta_s.median_max"), promote
            ),
            "delta_s.p95_max": self._two(
                "delta_s", 0.95, drift["p95_max"], worst["delta_s_p95"], level("delta_s.p95_max"), promote
            ),
            "coverage_min": self._rate(
                sum(1 - value for value in c.values("coverage")),
                len(c.values("coverage")),
                1 - limits["coverage_min"],
                1 - worst["coverage"],
                level("coverage_min"),
                promote,
                good=True,
            ),
            "lambda_convergent": self._lambda(worst["lambda_flip_rate"], level("lambda_convergent"), promote),
            "latency_p95_uplift_max": self._two(
                "latency",
                0.95,
                limits["latency_p95_uplift_max"],
                worst["latency_p95_uplift"],
                level("latency_p95_uplift_max"),
                promote,
            ),
            "error_rate_max": self._rate(
                c.count("errors"),
                c.count("requests"),
                limits["error_rate_max"],
                worst["error_rate"],
                level("error_rate_max"),
                promote,
            ),
            "tool_success_min": self._rate(
                c.count("tool_calls") - c.count("tool_ok"),
                c.count("tool_calls"),
                1 - limits["tool_success_min"],
                1 - worst["tool_success"],
                level("tool_success_min"),
                promote,
                good=True,
            ),
            "cost_uplift_max": self._cost(
                b, limits["cost_uplift_max"], worst["cost_uplift"], level("cost_uplift_max"), promote
            ),
        }

    @property
    def known(self) -> bool:
        return min(arm.count("requests") for arm in (self.canary, self.baseline)) >= self.least

    def _settled(self, value: float, limit: float, lower: float | None, upper: float | None, out: bool) -> Gate:
        """``out``: the value to rule out is excluded."""
        within = value <= limit + 1e-9
        over = not within and lower is not None and lower > limit
        status = "unknown" if not self.known else "fail" if over else "pass" if within and out else "undecided"
        return Gate(status, lower, upper, over and self.known)

    def _rate(
        self, bad: float, n: int, limit: float, worst: float, stop: float, promote: float, *, good: bool = False
    ) -> Gate:
        lower, upper = lower_end(bad, n, stop, n_opt(limit)), upper_end(bad, n, promote, n_opt(worst))
        gate = self._settled(bad / n, limit, lower, upper, surely_under(bad, n, worst, promote))
        return Gate(gate.status, 1 - upper, 1 - lower, gate.over) if good else gate

    def _lambda(self, worst: float, stop: float, promote: float) -> Gate:
        _, flipped, complete = self.canary.flips
        full = [runs for runs in self.canary.groups if len(runs) == 6]
        if complete < self.rules["window"]["min_lambda_groups"]:
            return Gate("unknown", None, None, False)
        bad = min(flipped, complete)
        diverged = not all(all(runs.values()) for runs in full)
        lower, upper = lower_end(bad, complete, stop, 200), upper_end(bad, complete, promote, n_opt(worst))
        status = "fail" if diverged else "pass" if surely_under(bad, complete, worst, promote) else "undecided"
        return Gate(status if self.known else "unknown", 1 - upper, 1 - lower, diverged)

    def _two(self, name: str, q: float, limit: float, worst: float, stop: float, promote: float) -> Gate:
        c, b = self.canary.values(name), self.baseline.values(name)

        def ends(level: float) -> Interval:
            of_c, of_b = (order_statistics(values, q, level / 2) for values in (c, b))
            return self._apart(name, of_c[0], of_b[1]), self._apart(name, of_c[1], of_b[0])

        lower, upper = ends(stop)[0], ends(promote)[1]
        value = self._apart(name, quantile(c, q), quantile(b, q))
        assert value is not None
        return self._settled(value, limit, lower, upper, upper is not None and upper < worst - 1e-9)

    @staticmethod
    def _apart(name: str, canary: float | None, baseline: float | None) -> float | None:
        if canary is None or baseline is None:
            return None
        return canary - baseline if name == "delta_s" else canary / baseline - 1

    def _cost(self, b: Arm, limit: float, worst: float, stop: float, promote: float) -> Gate:
        rc, rb = self.canary.cost, b.cost
        assert rc is not None
        assert rb is not None
        value = rc / rb - 1

        def half(level: float) -> float:
            return half_width(self.canary.count("requests"), self.canary.cost_variance / rb**2, level / 2) + half_width(
                b.count("requests"), b.cost_variance * rc**2 / rb**4, level / 2
            )

        lower, upper = value - half(stop), value + half(promote)
        gate = self._settled(value, limit, lower, upper, upper < worst - 1e-9)
        few = min(arm.count("solved") for arm in (self.canary, b)) < 50
        return Gate("unknown", lower, upper, False) if few else gate

    def hard(self, level: float) -> bool:
        """Whether a hard rule is sure to be broken."""
        c, b, values = self.canary, self.baseline, self.rules["hard"]
        n = c.count("requests")
        if n < self.least:
            return False
        groups, flipped, _ = c.flips
        coverage = c.values("coverage")
        found = surely_over(c.count("errors"), n, values["error_rate_over"], level)
        found |= surely_under(sum(coverage), len(coverage), values["coverage_under"], level)
        found |= surely_over(flipped, groups, values["lambda_flip_rate_over"], level / 2)
        if b.count("requests") >= self.least:
            (low, _), (_, high) = (order_statistics(arm.values("delta_s"), 0.95, level / 2) for arm in (c, b))
            drift = self._apart("delta_s", low, high)
            found |= drift is not None and drift > values["delta_s_p95_over"]
        return found


class Ramp:
    """One unit's stages over the panes of all partitions, from pane ``first`` on."""

    def __init__(self, rules: dict[str, Any], partitions: list[Partition], unit: str, first: int) -> None:
        self.rules, self.partitions, self.unit, self.first = rules, partitions, unit, first
        self.length, self.settle = rules["panes"], rules["settle_panes"]
        stages = len(rules["stages"])
        self.part: float = rules["policy"]["false_stop"] / (8 * stages)
        self.windows_level = self.part * stages / 8
        self.ruled = ("error_rate_max", "coverage_min", "lambda_convergent", "delta_s.p95_max")

    def _level(self, gate: str) -> float:
        return self.part * (0.75 if gate in self.ruled else 1.0)

    def _pane(self, pane: int) -> list[Seen]:
        return [partition.panes.get(pane, {}).get(self.unit, Seen()) for partition in self.partitions]

    def decisions(self, closed: int) -> Iterator[Said]:
        """All that is said of panes below ``closed``, up to the first pass or end."""
        number, start, pinned = 1, self.first, None
        for stage in range(len(self.rules["stages"])):
            green, strike = 0, False
            sound, rest = (Arm(), Arm()), (Arm(), Arm())
            windows = 0
            if stage:
                said = self._settling(start, min(start + self.settle, closed))
                if said is not None:
                    yield said
                    return
                start += self.settle
            while start + 1 <= closed:
                own, late, rows = (Arm(), Arm()), 0, 0
                for pane in range(start, min(start + self.length, closed)):
                    for seen in self._pane(pane):
                        late, rows = late + seen.late, rows + len(seen.offsets)
                        for side, arm in zip(own, ("canary", "baseline"), strict=True):
                            side.cells += [(number, cell) for (who, _), cell in seen.cells.items() if who == arm]
                    unsound = bool(late) and late / (late + rows) > self.rules["window"]["late_max"] + 1e-9
                    end = pane + 1 == start + self.length
                    counted = [a + b for a, b in zip(sound, own, strict=True)]
                    whole = [a + b for a, b in zip(counted, rest, strict=True)]
                    shown = list(sound) if end and unsound else counted
                    sides = [self._stage(arms, pinned) for arms in (shown, whole, own)]
                    said = self._judge(sides, pane + 1, number, windows, strike, end=end, unsound=unsound)
                    if said is None:
                        continue
                    if said.verdict == "freeze":
                        strike = True
                    if said.closed and not unsound and said.verdict == "hold":
                        said, green = self._green(said, green, stage)
                        strike = strike and not green
                    elif said.closed:
                        green = 0
                    yield said
                    if said.verdict in ("abort", "rollback", "pass"):
                        return
                if start + self.length > closed:
                    return
                added = rest if unsound else sound
                added = tuple(a + b for a, b in zip(added, own, strict=True))  # type: ignore[assignment]
                sound, rest = (sound, added) if unsound else (added, rest)
                start, number, windows = start + self.length, number + 1, windows + 1
                if said is not None and said.verdict == "promote":
                    break
            pinned = sound[1] if stage + 2 == len(self.rules["stages"]) else None

    def _stage(self, arms: Any, pinned: Arm | None) -> Stage:
        return Stage(self.rules, arms[0], arms[1] if pinned is None else pinned)

    def _settling(self, start: int, end: int) -> Said | None:
        canary, baseline = Arm(), Arm()
        for pane in range(start, end):
            for seen in self._pane(pane):
                for side, arm in ((canary, "canary"), (baseline, "baseline")):
                    side.cells += [(0, cell) for (who, _), cell in seen.cells.items() if who == arm]
            if Stage(self.rules, canary, baseline).hard(self.part / 8):
                return Said("abort", False, pane + 1, {})
        return None

    def _judge(
        self, sides: list[Stage], pane: int, number: int, windows: int, strike: bool, *, end: bool, unsound: bool
    ) -> Said | None:
        """Stop, freeze, or at a window's end hold; whether that is green is found by the gates."""
        shown, whole, own = sides
        alone = windows > 0 and own.hard(self.windows_level / (number * (number + 1)))
        if whole.hard(self.part * 0.75) or alone:
            return Said("abort", end, pane, {})
        if not shown.canary.cells:
            return Said("hold", end, pane, {}) if end else None
        promote = self.rules["policy"]["wrong_promote"]
        gates = shown.gates(self._level, promote)
        all_rows = gates if len(shown.canary.cells) == len(whole.canary.cells) else whole.gates(self._level, promote)
        told = {}
        for name, gate in gates.items():
            more = all_rows[name]
            status = "undecided" if gate.status == "fail" and not more.over else gate.status
            lower, upper = gate.lower, gate.upper
            if name in ("coverage_min", "tool_success_min", "lambda_convergent"):
                upper = None if upper is None or more.upper is None else max(upper, more.upper)
            else:
                lower = None if lower is None or more.lower is None else min(lower, more.lower)
            told[name] = (status, lower, upper)
        failed = [name for name, (status, _, _) in told.items() if status == "fail"]
        if unsound or not failed:
            return Said("hold", end, pane, told) if end else None
        if not set(failed) <= set(SOFT):
            return Said("rollback", end, pane, told)
        if strike:
            return Said("rollback", end, pane, told) if end else None
        return Said("freeze", end, pane, told)

    def _green(self, said: Said, green: int, stage: int) -> tuple[Said, int]:
        if any(status != "pass" for status, _, _ in said.gates.values()):
            return said, 0
        if green + 1 < self.rules["window"]["hold_windows"]:
            return said, green + 1
        said.verdict = "pass" if stage + 1 == len(self.rules["stages"]) else "promote"
        return said, green + 1
