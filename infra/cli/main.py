"""The command line `backline`: every command of every room under one name, generated from their configs."""

from typing import Annotated

from cyclopts import App, Parameter

from infra.cli import exit_codes as commands

app = App(name="backline", help="Takes a sung vocal and plays the band behind it.", version_flags=["--version"])
# Imported only when called: the command line starts without torch or Ray.
app.command("infra.cli.demo:demo", name="demo", help="Everything on this machine, from a corpus to one accompaniment over HTTP.")
app.command("infra.cli.doctor:doctor", name="doctor", help="What works here, one line each, with the remedy for what does not.")
app.command("pipelines.__main__:corpus", name="corpus", help="Write the demo corpus: songs with vocals, band and their truth.")
app.command("pipelines.__main__:listening_set", name="listening-set", help="Write demo vocals under the conditions of real ones.")
app.command("pipelines.__main__:prepare", name="prepare", help="Turn any source of songs into a latent dataset.")
app.command("pipelines.__main__:takedown", name="takedown", help="Remove a song from a dataset, with all that came of it.")
app.command("pipelines.__main__:check", name="check", help="Verify a dataset row by row.")
app.command("pipelines.__main__:compact", name="compact", help="Join a dataset's many small files into few large ones.")
app.command("pipelines.__main__:dataset_report", name="dataset-report", help="Write a page on a dataset, with pairs to listen to.")
app.command("training.__main__:train", name="train", help="Train on a latent dataset, on Ray, tracked in MLflow.")
app.command("training.__main__:distil", name="distil", help="Teach a checkpoint's music to students of fewer steps.")
app.command("training.__main__:evaluate", name="evaluate", help="Score a checkpoint beside its baselines.")
app.command("training.__main__:sweep", name="sweep", help="Compare trainings of several depths, widths, losses and guidances.")
app.command("training.__main__:track", name="track", help="Send MLflow what it has not taken of a run.")
app.command("training.__main__:promote", name="promote", help="Make a registered version the one that is loaded by an alias.")
app.command("training.__main__:codec", name="codec", help="Train the embedded codec on song folders.")
app.command("infra.cli.submit:submit", name="submit", help="Run prepare, train, evaluate or sweep as a job on a Ray cluster.")
app.command("serving.__main__:serve", name="serve", help="Answer vocals over HTTP, with a page for musicians.")


@app.command
def generate(
    vocal: str,
    /,
    *,
    out: str,
    checkpoint: str | None = None,
    codec: str | None = None,
    seed: int = 0,
    steps: int | None = None,
    guidance: float | None = None,
    candidates: int = 1,
    style: str | None = None,
    chords: str | None = None,
    beats: str | None = None,
    tempo_bpm: float | None = None,
    first_beat_s: float = 0.0,
    mix: Annotated[bool, Parameter(negative="")] = False,
) -> int:
    """Play the band behind one vocal, without a server.

    Parameters
    ----------
    vocal: Audio file of the vocal (WAV, FLAC, MP3 or OGG), a path or an S3 URI.
    out: Where the accompaniment goes, a path or an S3 URI; the ending (.wav, .flac, .mp3, .ogg) chooses the format.
    checkpoint: A checkpoint's or a training run's place, or models:/NAME@ALIAS; by default the one that ships with backline.
    codec: The codec, when it is not the embedded one and is kept somewhere else than where it was trained.
    seed: The same seed, vocal and checkpoint give the same audio.
    steps: Denoising steps; by default the checkpoint's own number.
    guidance: Guidance scale, 1 is none; by default the checkpoint's own.
    candidates: How many accompaniments to make; the best-fitting one is written.
    style: One of the styles that the checkpoint was trained on; a wrong one is answered with their names.
    chords: File of the chords to play: lines of start, end and chord (0 1.5 Am), or JSON. Between them the band chooses.
    beats: File of the beats to keep to: JSON of time_s and position, or lines of both; position 1 is the downbeat.
    tempo_bpm: A steady tempo to keep to, in place of beats.
    first_beat_s: With tempo-bpm, when a downbeat is.
    mix: Write vocal and accompaniment together.
    """
    from infra.cli.generate import GenerateRequest, generate_file

    return generate_file(
        GenerateRequest(
            vocal=vocal,
            out=out,
            checkpoint=checkpoint,
            codec=codec,
            seed=seed,
            steps=steps,
            guidance=guidance,
            candidates=candidates,
            style=style,
            chords=chords,
            beats=beats,
            tempo_bpm=tempo_bpm,
            first_beat_s=first_beat_s,
            mix=mix,
        )
    )


def main() -> None:
    """Entry point of the `backline` script."""
    from model.errors import ModelError

    commands.main(app, user_errors=(ModelError,))
