"""Words for the causes of lost time, the same on the page and in the terminal."""

CAUSE_WORDS = {
    "goodput": "training",
    "init": "starting up",
    "compile": "first-step excess",
    "data": "waiting for data",
    "comm_exposed": "exposed communication",
    "checkpoint": "checkpoints",
    "eval": "held-out loss",
    "redone": "redone or skipped steps",
    "tail": "after the last step",
    "unknown": "unknown",
}
