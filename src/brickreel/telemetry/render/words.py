"""Words for the causes of lost time, the same on the page and in the terminal."""

CAUSE_WORDS = {
    "goodput": "training",
    "init": "starting up",
    "compile": "first-step excess",
    "data": "waiting for data",
    "comm_exposed": "exposed communication",
    "checkpoint": "checkpoints",
    "eval": "held-out loss",
    "redone": "redone or lost steps",
    "skipped": "skipped steps",
    "tail": "after the last step",
    "unknown": "unknown",
}
# The same within a sentence, where the word alone would not do.
CAUSE_PHRASES = CAUSE_WORDS | {
    "compile": "the first steps' excess",
    "eval": "the held-out loss",
    "tail": "the time after the last step",
    "unknown": "what no record explains",
}
