"""What of this machine would keep UniBERT from running, and how to fix it.

`examine` is the command, `finding` what it prints and its time-outs; `packages`, `devices`, `ranks`, `cluster`,
`folders` and `run_files` look; `torch_probe`, `triton_probe` and `two_ranks` are what they start. Broken packages are
met in processes of their own, so the rest is looked at all the same.
"""
