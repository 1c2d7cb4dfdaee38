"""List the packages and their folders; everything else is in pyproject.toml, which cannot map packages to folders."""

from setuptools import find_namespace_packages, setup

# Data folders at the top level of the repository, where users find them, which are installed inside the package.
DATA_PACKAGES = {
    "unibert.ds_configs": "ds_configs",
    "unibert.slurm": "slurm",
}

setup(
    packages=[
        *find_namespace_packages(include=["unibert", "unibert.*"]),
        *find_namespace_packages("kernels"),
        *DATA_PACKAGES,
    ],
    package_dir={"unibert_kernels": "kernels/unibert_kernels", **DATA_PACKAGES},
)
