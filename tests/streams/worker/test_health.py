"""What a worker tells over HTTP: alive, ready, and numbers that a scraper can always read."""

import asyncio
from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import aiohttp
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.streams.events import CLOCKWORK, NOON, flags
from tidegate.gates.kinds import machine
from tidegate.gates.unit import Unit, dormant
from tidegate.schemas.errors import SettingsError
from tidegate.streams.engine.event_classes import LeftOut
from tidegate.streams.engine.source_partition import Step
from tidegate.streams.kafka.retained import Agent
from tidegate.streams.worker.health import FLAGS_MAX, Check, Metrics, serve
from tidegate.streams.worker.units import UNITS_MAX

READY = {"manifest": Check.of(True), "partitions": Check.of(True)}


def get(path: str, metrics: Metrics | None = None, ready: Mapping[str, Check] | None = None) -> tuple[int, str, str]:
    """Status, content type and text of one request to a server of its own."""

    async def run() -> tuple[int, str, str]:
        runner = await serve("127.0.0.1", 0, metrics or Metrics(), lambda: READY if ready is None else ready)
        try:
            host, port = runner.addresses[0][:2]
            async with aiohttp.ClientSession() as session, session.get(f"http://{host}:{port}{path}") as answer:
                return answer.status, answer.headers["Content-Type"], await answer.text()
        finally:
            await runner.cleanup()

    return asyncio.run(run())


def samples(metrics: Metrics) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """What a scraper reads: values by name and labels."""
    _, _, text = get("/metrics", metrics)
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if not sample.name.endswith("_created")
    }


def gate(weights: Mapping[str, float], retired: Sequence[str] = ()) -> Any:
    """A gate whose units have these weights, and some that have left the manifest."""
    flag = flags()["wide"]

    def unit(name: str, weight: float, *, gone: bool = False) -> Unit:
        made = dormant(flag, name.split("|", 1)[1], CLOCKWORK)
        made.weight, made.retired = weight, gone
        return made

    return SimpleNamespace(
        ramps={name: machine(flag, unit(name, weight), CLOCKWORK) for name, weight in weights.items()},
        retired={name: unit(name, 0.0, gone=True) for name in retired},
        watermark=NOON,
    )


def owning(*partitions: tuple[Agent, int]) -> Metrics:
    """Metrics of a worker that has these partitions."""
    metrics = Metrics()
    for agent, partition in partitions:
        metrics.own(agent, partition)
    return metrics


class TestHealth:
    def test_livez_is_ok_as_long_as_the_loop_turns(self) -> None:
        """Whether or not it is ready: a restart would not help."""
        assert get("/livez")[0] == 200
        assert get("/livez", ready={"manifest": Check.of(False)})[0] == 200

    def test_readyz_is_ok_when_every_check_is(self) -> None:
        status, _, text = get("/readyz")
        assert (status, text) == (200, "manifest: ok\npartitions: ok\n")

    @pytest.mark.parametrize("missing", READY)
    def test_readyz_says_what_is_missing(self, missing: str) -> None:
        status, _, text = get("/readyz", ready=READY | {missing: Check.of(False)})
        assert status == 503
        assert f"{missing}: not yet\n" in text
        assert text.count(": ok\n") == 1

    def test_readyz_says_what_is_not_well_yet_no_reason_to_be_unready(self) -> None:
        status, _, text = get("/readyz", ready=READY | {"broker": Check(True, "away for 7 s")})
        assert (status, text) == (200, "manifest: ok\npartitions: ok\nbroker: away for 7 s\n")
        assert get("/readyz", ready=READY | {"broker": Check(False, "away for 31 s")})[0] == 503

    @pytest.mark.parametrize("path", ["/", "/debug", "/metrics/x"])
    def test_there_is_nothing_else(self, path: str) -> None:
        assert get(path)[0] == 404

    def test_port_0_takes_a_free_one_and_says_which(self) -> None:
        """So that several workers fit on a machine."""

        async def run() -> list[int]:
            runners = [await serve("127.0.0.1", 0, Metrics(), lambda: READY) for _ in range(2)]
            ports = [runner.addresses[0][1] for runner in runners]
            for runner in runners:
                await runner.cleanup()
            return ports

        ports = asyncio.run(run())
        assert len(set(ports)) == 2
        assert 0 not in ports

    def test_a_port_that_is_taken_is_named_with_the_way_out(self) -> None:
        async def run() -> None:
            runner = await serve("127.0.0.1", 0, Metrics(), lambda: READY)
            try:
                await serve("127.0.0.1", runner.addresses[0][1], Metrics(), lambda: READY)
            finally:
                await runner.cleanup()

        with pytest.raises(
            SettingsError,
            match=r"^TIDEGATE_HTTP_HOST, TIDEGATE_HTTP_PORT: cannot listen on 127\.0\.0\.1:\d+: .*or 0 to pick",
        ):
            asyncio.run(run())


class TestMetrics:
    def test_they_are_in_prometheus_text_format(self) -> None:
        status, content_type, text = get("/metrics")
        assert status == 200
        assert content_type.startswith("text/plain; version=")
        assert "# TYPE tidegate_records_total counter" in text

    def test_what_a_run_gave_is_counted_once_each(self) -> None:
        """Every counter of a step has one of its own."""
        metrics = Metrics()
        step = Step(
            partials=[object()] * 2,  # type: ignore[list-item]
            late=[1, 2, 3],
            dead=[(1, "x")] * 4,
            records=100,
            accepted=5,
            duplicates=6,
            left=LeftOut(warmup=8, outside={"region": 9, "region, endpoint": 10}, unknown={"f": 4}, early=3),
        )
        metrics.stepped(step)
        metrics.stepped(Step(records=1))
        found = samples(metrics)
        expected = {"records": 101, "partials": 2, "events_late": 3, "dead_letters": 4}
        expected |= {"events_accepted": 5, "events_duplicate": 6, "events_early": 3, "events_warmup": 8}
        assert {name: found[f"tidegate_{name}_total", ()] for name in expected} == expected
        outside = {key[1][0][1]: n for key, n in found.items() if key[0] == "tidegate_events_out_of_scope_total"}
        assert outside == {"region": 9, "region, endpoint": 10}
        assert found["tidegate_events_unknown_flag_total", (("flag", "f"),)] == 4

    def test_events_of_unknown_flags_are_counted_by_flag_and_each_flag_is_told_once(self) -> None:
        """Anybody may invent more of them: so many have a name of their own, and no event is left out for that."""
        metrics, flags = Metrics(), [f'f{n}"\n' for n in range(FLAGS_MAX + 5)]
        told = metrics.stepped(Step(left=LeftOut(unknown={flags[0]: 2, flags[1]: 1})))
        told += metrics.stepped(Step(left=LeftOut(unknown={flags[0]: 3})))
        for flag in flags:
            told += metrics.stepped(Step(left=LeftOut(unknown={flag: 1}, unnamed=10)))
        told += metrics.stepped(Step(left=LeftOut(unknown={flags[0]: 1, flags[-1]: 1})))
        assert told == flags[:FLAGS_MAX]
        found = samples(metrics)
        counted = {
            labels[0][1]: n for (name, labels), n in found.items() if name == "tidegate_events_unknown_flag_total"
        }
        assert counted == {flags[0]: 7, flags[1]: 2, **dict.fromkeys(flags[2:FLAGS_MAX], 1), "": 10 * len(flags) + 6}

    def test_labels_are_counted_by_what_became_of_them(self) -> None:
        metrics = Metrics()
        metrics.heard({"labels": 3, "labels_foreign": 2})
        metrics.heard({"labels": 1, "labels_not_followed": 5})
        found = {key[1][0][1]: n for key, n in samples(metrics).items() if key[0] == "tidegate_labels_total"}
        assert found == {"counted": 4, "foreign": 2, "not_followed": 5}

    def test_position_and_watermark_are_shown_by_agent_and_partition(self) -> None:
        """Before any event there is no event time to show."""
        metrics = owning(("window", 3), ("gate", 0))
        metrics.reached("window", 3, 17, 1_700_000_000_000)
        metrics.reached("gate", 0, 4, None)
        found = samples(metrics)
        assert found["tidegate_position", (("agent", "window"), ("partition", "3"))] == 17
        assert found["tidegate_watermark_ms", (("agent", "window"), ("partition", "3"))] == 1_700_000_000_000
        assert ("tidegate_watermark_ms", (("agent", "gate"), ("partition", "0"))) not in found

    def test_weights_are_shown_by_flag_and_region(self) -> None:
        metrics = owning(("gate", 0))
        metrics.see(0, gate({"f|eu": 0.25, "f|": 0.05}))
        metrics.see(0, gate({"f|eu": 0.0, "f|": 0.05}))
        found = samples(metrics)
        assert found["tidegate_canary_weight", (("flag", "f"), ("region", "eu"))] == 0
        assert found["tidegate_canary_weight", (("flag", "f"), ("region", ""))] == 0.05

    def test_units_whose_flag_has_left_the_manifest_are_shown_as_that(self) -> None:
        """Also by a worker that never saw them run; back in the manifest they are no more."""
        metrics, labels = owning(("gate", 0)), (("flag", "f"), ("region", "eu"))
        metrics.see(0, gate({"g|": 0.05}, ["f|eu"]))
        found = samples(metrics)
        assert (found["tidegate_unit_retired", labels], found["tidegate_canary_weight", labels]) == (1, 0)
        assert found["tidegate_unit_retired", (("flag", "g"), ("region", ""))] == 0
        metrics.see(0, gate({"f|eu": 0.25}))
        found = samples(metrics)
        assert (found["tidegate_unit_retired", labels], found["tidegate_canary_weight", labels]) == (0, 0.25)

    def test_nothing_is_shown_of_what_the_worker_does_not_own(self) -> None:
        """Of partitions and units that moved away nothing is left, also of what is still said of them."""
        metrics = owning(("window", 3), ("gate", 0), ("gate", 1))
        of_places = "position", "watermark_ms", "lag_records", "lag_seconds"
        of_units = "canary_weight", "unit_retired", "unit_stage"
        gauges = *of_places, "checkpoint_bytes", *of_units

        def say() -> set[tuple[str, tuple[str, ...]]]:
            for agent, partition in (("window", 3), ("gate", 0), ("gate", 1), ("gate", 2)):
                metrics.reached(agent, partition, 7, 1_700_000_000_000)  # type: ignore[arg-type]
                metrics.behind(agent, partition, 3, 0.5)  # type: ignore[arg-type]
                metrics.saved(agent, partition, 9)  # type: ignore[arg-type]
                if agent == "gate":
                    metrics.see(partition, gate({f"f|{partition}": 0.25}, [f"g|{partition}"]))
            shown = {(name.removeprefix("tidegate_"), tuple(v for _, v in labels)) for name, labels in samples(metrics)}
            return {one for one in shown if one[0] in gauges}

        units = {(name, (f, gate)) for name in of_units for f in "fg" for gate in "01"}
        places = {(name, place) for name in of_places for place in (("window", "3"), ("gate", "0"), ("gate", "1"))}
        assert say() == units | places | {("checkpoint_bytes", ("window",)), ("checkpoint_bytes", ("gate",))}
        metrics.forget("gate", 1)
        assert {one for one in say() if "1" in one[1]} == set()
        assert len(say()) == 8 + 6 + 2
        metrics.forget("gate", 0)
        metrics.forget("window", 3)
        metrics.forget("window", 5)
        assert say() == set()
        metrics.own("gate", 0)
        assert len(say()) == 4 + 6 + 1

    def test_a_unit_that_its_gate_has_no_more_is_not_shown(self) -> None:
        metrics = owning(("gate", 0), ("gate", 1))
        metrics.see(1, gate({"h|": 0.5}))
        metrics.see(0, gate({"f|eu": 0.25}, ["g|"]))
        metrics.see(0, gate({"f|us": 0.25}))
        regions = {labels for name, labels in samples(metrics) if name == "tidegate_unit_retired"}
        assert regions == {(("flag", "f"), ("region", "us")), (("flag", "h"), ("region", ""))}

    def test_units_without_room_are_counted_over_all_gates_and_take_the_room_of_those_that_go(self) -> None:
        metrics = owning(("gate", 0), ("gate", 1))
        metrics.see(0, gate({f"f|{n}": 0.5 for n in range(UNITS_MAX + 2)}))
        metrics.see(1, gate({f"g|{n}": 0.5 for n in range(3)}))
        assert samples(metrics)["tidegate_units_without_weight", ()] == 5
        metrics.forget("gate", 0)
        metrics.see(1, gate({f"g|{n}": 0.5 for n in range(3)}))
        found = samples(metrics)
        assert found["tidegate_units_without_weight", ()] == 0
        assert len([1 for name, _ in found if name == "tidegate_canary_weight"]) == 3

    @pytest.mark.parametrize(
        "hostile",
        [
            'a"b',
            "a\\",
            'a\\"',
            "a\nb",
            'x"} 1\ntidegate_records_total 99\n#{y="',
            "a\rb\x00\x1b[31m\x85\u2028",
            "{,}=",
            "# HELP tidegate_records_total",
            "é😀→",
            "a|b",
            " ",
            "x" * 1_024,
        ],
    )
    def test_a_hostile_name_stays_a_label_and_breaks_nothing(self, hostile: str) -> None:
        """Regions come from telemetry; whatever they hold, every other number can still be read."""
        metrics = owning(("gate", 0))
        metrics.records.inc(5)
        flag = hostile.replace("|", "/")
        metrics.see(0, gate({f"{flag}|{hostile}": 0.5, "f|eu": 0.25}))
        found = samples(metrics)
        weights = {labels: value for (name, labels), value in found.items() if name == "tidegate_canary_weight"}
        assert weights == {
            (("flag", flag), ("region", hostile)): 0.5,
            (("flag", "f"), ("region", "eu")): 0.25,
        }
        assert found["tidegate_records_total", ()] == 5

    def test_what_is_rare_is_counted_from_0_on(self) -> None:
        """An alert asks how much it rose: from nothing to the first one is no rise."""
        found = samples(Metrics())
        assert [found["tidegate_refused_total", (("kind", kind),)] for kind in ("manifest", "operation")] == [0, 0]
        assert found["tidegate_decisions_total", (("verdict", "abort"),)] == 0

    def test_what_runs_is_named_by_its_version(self) -> None:
        (labels,) = [dict(labels) for name, labels in samples(Metrics()) if name == "tidegate_build_info"]
        assert labels.keys() == {"version", "python"}
        assert all(labels.values())

    def test_the_numbers_are_brought_up_to_date_for_each_scrape(self) -> None:
        """Whatever hangs meanwhile: a broker that is away is when they matter."""
        metrics, asked = Metrics(), list[int]()

        def refresh() -> None:
            asked.append(1)
            metrics.broker_silent.set(len(asked))

        async def run() -> list[bool]:
            runner = await serve("127.0.0.1", 0, metrics, lambda: READY, refresh)
            texts = []
            async with aiohttp.ClientSession() as session:
                for _ in range(2):
                    async with session.get("http://{}:{}/metrics".format(*runner.addresses[0][:2])) as answer:
                        texts.append(await answer.text())
            await runner.cleanup()
            return [f"tidegate_broker_silent_seconds {n}.0" in text for n, text in enumerate(texts, 1)]

        assert asyncio.run(run()) == [True, True]

    def test_two_workers_in_one_process_count_apart(self) -> None:
        """Nothing is in a registry of the whole process."""
        one, other = Metrics(), Metrics()
        one.records.inc(3)
        assert samples(other)["tidegate_records_total", ()] == 0
