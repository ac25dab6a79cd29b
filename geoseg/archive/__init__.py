"""`run`: many scenes, one job. The same maps on one process or on a cluster, and a run that survives what comes.

Every scene is looked at first, by its header alone; what cannot be mapped is told, and the rest goes on. Then scene
after scene is predicted tile by tile and exported, here or by a crew of workers. With a crew, tiles are handed out as
workers ask for them, from a list that is made while it is read; the tail of one scene overlaps with the next. Only this
process writes ledgers, from what workers report.

What a run leaves about itself lies in OUT: see `geoseg.records`.
"""

from geoseg.archive.job import RunJob
from geoseg.archive.plan import ArchivePlan, SceneEntry, lacks, plan_archive, seconds_of, workers_of
from geoseg.archive.run import RunReport, run_archive

__all__ = [
    "ArchivePlan",
    "RunJob",
    "RunReport",
    "SceneEntry",
    "lacks",
    "plan_archive",
    "run_archive",
    "seconds_of",
    "workers_of",
]
