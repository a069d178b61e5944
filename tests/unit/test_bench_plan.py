"""Which cells are measured in which order, and how long it takes."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import groupby
from pathlib import Path

from remuslike.bench.options import RunOptions
from remuslike.bench.plan import TAKEOVER, Outlook, Setting, pending, settings_of, visits_of

OPTIONS = RunOptions(
    json_path=Path("r.jsonl"),
    selection={"redis": ({"clients": 1}, {"clients": 16}), "idle": ({},)},
    modes=("unprotected", "epoch", "adaptive"),
    epoch_ms=(10.0, 50.0),
    repeat=4,
    kills=2,
)
SETTINGS = ["unprotected", "epoch 10 ms", "epoch 50 ms", "adaptive"]


def test_the_mode_epoch_has_a_setting_for_each_length() -> None:
    assert [str(setting) for setting in settings_of(OPTIONS)] == SETTINGS
    assert [setting.protected for setting in settings_of(OPTIONS)] == [False, True, True, True]


def test_each_variant_is_measured_once_in_each_round_and_setting() -> None:
    visits = [visit for visit in visits_of(OPTIONS) if visit.workload != TAKEOVER]
    counts = Counter((variant.key, visit.round) for visit in visits for variant in visit.variants)
    assert len(counts) == 3 * len(SETTINGS) * 4
    assert set(counts.values()) == {1}


def test_the_settings_of_a_workload_follow_each_other_before_the_next_comes() -> None:
    visits = visits_of(OPTIONS)
    groups = [
        [str(visit.setting) for visit in group]
        for _, group in groupby(visits, key=lambda visit: (visit.round, visit.workload))
    ]
    assert all(sorted(group) == sorted(SETTINGS) for group in groups[:8])


def test_each_round_begins_with_another_setting() -> None:
    first = [
        next(str(visit.setting) for visit in group)
        for _, group in groupby(visits_of(OPTIONS), key=lambda visit: visit.round)
    ]
    assert first[:4] == SETTINGS


def test_hosts_die_at_the_end_and_in_protected_settings_only() -> None:
    visits = visits_of(OPTIONS)
    kills = [visit for visit in visits if visit.workload == TAKEOVER]
    assert visits[-len(kills) :] == kills
    assert Counter(str(visit.setting) for visit in kills) == dict.fromkeys(SETTINGS[1:], 2)
    assert [str(visit.setting) for visit in kills[:3]] == SETTINGS[1:]
    assert visits_of(replace(OPTIONS, modes=("unprotected",), repeat=0)) == []


def test_what_is_done_is_left_out_with_the_boots_that_nobody_needs() -> None:
    visits = visits_of(OPTIONS)
    first, second = visits[:2]
    done = {(variant.key, 1) for variant in first.variants} | {(second.variants[0].key, 1)}
    left = pending(visits, done)
    assert left[0] == replace(second, variants=second.variants[1:])
    assert left[1:] == visits[2:]
    assert (
        pending(visits, {(variant.key, visit.round) for visit in visits for variant in visit.variants}) == []
    )


def test_the_outlook_learns_from_what_has_been_done() -> None:
    visits = visits_of(replace(OPTIONS, repeat=1, kills=0))
    outlook = Outlook(seconds=5)
    assert outlook.remaining_s([]) == 0
    outlook.note_boot(10)
    outlook.note_boot(20)
    outlook.note_cell(6)
    outlook.note_cell(8)
    assert outlook.remaining_s(visits) == 8 * 15 + 12 * (5 + 2)
    assert outlook.cells_s(visits[:1]) == 2 * (5 + 2)


def test_a_setting_is_called_as_in_the_results() -> None:
    for visit in visits_of(OPTIONS):
        assert {variant.setting for variant in visit.variants} == {str(visit.setting)}
    assert str(Setting("epoch", 12.5)) == "epoch 12.5 ms"
