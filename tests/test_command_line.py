"""The command line: help, options, error sentences, completion."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.refusals import refused
from unibert.cli import COMMANDS, main
from unibert.completion import completion_script
from unibert.configuration import parse
from unibert.options import sections
from unibert.training.config import RunConfig

WITH_TORCH = ("bench kernels", "bench train", "bench scaling", "bench checkpoints", "bench endurance", "bench gpu")
"""Commands whose configuration is defined in a module that imports torch."""


def printed(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """Return the output of a command that succeeds."""
    status = 0
    try:
        main(list(words))
    except SystemExit as stop:
        status = stop.code or 0
    assert status == 0
    return capsys.readouterr().out


def command(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "unibert", *words], capture_output=True, text=True, env={**os.environ, **environment}
    )


# ---- help --------------------------------------------------------------------------------------------------------


def test_overview_lists_every_command_with_its_arguments(capsys):
    text = printed(capsys, "--help")
    assert text == printed(capsys, "help")
    for name, entry in COMMANDS.items():
        assert f"\n  {name} {entry.arguments}" in text
    assert max(map(len, text.splitlines())) <= 120
    assert "corpus verify DIR" in printed(capsys, "help", "corpus")
    assert "pretrain" not in printed(capsys, "corpus", "--help")


@pytest.mark.parametrize("name", COMMANDS)
def test_help_describes_every_option_of_a_command_once(name, capsys):
    entry = COMMANDS[name]
    text = printed(capsys, "help", *name.split())
    assert text == printed(capsys, *name.split(), "--help")
    assert text.startswith(f"usage: unibert {name} {entry.arguments}".rstrip() + "\n")
    own = entry.options_class()
    for section in sections(own) if own is not None else []:
        for option in section.options:
            assert option.description, f"{option.key} has no docstring"
            shown = entry.label if option.key == entry.positional else f"--{option.key} "
            assert text.count(f"\n  {shown}") == 1
    assert ("--training.tokens" in text) == (name == "pretrain")
    assert max(map(len, text.splitlines())) <= 100


def test_help_of_a_run_describes_nested_sections_with_types_and_defaults(capsys):
    text = printed(capsys, "pretrain", "--help")
    for section in sections(RunConfig):
        for option in section.options:
            assert option.description, f"{option.key} has no docstring"
            assert text.count(f"\n  --{option.key} ") == 1
    assert "\n  --distillation.teacher TEXT\n      Hugging Face folder or hub id of the teacher" in text
    assert "\n  --adversary.level mean|cls|token\n" in text
    assert "\n  --training.keep_best [true|false]\n" in text
    assert "\n  --training.global_batch_size N or [[progress, N], …]\n" in text
    assert "adversary: The language adversary. Off (null) unless the run file or an option sets one of its keys." in (
        " ".join(text.split())
    )
    assert "Default: 0.98" not in text
    assert "``" not in text
    presets = "base, demo, demo-e5, demo-teacher, distil-small, distil-tiny, small, tiny"
    assert f"RUN.yaml Run file, or a preset: {presets}." in " ".join(text.split())


def test_help_of_the_doctor_does_not_list_run_keys(capsys):
    text = printed(capsys, "doctor", "--help")
    assert len(text.splitlines()) < 25
    assert "`unibert help pretrain` lists them" in " ".join(text.split())


@pytest.mark.parametrize(
    "words", [["--help"], *(["help", *name.split()] for name in COMMANDS if name not in WITH_TORCH)]
)
def test_help_does_not_import_torch(words):
    program = (
        "import atexit, sys; from unibert.cli import main\n"
        "atexit.register(lambda: print('torch' in sys.modules))\n"
        "main(sys.argv[1:])"
    )
    done = subprocess.run([sys.executable, "-c", program, *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "False"


# ---- accepted forms ----------------------------------------------------------------------------------------------

RUN = ["--run_dir=r", "--corpus=c", "--training.tokens=2048"]


@pytest.mark.parametrize("written", ["en,de", "[en, de]", "[en,de]", "en, de"])
def test_lists_with_and_without_brackets(written):
    for words in (["--stream.languages", written], [f"--stream.languages={written}"]):
        assert parse(RunConfig, [*RUN, *words]).stream.languages == ["en", "de"]
    assert parse(RunConfig, [*RUN, "--optimizer.betas=0.8,0.9"]).optimizer.betas == (0.8, 0.9)
    assert parse(RunConfig, [*RUN, "--stream.languages", "no"]).stream.languages == ["no"]
    assert parse(RunConfig, [*RUN, "--stream.languages=null"]).stream.languages is None
    config = parse(RunConfig, [*RUN, "--model.initialize_from=m", "--model.initialize_layers", "0,2"])
    assert config.model.initialize_layers == [0, 2]


def test_switches_need_no_value():
    assert parse(RunConfig, [*RUN, "--stream.whole_words", "--seed", "3"]).stream.whole_words is True
    assert parse(RunConfig, [*RUN, "--stream.whole_words"]).stream.whole_words is True
    assert parse(RunConfig, [*RUN, "--stream.whole_words", "false"]).stream.whole_words is False


def test_values_that_begin_with_a_dash_and_sections_set_by_one_key():
    assert parse(RunConfig, [*RUN, "--adversary.layer", "-2"]).adversary.layer == -2
    config = parse(RunConfig, [*RUN, "--distillation.teacher", "t", "--stream.sampling_exponent=[[0, 1], [1, 0.5]]"])
    assert config.distillation.teacher == "t"
    assert config.stream.sampling_exponent == [(0.0, 1.0), (1.0, 0.5)]


@pytest.mark.parametrize("text", ["query: ", "query:", 'say "x": y', "5"])
def test_a_text_may_look_like_yaml(text):
    config = parse(RunConfig, [*RUN, "--distillation.teacher=t", f"--distillation.teacher_prompt={text}"])
    assert config.distillation.teacher_prompt == text


@pytest.mark.parametrize("place", [0, 1, 2, 3])
def test_positional_words_may_be_anywhere(place, capsys, tmp_path, monkeypatch):
    options = [["--corpus=c"], ["--run_dir", str(tmp_path)], ["--stream.whole_words"]]
    words = [word for option in [*options[:place], ["tiny"], *options[place:]] for word in option]
    text = printed(capsys, "pretrain", *words, "--print_config")
    assert f"run_dir: {tmp_path}\ncorpus: c\n" in text
    assert "whole_words: true" in text
    monkeypatch.chdir(tmp_path)
    main(["slurm", "--overwrite", "jobs"])
    assert (tmp_path / "jobs" / "pretrain.sh").is_file()


def test_a_preset_as_config(capsys):
    assert "log_every" in printed(capsys, "pretrain", "--config", "tiny", "--run_dir=r", "--corpus=c", "--print_config")


# ---- mistakes ----------------------------------------------------------------------------------------------------

SMALL = ["pretrain", "small", "--run_dir=r", "--corpus=c"]
UNKNOWN_COMMAND = [
    (["trian"], "there is no command 'trian'; did you mean 'pretrain'?"),
    (["corpus", "biuld"], "there is no command 'corpus biuld'; did you mean 'corpus build'?"),
    (["corpsu", "build", "x"], "there is no command 'corpsu'; did you mean 'corpus build'?"),
    (["verify", "c"], "there is no command 'verify'; did you mean 'corpus verify'?"),
    (["help", "exprot"], "there is no command 'exprot'; did you mean 'export'?"),
    (
        ["corpus"],
        "corpus needs a subcommand; the commands are corpus download, corpus build, corpus report, corpus verify, "
        "corpus teach, corpus inspect, corpus show, corpus tokenizers",
    ),
    (["xylophone"], "there is no command 'xylophone'; the commands are corpus download, corpus build,"),
]
UNKNOWN_OPTION = [
    ([*SMALL, "--training.tokns=3"], "--training.tokns: unknown key 'training.tokns'; did you mean 'training.tokens'?"),
    (
        [*SMALL, "--adversary.help"],
        "--adversary.help: unknown key 'adversary.help'; adversary has the keys level, layer",
    ),
    (["evaluate", "m", "--retreival", "x"], "unknown key 'retreival'; did you mean 'retrieval'?"),
    (["plan", "small", "--vocab_sise", "1"], "unknown key 'vocab_sise'; did you mean 'vocab_size'?"),
    (["plan", "small", "--sead", "1"], "unknown key 'sead'; did you mean 'seed'?"),
    (["export", "r", "--stepp=3"], "unknown key 'stepp'; did you mean 'step'?"),
    ([*SMALL, "-x", "3"], "-x: options are written --key value"),
]
MISSING_WORD = [
    (["pretrain"], "pretrain needs a run file or a preset; usage: unibert pretrain RUN.yaml"),
    (["preflight"], "preflight needs a run file or a preset"),
    (["plan", "small"], "--gpus and --gpu are missing; `unibert plan --help` describes them"),
    (["plan"], "plan needs a run file or a preset; usage: unibert plan RUN.yaml --gpus N --gpu NAME"),
    (["export"], "export needs RUN_DIR; usage: unibert export RUN_DIR [--step N]"),
    (["report"], "report needs RUN_DIR"),
    (["evaluate"], "evaluate needs MODEL"),
    (["corpus", "verify"], "corpus verify needs DIR"),
    (["corpus", "build", "--output", "c"], "corpus build needs INPUT"),
    (["corpus", "build", "x.txt"], "--output is missing; `unibert corpus build --help` describes it"),
    (["bench", "show"], "bench show needs DIR"),
    (["bench", "stream"], "bench stream needs CORPUS"),
    (["completion"], "completion needs bash|zsh"),
    (
        [*SMALL, "--distillation.weight=1"],
        "distillation.logits: needs distillation.teacher; name one, or set this to 0",
    ),
    ([*SMALL, "--seed"], "--seed: needs a value: a whole number"),
    (["export", "--run_dir"], "--run_dir: needs a value: a path"),
]
TOO_MANY_WORDS = [
    (["export", "a", "b"], "export takes one RUN_DIR, got a b; usage: unibert export RUN_DIR [--step N]"),
    (["slurm", "a", "b"], "slurm takes one DIR, got a b"),
    (["pretrain", "small", "tiny"], "pretrain takes one run file, got small tiny; overrides are written --key value"),
]
WRONG_TYPE = [
    ([*SMALL, "--training.tokens=many"], "training.tokens: must be a whole number, got 'many'"),
    ([*SMALL, "--optimizer.eps=small"], "optimizer.eps: must be a number, got 'small'"),
    ([*SMALL, "--adversary.level=sentence"], "adversary.level: must be mean, cls or token, got 'sentence'"),
    ([*SMALL, "--mlm.path=chunkd"], "recompute or exp-store, got 'chunkd'; did you mean 'chunked'?"),
    (
        [*SMALL, "--training.sequence_length=long"],
        "training.sequence_length: must be a whole number or points [[progress, whole number], …], got 'long'",
    ),
    ([*SMALL, "--stream.whole_words=maybe"], "stream.whole_words: must be true or false, got 'maybe'"),
    (
        [*SMALL, "--training.keep_every_tokens=all"],
        "training.keep_every_tokens: must be a whole number or null, got 'all'",
    ),
    (
        [*SMALL, "--model.initialize_layers=[a]"],
        "model.initialize_layers: must be null or a list of whole numbers, as in 1,2, got ['a']",
    ),
    ([*SMALL, "--training.monitors=csv,wandbb"], "training.monitors: must be a list of tensorboard, csv or wandb, got"),
    ([*SMALL, "--optimizer.betas=0.9"], "optimizer.betas: must be 2 numbers, as in 0.5,0.5, got [0.9]"),
    ([*SMALL, "--stream.language_starts.zh=late"], "stream.language_starts.zh: must be a number, got 'late'"),
    ([*SMALL, "--stream={lanes: x}"], "stream.lanes: must be a whole number, got 'x'"),
    ([*SMALL, "--stream={lane: 3}"], "--stream: unknown key 'stream.lane'; did you mean 'stream.lanes'?"),
    ([*SMALL, "--model.config=x"], "model.config: must be names with values, as in {name: 1}, got 'x'"),
    (["plan", "small", "--gpus", "x", "--gpu", "h100"], "gpus: must be a whole number, got 'x'"),
    (["export", "r", "--step", "x"], "step: must be a whole number or null, got 'x'"),
    (["demo", "--ranks", "x"], "ranks: must be a whole number, got 'x'"),
    (["completion", "fish"], "shell: must be bash or zsh, got 'fish'"),
    (["bench", "gpu", "--stage", "3"], "stage: must be 1, 2 or null, got 3"),
    (["bench", "kernels", "fast"], "preset: must be auto, cpu, goals, headline, widths or rehearsal, got 'fast'"),
]
REJECTED_BY_SECTION = [
    ([*SMALL, "--adversary.warmup=2"], "adversary.warmup: must be at least 0 and below 1, got 2.0"),
    (
        [*SMALL, "--distillation.teacher=t", "--distillation.temperature=0"],
        "distillation.temperature: must be positive",
    ),
    ([*SMALL, "--mlm.label_smoothing=3"], "mlm.label_smoothing: must be at least 0 and below 1, got 3.0"),
]
INTERNALS = ("NestedArg", "Union", "typing.", "<class", "Namespace", "argument --", "Traceback")


@pytest.mark.parametrize(
    ("words", "sentence"),
    UNKNOWN_COMMAND + UNKNOWN_OPTION + MISSING_WORD + TOO_MANY_WORDS + WRONG_TYPE + REJECTED_BY_SECTION,
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_mistake_ends_with_status_1_and_one_sentence(words, sentence, capsys, monkeypatch):
    # As if the packages that `bench gpu` requires were installed.
    monkeypatch.setattr("unibert.bench.gpu.machine.PACKAGES", ())
    printed_line, error = refused(capsys, *words)
    assert sentence in error
    assert not printed_line
    assert not [internal for internal in INTERNALS if internal in error]


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("run_dir: 5", "run_dir: must be text, got 5; put it in quotes"),
        ("training: 5", "training: must be a section of keys and values, such as tokens, got 5"),
        ("training: {tokens: 1.5}", "training.tokens: must be a whole number, got 1.5"),
        ("adversary: {ramp: dan}", "adversary.ramp: must be dann, linear or constant, got 'dan'; did you mean 'dann'?"),
        ("stream: {languages: en}", "stream.languages: must be null or a list of names, as in a,b, got 'en'"),
        ("seed: 1", "--training.tokens is missing"),
    ],
)
def test_a_mistake_in_a_run_file(content, sentence, tmp_path, capsys):
    run_file = tmp_path / "run.yaml"
    run_file.write_text(content)
    words = [] if content.startswith("run_dir") else ["--run_dir=r"]
    error = refused(capsys, "pretrain", run_file, "--corpus=c", *words)[1]
    assert sentence in error
    assert not [internal for internal in INTERNALS if internal in error]
    assert "missing" in sentence or str(run_file) in error


@pytest.mark.parametrize("words", [["trian"], ["export"], ["plan", "small", "--gpus", "x"]])
def test_the_process_ends_with_status_1_and_one_sentence(words):
    done = command(*words)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    assert done.stderr.startswith("unibert: error: ")


# ---- completion --------------------------------------------------------------------------------------------------


def completions(script: Path, *words: str) -> list[str]:
    """Return bash's completions for the last of ``words``."""
    program = f"""
        source {script}
        COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMPREPLY=()
        {{ _shtab_unibert; }} 2>/dev/null
        printf '%s\\n' "${{COMPREPLY[@]}}"
    """
    done = subprocess.run(
        ["bash", "-c", program, "bash", "unibert", *words],
        capture_output=True,
        text=True,
        check=True,
        cwd=script.parent,  # bash also completes files of this folder
    )
    return done.stdout.split()


@pytest.fixture(scope="module")
def bash_script(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("completion") / "completion.bash"
    path.write_text(completion_script("bash", list(COMMANDS.values())))
    return path


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        (["pre"], ["pretrain", "preflight"]),
        (["corpus", ""], ["download", "build", "report", "verify", "teach", "inspect", "show", "tokenizers"]),
        (["pretrain", "demo"], ["demo", "demo-e5", "demo-teacher"]),
        (
            ["pretrain", "small", "--adversary.l"],
            ["--adversary.level", "--adversary.layer", "--adversary.learning_rate"],
        ),
        (["pretrain", "small", "--adversary.level", ""], ["mean", "cls", "token"]),
        (["plan", "small", "--gpu"], ["--gpus", "--gpu"]),
        (["completion", ""], ["bash", "zsh"]),
    ],
)
def test_bash_completes(words, offered, bash_script):
    assert completions(bash_script, *words) == offered


def test_bash_completion_does_not_start_python(bash_script):
    assert "python" not in bash_script.read_text()


@pytest.mark.skipif(shutil.which("zsh") is None, reason="needs zsh")
def test_zsh_accepts_its_script(capsys):
    script = printed(capsys, "completion", "zsh")
    subprocess.run(["zsh", "-n"], input=script, text=True, check=True)
