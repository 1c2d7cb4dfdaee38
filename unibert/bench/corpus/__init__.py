"""``bench corpus``: speed and memory of building a corpus, and what cleaning keeps, beside other programs.

`cleaning` holds UniBERT's cleaner and WikiExtractor, `quality` measures what they keep and leave, `tokenising` holds
the tokenizers, and `builds` whole builds with one and two ranks. A `worker` process measures one of them. `run` is the
command.
"""
