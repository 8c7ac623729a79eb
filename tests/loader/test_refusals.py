"""Each way in which a source can be wrong: one clear line with the place, and nothing left behind."""

import errno
import os
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import loader_support
import pytest
import support
from loader_support import HEAD

from fusebpf import bpf, compiler, compiler_child, kernel_stub, loader
from fusebpf.errors import CompileError, FilterError, PlatformError, UnknownHook, VerifierError
from fusebpf.loader import SharedMaps

HOOK = "PRE(f, lookup) { return FB_CONTINUE; }\n"

# What is wrong → source, the error's class, and what its line must say after the file's name.
WRONG: dict[str, tuple[str, type[FilterError], str]] = {
    "an undeclared name": (
        HEAD + "PRE(f, lookup) { return foo; }\n",
        CompileError,
        r":3: use of undeclared identifier 'foo'",
    ),
    "a brace that is not closed": (HEAD + "PRE(f, lookup) { return 0;\n", CompileError, ":4: expected '}'"),
    "an #error": (HEAD + '#error "no way"\n' + HOOK, CompileError, ':3: "no way"'),
    "a header that is not there": (
        '#include "absent.h"\n' + HEAD + HOOK,
        CompileError,
        ":1: 'absent.h' file not found",
    ),
    "a hash with too many items": (
        HEAD + "BPF_HASH(f__seen, u32, u64, 4000000000);\n" + HOOK,
        CompileError,
        ": the map 'f__seen' cannot be made: it has too many items",
    ),
    "one filter twice": (HEAD + "FILTER(f, .altitude = 6)\n" + HOOK, CompileError, ":3: redefinition of"),
    "one hook twice": (HEAD + HOOK + HOOK, CompileError, ":4: redefinition of"),
    "a map function in a macro": (
        HEAD
        + "BPF_HASH(f__m, u32, u64);\n#define G(k) f__m.lookup(k)\nPRE(f, open) { return !G(&ctx->uid); }\n",
        CompileError,
        ":5: cannot use map function inside a macro",
    ),
    "floating point": (
        HEAD + "\nPRE(f, lookup) { double d = ctx->uid; return d * 1.5; }\n",
        CompileError,
        r":4: PRE\(f, lookup\): A call to built-in function '__floatunsidf' is not supported",
    ),
    "a signed division": (
        HEAD + "PRE(f, lookup) { return (int)ctx->uid / (int)ctx->gid; }\n",
        CompileError,
        r":3: PRE\(f, lookup\): Unsupport\w* signed division",
    ),
    "too much on the stack": (
        HEAD + "PRE(f, lookup) { char b[600]; __builtin_memcpy(b, ctx->path, 600); b[ctx->uid & 255] = 1;"
        " __builtin_memcpy(ctx->path2, b, 600); return 0; }\n",
        CompileError,
        r":3: PRE\(f, lookup\): Looks like the BPF stack limit",
    ),
    "a map that is too large": (
        HEAD + "BPF_ARRAY(f__big, struct fb_patterns, 2000000000);\n" + HOOK,
        CompileError,
        ": the map 'f__big' cannot be made: there is no memory for so many items$",
    ),
    "no filter": ("int main() { return 0; }\n", FilterError, r": declares no filter; say FILTER\("),
    "a hook of no filter": (
        HEAD + HOOK + "PRE(g, lookup) { return 0; }\n",
        FilterError,
        ":4: a hook of 'g', which is not declared; declared are: f",
    ),
    "a filter without hooks": (HEAD, FilterError, r":2: the filter 'f' has no hooks; say PRE\(f, lookup\)"),
    "an op that is not there": (
        HEAD + "PRE(f, lokup) { return 0; }\n",
        UnknownHook,
        r":3: PRE\(f, lokup\): there is no such op; the ops are: access .* create .* write name any$",
    ),
    "an op that no filter sees": (
        HEAD + "PRE(f, forget) { return 0; }\n",
        UnknownHook,
        r":3: PRE\(f, forget\): no filter sees it; the ops are: ",
    ),
    "an op under its second name": (
        HEAD + "POST(f, readdirplus) { return 0; }\n",
        UnknownHook,
        r":3: POST\(f, readdirplus\): it comes as readdir; the ops are: ",
    ),
    "a pre hook on dirent": (
        HEAD + "PRE(f, dirent) { return 0; }\n",
        FilterError,
        r":3: PRE\(f, dirent\): dirent has no pre stage; say POST\(f, dirent\)",
    ),
    "a name of 32 bytes": (
        f"FILTER({'a' * 32}, .altitude = 5)\nPRE({'a' * 32}, open) {{ return 0; }}\n",
        FilterError,
        f":1: the filter's name '{'a' * 32}' has 32 bytes, at most 31",
    ),
    "a name with two underscores": (
        "FILTER(a__b, .altitude = 5)\nPRE(a__b, open) { return 0; }\n",
        FilterError,
        ":1: the filter's name 'a__b' may not",
    ),
    "a reserved name": (
        "FILTER(stats, .altitude = 5)\nPRE(stats, open) { return 0; }\n",
        FilterError,
        ":1: no filter can be called 'stats'; these are a mount's own: filters, recent, slots, stats",
    ),
    "no altitude": (
        "FILTER(f)\n" + HOOK,
        FilterError,
        r":1: the altitude of 'f' is 0, not 1 to 999; say FILTER\(f, .altitude = ",
    ),
    "an altitude of 1000": (
        "FILTER(f, .altitude = 1000)\n" + HOOK,
        FilterError,
        ":1: the altitude of 'f' is 1000",
    ),
    "a doc of 240 bytes": (
        f'FILTER(f, .altitude = 5, .doc = "{"x" * 240}")\n' + HOOK,
        FilterError,
        ":1: the doc of 'f' has 240 bytes, at most 239",
    ),
    "another ABI": (
        "#undef FB_ABI_VERSION\n#define FB_ABI_VERSION 0x20000\n" + HEAD + HOOK,
        FilterError,
        ":4: the filter 'f' is built for ABI 2.0; this is ABI 1.0",
    ),
    "a newer ABI": (
        "#undef FB_ABI_VERSION\n#define FB_ABI_VERSION 0x1ffff\n" + HEAD + HOOK,
        FilterError,
        ":4: the filter 'f' is built for ABI 1.65535; this is ABI 1.0",
    ),
    "a map called like ours": (
        HEAD + "BPF_HASH(fb_mine, u32, u64);\n" + HOOK,
        FilterError,
        ": the map 'fb_mine': names that begin with `fb_` are fusebpf's own",
    ),
    "a map of no filter": (
        HEAD + "BPF_HASH(g__m, u32, u64);\n" + HOOK,
        FilterError,
        ": the map 'g__m' belongs to 'g', which is not declared; declared are: f",
    ),
    "a map called like a hook": (
        HEAD + "BPF_HASH(f__pre_lookup, u32, u64);\n" + HOOK,
        FilterError,
        ": a map and a hook of 'f' are both called 'pre_lookup'",
    ),
    "a map that pins itself": (
        HEAD + 'BPF_TABLE_PINNED("hash", u32, u64, f__p, 8, "/sys/fs/bpf/f__p");\n' + HOOK,
        FilterError,
        ":3: BPF_TABLE_PINNED is not supported",
    ),
    "a map of maps": (
        HEAD + 'BPF_HASH(f__in, u32, u64);\nBPF_HASH_OF_MAPS(f__o, u32, "f__in", 4);\n'
        "PRE(f, open) { return f__o.lookup(&ctx->uid) ? -1 : 0; }\n",
        FilterError,
        ": the map 'f__o' is a map of maps: not supported in filters",
    ),
    "a verdict ring used directly": (
        HEAD + "PRE(f, open) { fb_ring0.ringbuf_output(&ctx->uid, 4, 0); return 0; }\n",
        FilterError,
        r": hooks do not use 'fb_ring0' themselves; fb_emit\(\) does",
    ),
    "a pointer that may be NULL": (
        HEAD + "BPF_HASH(f__m, u32, u64);\nPRE(f, lookup)\n{\n"
        "\tu64 *v = f__m.lookup(&ctx->uid);\n\treturn *v + 1;\n}\n",
        VerifierError,
        r":7: the kernel's .*: R\d invalid mem access '\w+' \(a map's lookup may give NULL, ",
    ),
    "a loop with a branch": (
        HEAD + "PRE(f, lookup)\n{\n\tu32 i, n = 0;\n#pragma clang loop unroll(disable)\n"
        "\tfor (i = 0; i < ctx->name_len; i++)\n\t\tn += ctx->name.text[i & 255] == 65 ? 3 : 1;\n"
        "\treturn n == 5;\n}\n",
        VerifierError,
        r":\d: .* (The sequence of \d+ jumps is|BPF program is) too .*\((fewer|take) ",
    ),
    "a loop without an end": (
        HEAD + "PRE(f, lookup)\n{\n\tvolatile u32 n = 0;\n\twhile (n < 5)\n\t\tn = n & 1;\n\treturn 0;\n}\n",
        VerifierError,
        r":\d: .* refuses PRE\(f, lookup\): infinite loop detected.* \(give the loop a constant bound",
    ),
    "an index without a mask": (
        HEAD + "POST(f, lookup)\n{\n\treturn ctx->name.text[ctx->name_len] ? -EPERM : 0;\n}\n",
        VerifierError,
        r":5: the kernel's verifier refuses POST\(f, lookup\): R\d (unbounded|invalid|max value)",
    ),
    "a global variable": (
        HEAD + "int counter;\nPRE(f, lookup) { return counter++ ? 0 : FB_NEGATIVE; }\n",
        VerifierError,
        ":4: .*: filters have no global variables, use a map$",
    ),
    "an LPM trie": (
        HEAD + "struct k { u32 len, a; };\nBPF_LPM_TRIE(f__t, struct k, u32, 8);\n"
        "PRE(f, lookup) { struct k key = {}; return f__t.lookup(&key) ? 0 : FB_NEGATIVE; }\n",
        VerifierError,
        r":5: .* PRE\(f, lookup\): hooks may sleep and cannot use the map 'f__t' \(lpm trie\): use an",
    ),
    "a function that is called": (
        HEAD + "static __attribute__((noinline)) int other(struct fb_slot *ctx) { return -(int)ctx->uid; }\n"
        "PRE(f, lookup) { return other(ctx); }\n",
        VerifierError,
        r":4: .*: call to invalid destination \(a function of your own is written with FB_ALWAYS_INLINE\)",
    ),
    "a perf event array": (
        HEAD
        + "BPF_PERF_OUTPUT(f__e);\nPRE(f, open) { u32 k = 0; f__e.perf_submit(ctx, &k, 4); return 0; }\n",
        VerifierError,
        r":4: .*cannot use the map 'f__e' \(perf event array\)",
    ),
    "a perf event array that no hook uses": (
        HEAD + "BPF_PERF_OUTPUT(f__e);\n" + HOOK,
        FilterError,
        r": hooks may sleep and cannot use the map 'f__e' \(perf event array\): use an array, hash, queue",
    ),
    "a program array": (
        HEAD + "BPF_PROG_ARRAY(f__p, 4);\nPRE(f, open) { f__p.call((void *)ctx, 1); return 0; }\n",
        VerifierError,
        r":4: .*cannot use the map 'f__p' \(prog array\)",
    ),
}


@pytest.mark.alone
@pytest.mark.parametrize("fault", WRONG)
def test_a_wrong_source_gets_one_clear_line(
    fault: str, tmp_path: Path, shared: SharedMaps, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, kind, message = WRONG[fault]
    monkeypatch.chdir(tmp_path)
    loader_support.write(tmp_path, source, "wrong.c")
    maps = _n_maps()

    with pytest.raises(kind, match=rf"^wrong\.c{message}") as caught:
        loader.load("wrong.c", shared)

    assert type(caught.value) is kind
    assert "\n" not in str(caught.value)
    support.wait_until(lambda: _n_maps() <= maps)


def test_a_refused_filter_takes_those_before_it_along(tmp_path: Path, shared: SharedMaps) -> None:
    source, _, _ = WRONG["a pointer that may be NULL"]
    good = "FILTER(a, .altitude = 1)\nBPF_HASH(a__m, u32, u64);\nPRE(a, open) { return 0; }\n"
    path = loader_support.write(tmp_path, good + source)

    with pytest.raises(VerifierError):
        loader.load(path, shared)
    (one,) = loader.load(path, shared, names=["a"])

    one.close()


def test_the_detail_of_a_refusal_has_the_deciding_lines_and_no_statistics(
    tmp_path: Path, shared: SharedMaps
) -> None:
    path = loader_support.write(tmp_path, WRONG["a pointer that may be NULL"][0])

    with pytest.raises(VerifierError) as caught:
        loader.load(path, shared)

    lines = caught.value.detail.splitlines()
    assert lines[:2] == ["in f__pre__lookup", f"{path}:7: return *v + 1;"]
    assert lines[-1].endswith("invalid mem access 'map_value_or_null'")
    assert len(lines) <= 26
    assert not any("processed" in line or "verification time" in line for line in lines)


def test_an_error_in_what_bcc_made_of_a_line_is_told_with_the_authors_line(tmp_path: Path) -> None:
    source = tmp_path / "mine.c"
    source.write_text(
        '#include "fusebpf.h"\nBPF_HASH(seen, u32, u32, 8);\nFILTER(mine, .altitude = 500)\n'
        "PRE(mine, getattr) { return 0; }\n"
        "PRE(mine, open)\n{\n\tu32 key = 0;\n\treturn *seen.lookup(&key);\n}\n"
    )

    with pytest.raises(CompileError, match=r"mine\.c:8: returning 'void'") as caught:
        compiler.compile_source(source)

    assert f"{source}:8:9: error" in caught.value.detail


def test_the_detail_of_a_compile_error_is_what_the_compiler_said(tmp_path: Path) -> None:
    path = loader_support.write(tmp_path, HEAD + "PRE(f, lookup) { return foo; }\n")

    with pytest.raises(CompileError) as caught:
        loader.compile_source(path)

    assert f"{path}:3:25: error: use of undeclared identifier 'foo'" in caught.value.detail


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b" \n\t\n", "is empty"),
        (b"FILTER(\xff, 1)\n", r"is not text in UTF-8 \(byte 7\)"),
        (b"FILTER\0\n", "is not C source, it holds zero bytes"),
    ],
)
def test_a_file_that_is_no_source_is_refused(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "wrong.c"
    path.write_bytes(content)

    with pytest.raises(FilterError, match=f"^{path}: {message}"):
        loader.compile_source(path)


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FilterError, match=f"^{tmp_path}/absent.c: no such file"):
        loader.compile_source(tmp_path / "absent.c")
    with pytest.raises(FilterError, match=f"^{tmp_path}: cannot be read: Is a directory"):
        loader.compile_source(tmp_path)


def test_a_file_name_with_quotes_and_blanks_is_shown_as_it_is(tmp_path: Path) -> None:
    path = loader_support.write(tmp_path, HEAD + "PRE(f, lookup) { return foo; }\n", 'my "own" ä\\filter.c')

    with pytest.raises(CompileError) as caught:
        loader.compile_source(path)

    assert str(caught.value).startswith(f"{path}:3: ")


def test_a_missing_bcc_says_what_to_install(tmp_path: Path) -> None:
    program = (
        "import sys, json\nfrom fusebpf import compiler_child\n"
        "compiler_child._LIBRARY = 'libbcc-that-is-not-there.so'\ncompiler_child._compile('', [], 0)\n"
    )

    done = support.run(sys.executable, "-c", program, cwd=tmp_path, check=False)

    assert done.returncode == compiler_child.EXIT_PLATFORM
    assert done.stderr.endswith("install python3-bpfcc\n")


def test_the_childs_platform_error_is_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = "import sys; sys.stderr.write('bcc is missing: install python3-bpfcc\\n'); sys.exit(4)"
    monkeypatch.setattr(compiler, "_CHILD", code)

    with pytest.raises(PlatformError, match=r"^bcc is missing: install python3-bpfcc$"):
        loader.compile_source(loader_support.write(tmp_path, HEAD + HOOK))


def test_a_compiler_that_hangs_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiler, "_CHILD", "import signal; signal.pause()")
    monkeypatch.setattr(compiler, "_COMPILE_SECONDS", 0.2)

    with pytest.raises(CompileError, match=r"no answer within 0\.2 seconds"):
        loader.compile_source(loader_support.write(tmp_path, HEAD + HOOK))


def test_a_compiler_that_dies_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiler, "_CHILD", "import os; os.kill(os.getpid(), 11)")

    with pytest.raises(CompileError, match=r"mine\.c: the compiler died of SIGSEGV$"):
        loader.compile_source(loader_support.write(tmp_path, HEAD + HOOK))


def test_the_compiler_dies_with_its_parent(tmp_path: Path) -> None:
    sleeps = (
        "import fusebpf.compiler_child as child, time; child._compile = lambda *job: time.sleep(3600); main()"
    )
    hanging = compiler._CHILD.replace("main()", sleeps)
    path = loader_support.write(tmp_path, HEAD + HOOK)
    program = f"from fusebpf import compiler\ncompiler._CHILD = {hanging!r}\n"
    program += f"compiler.compile_source({str(path)!r})\n"
    parent = subprocess.Popen([sys.executable, "-c", program])
    children = Path(f"/proc/{parent.pid}/task/{parent.pid}/children")
    child = int(support.wait_until(lambda: children.read_text().split())[0])
    support.wait_until(lambda: b"sleep" in Path(f"/proc/{child}/wchan").read_bytes())

    parent.send_signal(signal.SIGKILL)
    parent.wait()

    support.wait_until(lambda: not Path(f"/proc/{child}").exists() or "Z" in _state(child))


def test_without_headers_for_programs_the_package_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernel_stub, "_INCLUDE", tmp_path)

    with pytest.raises(PlatformError, match="install linux-libc-dev"):
        loader.compile_source(loader_support.write(tmp_path, HEAD + HOOK))


def test_the_stub_tree_needs_no_tmpfs_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel_stub, "_detached_tmpfs", lambda: None)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()

    compiled = loader.compile_source(loader_support.write(tmp_path, HEAD + HOOK))

    assert list(compiled.filters) == ["f"]
    assert list((tmp_path / "tmp").iterdir()) == []


@pytest.mark.parametrize(
    ("number", "advice"),
    [
        (errno.EPERM, "run as root"),
        (errno.ENOSYS, "without bpf"),
        (errno.EINVAL, "no sleepable SYSCALL programs"),
    ],
)
def test_a_machine_without_bpf_is_told_why(number: int, advice: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> int:
        raise OSError(number, f"BPF_PROG_LOAD: {os.strerror(number)}")

    monkeypatch.setattr(bpf, "_call", refuse)

    with pytest.raises(PlatformError, match=f"^BPF programs cannot be loaded here: .*{advice}"):
        bpf.require()


def test_an_unprivileged_user_is_told_to_be_root() -> None:
    program = (
        "from fusebpf import bpf\ntry:\n    bpf.require()\n"
        "except Exception as e:\n    print(type(e).__name__, e)"
    )

    done = support.run(sys.executable, "-c", program, user=65534, cwd=support.CHECKOUT)

    assert done.stdout.startswith("PlatformError BPF programs cannot be loaded here: ")
    assert "run as root" in done.stdout


def test_several_threads_compile_at_once(tmp_path: Path) -> None:
    path = loader_support.write(tmp_path, HEAD + HOOK)
    found: list[list[str]] = []
    threads = [
        threading.Thread(target=lambda: found.append(list(loader.compile_source(path).filters)))
        for _ in range(3)
    ]

    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert found == [["f"]] * 3


def _n_maps() -> int:
    """Maps of this test's filter in the kernel; freed after a grace period, so it is waited for."""
    return support.run("bpftool", "map", "show").stdout.count("name f_")


def _state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return "Z"
