"""Kinds of rejects, histograms and groups: nothing is lost in them, and what differs in numbers and names alone is one."""

import numpy as np
import pytest

from pipelines.report.figures import groups, histogram, kind_of, reject_kinds


@pytest.mark.parametrize(
    ("stage", "reason", "kind"),
    [
        ("gate", "segment 12 at 570.6 s: voice in 3.1% of it, less than 5%", "voice in n% of it, less than n%"),
        ("gate", "segment 0 at 0.0 s: silence, its peak is -80.3 dBFS, below -60", "silence, its peak is n dBFS, below n"),
        ("duplicate", "the same audio as /music/An Artist - 7th.flac: remove one of them", "the same audio as …: remove one of them"),
        ("acquire", "https://a.org/x.mp3?y=1 answered 404 (Not Found): check it", "… answered 404 (Not Found): check it"),
        ("acquire", "licence 'CC-BY-NC-4.0' is not one of CC0-1.0: add it", "licence … is not one of CC0-1.0: add it"),
        ("decode", "the stems' lengths differ by 2.10 s (vocals.wav 9.00 s)", "the stems' lengths differ by n s (… n s)"),
        ("encode", "its latents exceed float16", "its latents exceed float16"),
    ],
)  # fmt: skip
def test_reasons_of_one_kind_are_equal(stage: str, reason: str, kind: str) -> None:
    assert kind_of(stage, reason, "/own") == kind


def test_histograms_hold_every_value_and_groups_every_song() -> None:
    values = [*np.random.default_rng(0).normal(200, 30, 2_000), 9_000.0]
    found = histogram("length", values, "s")
    assert found is not None
    assert (sum(found.counts), found.most) == (2_001, 9_000)
    assert found.edges[-1] < 400, "one long song does not flatten the others"
    assert 5 < len(found.counts) <= 22
    assert histogram("none", []) is None
    assert histogram("one", [3.0, 3.0]).counts == (2,)  # type: ignore[union-attr]
    rows = [{"artist": f"{song % 30}", "valid_frames": song, "segments": 1} for song in range(90)]
    by_artist = groups(rows, "artist")
    assert (len(by_artist), sum(each.songs for each in by_artist), by_artist[-1].name) == (20, 90, "11 others")
    assert by_artist[0].name == "29"


def test_a_kind_has_the_first_reject_as_its_example_and_stages_stay_apart() -> None:
    rows = [
        {"stage": stage, "reason": f"voice in {index}% of it", "url": f"/{index}"}
        for stage, index in (("gate", 3), ("gate", 1), ("gate", 2), ("read", 0))
    ]
    found = reject_kinds(rows)
    assert [(each.stage, each.count, each.example, each.example_url) for each in found] == [
        ("gate", 3, "voice in 1% of it", "/1"),
        ("read", 1, "voice in 0% of it", "/0"),
    ]
