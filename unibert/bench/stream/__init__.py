"""``bench stream``: our stream and other loaders on the same documents: tokens per second, memory, padding.

`work` says what is to be done, `providers` and `peers` hold who does it, a `worker` process measures one of them and,
by `plan`, our planning and resuming; `run` is the command.
"""
