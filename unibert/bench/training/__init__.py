"""``bench train``: tokens per second and memory of UniBERT and of other trainers, on the same model and data.

`work` describes the work, `ours` and `peers` train. A `worker` process measures one provider; `run` lets them take
turns.
"""
