"""The verbs that read studies: infer, inspect, convert."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click
from click.core import ParameterSource

from pipelines.cli.verb import (
    PATH,
    as_json,
    case_teller,
    print_json,
    progress,
    status_of,
    verb_of,
    with_engine,
    with_memory,
    with_outputs,
    with_policy,
)

if TYPE_CHECKING:
    from imaging.dicom.seg import SegType
    from imaging.dicom.stack import Policy
    from imaging.engines import Wanted
    from imaging.judgement import Explained
    from imaging.report.fhir import Version
    from imaging.text.document import Role
    from pipelines.infer import Inferred
    from pipelines.outputs import FhirPage


@click.command(short_help="Report on every study under some paths.")
@click.argument("paths", nargs=-1, required=True, type=PATH)
@click.option("--model", "models", multiple=True, metavar="NAME", help="A shipped checkpoint, or a folder. Repeatable.")
@click.option("--text", type=PATH, metavar="FILE", help="A text of the only study: plain, FHIR JSON or DICOM SR.")
@click.option("--text-role", type=click.Choice(["request", "report"]),
              help="Whether it was written before the picture was seen, or of it.")  # fmt: skip
@click.option("--out", type=PATH, default=Path("out"), show_default=True, help="Gets a folder for each study.")
@click.option("--engine-cluster", type=click.Choice(["ray"]), help="Let the nodes of a Ray cluster read the studies.")
@click.option("--cluster-address", metavar="HOST:PORT", default="auto", show_default=True,
              help="Of the cluster's head; auto: the cluster of this machine; local: this machine alone.")  # fmt: skip
@click.option("--cluster-cpus", type=click.IntRange(min=1), default=4, show_default=True,
              help="CPUs for each study, where a node has no GPU.")  # fmt: skip
@with_outputs
@with_engine
@with_memory
@with_policy
@as_json
@verb_of
def infer(
    paths: tuple[Path, ...],
    models: tuple[str, ...],
    text: Path | None,
    text_role: Role | None,
    out: Path,
    formats: str | None,
    seg_type: SegType,
    fhir_version: Version,
    fhir_page: FhirPage,
    explain: Explained,
    engine: Wanted,
    memory: str | None,
    policy: Policy,
    engine_cluster: Literal["ray"] | None,
    cluster_address: str,
    cluster_cpus: int,
    as_json: bool,
) -> int:
    """Report on every study under PATHS (folders of DICOM, NIfTI files, PNG pictures).

    Writes OUT/<StudyInstanceUID>/ with report.json, report.html, sr.dcm and the mask as DICOM SEG; for a NIfTI or
    PNG file OUT/<file name>/, with the mask as NIfTI. Without --model each shipped checkpoint takes the series
    it was made for. With --engine-cluster ray what an earlier call has made lies in OUT and is not made again.
    """
    source_of = click.get_current_context().get_parameter_source
    given = {source_of("cluster_address"), source_of("cluster_cpus")}
    if engine_cluster is None and ParameterSource.COMMANDLINE in given:
        from imaging.errors import ConfigInvalid

        raise ConfigInvalid("--cluster-address, --cluster-cpus", seen="no --engine-cluster",
                            expected="--engine-cluster ray beside them was expected",
                            remedy="Give it, or leave them out")  # fmt: skip
    chosen = tuple(part.strip() for part in formats.split(",")) if formats else None
    with progress("Starting") as tell:
        from pipelines import infer as verb
        from pipelines.cluster.nodes import Cluster
        from pipelines.spared import spare

        spare()
        cluster = Cluster(cluster_address, cluster_cpus) if engine_cluster else None

        def on_study(name: str, number: int, total: int) -> None:
            tell(f"Study {number + 1} of {total}: {name}")

        inferred = verb.infer(paths=paths, models=models, text=text, text_role=text_role, out=out, formats=chosen,
                              seg_type=seg_type, fhir_version=fhir_version, fhir_page=fhir_page, policy=policy,
                              explain=explain, engine=engine, memory=memory, cluster=cluster,
                              on_study=on_study)  # fmt: skip
    problems = [*inferred.refused, *(problem for study in inferred.studies for problem in study.problems)]
    # A study of nothing but what is set aside was asked for, and has no findings.
    nothing = any(not (study.report and study.report.findings) for study in inferred.studies)
    status = status_of(problems) or (3 if nothing else 0)
    if as_json:
        print_json(_inferred_as_dict(inferred, status))
    else:
        _print_inferred(inferred)
    return status


def _inferred_as_dict(inferred: Inferred, status: int) -> dict[str, Any]:
    from pipelines.tables import unjudged_of

    return {
        "studies": [
            {
                "name": study.name,
                "folder": str(study.folder) if study.folder else None,
                "report": study.report.model_dump(mode="json") if study.report else None,
                "texts_not_judged": unjudged_of(study.report) if study.report else [],
                "problems": [problem.as_dict() for problem in study.problems],
            }
            for study in inferred.studies
        ],
        "refused": [error.as_dict() for error in inferred.refused],
        "stages_s": {name: round(seconds, 4) for name, seconds in inferred.stages.items()},
        "exit_status": status,
    }


def _print_inferred(inferred: Inferred) -> None:
    from pipelines.tables import finding_line, repairs_of, unjudged_of, words_of

    told = set()
    for study in inferred.studies:
        click.echo(f"Study {study.name}")
        for finding in study.report.findings if study.report else ():
            click.echo(f"  {finding_line(finding)}")
        for line in (*words_of(study.report), *repairs_of(study.report)) if study.report else ():
            click.echo(f"  {line}")
        if study.report and not study.report.findings:
            click.echo("  nothing was measured")
        # What has a problem of its own is told by that.
        known = {problem.subject for problem in study.problems}
        for text in unjudged_of(study.report) if study.report else ():
            if text["source"] not in known:
                lack = "have no probability" if text["model"] else "were not judged"
                click.echo(f"  The words of the {text['role']} ({text['source']}) {lack}. {text['reason']}")
        for problem in study.problems:
            told.add(str(problem))
            click.echo(f"  {problem}")
        if study.folder:
            page = study.folder / "report.html"
            click.echo(f"  report: {(page if page.exists() else study.folder / 'report.json').resolve()}")
    for error in inferred.refused:
        if str(error) not in told:
            click.echo(str(error))


@click.command(short_help="Show what lies under some paths.")
@click.argument("paths", nargs=-1, required=True, type=PATH)
@click.option("--model", "models", multiple=True, metavar="NAME", help="Ask this checkpoint only. Repeatable.")
@click.option("--config", type=PATH, help="Hold data sets with classes against this config: its classes, its split.")
@with_policy
@as_json
@verb_of
def inspect(
    paths: tuple[Path, ...], models: tuple[str, ...], config: Path | None, policy: Policy, as_json: bool
) -> int:
    """Show what lies under PATHS: studies, series, geometry, defects, and which checkpoint would take each series.

    A CSV, a MedMNIST file or a dataset.json among PATHS is taken as the manifest of a data set to train on: every case
    is read, and all that is wrong with it is told at once. So is a folder of DICOM studies, with a config that has
    data.labels.
    """
    with progress("Reading") as tell:
        from pipelines import inspect as verb

        found = verb.inspect(paths=paths, models=models, policy=policy, config=config, on_case=case_teller(tell))
    series = [item for study in found["studies"] for item in study["series"]] + found["nifti"] + found["pictures"]
    broken = any(dataset["problems"] for dataset in found["datasets"])
    lost = any(item["refusal"] and not item["set_aside"] for item in series)
    status = 3 if found["refused"] or broken or lost else 0
    if as_json:
        print_json({**found, "exit_status": status})
    else:
        from pipelines.tables import print_inspection

        print_inspection(found)
    return status


@click.command(short_help="Write DICOM series as NIfTI.")
@click.argument("path", type=PATH)
@click.argument("out", type=PATH)
@click.option("--series", metavar="UID", help="Only the series whose SeriesInstanceUID is this, or ends with it.")
@with_policy
@as_json
@verb_of
def convert(path: Path, out: Path, series: str | None, policy: Policy, as_json: bool) -> int:
    """Write the volumes under PATH (a folder, file, ZIP or TAR of DICOM) as NIfTI.

    OUT is a file name that ends in .nii.gz or .nii for a single volume, or a folder, in which each volume is named by
    its SeriesInstanceUID. A .json beside each says where it came from, what was wrong with it and what was done.
    """
    with progress(f"Reading {path}"):
        from pipelines import convert as verb

        converted = verb.convert(path=path, out=out, series=series, policy=policy)
    status = status_of(converted.refused)
    if as_json:
        refused = [error.as_dict() for error in converted.refused]
        print_json({"written": list(converted.written), "refused": refused, "exit_status": status})
        return status
    from pipelines.tables import defect_line

    for document in converted.written:
        size = " x ".join(map(str, document["shape"]))
        click.echo(f"{document['file']}: {size}, {document['orientation']}")
        for defect in document["defects"]:
            click.echo(f"  {defect_line(defect)}")
    for error in converted.refused:
        click.echo(str(error))
    return status
