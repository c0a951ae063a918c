"""Markdown files say what is true: links, commands, flags, settings, paths and tables."""

import ast
import re
import shlex
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from dongwu_jax import exit_codes
from dongwu_jax.config.settings import sections
from dongwu_jax.parallel.sharding import DEFAULT_RULES

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted(
    path for pattern in ("*.md", "docs/**/*.md", "examples/**/*.md") for path in ROOT.glob(pattern)
)
SECTIONS = {section.name for section in sections()}
SETTINGS = {setting.name: setting for section in sections() for setting in section.settings}
FOLDERS = ("benchmarks", "configs", "docs", "dongwu_jax", "examples", "tests", "tools")
ROOMS = tuple(path.name for path in (ROOT / "dongwu_jax").iterdir() if path.is_dir())

each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


@cache
def text_of(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def prose(page: Path) -> str:
    """A page without its code blocks."""
    return re.sub(r"^```.*?^```", "", text_of(page), flags=re.MULTILINE | re.DOTALL)


def code(page: Path) -> Iterator[str]:
    """What is written as code: lines of blocks, continued ones joined, and spans in the prose."""
    blocks = re.findall(r"^```(\w*)\n(.*?)^```", text_of(page), re.MULTILINE | re.DOTALL)
    for block in (block for language, block in blocks if language != "python"):
        yield from re.sub(r"\\\n\s*", "", block).splitlines()
    yield from re.findall(r"`([^`\n]+)`", prose(page))


# Links


@cache
def anchors(page: Path) -> set[str]:
    """The anchors that GitHub gives to a page's headings."""
    found: dict[str, int] = {}
    for heading in re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE):
        name = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading.strip()).lower()
        name = re.sub(r"[^\w\- ]", "", name).replace(" ", "-")
        found[name] = found.get(name, -1) + 1
        if found[name]:
            found[f"{name}-{found[name]}"] = 0
    return set(found)


def broken_links(page: Path) -> Iterator[str]:
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if re.match(r"[a-z]+:", target):  # another site
            continue
        place, _, anchor = target.partition("#")
        file = (page.parent / place).resolve() if place else page
        if not file.exists() or not file.is_relative_to(ROOT):
            yield f"{target}: no such file"
        elif anchor and anchor not in anchors(file):
            yield f"{target}: no such heading"


@each_page
def test_links_lead_somewhere(page: Path):
    assert list(broken_links(page)) == []


def test_every_page_is_in_the_index():
    linked = set(re.findall(r"\]\((\w+\.md)", text_of(ROOT / "docs" / "README.md")))
    assert linked == {path.name for path in (ROOT / "docs").glob("*.md")} - {"README.md"}


# Commands


@cache
def flags_of(script: Path) -> frozenset[str]:
    """Every text in a script that looks like a flag; of a benchmark, also in those it loads."""
    text = text_of(script)
    found = {
        node.value
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Constant)
        and isinstance(node.value, str)
        and re.fullmatch(r"--[\w-]+", node.value)
    }
    if script.parent.name == "benchmarks":
        for name in re.findall(r"^(?:import|from) (\w+)", text, re.MULTILINE):
            beside = script.with_name(f"{name}.py")
            if beside.exists():
                found |= flags_of(beside)
    return frozenset(found | {"--help"})


def script_of(words: list[str]) -> tuple[Path, list[str]] | None:
    """The file that `python ...` runs and its arguments; None for what is not ours."""
    if words[:1] == ["-m"] and words[1].split(".")[0] == "dongwu_jax":
        path = ROOT.joinpath(*words[1].split("."))
        return (path / "__main__.py" if path.is_dir() else path.with_suffix(".py")), words[2:]
    if words and words[0].split("/")[0] in ("tools", "benchmarks", "examples"):
        return ROOT / words[0], words[1:]
    return None


def commands(page: Path) -> Iterator[tuple[str, Path, list[str]]]:
    """Our Python commands on a page: the line, the script, its arguments."""
    for line in code(page):
        for part in re.findall(
            r"\bpython3? ((?:-m dongwu_jax|tools/|benchmarks/|examples/).*)", line
        ):
            try:
                words = shlex.split(part, comments=True)
            except ValueError:  # a quotation that ends elsewhere, as in `--wrap '...'`
                words = re.sub(r"['\"]", "", part).split()
            end = next((i for i, word in enumerate(words) if word in ("&&", "|", ";")), len(words))
            found = script_of(words[:end])
            if found:
                yield line, *found


def known_setting(name: str) -> bool:
    rule = name.removeprefix("distillation.sharding_").removeprefix("sharding.")
    if rule.startswith("rules."):
        return rule.removeprefix("rules.") in DEFAULT_RULES
    return name in SETTINGS or name in SECTIONS


@each_page
def test_commands_have_the_flags_and_settings_that_they_are_given(page: Path):
    wrong = []
    for line, script, arguments in commands(page):
        if not script.exists():
            wrong.append(f"{line}: no {script.relative_to(ROOT)}")
            continue
        flags = {word.split("=")[0] for word in arguments if re.match(r"--[a-z]", word)}
        wrong += [f"{line}: {flag}" for flag in flags - flags_of(script)]
        names = [
            match[1] for word in arguments if (match := re.match(r"([a-z_.]+\.[a-z_]+)=", word))
        ]
        wrong += [f"{line}: {name}" for name in names if not known_setting(name)]
    assert wrong == []


FOREIGN_FLAGS = {  # of Megatron-LM, vLLM, sbatch and docker
    *("--dist-ckpt-optim-fully-reshardable", "--no-load-optim", "--use-checkpoint-args"),
    *("--rotary-seq-len-interpolation-factor", "--no-enable-chunked-prefill", "--partition"),
    *("--user", "--init", "--stop-timeout", "--restart", "--rm", "--shm-size", "--entrypoint"),
    *("--network", "--device", "--ulimit", "--secret", "--build-arg"),
}
DELIBERATE = {"model.num_layer"}  # misspelled to show the error


@each_page
def test_flags_in_the_prose_exist(page: Path):
    scripts = [ROOT / "dongwu_jax" / name for name in ("train.py", "generate.py", "quickstart.py")]
    scripts += (ROOT / "dongwu_jax").glob("*/__main__.py")
    scripts += [*ROOT.glob("tools/**/*.py"), *ROOT.glob("benchmarks/*.py")]
    known = set().union(FOREIGN_FLAGS, *map(flags_of, scripts))
    shell = "\n".join(path.read_text() for path in ROOT.glob("tools/launch/*"))
    known.update(re.findall(r"--[a-z][\w-]+", shell))
    text = prose(page)
    if page.parent == ROOT:  # a table there begins with what Megatron's users type
        text = re.sub(r"^\| `--.*$", "", text, flags=re.MULTILINE)
    spans = re.findall(r"`(--[a-z][\w-]+)[^`]*`", text)
    assert sorted({flag for flag in spans if flag not in known}) == []


# Names


@each_page
def test_settings_in_the_prose_exist(page: Path):
    sections_at_top = "|".join(name for name in SECTIONS if "." not in name)
    wrong = []
    for span in code(page):
        for name in re.findall(
            rf"(?<![\w./-])((?:{sections_at_top})(?:\.[a-z_]\w*)+)(?![\w/.])", span
        ):
            is_file = (ROOT / "docs" / name).exists() or re.search(
                r"\.(json|jsonl|html|py|safetensors)$", name
            )
            if not is_file and name not in DELIBERATE and not known_setting(name):
                wrong.append(name)
    assert wrong == []


@each_page
def test_a_number_behind_a_setting_is_its_default(page: Path):
    """As in `guards.hang_timeout_factor` (10)."""
    wrong = []
    for name, number in re.findall(r"`([a-z_.]+)` \((\d[\d.]*)[;)]", prose(page)):
        if name in SETTINGS and float(number) != float(SETTINGS[name].default or "nan"):
            wrong.append(f"{name} ({number})")
    assert wrong == []


@each_page
def test_paths_exist(page: Path):
    wrong = []
    for span in code(page):
        for path in re.findall(rf"(?<![\w./-])((?:{'|'.join(FOLDERS)})/[\w./*-]*\w)", span):
            if not re.search(r"[A-Z]", path) and not list(ROOT.glob(path)):
                wrong.append(path)
        for path in re.findall(rf"(?<![\w./-])((?:{'|'.join(ROOMS)})/[\w/]+\.py)", span):
            if not (ROOT / "dongwu_jax" / path).exists():
                wrong.append(path)
    assert wrong == []


# Tables


def rows(page: str, heading: str) -> list[list[str]]:
    """The cells of the first table under a heading, without its head."""
    below = text_of(ROOT / "docs" / page).split(f"\n{heading}\n", 1)[1]
    table = re.search(r"(?:^\|.*\n)+", below, re.MULTILINE)
    assert table is not None
    return [
        [cell.strip() for cell in row.strip("|").split("|")] for row in table[0].splitlines()[2:]
    ]


def test_the_table_of_rules_is_the_default():
    told = {}
    for names, axes, _ in rows("parallelism.md", "## The rules"):
        for name in re.findall(r"`(\w+)`", names):
            told[name] = tuple(re.findall(r"\w+", axes))
    assert told == DEFAULT_RULES


def test_the_table_of_exit_codes_is_complete():
    told = {
        int(code)
        for row in rows("operations.md", "## Faults and exit codes")
        for code in row[0].split(",")
    }
    ours = {value for name, value in vars(exit_codes).items() if name.isupper()}
    ours -= {exit_codes.BY_SIGNAL}  # to which the number of the signal is added
    assert ours <= told
