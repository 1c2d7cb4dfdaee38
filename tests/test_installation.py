"""The version of UniBERT and the location of its data, in a checkout and in an installation."""

from pathlib import Path

import pytest

from unibert import installation
from unibert.cli import main


def test_the_command_line_prints_its_version(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--version"])
    assert stop.value.code == 0
    assert capsys.readouterr().out == "unibert 0.1.0\n"


@pytest.fixture
def package(tmp_path, monkeypatch) -> Path:
    """A folder that replaces the package's."""
    monkeypatch.setattr(installation, "_PACKAGE", tmp_path / "site-packages" / "unibert")
    (tmp_path / "site-packages" / "unibert").mkdir(parents=True)
    return tmp_path / "site-packages" / "unibert"


def test_an_installation_has_the_installed_version(package, monkeypatch, capsys):
    # Some packages install such a file.
    (package.parent / "pyproject.toml").write_text('[project]\nname = "another"\nversion = "7"\n')
    monkeypatch.setattr(installation, "version", {"unibert": "3.2.1"}.get)
    with pytest.raises(SystemExit):
        main(["--version"])
    assert capsys.readouterr().out == "unibert 3.2.1\n"


def test_a_checkout_has_its_own_version_whatever_is_installed(package, monkeypatch, capsys):
    (package.parent / "pyproject.toml").write_text('[project]\nname = "unibert"\nversion = "4.0"\n')
    monkeypatch.setattr(installation, "version", {"unibert": "3.2.1"}.get)
    with pytest.raises(SystemExit):
        main(["--version"])
    assert capsys.readouterr().out == "unibert 4.0\n"


@pytest.mark.parametrize("name", ["ds_configs", "slurm"])
def test_data_inside_the_package_precedes_data_beside_it(package, name):
    (package.parent / name).mkdir()
    assert installation.data_folder(name) == package.parent / name
    (package / name).mkdir()
    assert installation.data_folder(name) == package / name
