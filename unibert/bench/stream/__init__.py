"""``bench stream``: tokens per second, memory and padding of UniBERT's stream and other loaders on the same documents.

`work` describes the work, `providers` and `peers` hold the loaders. A `worker` process measures one loader or, with
`plan`, planning and resuming. `run` is the command.
"""
