"""The ranks of a run: their placement, their common operations, and how they end.

`placement` reads the environment, `collectives` joins the ranks and holds their common operations, `collective_counter`
counts these, `signals` asks the ranks to stop, `watchdog` and `lifelines` notice ranks that hang or die, `failures`
explains errors. `unibert.cli` prints what was raised and chooses the exit status::

    what ends a rank                   raised                             printed by                  status
    ---------------------------------------------------------------------------------------------------------
    the run is complete                                                                               0
    mistake before the ranks join      UserError, on each rank            local rank 0 per machine    1
    mistake that all ranks agree on    AgreedError, on all                rank 0                      1
    mistake that one rank meets        RankError, on that rank            that rank                   1
      other ranks                      nothing, a thread ends them        nobody                      1
    signal, after a checkpoint         Preempted, on all                  rank 0                      75
    second signal of the same kind     nothing                            nobody                      the signal's
    collective that fails              LostRanksError, where it fails     each of these               76
    rank that hangs                    nothing, a thread ends all         the first to time out       76
    rank that dies, and no             nothing, a thread ends the others  rank 0, or rank 1           76
      collective notices                                                    if rank 0 died
    any other error                    that error, on that rank           that rank, with traceback   1
      other ranks                      as if that rank had died                                       76

`slurm/pretrain.sh` restarts a run unless it ends with 0 or 1. Under ``srun``, ranks that end with a UserError wait a
few seconds for each other, because srun kills the others as soon as one has failed.
"""
