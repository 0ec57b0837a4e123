"""The verb that takes away whose a picture is: deidentify."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pipelines.cli.verb import PATH, as_json, print_json, progress, status_of, verb_of

if TYPE_CHECKING:
    from pipelines.deidentify import Outcome


@click.command(short_help="Copy DICOM images without whose they are.")
@click.argument("source", metavar="SRC", type=PATH)
@click.argument("out", metavar="DST", type=PATH)
@click.option("--key", type=PATH, required=True, help="The file with the key that pseudonyms are made with.")
@click.option("--make-key", "new_key", is_flag=True, help="Make the key; without it the file must be there.")
@click.option("--crosswalk", type=PATH, help="Keep here what stands for what; apart from DST, readable by you alone.")
@click.option("--modified-dates", is_flag=True, help="Move the dates of a patient by one number of days.")
@click.option("--clean-descriptors", is_flag=True, help="Keep radiology's own words of descriptions.")
@click.option("--patient-characteristics", is_flag=True, help="Keep age, sex, size, weight and the like.")
@click.option("--device-identity", is_flag=True, help="Keep serial numbers, station names and the like.")
@click.option("--unsure-pixels", is_flag=True, help="Take kinds of pictures that often have text burnt in.")
@as_json
@verb_of
def deidentify(
    source: Path, out: Path, key: Path, new_key: bool, crosswalk: Path | None, as_json: bool, **chosen: bool
) -> int:
    """Copy the DICOM images under SRC to DST/<patient>/<study>/, without whose they are (PS3.15 Annex E Basic Profile).

    A second pass, which knows nothing of the first, looks for what the original says of people in what would be
    written, and withholds a file on a hit. Reports, documents and pictures with text in their pixels are refused. Faces
    that can be made out of a head's slices stay as they are.
    """
    with progress("Reading") as tell:
        from imaging.dicom.deidentify import Options
        from pipelines import deidentify as verb

        done = verb.deidentify(
            source=source, out=out, key=key, new_key=new_key, crosswalk=crosswalk, options=Options(**chosen),
            on_file=lambda number, total: tell(f"File {number + 1} of {total}"),
        )  # fmt: skip
    status = status_of(done.refused) or (0 if done.studies else 3)
    if as_json:
        print_json(_as_dict(done, status))
    else:
        _print(done)
    return status


def _as_dict(done: Outcome, status: int) -> dict[str, Any]:
    return {
        "studies": [
            {
                "patient": study.patient,
                "study_uid": study.study_uid,
                "folder": str(study.folder),
                "instances": study.instances,
                "unsure_pixels": study.unsure_pixels,
            }
            for study in done.studies
        ],
        "gone": dict(done.gone),
        "refused": [error.as_dict() for error in done.refused],
        "exit_status": status,
    }


def _print(done: Outcome) -> None:
    for study in done.studies:
        looked = f"; look at {study.unsure_pixels} of them for text in the picture" if study.unsure_pixels else ""
        click.echo(f"{study.folder}: {study.instances} instances{looked}")
    for error in done.refused:
        click.echo(str(error))
