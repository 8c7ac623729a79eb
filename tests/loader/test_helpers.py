"""The inline helpers of fusebpf_filter.h do as they say, in the compiled program."""

import errno
import fnmatch
import itertools
import os
import random
import stat
from collections.abc import Callable

import pytest
from loader_support import HEAD, OPCODES, HookRunner

from fusebpf import _core, loader, loops
from fusebpf.loader import Filter
from fusebpf.shared_maps import SharedMaps

_N_PER_HOOK = 4
_OPS = [name for name, *_, kind, _ in _core.OPS if kind == "hook" and name != "dirent"]

Load = Callable[[str], Filter]


def _hooks_of_tests(expressions: list[str]) -> str:
    """A filter that leaves in `tag`, hook by hook, which of the expressions are true."""
    text = HEAD
    for op, start in zip(_OPS, range(0, len(expressions), _N_PER_HOOK), strict=False):
        lines = "".join(
            f"\tctx->tag |= ({each} ? 1ull : 0) << {bit};\n"
            for bit, each in enumerate(expressions[start : start + _N_PER_HOOK])
        )
        text += f"PRE(f, {op})\n{{\n\tctx->tag = 0;\n{lines}\treturn FB_CONTINUE;\n}}\n"
    return text


def _answers(one: Filter, runner: HookRunner, n: int, name: str) -> list[bool]:
    found: list[bool] = []
    for op in _OPS[: -(-n // _N_PER_HOOK)]:
        said = runner.run(one, "pre", op, name=name)
        assert said.records == 1
        found += [bool(said.slot["tag"] >> bit & 1) for bit in range(_N_PER_HOOK)]
    return found[:n]


def test_flags_and_modes_have_the_names_of_the_kernels_headers(load_text: Load, runner: HookRunner) -> None:
    of_os = ("O_ACCMODE", "O_WRONLY", "O_APPEND", "O_TRUNC", "O_DIRECT", "SEEK_HOLE", "XATTR_CREATE")
    of_stat = ("S_IFREG", "S_IFDIR", "S_ISUID")
    numbers = {name: getattr(os, name) for name in of_os} | {name: getattr(stat, name) for name in of_stat}
    numbers |= {"RENAME_EXCHANGE": 2, "FALLOC_FL_PUNCH_HOLE": 2, "ELOOP": errno.ELOOP, "S_ISREG(0100644)": 1}
    headers = "".join(f"#include <linux/{name}.h>\n" for name in ("falloc", "fcntl", "fs", "stat", "xattr"))

    one = load_text(headers + _hooks_of_tests([f"{name} == {number}" for name, number in numbers.items()]))

    assert dict(zip(numbers, _answers(one, runner, len(numbers), "a"), strict=True)) == dict.fromkeys(
        numbers, True
    )


def test_literal_globs_match_as_fnmatch_does(load_text: Load, runner: HookRunner) -> None:
    numbers = random.Random(2)  # noqa: S311 -- the same cases each time
    globs = ["", "*", "**", "?", "*?", "?*", "a*", "*a", "*a*", "a*b*a", "***a", "[ab]", "*[", "a?b", "?????"]
    globs += ["".join(numbers.choices("ab[**?", k=numbers.randint(1, 9))) for _ in range(235)]
    names = ["", "a", "b", "[", "ab", "[ab]", "a" * 255, "a" * 254 + "b", "ab" * 127]
    names += ["".join(numbers.choices("aab[", k=numbers.randint(1, 9))) for _ in range(60)]

    wrong = []
    n_at_once = _N_PER_HOOK * len(_OPS)
    for some in (globs[i : i + n_at_once] for i in range(0, len(globs), n_at_once)):
        one = load_text(_hooks_of_tests([f'fb_name_glob(ctx, "{each}")' for each in some]))
        wrong += [
            (glob, name, actual)
            for name in names
            for glob, actual in zip(some, _answers(one, runner, len(some), name), strict=True)
            if actual != fnmatch.fnmatchcase(name, glob.replace("[", "[[]"))
        ]

    assert wrong == []


@pytest.mark.parametrize("glob", ["?", "????", "*", "a"])
def test_a_glob_alone_in_its_file_is_verified(glob: str, load_text: Load, runner: HookRunner) -> None:
    one = load_text(
        HEAD + f'PRE(f, lookup) {{ return fb_name_glob(ctx, "{glob}") ? FB_NEGATIVE : FB_CONTINUE; }}\n'
    )

    for name in ("a", "b", "aaaa", "a" * 255):
        is_hidden = runner.run(one, "pre", "lookup", name=name).verdict == "FB_NEGATIVE"
        assert is_hidden == fnmatch.fnmatchcase(name, glob), name


@pytest.mark.usefixtures("counts_rounds")
def test_a_glob_of_63_bytes_is_matched(load_text: Load, runner: HookRunner) -> None:
    glob = "*" + "a" * 61 + "?"
    one = load_text(_hooks_of_tests([f'fb_name_glob(ctx, "{glob}")']))

    for name in ("a" * 62, "a" * 61, "b" * 193 + "a" * 62, "a" * 255, "a" * 61 + "b", "a" * 60 + "bb"):
        assert _answers(one, runner, 1, name) == [fnmatch.fnmatchcase(name, glob)], name


@pytest.fixture(params=[True, False], ids=["the kernel counts", "the verifier walks"])
def counts_rounds(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Loops are compiled as for kernels of either kind."""
    if request.param and not loops.has_may_goto():
        pytest.skip("the kernel does not count the rounds of loops")
    monkeypatch.setattr(loops, "has_may_goto", lambda: request.param)
    return bool(request.param)


def test_a_list_that_takes_more_rounds_than_there_are_counts_as_a_match(
    load_text: Load, runner: HookRunner, counts_rounds: bool
) -> None:
    one = load_text(
        HEAD + "BPF_ARRAY(f__names, struct fb_patterns, 1);\nPRE(f, lookup)\n{\n\tu32 i = 0;\n"
        "\treturn fb_match_name(ctx, f__names.lookup(&i));\n}\n"
    )
    name = "a" * 250

    for n, n_rounds in ((1, 252), (63, 16_000)):
        one.set("names", ",".join(f"*{index}" for index in range(n)))
        is_judged = counts_rounds or n_rounds <= 384
        verdict = runner.run(one, "pre", "lookup", name=name).verdict
        assert (verdict == "FB_CONTINUE") == is_judged
        assert runner.run(one, "pre", "lookup", name=f"{name}0").verdict != "FB_CONTINUE"
    one.set("names", "*aab" + "*a" * 100 + "b")  # it goes back at each star
    assert (runner.run(one, "pre", "lookup", name=name).verdict == "FB_CONTINUE") == counts_rounds


@pytest.mark.usefixtures("counts_rounds")
def test_a_loop_of_rounds_ends_where_it_says_and_may_have_branches(
    load_text: Load, runner: HookRunner
) -> None:
    one = load_text(
        HEAD + "PRE(f, lookup)\n{\n\tu64 n = ctx->zero, at;\n\tu32 i;\n\n"
        "\tFB_ROUNDS(i, ctx->zero, 200, FB_BOUND(n, 0xff)) {\n\t\tat = i;\n\t\tFB_BOUND(at, 0xff);\n"
        "\t\tif (!ctx->name.text[at])\n\t\t\tbreak;\n\t\tif (ctx->name.text[at] == '.')\n\t\t\tn++;\n\t}\n"
        "\treturn n == 3 ? -EPERM : i == 200 ? -EACCES : FB_CONTINUE;\n}\n"
    )

    for name, error in (("a.b.c.", "FB_EPERM"), ("...", "FB_EPERM"), ("a" * 200, "FB_EACCES")):
        assert runner.run(one, "pre", "lookup", name=name).error == error
    for name in ("a.b.", "....", "a" * 197 + "..", "a" * 199, ""):
        assert runner.run(one, "pre", "lookup", name=name).verdict == "FB_CONTINUE"
    assert runner.run(one, "pre", "lookup", name="a" * 198 + "....").error == "FB_EACCES"


@pytest.mark.parametrize("name", ["quota", "redact", "redirect", "worm"])
def test_stock_filters_are_verified_where_the_verifier_walks_each_round(
    name: str, shared: SharedMaps, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loops, "has_may_goto", lambda: False)

    loaded = loader.load(loader.stock(name), shared)

    for each in loaded:
        each.close()
    assert [each.name for each in loaded] == [name]


@pytest.mark.usefixtures("counts_rounds")
def test_a_path_is_above_a_pattern_where_a_move_would_take_what_matches_away(
    load_text: Load, runner: HookRunner
) -> None:
    numbers = random.Random(3)  # noqa: S311 -- the same cases each time
    one = load_text(
        HEAD + "BPF_ARRAY(f__paths, struct fb_patterns, 1);\nPRE(f, lookup)\n{\n\tu32 i = 0;\n"
        "\treturn fb_match(ctx, f__paths.lookup(&i), ctx->name.text, 0, "
        "FB_MATCH_BELOW | FB_MATCH_ABOVE);\n}\n"
    )
    rests = ["".join(letters) for n in range(1, 5) for letters in itertools.product("ab/", repeat=n)]
    paths = ["a", "b", "ab", "a/b", "b/a", "ab/a", "a/b/a", "b/b/ab"]
    patterns = ["".join(numbers.choices("ab/*?", k=numbers.randint(1, 5))) for _ in range(150)]
    # What a list of paths does not take.
    patterns = [each.strip("/").replace("//", "/") or "*" for each in patterns] + [
        "*/a",
        "*a/b",
        "a*",
        "**b",
        "?b",
    ]

    def matches(path: str, pattern: str) -> bool:
        return fnmatch.fnmatchcase(path, pattern)

    holes, needless = [], []
    for pattern in patterns:
        one.set("paths", pattern)
        for path in paths:
            found = runner.run(one, "pre", "lookup", name=path).verdict != "FB_CONTINUE"
            inside = [f"/{rest}" for rest in rests if matches(f"{path}/{rest}", pattern)]
            if not found and any(not matches(f"zz{rest}", pattern) for rest in inside):
                holes.append((pattern, path))
            parts = path.split("/")
            at_or_below = any(matches("/".join(parts[:n]), pattern) for n in range(1, len(parts) + 1))
            # That nothing comes behind a slash that a last ? could be is not looked at.
            is_last = pattern.endswith("?")
            needless += [(pattern, path)] * (found and not (inside or at_or_below or is_last))

    assert holes == []
    assert needless == []


def test_is_starts_and_ends_compare_with_literals(load_text: Load, runner: HookRunner) -> None:
    literals = ["", "a", "ab", "ba", "aba", ".ssh", "x" * 40]
    kinds: dict[str, Callable[[str, str], bool]] = {
        "is": str.__eq__,
        "starts": str.startswith,
        "ends": str.endswith,
    }
    asked = [(kind, each) for kind in kinds for each in literals]
    one = load_text(_hooks_of_tests([f'fb_name_{kind}(ctx, "{each}")' for kind, each in asked]))

    for name in [
        "",
        "a",
        "b",
        "ab",
        "ba",
        "aba",
        "abab",
        ".ssh",
        ".ssh2",
        "x.ssh",
        "x" * 40,
        "x" * 255,
        "a" * 255,
    ]:
        expected = [kinds[kind](name, each) for kind, each in asked]
        assert _answers(one, runner, len(asked), name) == expected, name


def test_bytes_above_127_are_bytes_like_others(load_text: Load, runner: HookRunner) -> None:
    one = load_text(
        _hooks_of_tests(
            [
                'fb_name_is(ctx, "ä")',
                'fb_name_glob(ctx, "??")',
                'fb_name_glob(ctx, "*ä")',
                'fb_name_ends(ctx, "ö")',
            ]
        )
    )

    assert _answers(one, runner, 4, "ä") == [True, True, True, False]
    assert _answers(one, runner, 4, "xö") == [False, False, False, True]
    assert _answers(one, runner, 4, "\udcff\udcfe") == [False, True, False, False]


def test_a_key_in_place_finds_what_the_loader_put_into_a_map(load_text: Load, runner: HookRunner) -> None:
    one = load_text(
        HEAD + "BPF_HASH(f__names, struct fb_name, u32);\nBPF_HASH(f__keys, struct fb_key, u32);\n"
        "PRE(f, mkdir) { return f__names.lookup(&ctx->name) ? -EPERM "
        ": f__keys.lookup(&ctx->key) ? -EROFS : 0; }\n"
    )
    one.set("names", "a,b c,d\\,e")
    one.set("keys", "mkdir:7:k")

    errors = {
        name: runner.run(one, "pre", "mkdir", name=name, uid=7).error
        for name in ("a", "b c", "d,e", "d", "k", "l")
    }

    assert errors == {
        "a": "FB_EPERM",
        "b c": "FB_EPERM",
        "d,e": "FB_EPERM",
        "d": "FB_OK",
        "k": "FB_EROFS",
        "l": "FB_OK",
    }
    assert runner.run(one, "pre", "mkdir", name="k", uid=8).error == "FB_OK"


def test_a_verdict_its_flags_and_its_edits_are_in_the_record(load_text: Load, runner: HookRunner) -> None:
    one = load_text(
        HEAD
        + "PRE(f, lookup) { ctx->edits |= FB_EDIT_TTL; ctx->ttl_ns = 5; return FB_BACKING | FB_REWRITE; }\n"
        "PRE(f, open) { return -EOPNOTSUPP; }\nPRE(f, read) { ctx->error = FB_EIO; return FB_REPLY; }\n"
        "PRE(f, write) { return FB_DAEMON | FB_NOPOST; }\n"
    )

    lookup = runner.run(one, "pre", "lookup", name="a")
    assert lookup[:4] == ("FB_BACKING", "FB_OK", 0x100, 1 << 16)
    assert lookup.slot["ttl_ns"] == 5
    assert runner.run(one, "pre", "open")[:2] == ("FB_REPLY", "FB_ENOTSUP")
    assert runner.run(one, "pre", "read")[:2] == ("FB_REPLY", "FB_EIO")
    assert runner.run(one, "pre", "write")[:3] == ("FB_DAEMON", "FB_OK", 0x200)


def test_a_hook_that_emits_by_itself_leaves_as_many_records_as_it_emits(
    load_text: Load, runner: HookRunner
) -> None:
    one = load_text(
        HEAD + "PRE(f, lookup) { return FB_CONTINUE; }\nint f__pre__open(void *none) { return 0; }\n"
        "int f__pre__read(void *none)\n{\n\tstruct fb_hook *hook = fb_hook_here();\n"
        "\tstruct fb_slot *ctx = hook ? fb_slot_of(hook) : 0;\n"
        "\tif (ctx) {\n\t\tfb_emit(hook, ctx, 0);\n\t\tfb_emit(hook, ctx, -1);\n\t}\n\treturn 0;\n}\n"
    )

    assert {hook.opcode for hook in one.hooks} == {OPCODES[op] for op in ("lookup", "open", "read")}
    assert [runner.run(one, "pre", op).records for op in ("lookup", "open", "read")] == [1, 0, 2]
