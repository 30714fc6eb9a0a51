"""The documentation against the program: commands parse, links lead somewhere, modules are listed, imports go down."""

from __future__ import annotations

import ast
import importlib
import re
import shlex
from pathlib import Path

import pytest

from jittor_lora.cli.adapter import ACTIONS
from jittor_lora.cli.flags import from_flags, given
from jittor_lora.cli.main import VERBS, main
from jittor_lora.settings.align import AlignConfig
from jittor_lora.settings.curve import CurveConfig
from jittor_lora.settings.run import RunConfig

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "jittor_lora"
IMAGES = ROOT / "docs" / "images"
ARCHITECTURE = ROOT / "docs" / "architecture.md"
PAGES = (*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md")))
OPTIONS = {"evaluate": "EvaluateOptions", "generate": "GenerateOptions", "serve": "ServeOptions",
           "merge": "MergeOptions", "export": "ExportOptions", "inspect": "InspectOptions",
           "compare": "CompareOptions", "bundle": "BundleOptions"}

FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
ASSIGNMENT = re.compile(r"\w+=\S*")
SHELL_OPERATORS = {"|", ">", ">>", "<", "&&", "||", ";", "&"}


def name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def text(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def blocks(page: Path) -> list[tuple[str, str]]:
    """(language, content) of the fenced blocks of a page."""
    return FENCE.findall(text(page))


def prose(page: Path) -> str:
    return FENCE.sub("", text(page))


def shell_lines(page: Path) -> list[str]:
    """The lines of the shell blocks, with continued lines joined."""
    content = "\n".join(block for language, block in blocks(page) if language == "bash")
    return [line for line in content.replace("\\\n", " ").splitlines() if line.strip()]


def transcripts(page: Path) -> list[str]:
    """Commands in the output of programs."""
    content = "\n".join(block for language, block in blocks(page) if language != "bash").replace("\\\n", " ")
    return [line for line in content.splitlines() if line.lstrip(" $").startswith("jittor-lora ")]


def arguments(line: str) -> list[str] | None:
    """The arguments of `jittor-lora` in a shell line, None if another program is called."""
    words = shlex.split(line.lstrip(" $"), comments=True)
    while words and ASSIGNMENT.fullmatch(words[0]):
        words.pop(0)
    if words[:1] == ["mpirun"]:
        words = words[words.index("jittor-lora") :]
    end = next((i for i, word in enumerate(words) if word in SHELL_OPERATORS), len(words))
    return words[1:end] if words[:1] == ["jittor-lora"] else None


COMMANDS = [pytest.param(found, id=f"{name(page)}: {' '.join(found)[:60]}")
            for page in PAGES for line in [*shell_lines(page), *transcripts(page)]
            for found in [arguments(line)] if found is not None]


@pytest.mark.parametrize("argv", COMMANDS)
def test_commands_are_accepted(argv, monkeypatch, capsys):
    """Checks flags and their values; nothing is run, so files need not exist."""
    taken = []
    for verb in VERBS:
        monkeypatch.setattr(importlib.import_module(f"jittor_lora.cli.{verb}"), "run",
                            lambda args, verb=verb: taken.append(verb) or checked(verb, args))
    code = main(argv)
    assert code == 0, capsys.readouterr().err
    assert taken == argv[:1]


def checked(verb: str, args) -> int:
    """Build the settings of a verb from its flags, as the verb does."""
    if verb in ("train", "quickstart"):
        recipe = {"train": getattr(args, "config", None), "quickstart": "quickstart"}[verb]
        shipped = recipe if recipe and (PACKAGE / "settings" / "recipes" / f"{recipe}.yaml").is_file() else None
        RunConfig.resolve(shipped, given(args, RunConfig))
    elif verb == "curve":
        CurveConfig.resolve(None, given(args, CurveConfig))
    elif verb == "align":
        AlignConfig.resolve(None, given(args, AlignConfig))
    elif verb in OPTIONS:
        from_flags(args, getattr(importlib.import_module(f"jittor_lora.cli.{verb}"), OPTIONS[verb]))
    return 0


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_verbs_flags_and_targets_in_prose_exist(page):
    code = re.findall(r"`([^`\n]+)`", prose(page))
    verbs = {words[1] for words in map(str.split, code) if words[0] == "jittor-lora" and len(words) > 1}
    assert verbs <= {*VERBS, "VERB"}
    targets = {word for line in [*code, *shell_lines(page)] if re.match(r"make\b", line)
               for word in shlex.split(line, comments=True)[1:] if "=" not in word}
    assert targets <= set(re.findall(r"^([a-z]+):", text(ROOT / "Makefile"), re.MULTILINE))


def test_flags_in_prose_exist(capsys):
    known = set()
    for words in [*([verb] for verb in VERBS), *(["adapter", action] for action in ACTIONS)]:
        assert main([*words, "--help"]) == 0
        known.update(re.findall(r"--[a-z][a-z0-9-]*", capsys.readouterr().out))
    for page in PAGES:
        named = {flag for code in re.findall(r"`([^`\n]+)`", prose(page)) if not re.match("python -m pytest", code)
                 for flag in re.findall(r"(?<!\S)--[a-z][a-z0-9-]*", code)}
        assert named <= known | {"--help"}, page


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_and_pictures_point_to_files(page):
    targets = re.findall(r"\]\(([^)\s]+)\)", prose(page))
    local = [target.split("#")[0] for target in targets if not re.match(r"[a-z]+:", target)]
    assert [target for target in local if target and not (page.parent / target).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_nothing_is_left_to_fill_in(page):
    assert re.findall(r"@@.*", text(page)) == []


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_no_path_of_one_machine(page):
    assert re.findall(r"(?<![\w.~])/(?:home|root|Users|work|tmp|mnt|data|opt|var)/\S*", text(page)) == []


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_to_headings_lead_to_one(page):
    for file, heading in re.findall(r"\]\(([^)\s:#]*)#([^)\s]+)\)", prose(page)):
        assert heading in anchors((page.parent / file) if file else page), f"{file}#{heading}"


def anchors(page: Path) -> set[str]:
    """What GitHub calls the headings of a page in links."""
    titles = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def english(target: Path) -> str:
    """The English counterpart of a Chinese page or picture, as a path from the root; anything else is its own."""
    path = target.resolve().relative_to(ROOT).as_posix()
    return re.sub(r"^docs/zh/", "docs/", path).replace(".zh-CN.", ".").replace("-zh.", ".")


TWINS = [(ROOT / english(page), page) for page in PAGES if english(page) != name(page)]


@pytest.mark.parametrize(("one", "other"), TWINS, ids=name)
def test_a_chinese_page_has_the_parts_of_its_english_one(one, other):
    def shape(page):
        return [line.split()[0] for line in prose(page).splitlines() if re.match(r"#+ |[-*] |\d+\. ", line)]

    def tables(page):
        return [line for line in prose(page).splitlines() if line.startswith("|")]

    def figures(line):
        return sorted(re.findall(r"\d+(?:[.,]\d+)*", line))

    def links(page):
        targets = [link.split("#")[0] for link in re.findall(r"\]\(([^)\s]+)\)", prose(page))]
        return sorted(link if re.match(r"[a-z]+:", link) else english(page.parent / link)
                      for link in targets if link)

    assert shape(one) == shape(other)
    assert [line.count("|") for line in tables(one)] == [line.count("|") for line in tables(other)]
    assert [figures(line) for line in tables(one)] == [figures(line) for line in tables(other)]
    assert links(one) == links(other)
    assert blocks(one) == blocks(other)  # commands, code, transcripts


@pytest.mark.parametrize(("one", "other"), TWINS, ids=name)
def test_a_page_links_to_pages_in_its_language(one, other):
    for page, foreign in ((one, [chinese for _, chinese in TWINS]), (other, [english for english, _ in TWINS])):
        links = [(page.parent / link).resolve() for link in re.findall(r"\]\(([^)#\s:]+)", prose(page))]
        assert [name(link) for link in links if link in foreign] == [name(other if page == one else one)]


@pytest.mark.parametrize("index", [ROOT / "docs" / "README.md", ROOT / "docs" / "zh" / "README.md"], ids=name)
def test_the_index_lists_every_page(index):
    listed = {(index.parent / link).resolve() for link in re.findall(r"\]\(([^)\s]+)\)", text(index))}
    twins = dict(TWINS)
    pages = [page for page in PAGES if page not in twins.values() and not page.name.startswith("README")]
    if index in twins.values():
        pages = [twins.get(page, page) for page in pages]
    assert [name(page) for page in pages if page not in listed] == []


def test_the_badges_are_true():
    project = text(ROOT / "pyproject.toml")
    versions = re.findall(r"Python :: (3\.\d+)", project)
    assert f">{' | '.join(versions)}<" in text(IMAGES / "badge-python.svg")
    assert 'license = "Apache-2.0"' in project and ">Apache 2.0<" in text(IMAGES / "badge-licence.svg")


def test_the_architecture_names_every_room_and_what_exists():
    code = re.findall(r"`([^`\n]+)`", prose(ARCHITECTURE))
    paths = {path for path in code if re.fullmatch(r"[\w/-]+(/|\.(py|cpp|h))", path)}
    roots = (PACKAGE, PACKAGE / "ops" / "cpu" / "kernels", ROOT)
    assert {path for path in paths if not any((root / path).exists() for root in roots)} == set()
    rooms = {path.name for path in PACKAGE.iterdir() if (path / "__init__.py").exists()}
    assert rooms == {path.rstrip("/") for path in paths if re.fullmatch(r"\w+/", path) and (PACKAGE / path).is_dir()}


def test_imports_go_down():
    """The order is the block under "Rooms" in the architecture."""
    section = text(ARCHITECTURE).split("\n## Rooms\n")[1]
    lines = FENCE.search(section).group(2).splitlines()
    level = {name: number for number, line in enumerate(lines) for name in line.split()}

    def place(module: str) -> int:
        return level[module if module in level else module.split("/")[0]]

    upward = []
    for path in PACKAGE.rglob("*.py"):
        module = path.relative_to(PACKAGE).with_suffix("").as_posix()
        if module in ("__init__", "__main__", "_deprecated"):
            continue
        for target in imported(path):
            if place(target) < place(module):
                upward.append(f"{module} imports {target}")
    assert upward == []


def imported(path: Path) -> set[str]:
    """The modules and folders of this package that a file imports, anywhere in it, as paths without suffix."""
    found = set()
    for node in ast.walk(ast.parse(text(path))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "jittor_lora":
            parts = node.module.split(".")[1:]
            if parts:
                found.add("/".join(parts))
            else:
                found.update(alias.name for alias in node.names if not alias.name.startswith("__"))
        elif isinstance(node, ast.Import):
            found.update("/".join(alias.name.split(".")[1:]) for alias in node.names
                         if alias.name.startswith("jittor_lora."))
    return found
