"""Which packages there are; pyproject.toml has the rest and cannot say that a package lies elsewhere."""

from setuptools import find_namespace_packages, setup

# Data that stands at the top level of the repository, for people to read, and inside the installed package.
FOLDERS_ELSEWHERE = {
    "unibert.ds_configs": "ds_configs",
    "unibert.slurm": "slurm",
}

setup(
    packages=[
        *find_namespace_packages(include=["unibert", "unibert.*"]),
        *find_namespace_packages("kernels"),
        *FOLDERS_ELSEWHERE,
    ],
    package_dir={"unibert_kernels": "kernels/unibert_kernels", **FOLDERS_ELSEWHERE},
)
