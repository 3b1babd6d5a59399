"""One sbatch array for a grid."""

OPTIONS = {
    "account": "who pays",
    "partition": "queue",
    "time": "limit of a run, for example 4:00:00",
    "gres": "devices of a run, for example gpu:1",
}
