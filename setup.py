"""List of packages, since pyproject.toml, which has all other settings, cannot map a package to another folder."""

from setuptools import find_namespace_packages, setup

# Data at the top level of the repository, where readers find it, that belongs inside the installed package.
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
