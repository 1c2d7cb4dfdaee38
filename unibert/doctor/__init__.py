"""Check this machine for problems that keep UniBERT from running, and say how to fix them.

`examine` is the command. `finding` has the lines that it prints, and commands and calls with a time limit. `packages`,
`devices`, `ranks`, `cluster`, `folders` and `run_files` check. `torch_probe`, `triton_probe` and `two_ranks` run in
processes of their own, so that a broken package does not stop the other checks.
"""
