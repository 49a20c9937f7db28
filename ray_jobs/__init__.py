"""What runs on a Ray cluster; the library does the work, and knows nothing of Ray.

Five commands, each a file of its name, with what belongs to it alone beside it under the same first word:

    ingest      trackers' folders, or clips, to shards
    train       one training: places for its workers, what a worker does, what it and the driver tell each other
    tune        a sweep, which is many trainings: config, places, trial, search (Ray Tune), board, result, plot
    evaluate    a generator or avatars on many people: what a worker does
    refine      a fleet: the pool of its workers, what a worker does

    training    what train and tune have in common; stream.py (Ray Data) and deepspeed_engine.py are its parts
    command     what all commands share towards the user; connect.py joins a cluster, cluster.py looks at it, gauges.py
                are Ray's metrics

A worker is a process that a command keeps on the cluster. An actor or a task is never restarted or repeated by Ray:
the driver looks at what happened, and decides.
"""
