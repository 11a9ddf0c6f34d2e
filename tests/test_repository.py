"""The rules of the house, checked over the whole repository."""

import ast
import csv
import gzip
import importlib.metadata
import io
import re
import socket
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import firth
from firth.errors import UnsupportedError

ROOT = Path(__file__).resolve().parents[1]
SOURCES = sorted((ROOT / "src").rglob("*.py"))
DEMO_DATA = ROOT / "src" / "firth" / "demo_data"
MAX_FILE, MAX_FUNCTION, MAX_DEMO_BYTES = 400, 45, 4_000_000


def test_source_files_are_short():
    lengths = {_place(path): len(path.read_text().splitlines()) for path in SOURCES}
    assert len(lengths) > 5
    assert {path: n for path, n in lengths.items() if n > MAX_FILE} == {}


def test_functions_are_short():
    lengths = {
        f"{_place(path)}:{node.lineno} {node.name}": _length(node)
        for path in SOURCES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }
    assert len(lengths) > 20
    assert {name: n for name, n in lengths.items() if n > MAX_FUNCTION} == {}


def test_length_of_a_function_leaves_out_its_docstring():
    source = 'def f(a):\n    """One.\n\n    Two.\n    """\n\n    b = a\n    return b\n'
    node = ast.parse(source).body[0]
    assert isinstance(node, ast.FunctionDef)
    assert _length(node) == 4


def test_no_utils():
    assert [_place(p) for p in SOURCES if p.stem in ("util", "utils", "helpers", "misc")] == []


def test_no_unfinished_work():
    marks = re.compile(r"\b(TODO|FIXME|XXX|NotImplementedError)\b")
    assert [where for path in SOURCES for where in _matches(path, marks)] == []


def test_no_machine_paths():
    pattern = re.compile(r"(?<![\w.})*-])/(work|tmp|root|home|Users|opt)\b(?!\()")
    for folder in ("work", "tmp", "root", "home", "Users", "opt"):
        assert pattern.search(f"see /{folder}/texts") is not None
    assert pattern.search("docs/work and https://a.org/home") is None
    assert [where for path in _text_files() for where in _matches(path, pattern)] == []


def test_importing_firth_leaves_torch_alone():
    assert _modules_after("import firth") & {"torch", "numpy", "transformers"} == set()


def test_help_leaves_torch_alone():
    code = "import firth.cli\ntry:\n    code = firth.cli.main(['--help'])\n"
    code += "except SystemExit as stop:\n    code = stop.code\nassert code in (0, None), code"
    loaded = _modules_after(code)
    assert "firth.cli" in loaded
    assert loaded & {"torch", "transformers"} == set()


def test_the_tests_reach_this_machine_alone():
    with socket.create_server(("127.0.0.1", 0)) as server:
        socket.create_connection(server.getsockname()).close()
    with socket.socket() as client:
        for call in (client.connect, client.connect_ex):
            with pytest.raises(pytest.fail.Exception, match=r"the network .* '192\.0\.2\.1'"):
                call(("192.0.2.1", 80))
    with pytest.raises(pytest.fail.Exception, match=r"the network .* 'example\.org'"):
        socket.create_connection(("example.org", 80))


def _start_tensorboard(folder: Path) -> None:
    from firth.training.tracking import _summary_writer

    _summary_writer(folder, 0)


def _measure_bleu(_folder: Path) -> None:
    from firth.tasks.text_to_text import sacrebleu_metrics

    sacrebleu_metrics()


def _read_hdf5(_folder: Path) -> None:
    from firth.interop.allennlp import _h5py

    _h5py()


def _compile_loops(_folder: Path) -> None:
    from firth.training.word_vectors import kernels

    kernels("word_context_kernels")


@pytest.mark.parametrize(
    ("extra", "missing", "use"),
    [
        ("track", "tensorboard", _start_tensorboard),
        ("translate", "sacrebleu", _measure_bleu),
        ("elmo", "h5py", _read_hdf5),
        ("static", "numba", _compile_loops),
    ],
)
def test_a_missing_package_names_its_extra(extra, missing, use, tmp_path, monkeypatch):
    """That of `data` is in test_formats.py; what is in `hf` the library itself never imports."""
    for name in list(sys.modules):  # modules that were imported with it are imported again
        if name.startswith(("firth.objectives.word_context_kernels", "torch.utils.tensorboard")):
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(UnsupportedError, match=rf"pip install 'firth\[{extra}\]'"):
        use(tmp_path)
    wanted = {Requirement(one).name for one in _project()["optional-dependencies"][extra]}
    assert missing in wanted


def test_the_source_distribution_takes_files_by_their_place():
    build = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]
    patterns = build["targets"]["sdist"]["include"]
    assert [p for p in patterns if not p.startswith("/") or not (ROOT / p[1:]).exists()] == []


def test_every_verb_is_in_help():
    verbs = [
        "pretrain",
        "adapt",
        "predict",
        "evaluate",
        "embed",
        "fill",
        "score",
        "recipes",
        "inspect",
        "demo",
    ]
    shown = _python("import firth.cli; firth.cli.main(['--help'])").stdout
    assert [v for v in verbs if not re.search(rf"^ *{v} ", shown, re.MULTILINE)] == []


def test_public_names_are_sorted():
    assert list(firth.__all__) == sorted(set(firth.__all__))


@pytest.mark.parametrize("name", getattr(firth, "__all__", ["__all__"]))
def test_public_name_is_importable(name):
    assert getattr(firth, name) is not None
    assert name in dir(firth)


def test_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = firth.no_such_name


def test_version_is_the_one_of_the_package():
    assert firth.__version__ == _project()["version"]


def test_constraints_pin_every_dependency():
    pins = _pins()
    project = _project()
    extras = project["optional-dependencies"].values()
    declared = [*project["dependencies"], *(line for extra in extras for line in extra)]
    wanted = [r for r in map(Requirement, declared) if r.name != "firth"]
    assert len(wanted) > 15
    loose = [str(r) for r in wanted if pins.get(canonicalize_name(r.name)) is None]
    assert loose == []
    outside = [str(r) for r in wanted if not r.specifier.contains(pins[canonicalize_name(r.name)])]
    assert outside == []


def test_constraints_pin_what_the_core_brings_along():
    core = _closure("firth")
    assert {"torch", "tokenizers", "sympy"} <= core
    # The CUDA build of torch brings packages of its own.
    needed = {n for n in core if not n.startswith(("nvidia-", "cuda-", "triton"))}
    assert needed - set(_pins()) == set()


def test_demo_data_is_small_and_says_where_it_comes_from():
    files = list(DEMO_DATA.iterdir())
    assert sum(file.stat().st_size for file in files) < MAX_DEMO_BYTES
    readme = (DEMO_DATA / "README.md").read_text(encoding="utf-8")
    licences = [file for file in files if file.name.startswith("LICENCE")]
    assert len(licences) == 2
    assert [file.name for file in licences if file.name not in readme] == []
    for file in sorted(DEMO_DATA.glob("*.gz")):
        size = len(gzip.decompress(file.read_bytes()))
        assert re.search(rf"`{re.escape(file.name)}` \|.*\| {size:,} \|", readme), (file.name, size)


def test_demo_papers_have_titles_and_attribution():
    papers = [
        (paper.split("\n")[0].removeprefix("= ").removesuffix(" ="), part)
        for name, part in (("papers.txt.gz", "train"), ("papers.valid.txt.gz", "valid"))
        for paper in _demo(name).strip("\n").split("\n\n")
    ]
    rows = list(csv.DictReader(_table("papers.tsv"), delimiter="\t", quoting=csv.QUOTE_NONE))
    assert papers == [(row["title"], row["part"]) for row in rows]
    assert len({row["id"] for row in rows}) == len({title for title, _ in papers}) == len(rows)


@pytest.mark.parametrize("part", ["train", "dev", "test"])
def test_demo_roles_read_alike_with_and_without_quoting(part):
    name = f"roles.{part}.tsv.gz"
    literal = list(csv.reader(_table(name), delimiter="\t", quoting=csv.QUOTE_NONE))
    assert literal[0] == ["sentence", "label"]
    assert {label for _, label in literal[1:]} == {
        "background",
        "method",
        "objective",
        "other",
        "result",
    }
    assert literal == list(csv.reader(_table(name), delimiter="\t"))


def test_demo_parts_share_no_sentence():
    sentences = {}
    for part in ("train", "dev", "test"):
        rows = csv.reader(_table(f"roles.{part}.tsv.gz"), delimiter="\t")
        sentences[part] = {row[0] for row in rows if len(row[0].split()) > 10}
    assert sentences["train"] & (sentences["dev"] | sentences["test"]) == set()
    assert sentences["dev"] & sentences["test"] == set()


def _place(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def _length(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines of a function, its docstring not counted."""
    assert node.end_lineno is not None
    length = node.end_lineno - node.lineno + 1
    first = node.body[0]
    if ast.get_docstring(node) is not None:
        assert first.end_lineno is not None
        length -= first.end_lineno - first.lineno + 1
    return length


def _matches(path: Path, pattern: re.Pattern[str]) -> Iterator[str]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError:  # not a text file
        return
    for number, line in enumerate(lines, start=1):
        if pattern.search(line) and path != Path(__file__).resolve():
            yield f"{_place(path)}:{number}: {line.strip()}"


def _text_files() -> list[Path]:
    """Files of the repository: tracked, or new and not ignored."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a git checkout")
    files = [ROOT / name for name in result.stdout.split("\0") if name]
    return [file for file in files if file.is_file()]


def _python(code: str) -> subprocess.CompletedProcess[str]:
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return result


def _modules_after(code: str) -> set[str]:
    """Names in `sys.modules` once `code` has run in a Python of its own."""
    result = _python(f"{code}\nimport sys\nprint('\\nMODULES', *sys.modules)")
    return set(result.stdout.rsplit("MODULES", 1)[1].split())


def _project() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def _pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pairs = (line.split("==") for line in lines if line and not line.startswith("#"))
    return {canonicalize_name(name): version for name, version in pairs}


def _closure(name: str, seen: set[str] | None = None) -> set[str]:
    """The packages that `name` needs here, without extras, itself left out."""
    seen = set() if seen is None else seen
    for line in importlib.metadata.requires(name) or []:
        requirement = Requirement(line)
        key = canonicalize_name(requirement.name)
        applies = requirement.marker is None or requirement.marker.evaluate({"extra": ""})
        if applies and key not in seen:
            seen.add(key)
            _closure(key, seen)
    return seen


def _demo(name: str) -> str:
    return gzip.decompress((DEMO_DATA / name).read_bytes()).decode("utf-8")


def _table(name: str) -> io.StringIO:
    path = DEMO_DATA / name
    return io.StringIO(_demo(name) if name.endswith(".gz") else path.read_text(encoding="utf-8"))
