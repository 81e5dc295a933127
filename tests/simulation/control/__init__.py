"""The whole control plane of a run in one process and in virtual time: drivers, coordinators, workers, a store.

The real `driver.make`, `Coordinator` with all that it holds, `Scheduler`, `WorkerPool`, `CheckpointStore`. Played are
Ray (actors that compute by a formula, die, hang, answer late, drain, fail to start), the file system below the store
(which loses, delays and repeats), the clock, and the tables. Everything that happens follows from a seed.

A process that dies is frozen: whatever it asks of the outside is never answered. So no handler of its own runs.
"""
