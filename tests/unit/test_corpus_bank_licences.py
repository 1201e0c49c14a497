"""Under which licence a band's recordings are: known fonts, files beside banks, song.json, the doctor's line; the order of toms."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf

from infra.cli.doctor import instrument_banks
from infra.errors import UserError
from infra.settings import Settings
from model.dimensions import SAMPLE_RATE_HZ
from pipelines.corpus import CorpusConfig, read_song_json, write_corpus
from pipelines.corpus.score.styles import DRUM_KEYS
from pipelines.corpus.sound.banks import open as banks_open
from pipelines.corpus.sound.banks.drum_folder import DrumFolder
from pipelines.corpus.sound.banks.licence import bank_credit, bank_licence

LICENSE = "SPDX-License-Identifier: CC-BY-4.0\nSPDX-FileCopyrightText: 2017 Lars\n"


def write_kit(folder: Path, *toms: str) -> Path:
    """A kit of bursts; each tom is a tone, the lower the later it is named."""
    time_s = np.arange(SAMPLE_RATE_HZ // 4) / SAMPLE_RATE_HZ
    for index, piece in enumerate(("Kick", "Snare", "HihatClosed", *toms)):
        (folder / piece).mkdir(parents=True)
        tone = np.sin(2 * np.pi * (900 - 100 * index) * time_s) * np.exp(-20 * time_s)
        for hit in range(2):
            sf.write(folder / piece / f"{hit}.wav", tone * (0.4 + 0.2 * hit), SAMPLE_RATE_HZ)
    return folder


def test_fonts_are_known_by_their_names_and_what_lies_beside_a_bank_says_it_better(tmp_path: Path) -> None:
    assert bank_licence(tmp_path / "FluidR3_GM.sf2") == bank_licence(tmp_path / "MuseScore_General_Full.sf2") == "MIT"
    assert bank_licence(tmp_path / "Mine.sf2") == "unknown"
    (tmp_path / "Mine.sf2.license").write_text("SPDX-License-Identifier: cc0-1.0\n")
    assert bank_licence(tmp_path / "Mine.sf2") == "CC0-1.0"
    kit = write_kit(tmp_path / "kit")
    (kit / "bank.license").write_text(LICENSE)
    assert bank_licence(kit) == "CC-BY-4.0, 2017 Lars"
    licences = {"kit@12": "CC-BY-4.0, 2017 Lars", "FluidR3_GM.sf2@34": "MIT", "Mine.sf2@56": "CC0-1.0"}
    assert bank_credit(licences) == "instruments of FluidR3_GM.sf2 (MIT); instruments of kit (CC-BY-4.0, 2017 Lars)"
    for text, said in (
        ("free", "names no licence: write a line SPDX"),
        ("SPDX-License-Identifier: free", "the licence 'free' is not known"),
    ):
        (kit / "bank.license").write_text(text)
        with pytest.raises(UserError, match=said):
            bank_licence(kit)


def test_a_song_records_the_licences_of_its_banks(tmp_path: Path) -> None:
    kit = write_kit(tmp_path / "drums")
    (tmp_path / "drums.license").write_text(LICENSE)
    config = CorpusConfig(out=str(tmp_path / "out"), songs=1, seed=4, duration_s=4.0, workers=1, bank=(f"{kit}=1000", "numpy"))
    write_corpus(config)
    data = (tmp_path / "out" / "song-000004" / "song.json").read_bytes()
    _, rendering, _ = read_song_json(data)
    name = rendering.banks["drums"]
    assert name.startswith("drums@")
    assert rendering.bank_licences == {name: "CC-BY-4.0, 2017 Lars"}
    assert rendering.credit == "instruments of drums (CC-BY-4.0, 2017 Lars)"
    write_corpus(replace(config, out=str(tmp_path / "plain"), bank=("numpy",)))
    plain = json.loads((tmp_path / "plain" / "song-000004" / "song.json").read_text())
    assert not {"bank_licences", "credit"} & plain["rendering"].keys()


def test_the_doctor_says_which_banks_are_there_and_what_is_wrong_with_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = replace(Settings.from_environment(), banks=())
    monkeypatch.setattr(banks_open, "FONT_FOLDERS", (tmp_path / "fonts",))
    with pytest.raises(UserError, match=r"no soundfont in .*fonts: the corpus computes its instruments"):
        instrument_banks(settings)
    (tmp_path / "fonts").mkdir()
    (tmp_path / "fonts" / "FluidR3_GM.sf2").write_bytes(b"RIFF")
    with pytest.raises(UserError, match=r"FluidR3_GM\.sf2: this is no soundfont"):
        instrument_banks(settings)
    kit = write_kit(tmp_path / "drums")
    assert instrument_banks(replace(settings, banks=(str(kit), "numpy"))) == f"{kit} (unknown), numpy (computed)"
    with pytest.raises(UserError, match="no preset or sample for piano"):
        instrument_banks(replace(settings, banks=(str(kit),)))


@pytest.mark.parametrize(
    "toms",
    [
        ("Tom1", "Tom2", "Tom3"),
        ("Tom8in", "Tom10in", "Tom16in"),
        ("TomHigh", "TomMid", "TomLow"),
        ("High Tom", "Mid Tom", "Floor Tom"),
        ("Tom_Hi", "Tom_Lo", "Floor_Tom"),
        ("Rack Tom 1", "Rack Tom 2", "Floor Tom 1"),
    ],
)
def test_toms_go_from_high_to_low_as_their_names_say(tmp_path: Path, toms: tuple[str, ...]) -> None:
    kit = DrumFolder(write_kit(tmp_path / "kit", *toms))
    played = [kit._hits[DRUM_KEYS[drum]][0][1].parent.name for drum in ("tom_high", "tom_mid", "tom_low")]
    assert played == list(toms)


def test_the_underside_of_a_snare_is_no_tom(tmp_path: Path) -> None:
    kit = DrumFolder(write_kit(tmp_path / "kit", "SnareBottom", "Tom1", "Tom2", "Tom3"))
    assert kit._hits[DRUM_KEYS["tom_high"]][0][1].parent.name == "Tom1"
