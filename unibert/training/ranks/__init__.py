"""The ranks of a run: where this one stands, what all of them do together, and how they end.

`placement` reads the environment, `collectives` joins the ranks and has what all do, `signals` ask them to stop,
`watchdog` and `lifelines` notice those that hang or die, `failures` says what an error means, `preflight` looks at the
nodes of a Slurm job beforehand. `unibert.cli` prints what was raised and chooses the status::

    what ends a rank                   raised                             printed by                  status
    ---------------------------------------------------------------------------------------------------------
    the run is complete                                                                               0
    mistake before the ranks meet      UserError, by each rank            local rank 0 of a machine   1
    mistake that all have agreed on    AgreedError, by all                rank 0                      1
    mistake that one rank has met      RankError, by that rank            that rank                   1
      the others                       nothing, a thread ends them        nobody                      1
    signal, after a checkpoint         Preempted, by all                  rank 0                      75
    second signal of the kind          nothing                            nobody                      the signal's
    collective that fails              LostRanksError, by who notices     each of these               76
    rank that hangs                    nothing, a thread ends all         the first to time out       76
    rank that died, outside of a       nothing, a thread ends the others  rank 0, or rank 1           76
      collective that notices                                               where rank 0 died
    any other error                    itself, by that rank               that rank, with traceback   1
      the others                       as where a rank has died                                       76

`slurm/pretrain.sh` starts a run again unless it ends with 0 or 1. Under ``srun`` ranks that end with a UserError of all
wait some seconds for each other, as it kills the others when the first has failed.
"""
