"""``unibert push``: an exported model on the Hugging Face hub, or what would be there in a folder."""

from __future__ import annotations

import shutil
from pathlib import Path

from unibert.errors import UserError, short_message
from unibert.model_card import CARD_NAME, licence_of, with_hub_id, with_licence
from unibert.text import with_unit

_CONFIG_NAME = "config.json"


def push_model(
    source: Path, to: str, *, licence: str | None = None, private: bool = False, dry_run: Path | None = None
) -> None:
    """Upload a model folder with its card, in whose code the hub id replaces the folder.

    Args:
        source: run folder with an exported model, or model folder.
        to: ``ORG/NAME`` on the hub. The repository is created unless it exists.
        licence: the hub's name of the licence, for the card. It may be None if the card has one.
        private: whether a repository that is created is private.
        dry_run: new folder to write the files into, instead of the hub.

    Raises:
        UserError: if there is no model or licence, the folder cannot be written, or the hub refuses.
    """
    model = source if (source / _CONFIG_NAME).is_file() else source / "model"
    if not (model / _CONFIG_NAME).is_file():
        raise UserError(f"{source} has no model; write it with `unibert export {source}`")
    card = _card(model, to, licence)
    if dry_run is not None:
        _write(model, card, dry_run)
        files = sorted(path for path in dry_run.rglob("*") if path.is_file())
        for path in files:
            print(f"{path.relative_to(dry_run)}  {with_unit(path.stat().st_size, ('', 'kB', 'MB', 'GB'), ' ')}")
        print(f"{dry_run} has the {len(files)} files for https://huggingface.co/{to}; nothing was uploaded")
        return
    print(f"The model is at {_upload(model, card, to, private=private)}")


def _card(model: Path, to: str, licence: str | None) -> str:
    path = model / CARD_NAME
    try:
        card = path.read_text(encoding="utf-8")
        if licence is not None:
            card = with_licence(card, licence)
        elif licence_of(card) is None:
            raise UserError(
                f"{path} names no licence; decide it by the licences of the training text and the teacher, and give it "
                "as in --license apache-2.0"
            )
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be used ({short_message(error)}); export the model again") from error
    return with_hub_id(card, to)


def _write(model: Path, card: str, folder: Path) -> None:
    if folder.exists():
        raise UserError(f"{folder} exists; choose a new folder")
    try:
        shutil.copytree(model, folder)
        (folder / CARD_NAME).write_text(card, encoding="utf-8")
    except OSError as error:
        raise UserError(f"{folder}: cannot be written ({short_message(error)})") from error


def _upload(model: Path, card: str, to: str, *, private: bool) -> str:
    """Upload a model folder with another card, in one commit, and return its address."""
    from huggingface_hub import CommitOperationAdd, HfApi, get_token

    if get_token() is None:
        raise UserError("there is no token for the hub; log in with `hf auth login`, or set HF_TOKEN")
    api = HfApi()
    try:
        address = api.create_repo(to, private=private, exist_ok=True)
        files = [path for path in model.rglob("*") if path.is_file() and path != model / CARD_NAME]
        operations = [CommitOperationAdd(str(path.relative_to(model)), path) for path in files]
        operations.append(CommitOperationAdd(CARD_NAME, card.encode()))
        api.create_commit(to, operations, commit_message="Model trained with UniBERT")
    except Exception as error:  # the hub's client passes on whatever its parts raise
        raise UserError(f"{to}: the hub refuses ({short_message(error)})") from error
    return str(address)
