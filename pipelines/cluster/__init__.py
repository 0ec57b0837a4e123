"""Many studies over many machines: one call that gives them out, nodes that report on them, one place for the results.

Invariant: only the call that gives the studies out puts results into their place, and for each study once; whatever
ends a node or a process ends no more than one try of one study.
"""
