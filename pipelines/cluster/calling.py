"""`imgpipe infer` on a cluster: the same call, the same result, with the studies read by many machines.

Invariant: what is told is what `imgpipe infer` on one machine would have told, and beside it what is wrong with nodes.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from imaging.checkpoint import find_checkpoint
from imaging.stages import listening, stage
from imaging.text.document import Role
from pipelines.cluster.driver import Bounds, Driver
from pipelines.cluster.ledger import Ledger
from pipelines.cluster.nodes import Cluster, connected, listing
from pipelines.cluster.opening import Checkpoints, told_of
from pipelines.infer import Inference, Inferred
from pipelines.outputs import OURS, REPORT

log = logging.getLogger(__name__)


def infer_on_cluster(
    cluster: Cluster,
    options: Mapping[str, Any],
    *,
    paths: Sequence[Path],
    text: Path | None,
    text_role: Role | None,
    out: Path,
    on_study: Callable[[str, int, int], None] | None = None,
    bounds: Bounds | None = None,
) -> Inferred:
    """Report on every study under some paths.

    Parameters
    ----------
    cluster
        Whose nodes read them.
    options
        Of `pipelines.infer.Inference`.
    paths, text, text_role, out, on_study
        As `pipelines.infer.infer` takes them; `on_study` is called when a study is through.
    bounds
        What is waited for, and for how long.

    Raises
    ------
    MissingPackage, ClusterUnreachable
        As `pipelines.cluster.nodes.connected` says.
    OutputNotWritable
        If another call on a cluster writes to `out`.
    WrongUsage, CheckpointCorrupt
        As `pipelines.infer.infer` says.
    """
    # A node has no working folder of ours.
    out, paths = out.absolute(), [path.absolute() for path in paths]
    own = {**options, "models": tuple(map(_for_nodes, options["models"]))}
    with listening() as stages:
        with stage("open"):
            inference = Inference(**own)
        listed = inference.studies_in(paths, out, text=text, text_role=text_role)
        opening = Checkpoints(own, told_of(inference), inference.setup)
        with Ledger(out, replaces=OURS, last=REPORT) as ledger, connected(cluster) as nodes:
            log.info("studies: %d; %s", len(listed.sources), listing(nodes.alive()) or "no node yet")
            driver = Driver(nodes, opening, ledger, out, stages=stages, bounds=bounds, on_study=on_study)
            try:
                results = driver.run(listed.sources)
            except (KeyboardInterrupt, SystemExit):
                log.warning("stopped; the same command goes on with those that are left")
                raise
            finally:
                through, earlier = driver.done
                log.info("%d of %d studies are through; %d results lay there already",
                         through, len(listed.sources), earlier)  # fmt: skip
    return listed.inferred(results, out, stages.seconds(), driver.faults)


def _for_nodes(model: str) -> str:
    """A checkpoint as a node finds it: by the name that it ships under, or by a path that depends on no folder."""
    folder = find_checkpoint(model)
    return str(folder.absolute()) if folder == Path(model) else model
