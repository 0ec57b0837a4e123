"""The watcher's page: the worklist, reports, jobs and their history, what is held and why, metrics, health.

Invariant: it runs in a process of its own and reads the store through a connection that cannot write, so nobody who
looks holds up an instance or a job; what dies here is started again. What it changes (a job is retried or released) is
asked for by a form of its own and by nobody else's page. It is told to loopback only, unless who looks has to sign in.
"""
