"""Filter source → data: instructions with their maps by name, map definitions, BTF, declarations.

The compiler runs in a child process for about a second (`compiler_child`), so that LLVM never stays in the
server and a compiler that hangs or dies takes nothing with it. Everything returned is plain data.
"""

import base64
import difflib
import json
import os
import re
import signal
import struct
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from fusebpf import bpf, compile_cache, compiler_child, kernel_stub, loops, tables
from fusebpf.errors import CompileError, FilterError, PlatformError
from fusebpf.paths import bpf_dir

SHARED_MAPS = frozenset(
    {"fb_slots", "fb_windows", "fb_stats", "fb_hooks", "fb_rings", "fb_ring0", "fb_recent", "fb_filters"}
)
"""Maps of every compile: those that the mount puts its own in for, and two that only bring their types."""

_COMPILE_SECONDS = 60.0
_FLAGS = ("-Wno-macro-redefined", "-Werror=implicit-function-declaration", "-Werror=return-type")
_SHARED_TYPES = """\
BPF_ARRAY(fb_recent, struct fb_record, 1);
BPF_ARRAY(fb_filters, struct fb_filter_info, 1);
"""
_DECLARATION = struct.Struct("4I")
_DECLARATION_BYTES = 4096
_DOC_BYTES = 239
_FILTER_NAME_BYTES = 31
_FILTER_NAME = re.compile(r"[A-Za-z_]\w*", re.ASCII)
_RESERVED_NAMES = frozenset({"stats", "recent", "filters", "slots"})
_ALTITUDES = range(1, 1000)
_HOOK = re.compile(r"(?P<filter>\w+?)__(?P<phase>pre|post)__(?P<op>\w+)")
# bcc makes each map once to see whether the kernel takes it; these are for one that is too large (bpf(2)).
_NO_MAP = re.compile(r"open bpf map: (?P<map>\w+), error: (Argument list too long|Cannot allocate memory)")
_MESSAGE = re.compile(r"^(?P<file>.+?):(?P<line>\d+):\d+: (?:fatal )?error: (?P<text>.*)", re.MULTILINE)
_BACKEND_FUNCTION = re.compile(r"in function:? (?P<function>\w+)(?: [^:\n]*: (?P<text>.*))?", re.IGNORECASE)
_BACKEND_FAULT = re.compile(r"Error at line \d+: (?P<text>.*?) for DAG")
_REWRITTEN_BEGINS = "#if defined(BPF_LICENSE)"
_DISASSEMBLY = "Disassembly of function "
_DISASSEMBLY_LINE = re.compile(r"; .* // Line\s*(\d+)")
_DISASSEMBLY_STEP = re.compile(r"\s*(\d+):\t")
_PINNED_MAP = re.compile(r"^[ \t]*BPF_TABLE_PINNED", re.MULTILINE)
# The package without its __init__, which would load trio and the core.
_CHILD = (
    "import sys, types; package = types.ModuleType('fusebpf'); package.__path__ = [sys.argv[1]]; "
    "sys.modules['fusebpf'] = package; from fusebpf.compiler_child import main; main()"
)


class Function(NamedTuple):
    """One compiled function."""

    code: bytes
    """Instructions, with zeros where map descriptors go."""
    uses: tuple[tuple[int, str], ...]
    """(index of the instruction, name of the map whose descriptor goes there)."""

    def linked(self, fds: Mapping[str, int]) -> bytes:
        """The instructions with descriptors, by the names of the maps."""
        code = bytearray(self.code)
        for index, name in self.uses:
            code[index * 8 + 4 : index * 8 + 8] = fds[name].to_bytes(4, "little")
        return bytes(code)


class MapDefinition(NamedTuple):
    """What it takes to create a map."""

    name: str
    type: int
    key_size: int
    value_size: int
    max_entries: int
    flags: int
    btf_key: int
    btf_value: int


class HookFunction(NamedTuple):
    """A function's name taken apart: `hide__pre__lookup`; the op may be a group, or not exist."""

    filter: str
    phase: str
    op: str

    @property
    def macro(self) -> str:
        """As its author wrote it: `PRE(hide, lookup)`."""
        return f"{self.phase.upper()}({self.filter}, {self.op})"


@dataclass(frozen=True)
class Declaration:
    """What FILTER() says of a filter."""

    name: str
    altitude: int
    wants: int
    doc: str


@dataclass(frozen=True)
class Compiled:
    """One compiled source file."""

    path: str
    functions: dict[str, Function]
    maps: dict[str, MapDefinition]
    btf: bytes
    filters: dict[str, Declaration]
    warnings: str
    lines: dict[str, int] = field(default_factory=dict)
    """In which line of the file each function is made, 0 if that is not in it."""

    def where(self, function: str) -> str:
        """FILE:LINE of a function, FILE alone if the line is not known."""
        line = self.lines.get(function, 0)
        return f"{self.path}:{line}" if line else self.path

    @cached_property
    def hooks_by_function(self) -> dict[str, HookFunction]:
        """All hook functions of the file, by function name."""
        taken_apart = {name: hook_function(name) for name in self.functions}
        return {name: hook for name, hook in taken_apart.items() if hook}

    def hooks(self, filter_name: str) -> dict[str, HookFunction]:
        """The hook functions of a filter, by function name."""
        return {name: hook for name, hook in self.hooks_by_function.items() if hook.filter == filter_name}


class SourceLine(NamedTuple):
    """Where an instruction comes from."""

    file: str
    line: int
    text: str


def hook_function(name: str) -> HookFunction | None:
    """Take a function's name apart; None if it is no hook's."""
    match = _HOOK.fullmatch(name)
    return HookFunction(match["filter"], match["phase"], match["op"]) if match else None


def stock(name: str) -> Path:
    """The file of a stock filter, which is called like its filter."""
    return bpf_dir() / "filters" / f"{name}.c"


def stock_names() -> list[str]:
    """The stock filters."""
    return sorted(path.stem for path in (bpf_dir() / "filters").glob("*.c"))


def compile_source(path: str | os.PathLike[str]) -> Compiled:
    """Compile a file of filters, and check what it declares.

    Raises:
        CompileError: The compiler refused it; the message is "FILE:LINE: …".
        FilterError: It cannot be read, or what it declares is wrong.
        PlatformError: There is no bcc, or no BPF.
    """
    shown, text = os.fspath(path), _read(Path(path))
    compiled = _compile(shown, _segments(shown, text), Path(path).absolute().parent)
    compiled.lines.update({name: _macro_line(text, name) for name in compiled.functions})
    declarations = [name for name in compiled.functions if name.endswith("__filter")]
    for function in sorted(declarations, key=lambda function: compiled.lines[function]):
        declaration = _declare(compiled, function)
        compiled.filters[declaration.name] = declaration
    _check_names(compiled)
    return compiled


def compile_header() -> Compiled:
    """Compile the bare ABI: the types of the shared maps, and no filter.

    Raises:
        PlatformError: There is no bcc, or no BPF.
    """
    # A text without any function gets no BTF from bcc.
    return _compile("fusebpf.h", _segments("", "FILTER(nothing, .altitude = 1)"), bpf_dir())


def compile_caller() -> Compiled:
    """Compile the program that notes callers, for `fusebpf.callers`.

    Raises:
        PlatformError: There is no bcc, or no BPF.
    """
    path = bpf_dir() / "caller.c"
    return _compile(str(path), _segments(str(path), path.read_text("utf-8")), bpf_dir())


def source_lines(path: str, function: str) -> dict[int, SourceLine]:
    """Which source line each instruction of a function comes from; for explaining a refusal.

    Returns:
        By index of the instruction. Empty if the file does not compile any more.
    """
    segments = _segments(path, _read(Path(path)))
    joined = "".join(text for _, _, text in segments)
    place = Path(path).absolute().parent
    code, _, messages = _run_child(joined, place, compiler_child.DEBUG_TEXT | compiler_child.DEBUG_SOURCE)
    if code != 0:
        return {}
    places = [
        SourceLine(file, start + i, line.strip())
        for file, start, text in segments
        for i, line in enumerate(text.splitlines())
    ]
    listing = messages[messages.find(_REWRITTEN_BEGINS) :].splitlines()
    rewritten = _rewritten_lines(joined.splitlines(), listing)
    found: dict[int, SourceLine] = {}
    current, is_wanted = None, False
    for line in listing:
        if line.startswith(_DISASSEMBLY):
            is_wanted = line.removeprefix(_DISASSEMBLY).strip(" :") == function
        elif match := _DISASSEMBLY_LINE.fullmatch(line):
            original = rewritten.get(int(match[1]) - 1)
            current = None if original is None else places[original]
        elif is_wanted and current and (match := _DISASSEMBLY_STEP.match(line)):
            found[int(match[1])] = current
    return found


def _rewritten_lines(original: list[str], listing: list[str]) -> dict[int, int]:
    """Lines of the text as bcc rewrote it (attributes added, map methods spelled out) → of the original."""
    matcher = difflib.SequenceMatcher(None, listing, original, autojunk=False)
    found: dict[int, int] = {}
    for kind, a, a_end, b, b_end in matcher.get_opcodes():
        if kind in {"equal", "replace"}:
            # Of a changed block the additions stand in front.
            n = min(a_end - a, b_end - b)
            found.update(zip(range(a_end - n, a_end), range(b_end - n, b_end), strict=True))
    return found


# ------------------------------------------------------------------------------------ the child


def _segments(shown: str, text: str) -> list[tuple[str, int, str]]:
    """The text for bcc as (file, its line, lines).

    bcc rewrites map methods in the main text only: so the headers stand in it, and a filter's own
    #include "fusebpf.h" does nothing more.
    """
    header = (bpf_dir() / "fusebpf.h").read_text("utf-8")
    before, include, after = header.partition('#include "fusebpf_filter.h"\n')
    return [
        ("fusebpf.h", 1, before),
        ("fusebpf_filter.h", 1, (bpf_dir() / "fusebpf_filter.h").read_text("utf-8")),
        ("fusebpf.h", before.count("\n") + 1 + len(include.splitlines()), after),
        ("fusebpf.h", 1, _SHARED_TYPES),
        # The compiler takes no control characters and no halves of characters in a name.
        (tables.shown(shown), 1, text + "\n"),
    ]


def _headers() -> str:
    """All of the ABI's headers: fusebpf_ops.h is included by the text, not part of it."""
    return "".join(path.read_text("utf-8") for path in sorted(bpf_dir().glob("*.h")))


def _compile(shown: str, segments: list[tuple[str, int, str]], place: Path) -> Compiled:
    bpf.require()
    text = "".join(f"#line {line} {json.dumps(file)}\n{part}" for file, line, part in segments)
    # A kept one was compiled without a warning, so that those are said each time.
    kept_as = compile_cache.key(segments[-1][2], text + _headers(), place, (*_FLAGS, *loops.loop_flags()))
    answer = compile_cache.load(kept_as) if kept_as else None
    messages = ""
    if answer is None:
        code, answer, messages = _run_child(text, place, 0)
        if code == compiler_child.EXIT_PLATFORM:
            raise PlatformError(messages.strip() or "the compiler's process lost its parent")
        if code != 0:
            if _MESSAGE.search(messages):
                messages = _with_own_lines(shown, segments[-1][2], text, place, messages)
            raise _compile_error(shown, segments[-1][2], code, messages)
        if kept_as and not messages.strip():
            compile_cache.save(kept_as, answer)
    data: dict[str, Any] = json.loads(answer)
    functions = {
        name: Function(base64.b64decode(code), tuple((index, used) for index, used in uses))
        for name, (code, uses) in data["functions"].items()
    }
    maps = {row[0]: MapDefinition(*row) for row in data["maps"]}
    return Compiled(shown, functions, maps, base64.b64decode(data["btf"]), {}, messages.strip())


def _run_child(text: str, place: Path, debug: int) -> tuple[int, bytes, str]:
    """Compile in a child; returns its exit code, its answer and the compiler's messages.

    What the text includes is sought in `place`, its file's directory, and before that in clang's own one.
    """
    job = {
        "parent": os.getpid(),
        "text": text,
        "flags": [f"-I{bpf_dir()}", f"-I{place}", *_FLAGS, *loops.loop_flags()],
        "debug": debug,
    }
    # Nothing else of the environment: C_INCLUDE_PATH and its like would change what the compiler reads.
    passed_on = {name: os.environ[name] for name in ("LD_LIBRARY_PATH", "TMPDIR") if name in os.environ}
    with kernel_stub.stub() as (stub, passed_fds):
        child = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", _CHILD, str(Path(__file__).parent)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**passed_on, "BCC_KERNEL_SOURCE": str(stub), "LC_ALL": "C"},
            pass_fds=passed_fds,
            cwd=bpf_dir(),
            start_new_session=True,
        )
        with child:
            try:
                answer, messages = child.communicate(json.dumps(job).encode(), _COMPILE_SECONDS)
            except subprocess.TimeoutExpired:
                child.kill()
                raise CompileError(
                    f"the compiler gave no answer within {_COMPILE_SECONDS:g} seconds"
                ) from None
            except BaseException:
                child.kill()
                raise
    return child.returncode, answer, messages.decode(errors="replace").replace(f"{stub}/", "")


def _with_own_lines(shown: str, source: str, text: str, place: Path, messages: str) -> str:
    """Errors that are found only in the text as bcc rewrote it have lines of that one: say the author's."""
    listing = _run_child(text, place, compiler_child.DEBUG_TEXT)[2]
    _, is_shown, rewritten = listing.rpartition(f"#line 1 {json.dumps(tables.shown(shown))}\n")
    if not is_shown or not _MESSAGE.search(rewritten):
        return messages  # they stand before it: they are of the author's text
    lines = _rewritten_lines(source.splitlines(), rewritten.splitlines())

    def own(match: re.Match[str]) -> str:
        line = lines.get(int(match[2]) - 1)
        return match[0] if line is None else f"{match[1]}:{line + 1}:"

    return re.sub(rf"^({re.escape(tables.shown(shown))}):(\d+):", own, messages, flags=re.MULTILINE)


def _compile_error(shown: str, source: str, code: int, messages: str) -> CompileError:
    """The compiler's first error in one line. Its back end knows no lines of ours, but the function."""
    detail = messages.strip()
    if match := _MESSAGE.search(messages):
        return CompileError(f"{match['file']}:{match['line']}: {match['text']}", detail)
    if match := _BACKEND_FUNCTION.search(messages):
        fault = _BACKEND_FAULT.search(messages)
        text = match["text"] or (fault["text"] if fault else "the compiler cannot translate it")
        hook = hook_function(match["function"])
        line = _macro_line(source, match["function"])
        where = f"{shown}:{line}" if line else shown
        return CompileError(f"{where}: {hook.macro if hook else match['function']}: {text}", detail)
    if code < 0:
        return CompileError(f"{shown}: the compiler died of {signal.Signals(-code).name}", detail)
    lines = [line.strip() for line in messages.splitlines() if line.strip()]
    if match := _NO_MAP.search(messages):
        why = "there is no memory for so many items" if "memory" in match[2] else "it has too many items"
        return CompileError(f"{shown}: the map {match['map']!r} cannot be made: {why}", detail)
    telling = [line for line in lines if "error" in line.lower()] or lines or ["the compiler gave no reason"]
    return CompileError(f"{shown}: {telling[0]}", detail)


# ---------------------------------------------------------------------------- what a file declares


def _read(path: Path) -> str:
    try:
        if path.exists() and not path.is_file() and not path.is_dir():
            raise FilterError(f"{path}: is not a regular file; a filter is a C source")
        text = path.read_text(encoding="utf-8-sig")  # some editors begin with a byte order mark
    except FileNotFoundError:
        raise FilterError(f"{path}: no such file; a stock filter is given by its bare name") from None
    except UnicodeDecodeError as error:
        raise FilterError(f"{path}: is not text in UTF-8 (byte {error.start})") from None
    except OSError as error:
        raise FilterError(f"{path}: cannot be read: {os.strerror(error.errno or 0)}") from None
    if not text.strip():
        raise FilterError(f"{path}: is empty; a filter begins with FILTER(name, .altitude = FB_POLICY)")
    if "\0" in text:
        raise FilterError(f"{path}: is not C source, it holds zero bytes")
    if match := _PINNED_MAP.search(text):
        raise FilterError(
            f"{path}:{_line(text, match.start())}: BPF_TABLE_PINNED is not supported: "
            "a mount pins the maps of its filters itself"
        )
    return text


def _line(text: str, position: int) -> int:
    return text.count("\n", 0, position) + 1


def _macro_line(text: str, function: str) -> int:
    """The line of the FILTER, PRE or POST that makes a function; 0 if it is not spelled out there."""
    hook = hook_function(function)
    name = function.removesuffix("__filter")
    pattern = (
        rf"{hook.phase.upper()}\s*\(\s*{hook.filter}\s*,\s*{hook.op}" if hook else rf"FILTER\s*\(\s*{name}"
    )
    match = re.search(rf"^[ \t]*{pattern}\b", text, re.MULTILINE)
    return _line(text, match.start()) if match else 0


def _declare(compiled: Compiled, function: str) -> Declaration:
    """Run a FILTER()'s program, and check what it leaves in its context."""
    name, where = function.removesuffix("__filter"), compiled.where(function)
    check_filter_name(name, f"{where}: ")
    try:
        fd = bpf.prog_load(compiled.functions[function].code, function)
        try:
            _, raw = bpf.prog_run(fd, bytes(_DECLARATION_BYTES))
        finally:
            os.close(fd)
    except OSError as error:
        raise FilterError(f"{where}: FILTER({name}) takes constants only", str(error)) from None
    abi, altitude, wants, doc_bytes = _DECLARATION.unpack_from(raw)
    _check_abi(where, name, abi)
    if altitude not in _ALTITUDES:
        raise FilterError(
            f"{where}: the altitude of {name!r} is {altitude}, not 1 to 999; "
            f"say FILTER({name}, .altitude = FB_POLICY)"
        )
    if doc_bytes > _DOC_BYTES:
        raise FilterError(f"{where}: the doc of {name!r} has {doc_bytes} bytes, at most {_DOC_BYTES}")
    doc = raw[_DECLARATION.size : _DECLARATION.size + doc_bytes].decode(errors="replace")
    return Declaration(name, altitude, wants, doc)


def check_filter_name(name: str, where: str = "") -> None:
    """See that a filter can be called so.

    Raises:
        FilterError: It cannot.
    """
    if not _FILTER_NAME.fullmatch(name):
        raise FilterError(f"{where}the filter's name {name!r} is not letters, digits and `_` after a letter")
    if len(name) > _FILTER_NAME_BYTES:
        size = f"{len(name)} bytes, at most {_FILTER_NAME_BYTES}"
        raise FilterError(f"{where}the filter's name {name!r} has {size}")
    if "__" in name or name.strip("_") != name:
        raise FilterError(f"{where}the filter's name {name!r} may not begin or end with `_` nor hold `__`")
    if name == "fb" or name.startswith("fb_"):  # of the first the maps would begin so
        raise FilterError(f"{where}the filter's name {name!r}: names that begin with `fb_` are fusebpf's own")
    if name in _RESERVED_NAMES:
        taken = ", ".join(sorted(_RESERVED_NAMES))
        raise FilterError(f"{where}no filter can be called {name!r}; these are a mount's own: {taken}")


def _check_abi(where: str, name: str, abi: int) -> None:
    from fusebpf import _core  # noqa: PLC0415 -- a compile needs no core but for this number

    ours = _core.ABI_VERSION
    if abi >> 16 != ours >> 16 or abi > ours:
        theirs_text, ours_text = (f"{version >> 16}.{version & 0xFFFF}" for version in (abi, ours))
        raise FilterError(
            f"{where}: the filter {name!r} is built for ABI {theirs_text}; this is ABI {ours_text}"
        )


def _check_names(compiled: Compiled) -> None:
    if not compiled.filters:
        raise FilterError(f"{compiled.path}: declares no filter; say FILTER(name, .altitude = FB_POLICY)")
    declared = ", ".join(compiled.filters)
    for function in compiled.functions:
        hook = hook_function(function)
        if hook and hook.filter not in compiled.filters:
            where = compiled.where(function)
            raise FilterError(
                f"{where}: a hook of {hook.filter!r}, which is not declared; declared are: {declared}"
            )
    for name in compiled.filters:
        if not compiled.hooks(name):
            where = compiled.where(f"{name}__filter")
            raise FilterError(f"{where}: the filter {name!r} has no hooks; say PRE({name}, lookup) {{ … }}")
    for name in compiled.maps:
        owner, separator, _ = name.partition("__")
        if name not in SHARED_MAPS and name.startswith("fb_"):
            raise FilterError(
                f"{compiled.path}: the map {name!r}: names that begin with `fb_` are fusebpf's own"
            )
        if separator and owner not in compiled.filters:
            raise FilterError(
                f"{compiled.path}: the map {name!r} belongs to {owner!r}, which is not declared; "
                f"declared are: {declared}"
            )
