"""What the compiler made is kept, and used again only while everything that it was made of is the same."""

import os
import shutil
from pathlib import Path
from typing import NoReturn

import pytest

from fusebpf import compile_cache, compiler
from fusebpf.paths import bpf_dir

SOURCE = """#include "fusebpf.h"
FILTER(kept, .altitude = 300, .doc = "{doc}")
PRE(kept, lookup) {{ return FB_CONTINUE; }}
"""


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    directory = tmp_path / "cache"
    monkeypatch.setattr(compile_cache, "DIRECTORY", directory)
    return directory


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "kept.c"
    path.write_text(SOURCE.format(doc="first"))
    return path


def no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> NoReturn:
        raise AssertionError("it was compiled")

    monkeypatch.setattr(compiler, "_run_child", refuse)


def test_the_same_text_is_compiled_once(cache: Path, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = compiler.compile_source(source)
    assert len(list(cache.iterdir())) == 1
    assert cache.stat().st_mode & 0o777 == 0o700

    no_compiler(monkeypatch)
    again = compiler.compile_source(source)

    assert (again.functions, again.maps, again.btf) == (first.functions, first.maps, first.btf)
    assert again.filters == first.filters


def test_a_changed_text_is_compiled_anew(cache: Path, source: Path) -> None:
    compiler.compile_source(source)
    source.write_text(SOURCE.format(doc="second"))

    assert compiler.compile_source(source).filters["kept"].doc == "second"
    assert len(list(cache.iterdir())) == 2


@pytest.mark.parametrize("header", ["fusebpf.h", "fusebpf_filter.h", "fusebpf_ops.h"])
def test_another_abi_is_compiled_anew(
    cache: Path, source: Path, header: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A newer version may number its ops otherwise; what was compiled for the older one would hook others."""
    compiler.compile_source(source)
    ours = tmp_path / "bpf"
    shutil.copytree(bpf_dir(), ours)
    with (ours / header).open("a") as file:
        file.write("/* another */\n")
    monkeypatch.setattr(compiler, "bpf_dir", lambda: ours)

    compiler.compile_source(source)

    assert len(list(cache.iterdir())) == 2


@pytest.mark.parametrize("damage", ["cut", "changed", "writable"])
def test_a_kept_form_that_cannot_be_trusted_is_not_used(cache: Path, source: Path, damage: str) -> None:
    compiler.compile_source(source)
    (kept,) = cache.iterdir()
    if damage == "writable":
        kept.chmod(0o666)
    else:
        content = kept.read_bytes()
        kept.write_bytes(content[:100] if damage == "cut" else content[:-1] + b"x")

    assert compiler.compile_source(source).filters["kept"].doc == "first"


@pytest.mark.parametrize(
    "include", ['#include "mine.h"', "#include <mine.h>", '/* ours */ # include "mine.h"']
)
def test_a_text_that_includes_others_is_not_kept(cache: Path, source: Path, include: str) -> None:
    (source.parent / "mine.h").write_text("#define MINE FB_CONTINUE\n")
    source.write_text(f"{include}\n" + SOURCE.format(doc="first").replace("FB_CONTINUE", "MINE"))
    compiler.compile_source(source)

    (source.parent / "mine.h").write_text("#define MINE FB_NEGATIVE\n")
    changed = compiler.compile_source(source)

    assert not cache.exists()
    assert changed.functions["kept__pre__lookup"].code


def test_a_cache_that_cannot_be_written_is_in_nobodys_way(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setattr(compile_cache, "DIRECTORY", tmp_path / "file" / "cache")

    assert compiler.compile_source(source).filters["kept"].doc == "first"


def test_the_forms_that_were_used_longest_ago_go_first(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compile_cache, "MAX_KEPT", 2)
    for name in "abc":
        compile_cache.save(name * 64, b"data")

    assert sorted(path.name[0] for path in cache.iterdir()) in (["b", "c"], ["a", "c"])
    assert compile_cache.load("c" * 64) == b"data"


def test_what_is_no_file_is_passed_over(cache: Path, source: Path) -> None:
    """A FIFO would make the mount wait for a writer."""
    compiler.compile_source(source)
    (kept,) = cache.iterdir()
    kept.unlink()
    os.mkfifo(kept)

    assert "kept" in compiler.compile_source(source).filters
