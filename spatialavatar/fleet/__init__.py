"""The fleet: thousands of subjects, each refined into an avatar or set aside with a reason.

An output folder, on a disk or in a store:

    fleet.json                      settings, which a second run must share (settings.py)
    status.json                     how the run stands, or ended (status.py)
    records/ID.DIGEST.json          the completion record of a subject, written last; names its avatar (records.py)
    failures/ID.DIGEST.json         what failed, how often and why, and whether it was given up (records.py)
    avatars/ID.HASH/                avatar, log, metrics.json, thumbnail.jpg; HASH is that of the Gaussians
    unfinished/ID.DIGEST/           checkpoint and log of a subject that is not finished
    summary.parquet, summary.md     a row a subject (summary.py)
    sheet.jpg                       thumbnails of the worst and the best

How it is made: subjects.py reads who is to be refined (of a table, manifest.py), work.py refines (pipeline.py: while
one batch is optimised, the next is read and the last is written; device.py: what a device's errors mean), gate.py looks
at the result, ledger.py decides who is tried again, batch_size.py how many share a worker. run.py is a run's view of
all that, finished.py what it knows of records, superseded.py what goes at its end; report.py makes the summary of what
lies in an output. ``ray_jobs/refine.py`` puts that on a cluster; nothing here knows of it.
"""
