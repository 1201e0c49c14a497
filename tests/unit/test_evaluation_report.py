"""The report: what its JSON keeps from version to version, and what its Markdown says first."""

import json
from dataclasses import fields, replace

import pytest

from model.metrics.set_distances import Interval
from training.evaluation.following import FollowingRow
from training.evaluation.markdown import PAPER, markdown, result
from training.evaluation.measures import GENERATED, OTHER, REAL, ROUND_TRIP, SILENCE, EvaluationRow, Measures, summarise
from training.evaluation.report import Absent, AestheticsRow, CostRow, DistanceRow, Distances, EvaluationReport, bracketed

GAIN = Interval(value=0.4, low=0.3, high=0.5)


def row(name: str, value: float) -> EvaluationRow:
    return summarise(name, [Measures(**{field.name: value for field in fields(Measures)})], ["a"])


def report_of(*, generated: float = 0.5, real: float = 0.6, other: float = 0.1) -> EvaluationReport:
    rows = (row(GENERATED, generated), row(REAL, real), row(OTHER, other), row(ROUND_TRIP, real), row(SILENCE, 0.0))
    return EvaluationReport(
        rows=rows, songs=6, seconds=6.0, checkpoint="c", model="m", step=3, dataset="d", out="o", wins=0.5, advantage=GAIN,
        distances=Distances(
            embedding="smoke", note="weight-free", dimension=88, window_s=1.0, reference_songs=9, reference_windows=90,
            rows=(
                DistanceRow(name=GENERATED, windows=6, frechet=GAIN, frechet_extrapolated=0.2, kernel=GAIN, apa=GAIN),
                DistanceRow(name=REAL, windows=6, frechet=GAIN, frechet_extrapolated=None, kernel=GAIN),
            ),
        ),
        further_distances=(
            Distances(
                embedding="musicnn 0a1b", note="of a file", dimension=256, window_s=2.992, reference_songs=9, reference_windows=50,
                rows=(DistanceRow(name=GENERATED, windows=6, frechet=GAIN, frechet_extrapolated=0.1, kernel=GAIN),),
            ),
        ),
        following=(
            FollowingRow(name=GENERATED, shadowing=GAIN, shadowing_beyond=GAIN, key=GAIN, chords=None, beats=GAIN, drift_ms=GAIN),
            FollowingRow(name=SILENCE, shadowing=GAIN, shadowing_beyond=GAIN, key=GAIN, chords=None, beats=GAIN, drift_ms=None),
        ),
        following_note="As composed: beats in 6 of 6 segments.",
        costs=(CostRow(name=GENERATED, real_time_factor=0.25, peak_bytes=3 * 2**30),),
        absent=(Absent(what="student", why="none named (--student)"),),
        aesthetics=(AestheticsRow(name=GENERATED, PQ=GAIN, PC=GAIN, CE=GAIN, CU=GAIN),),
        aesthetics_note="Weights: the hub.", parameters=15_000_000, segment_s=7.5, device="CPU", stage_s={"load": 1.0},
    )  # fmt: skip


def test_json_comes_back_whole_and_names_its_version() -> None:
    report = report_of()
    document = json.loads(report.to_json())
    assert document["schema_version"] == 4
    assert document["rows"][4]["name"] == SILENCE
    assert EvaluationReport.from_json(report.to_json()) == report


def test_files_of_the_first_version_and_of_a_later_one_are_read() -> None:
    document = json.loads(report_of().to_json())
    first = {name: document[name] for name in ("rows", "songs", "seconds", "checkpoint", "model", "step", "dataset", "out", "wins")}
    old = EvaluationReport.from_json(json.dumps(first))
    assert (old.schema_version, old.distances, old.aesthetics, old.advantage) == (1, None, (), None)
    assert old.rows == report_of().rows
    assert "50% of segments" in markdown(old)
    assert "## Distance" not in markdown(old)
    later = EvaluationReport.from_json(json.dumps({**document, "schema_version": 5, "listeners": 12}))
    assert later == replace(report_of(), schema_version=5)


def test_a_file_of_the_third_version_is_read_as_it_was() -> None:
    """As 0.1.0 wrote them: one embedding, no adherence, nothing of what bands follow and cost."""
    third = json.loads(report_of().to_json())
    for name in ("further_distances", "following", "following_note", "costs", "absent"):
        del third[name]
    del third["distances"]["reference_mixes"]
    for distance in third["distances"]["rows"]:
        del distance["apa"]
    report = EvaluationReport.from_json(json.dumps({**third, "schema_version": 3}))
    assert (report.schema_version, report.following, report.costs, report.absent) == (3, (), (), ())
    assert [table.embedding for table in report.all_distances] == ["smoke"]
    assert report.all_distances[0].rows[0].kernel == GAIN
    page = markdown(report)
    assert "| generated | 0.400 (0.300 to 0.500) | 0.200 | 0.40 (0.30 to 0.50) |" in page
    assert not any(words in page for words in ("APA", "What the band follows", "What it costs", "Not in these tables"))


def test_the_page_begins_with_the_result() -> None:
    lines = markdown(report_of()).splitlines()
    assert lines[2] == (
        "The generated accompaniment fits its vocal better than another song's real one: overall fit 0.50 against 0.10 (difference +0.40, "
        "90% interval +0.30 to +0.50 over 6 songs); it fits better in 50% of segments. On the way from another song's to the real one: "
        "harmony 80%, rhythm 80%."
    )
    unclear, worse = (replace(report_of(), advantage=Interval(value=0.0, low=-0.2, high=high)) for high in (0.1, -0.1))
    assert "is not shown to fit better" in result(unclear)
    assert "fits its vocal worse" in result(worse)
    assert "no interval" in result(replace(report_of(), songs=1))


def test_its_tables_are_narrow_and_hold_every_row() -> None:
    text = markdown(report_of())
    tables = [block for block in text.split("\n\n") if block.startswith("| ")]
    names = [[line.split("|")[1].strip() for line in table.splitlines()[2:]] for table in tables]
    every = [GENERATED, REAL, OTHER, ROUND_TRIP, SILENCE]
    paper = [GENERATED, *(f"*{other[0]}, in the paper*" for other in PAPER)]
    assert names == [every, [GENERATED, SILENCE], [GENERATED, REAL], [GENERATED], every, paper, [GENERATED]]
    for table in tables:
        assert len({line.count("|") for line in table.splitlines()}) == 1
        assert table.splitlines()[0].count("|") <= 8
    assert "| generated | 0.400 (0.300 to 0.500) | 0.200 | 0.40 (0.30 to 0.50) | 0.40 (0.30 to 0.50) |" in text
    assert "| real, through the codec | 0.400 (0.300 to 0.500) |  | 0.40 (0.30 to 0.50) | – |" in text
    assert "| silence | 0.40 (0.30 to 0.50) | 0.40 (0.30 to 0.50) | 0.40 (0.30 to 0.50) | – | 0.40 (0.30 to 0.50) | – |" in text
    assert "| generated | 0.250 | 3.00 GiB |" in text
    assert text.endswith("## Not in these tables\n\n- student: none named (--student).\n")
    assert bracketed(Interval(value=0.5, low=0.5, high=0.5)) == "0.50"
    assert "15.0M | 7.5 s |" in text
    assert "say little" not in text
    assert "say little" in markdown(replace(report_of(), songs=2))
    unscored = markdown(replace(report_of(), aesthetics=(), aesthetics_note="Not scored: no package."))
    assert "1 to 10\n\nNot scored: no package.\n" in unscored


def test_cells_fit_their_header() -> None:
    report = report_of()
    assert {len(cells) for cells in report.cells()} == {len(report.header())}


def test_the_way_runs_from_another_songs_to_the_real_one() -> None:
    assert report_of(generated=0.1).way("harmony") == 0
    assert report_of(generated=0.7).way("rhythm") == pytest.approx(1.2)
    nowhere = report_of(generated=0.7, real=0.1)
    assert nowhere.way("rhythm") != nowhere.way("rhythm")
    assert "On the way" not in result(nowhere)


def test_metrics_hold_every_table_under_names_that_a_tracker_takes() -> None:
    metrics = report_of().metrics()
    assert metrics["generated/overall"] == metrics["generated/overall_low"] == 0.5
    assert metrics["another_song_through_the_codec/harmony"] == 0.1
    assert metrics["advantage_over_another_song_low"] == 0.3
    assert metrics["generated/frechet_smoke_high"] == 0.5
    assert metrics["generated/frechet_extrapolated_smoke"] == 0.2
    assert "real_through_the_codec/frechet_extrapolated_smoke" not in metrics
    assert metrics["generated/PQ"] == 0.4
    assert (metrics["generated/kad_musicnn_0a1b"], metrics["generated/apa_smoke_low"]) == (0.4, 0.3)
    assert (metrics["generated/beats"], metrics["generated/shadowing_beyond_high"]) == (0.4, 0.5)
    assert not any(name.startswith(("silence/drift", "generated/chords", "generated/apa_musicnn")) for name in metrics)
    assert (metrics["generated/real_time_factor"], metrics["generated/peak_gib"]) == (0.25, 3.0)
    assert all(set(name) <= set("abcdefghijklmnopqrstuvwxyzPQCEU_0123456789/") for name in metrics)
