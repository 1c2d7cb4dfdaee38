"""Use exported models as their users do, in a process of its own that may have older or newer libraries.

    python client.py REQUEST.json ANSWERS.json

REQUEST.json: ``{"folders": [model folders], "texts": [texts], "onnx": [those to run in ONNX Runtime too]}``.
ANSWERS.json: ``{"versions": {package: version}, "models": {folder: answers or {"error": message}}}``.
"""

import importlib.metadata
import io
import json
import re
import sys
import warnings
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import torch
from sentence_transformers import SentenceTransformer
from transformers import AutoModel, AutoModelForMaskedLM, AutoTokenizer, pipeline

# A model must not need the trainer.
assert "unibert" not in sys.modules


@torch.no_grad()
def answers(folder: str, texts: list[str], *, onnx: bool) -> dict[str, Any]:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    encoder = AutoModel.from_pretrained(folder).eval()
    masked_lm = AutoModelForMaskedLM.from_pretrained(folder).eval()
    batches = [tokenizer(text, truncation=True, return_tensors="pt") for text in texts]
    sentences = SentenceTransformer(folder, device="cpu")
    fill_mask = pipeline("fill-mask", model=folder, device="cpu")
    given = {
        "ids": [batch["input_ids"][0].tolist() for batch in batches],
        "states": [encoder(**batch).last_hidden_state[0].tolist() for batch in batches],
        "logits": masked_lm(**batches[0]).logits[0].tolist(),
        "vectors": sentences.encode(texts).tolist(),
        "max_tokens": [tokenizer.model_max_length, sentences.max_seq_length],
        "filled": len(fill_mask(f"1 {tokenizer.mask_token}")),
        "card": run_examples(folder),
    }
    if onnx:
        given["onnx_states"] = onnx_states(encoder, batches, Path(folder).with_suffix(".onnx"))
    return given


def run_examples(folder: str) -> list[str]:
    """Run the examples of the model's card; return what each prints."""
    card = (Path(folder) / "README.md").read_text(encoding="utf-8")
    printed = []
    for example in re.findall(r"^```python$(.*?)^```$", card, re.MULTILINE | re.DOTALL):
        output = io.StringIO()
        with redirect_stdout(output):
            exec(example.replace("FOLDER", folder), {})
        printed.append(output.getvalue().strip())
    return printed


def onnx_states(encoder: Any, batches: list[Any], file: Path) -> list[Any]:
    """Hidden states by ONNX Runtime, of texts that need not have the length of the one that the export has seen."""
    import onnxruntime

    names = ("input_ids", "attention_mask")
    with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        torch.onnx.export(
            encoder,
            kwargs={name: batches[0][name].repeat(2, 1) for name in names},
            f=str(file),
            input_names=list(names),
            output_names=["last_hidden_state"],
            dynamic_shapes={name: {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC} for name in names},
            dynamo=True,
            optimize=False,
        )
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    return [
        session.run(["last_hidden_state"], {name: batch[name].numpy() for name in names})[0][0].tolist()
        for batch in batches
    ]


def main(request_file: str, answers_file: str) -> None:
    request = json.loads(Path(request_file).read_text(encoding="utf-8"))
    models: dict[str, Any] = {}
    for folder in request["folders"]:
        try:
            models[folder] = answers(folder, request["texts"], onnx=folder in request["onnx"])
        except Exception as error:
            models[folder] = {"error": f"{type(error).__name__}: {error}"}
    packages = ("transformers", "sentence-transformers", "tokenizers")
    versions = {package: importlib.metadata.version(package) for package in packages}
    Path(answers_file).write_text(json.dumps({"versions": versions, "models": models}))


if __name__ == "__main__":
    main(*sys.argv[1:])
