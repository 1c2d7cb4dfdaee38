"""``bench gpu``: tests, benchmarks and short trainings on a CUDA GPU, in two stages of a few minutes.

`run` is the command with the list of parts, which `checks`, `times` and `trainings` implement; `part_context` is the
context that each receives. Parts start `attention`, `live_report`, `short_training`, `small_cases` and
`tune_rehearsal`.
"""
