"""The command line: one thin command per verb, which imports its room when called."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from unibert.errors import AgreedError, LostRanksError, RankError, UserError

USAGE = """usage: unibert COMMAND ...

  corpus build INPUT ... --output DIR     dumps, JSONL or text to a tokenised, sharded corpus
  corpus verify DIR                       check every shard against the manifest's digests
  corpus inspect DIR [--run RUN.yaml …]   what it holds, and how often a run would read each language
  plan RUN.yaml --gpus N --gpu h100       memory, time and disk of a run, its ds_config and micro-batch
  pretrain RUN.yaml [--dotted.override …] train a run file or preset; again to continue
  preflight RUN.yaml [same overrides]     check the nodes of a Slurm job before it trains
  doctor [RUN.yaml [same overrides]]      what of this machine is not as it should be, and how to mend it
  export RUN_DIR [--step N]               a checkpoint to a Hugging Face model
  evaluate MODEL_DIR --retrieval DIR      sentence retrieval and language probe
  report RUN_DIR                          one HTML page with the run's plots
  demo [--output DIR]                     all of it on the embedded mini-Wikipedia
  slurm [--output DIR]                    Slurm's job scripts into a folder, slurm unless given
  bench kernels [--preset NAME]           the losses beside their peers: time, memory, error
  bench stream CORPUS                     the stream beside other loaders: tokens/s, memory
  bench checkpoints CORPUS                how long a run waits for its checkpoints
  bench show DIR                          table, goals and plot of the results in DIR
  bench gpu                               tests, benchmark and short trainings on a CUDA GPU

'unibert COMMAND --help' lists a command's options, 'unibert --version' says which UniBERT this is.
"""

SECONDS_FOR_SLOWER_RANKS = 3


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command and exit: 0 done, 1 the user's mistake (one sentence on stderr), 75 or 76 to be continued."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    # The deepspeed launcher puts this in front; the rank comes from the environment.
    words = [word for word in words if not word.startswith("--local_rank")]
    if not words or words[0] in ("-h", "--help", "help"):
        print(USAGE, end="")
        sys.exit(0 if words else 1)
    if words[0] == "--version":
        from unibert.installation import unibert_version

        print(f"unibert {unibert_version()}")
        sys.exit(0)
    name = " ".join(words[:2]) if words[0] in ("corpus", "bench") else words[0]
    try:
        if name not in COMMANDS:
            raise UserError(f"there is no command {name!r}; the commands are {', '.join(COMMANDS)}")
        COMMANDS[name](words[len(name.split()) :])
    except UserError as error:
        _exit_with(error)


def _exit_with(error: UserError) -> None:
    """Print the sentence once for all ranks that say it: of agreed errors rank 0, before ranks meet one a machine."""
    from unibert.training.ranks.placement import is_first_of_machine, is_first_rank, is_one_of_srun

    alone = is_first_rank() if isinstance(error, AgreedError) else is_first_of_machine()
    if alone or isinstance(error, RankError):
        print(f"unibert: error: {error}", file=sys.stderr, flush=True)
    if is_one_of_srun() and not isinstance(error, RankError):
        # All ranks end alike, and srun must not kill the slower ones when the first ends: that would look like a crash.
        from unibert.training.ranks.signals import leave_in_peace

        leave_in_peace()
        time.sleep(SECONDS_FOR_SLOWER_RANKS)
    sys.exit(1)


def _parse(config_class: type, command: str, description: str, words: list[str], positional: str) -> Any:
    """Options of ``config_class`` behind leading bare words, which become the field ``positional``."""
    from unibert.configuration import parse, parser_for

    bare = []
    while words and not words[0].startswith("-"):
        bare.append(words.pop(0))
    parser = parser_for(config_class, f"unibert {command}", description)
    if bare and positional == "config":
        if len(bare) > 1:
            raise UserError(f"{command} takes one run file, got {' '.join(bare)}; overrides are --key value")
        from unibert.configuration import run_file

        words = ["--config", str(run_file(bare[0])), *words]
    elif bare:
        words = [
            f"--{positional}",
            bare[0] if len(bare) == 1 and positional not in ("inputs", "parts") else str(bare),
            *words,
        ]
    return parse(parser, config_class, words)


def _corpus_build(words: list[str]) -> None:
    from unibert.corpus.build import build_corpus
    from unibert.corpus.config import CorpusConfig

    build_corpus(_parse(CorpusConfig, "corpus build", "Build a corpus.", words, "inputs"))


def _corpus_verify(words: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="unibert corpus verify", description="Check a corpus against its manifest.")
    parser.add_argument("corpus")
    options = parser.parse_args(words)
    from unibert.corpus.manifest import verify

    print(f"{options.corpus}: {len(verify(options.corpus).shards)} shards are as the manifest says")


def _corpus_inspect(words: list[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="unibert corpus inspect",
        usage="unibert corpus inspect [DIR] [--run RUN.yaml [--dotted.override …]] [--output DIR]",
        description="What a corpus holds and, with a run, what its mixture will do: tokens, shares and epochs of each "
        "language in each phase. The run's overrides are those of 'unibert pretrain'; its corpus is the default.",
        allow_abbrev=False,
    )
    parser.add_argument("--run", metavar="RUN.yaml", help="run file or preset")
    parser.add_argument("--output", metavar="DIR", type=Path, help="folder for inspect.json, .csv, .png and .svg")
    corpus = words.pop(0) if words and not words[0].startswith("-") else None
    options, overrides = parser.parse_known_args(words)
    config = None
    if options.run is not None:
        from unibert.training.config import RunConfig

        overrides += ["--corpus", corpus] if corpus is not None else []
        config = _parse(RunConfig, "corpus inspect --run", "", [options.run, *overrides], "config")
        corpus = config.corpus
    elif overrides:
        raise UserError(f"{overrides[0]}: overrides belong to a run; name its file or preset with --run")
    if corpus is None:
        raise UserError("corpus inspect needs a corpus folder, or a run file that names one: --run RUN.yaml")
    from unibert.reports.inspection import inspect_corpus

    inspect_corpus(corpus, config, options.output)


def _plan(words: list[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="unibert plan",
        usage="unibert plan RUN.yaml --nodes N --gpus G --gpu NAME [--vocab_size V] [--dotted.override …]",
        description="What a run will need and take: parameters and FLOPs by part, memory by ZeRO stage, speed, days, "
        "disk, the ds_config and micro-batch to take. Nothing is started. Overrides are those of 'unibert pretrain'.",
        allow_abbrev=False,
    )
    parser.add_argument("run", metavar="RUN.yaml", help="run file or preset")
    parser.add_argument("--nodes", type=int, default=1, help="machines; 1")
    parser.add_argument("--gpus", type=int, required=True, help="GPUs, and ranks, of each machine")
    parser.add_argument("--gpu", required=True, help="which: h100, h200, a100-80, …; cpu is this machine, measured")
    parser.add_argument("--vocab_size", type=int, help="pieces of the tokenizer, where there is no corpus yet")
    parser.add_argument("--benchmarks", type=Path, default=Path("docs/benchmarks"),
                        help="where 'unibert bench gpu' left results; docs/benchmarks")  # fmt: skip
    parser.add_argument("--network_gbit", type=float, default=200.0, help="between machines, Gbit/s a rank; 200")
    parser.add_argument("--output", type=Path, metavar="FILE.json", help="write all figures there too")
    options, overrides = parser.parse_known_args(words)
    from unibert.training.config import RunConfig

    config = _parse(RunConfig, "plan", "", [options.run, *overrides], "config")
    # DeepSpeed would look for an accelerator here and warn that there is none; the one that counts is --gpu.
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    from unibert.planning.table import plan_run

    plan_run(
        config, nodes=options.nodes, gpus=options.gpus, gpu=options.gpu, vocab_size=options.vocab_size,
        benchmarks=options.benchmarks, network_gbit=options.network_gbit, output=options.output,
    )  # fmt: skip


def _pretrain(words: list[str]) -> None:
    from unibert.training.config import RunConfig

    config = _parse(RunConfig, "pretrain", "Train, or continue, a run.", words, "config")
    from unibert.training.loop import pretrain
    from unibert.training.ranks.failures import EXIT_LOST_RANKS
    from unibert.training.ranks.placement import is_first_rank
    from unibert.training.ranks.signals import EXIT_PREEMPTED, Preempted

    try:
        pretrain(config)
    except LostRanksError as error:
        print(f"unibert: error: {error}; the same command continues", file=sys.stderr, flush=True)
        sys.exit(EXIT_LOST_RANKS)
    except Preempted as stopped:
        if is_first_rank():
            print(f"unibert: {stopped}; start the same command again to continue", file=sys.stderr, flush=True)
        sys.exit(EXIT_PREEMPTED)


def _preflight(words: list[str]) -> None:
    from unibert.training.config import RunConfig

    config = _parse(RunConfig, "preflight", "Check the nodes of a Slurm job before a run.", words, "config")
    from unibert.training.ranks.preflight import preflight

    preflight(config)


def _doctor(words: list[str]) -> None:
    def read_run() -> Any:
        from unibert.training.config import RunConfig

        return _parse(RunConfig, "doctor", "What of this machine, and of a run, is not well.", words, "config")

    if {"-h", "--help"} & set(words):
        read_run()
    from unibert.doctor.examine import examine

    if not examine(read_run if words else None):
        sys.exit(1)


def _evaluate(words: list[str]) -> None:
    from unibert.evaluation.evaluate import EvaluateConfig, evaluate

    evaluate(_parse(EvaluateConfig, "evaluate", "Score a model.", words, "model"))


def _export(words: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="unibert export", description="A checkpoint to a Hugging Face model.")
    parser.add_argument("run_dir")
    parser.add_argument("--step", type=int, help="which checkpoint; default: the newest")
    parser.add_argument("--output", help="folder to make; default: RUN_DIR/model")
    options = parser.parse_args(words)
    from unibert.training.export import export_run

    print(export_run(options.run_dir, step=options.step, output=options.output))


def _report(words: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="unibert report", description="One HTML page with a run's plots.")
    parser.add_argument("run_dir")
    options = parser.parse_args(words)
    from unibert.reports.run_page import write_report
    from unibert.reports.summary import format_summary, write_summary

    page = write_report(options.run_dir)
    print(f"{format_summary(write_summary(Path(options.run_dir)))}\n\nreport   {page}")


def _demo(words: list[str]) -> None:
    from unibert.demo.config import DemoConfig

    config = _parse(DemoConfig, "demo", "The whole route on the embedded mini-Wikipedia.", words, "output")
    from unibert.demo.route import run_demo

    run_demo(config)


def _slurm(words: list[str]) -> None:
    from unibert.job_scripts import JobScriptsConfig, write_job_scripts

    about = "Write Slurm's job scripts into the folder --output. --overwrite true replaces files there that differ."
    write_job_scripts(_parse(JobScriptsConfig, "slurm", about, words, "output"))


def _bench_kernels(words: list[str]) -> None:
    from unibert.bench.losses.config import KernelBenchConfig

    config = _parse(KernelBenchConfig, "bench kernels", "The losses beside their peers.", words, "preset")
    from unibert.bench.losses.run import bench_kernels

    bench_kernels(config)


def _bench_stream(words: list[str]) -> None:
    from unibert.bench.stream.config import StreamBenchConfig

    config = _parse(StreamBenchConfig, "bench stream", "The stream beside other loaders.", words, "corpus")
    from unibert.bench.stream.run import bench_stream

    bench_stream(config)


def _bench_checkpoints(words: list[str]) -> None:
    from unibert.bench.checkpoints import CheckpointBenchConfig, bench_checkpoints

    about = "How long a run waits for its checkpoints."
    bench_checkpoints(_parse(CheckpointBenchConfig, "bench checkpoints", about, words, "corpus"))


def _bench_show(words: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="unibert bench show", description="Table, goals and plot of a benchmark.")
    parser.add_argument("folder", type=Path, help="where bench kernels or stream wrote results.json")
    options = parser.parse_args(words)
    from unibert.bench.losses.results import show_results
    from unibert.bench.result_files import read_results
    from unibert.bench.stream.results import show_stream_results

    results = read_results(options.folder)
    show = show_stream_results if results.get("benchmark") == "stream" else show_results
    show(results, options.folder)


def _bench_gpu(words: list[str]) -> None:
    from unibert.bench.gpu.machine import check_gpu_packages

    if not {"-h", "--help"} & set(words):
        check_gpu_packages()
    from unibert.bench.gpu.run import GpuBenchConfig, bench_gpu

    about = "Everything that wants a CUDA GPU, in two stages of minutes."
    if not bench_gpu(_parse(GpuBenchConfig, "bench gpu", about, words, "parts")):
        sys.exit(1)


COMMANDS: dict[str, Callable[[list[str]], None]] = {
    "corpus build": _corpus_build,
    "corpus verify": _corpus_verify,
    "corpus inspect": _corpus_inspect,
    "plan": _plan,
    "pretrain": _pretrain,
    "preflight": _preflight,
    "doctor": _doctor,
    "export": _export,
    "evaluate": _evaluate,
    "report": _report,
    "demo": _demo,
    "slurm": _slurm,
    "bench kernels": _bench_kernels,
    "bench stream": _bench_stream,
    "bench checkpoints": _bench_checkpoints,
    "bench show": _bench_show,
    "bench gpu": _bench_gpu,
}
