"""``bench gpu``: tests, benchmarks and short trainings on a CUDA GPU, in two stages of minutes.

`run` is the command with the list of parts, which are in `checks`, `times` and `trainings`; a `turn` is what a part is
given. `attention`, `failures_at_once`, `short_training`, `small_cases` and `tune_rehearsal` are started by parts.
"""
