"""What is refused of a cluster and of its nodes."""

from __future__ import annotations

from imaging.errors.tree import WrongUsage


class ClusterUnreachable(WrongUsage):
    """No Ray cluster answers at this address, or one that runs another version of Ray or Python."""

    code = "cluster_unreachable"
    expected = "a running cluster that this machine belongs to was expected"
    remedy = "Start it with `ray start --head` and `ray start --address HOST:PORT`, or give --cluster-address local"


class NodeUnfit(WrongUsage):
    """A node cannot open the checkpoints as the machine does that asks it; it gets no study, and the others go on."""

    code = "node_unfit"
    expected = "the same imgpipe on every node was expected"
    remedy = "Mend the node, and run the same command again"


class CheckpointNotOnNode(NodeUnfit):
    """A checkpoint is missing on a node, is damaged there, or is another one; the node gets no study."""

    code = "checkpoint_not_on_node"
    expected = "the same checkpoints, by their checksums, on every node were expected"
    remedy = "Copy the checkpoint to the node, or put it where every node sees it"


class PathNotOnNode(NodeUnfit):
    """A folder or file of the call is not to be seen on a node, or is another one there."""

    code = "path_not_on_node"
    expected = "the studies and --out under the same path on every node were expected"
    remedy = "Mount the shared folder on the node under the same path"


class NoNode(WrongUsage):
    """A study was left because no node of the cluster was there, or fit, to read it."""

    code = "no_node"
    expected = "at least one fit node with a free device was expected"
    remedy = "Mend or add nodes, and run the same command again: what is done is not done twice"
