"""``bench scaling``: a step of the trainer on one rank and on several, under each ZeRO stage, and what predicts it.

`cases` lists what is measured, `link` measures what ranks can send each other, `prediction` computes a step's time from
the steps of one rank and the link.
"""
