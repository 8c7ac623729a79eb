"""Good sources: what is loaded, what it is called, what is pinned, what bpftool shows of it."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import loader_support
import pytest
import support
from loader_support import HEAD, OPCODES, HookRunner

from fusebpf import _core, bpf, compiler, loader
from fusebpf.errors import FilterError, MountError
from fusebpf.loader import Compiled, Filter, SharedMaps

HOOK = "PRE(f, lookup) { return FB_CONTINUE; }\n"
_DIRENT = OPCODES["dirent"]
_HOOKABLE = {opcode for _, opcode, _, _, kind, _ in _core.OPS if kind == "hook" and opcode != _DIRENT}
_WITH_FILE_NAMES = {
    OPCODES[op]
    for op in ("lookup", "symlink", "mknod", "mkdir", "unlink", "rmdir", "rename", "link", "create")
}


@pytest.fixture
def filters(stock: Compiled, shared: SharedMaps) -> Iterator[dict[str, Filter]]:
    """The stock filters, loaded."""
    loaded = loader.load(stock, shared)
    yield {each.name: each for each in loaded}
    for each in loaded:
        each.close()


def test_filters_are_loaded_in_the_order_of_their_file(filters: dict[str, Filter]) -> None:
    assert list(filters) == list(loader_support.STOCK)


def test_a_stock_filters_file_is_called_like_it() -> None:
    assert set(loader_support.STOCK) <= set(loader.stock_names())
    assert [n for n in loader.stock_names() if f"FILTER({n}," not in loader.stock(n).read_text()] == []


def test_a_filter_says_its_altitude_wants_and_doc(filters: dict[str, Filter]) -> None:
    assert [filters[name].altitude for name in ("hide", "readonly", "deny", "audit")] == [710, 720, 700, 900]
    assert [filters[name].wants for name in ("hide", "readonly", "deny", "audit")] == [0, 1, 5, 0]
    assert filters["hide"].doc.startswith("Hides the names and globs in its map `names`")


def test_only_the_named_filters_are_loaded(stock: Compiled, shared: SharedMaps) -> None:
    loaded = loader.load(stock, shared, names=["deny", "hide", "deny"])

    assert [each.name for each in loaded] == ["deny", "hide"]
    for each in loaded:
        each.close()


def test_a_name_that_the_file_does_not_declare_is_refused_with_a_list(
    stock: Compiled, shared: SharedMaps
) -> None:
    with pytest.raises(
        FilterError, match="declares no filter 'hid'; it declares: hide, readonly, deny, audit"
    ):
        loader.load(stock, shared, names=["hide", "hid"])


def test_any_hooks_every_op_but_dirent(filters: dict[str, Filter]) -> None:
    by_phase = {
        phase: {hook.opcode for hook in filters["audit"].hooks if hook.phase == phase} for phase in (0, 1)
    }

    assert by_phase == {0: _HOOKABLE, 1: _HOOKABLE}


def test_name_hooks_the_ops_with_file_names(load_text: Callable[[str], Filter]) -> None:
    text = "PRE(f, name) { return 0; }\nPOST(f, name) { return 0; }\nPOST(f, dirent) { return 0; }\n"
    hooks = load_text(HEAD + text).hooks

    assert {hook.opcode for hook in hooks if hook.phase == 0} == _WITH_FILE_NAMES
    assert {hook.opcode for hook in hooks if hook.phase == 1} == {*_WITH_FILE_NAMES, _DIRENT}


def test_an_op_beats_name_and_name_beats_any(load_text: Callable[[str], Filter]) -> None:
    one = load_text(
        HEAD + "PRE(f, any) { return -1; }\nPRE(f, lookup) { return -2; }\nPRE(f, name) { return -3; }\n"
    )
    by_opcode = {hook.opcode: hook.program.pin_name for hook in one.hooks}

    assert by_opcode[OPCODES["lookup"]] == "pre_lookup"
    assert by_opcode[OPCODES["mkdir"]] == "pre_name"
    assert by_opcode[OPCODES["getxattr"]] == "pre_any"
    assert set(by_opcode) == _HOOKABLE


@pytest.mark.alone
def test_the_same_code_is_verified_once_and_pinned_under_each_name(
    filters: dict[str, Filter], pins: Path
) -> None:
    readonly = filters["readonly"]

    readonly.pin(pins)

    assert len(readonly.programs) == 16
    assert len({each.fd for each in readonly.programs}) == 1
    ids = {json.loads(support.run("bpftool", "-j", "prog", "show", "pinned", pins / name).stdout)["id"]
           for name in ("pre_open", "pre_unlink")}  # fmt: skip
    assert len(ids) == 1
    assert {path.name for path in pins.iterdir()} == {"paths", *(each.pin_name for each in readonly.programs)}


@pytest.mark.alone
def test_programs_are_called_in_the_kernel_as_in_the_source(filters: dict[str, Filter]) -> None:
    names = {each.name: _program_name(each.fd) for one in filters.values() for each in one.programs}

    assert names["hide__pre__name"] == "hide_pre_name"
    assert names["deny__pre__any"] == "deny_pre_any"
    assert names["hide__post__dirent"] == "hide_post_diren"
    assert names["readonly__pre__mkdir"] == "readonly_pre"
    assert names["audit__pre__any"] == names["audit__post__any"] == "audit"


def test_bpftool_prints_names_of_the_maps_types(
    filters: dict[str, Filter], shared: SharedMaps, runner: HookRunner, pins: Path
) -> None:
    shared.describe_chain([(0, "hide", 710, 0), (3, "audit", 900, 5)])
    runner.run(filters["audit"], "pre", "lookup", name="x")
    shared.pin(pins)
    filters["deny"].set("rules", "unlink:1000:*:EACCES")
    filters["deny"].pin(pins / "deny")

    stats = {tuple(row["key"].values()): row["value"]["count"] for row in _dump(pins / "stats")}
    assert stats[3, "FB_PRE", "FB_OP_lookup", "FB_CONTINUE"] >= 1
    described = [row["value"] for row in _dump(pins / "filters")]
    assert described[0] == {"name": "hide", "altitude": 710, "wants": 0}
    assert described[3] == {"name": "audit", "altitude": 900, "wants": 5}
    assert described[1]["altitude"] == described[31]["altitude"] == 0
    assert {"route": "FB_ROUTE_BACKING", "error": "FB_OK"}.items() <= _dump(pins / "recent")[0][
        "value"
    ].items()
    (rule,) = _dump(pins / "deny" / "rules")
    assert rule["key"] == {"op": "FB_OP_unlink", "uid": 1000, "name": {"text": ""}}
    assert rule["value"] == {"error": "FB_EACCES"}


def test_the_shared_maps_have_the_sizes_of_the_abi(shared: SharedMaps) -> None:
    sizes = _core.SIZES
    infos = {name: bpf.map_info(getattr(shared, name)) for name in ("slots", "stats", "recent", "filters")}

    assert (infos["slots"].max_entries, infos["slots"].value_size) == (sizes["n_slots"], sizes["slot"])
    assert (infos["recent"].max_entries, infos["recent"].value_size) == (sizes["n_recent"], sizes["record"])
    assert (infos["filters"].max_entries, infos["filters"].value_size) == (
        sizes["max_filters"],
        sizes["filter_info"],
    )
    stats = infos["stats"]
    assert (stats.max_entries, stats.key_size, stats.value_size) == (
        sizes["n_stats"],
        sizes["stat_key"],
        sizes["stat"],
    )
    assert all(infos[name].flags & bpf.F_MMAPABLE for name in ("slots", "recent"))
    assert len(shared.rings) == bpf.map_info(shared.rings_map).max_entries == 2


def test_shared_maps_can_be_made_without_any_filter() -> None:
    with SharedMaps.create(64) as made:
        assert len(set(made.rings)) == 64


def test_a_map_of_no_filter_belongs_to_those_that_use_it(tmp_path: Path, shared: SharedMaps) -> None:
    source = (
        "FILTER(a, .altitude = 1)\nFILTER(b, .altitude = 2)\nFILTER(c, .altitude = 3)\n"
        "BPF_HASH(common, u32, u64, 4);\n"
        "PRE(a, lookup) { return common.lookup(&ctx->uid) ? -1 : 0; }\n"
        "PRE(b, mkdir) { return common.lookup(&ctx->uid) ? -2 : 0; }\nPRE(c, mkdir) { return 0; }\n"
    )
    a, b, c = loader.load(loader_support.write(tmp_path, source), shared)

    a.set("common", "7=9")

    assert (list(a.maps), list(b.maps), list(c.maps)) == (["common"], ["common"], [])
    a.close()
    assert list(b.maps["common"].items()) == [(7, 9)]
    b.close()
    c.close()


def test_filters_of_one_file_stay_usable_when_another_is_closed(
    stock: Compiled, shared: SharedMaps, runner: HookRunner
) -> None:
    hide, audit = loader.load(stock, shared, names=["hide", "audit"])

    audit.close()
    audit.close()

    assert runner.run(hide, "pre", "lookup", name="x").verdict == "FB_CONTINUE"
    hide.close()


def test_a_header_of_ones_own_is_found_beside_the_file(tmp_path: Path, shared: SharedMaps) -> None:
    (tmp_path / "own.h").write_text("#define ANSWER FB_NEGATIVE\n")
    path = loader_support.write(tmp_path, HEAD + '#include "own.h"\nPRE(f, lookup) { return ANSWER; }\n')

    (one,) = loader.load(path, shared)

    assert one.path == str(path)
    one.close()


def test_a_doc_of_239_bytes_is_whole(load_text: Callable[[str], Filter]) -> None:
    doc = "x" * 239

    assert load_text(f'FILTER(f, .altitude = 999, .doc = "{doc}")\nPRE(f, any) {{ return 0; }}\n').doc == doc


def test_check_says_what_is_in_a_file(stock: Compiled) -> None:
    hide, readonly, deny, audit = loader.check(stock.path)

    hooks = ("POST(hide, dirent)", "PRE(hide, name)")
    assert (hide.name, hide.hooks, hide.n_programs) == ("hide", hooks, 2)
    assert readonly.n_programs == audit.n_programs == 1
    assert hide.maps["names"] == "list of names or patterns"
    assert set(hide.maps) == {"names", "ttl"}
    assert deny.maps == {"rules": "hash of op:uid:name:error"}


def test_a_pin_that_is_in_the_way_leaves_no_other(
    filters: dict[str, Filter], shared: SharedMaps, pins: Path
) -> None:
    shared.pin(pins)
    (pins / "hide").mkdir()
    bpf.obj_pin(shared.stats, pins / "hide" / "pre_name")

    with pytest.raises(MountError, match=r"cannot pin .*/hide/pre_name'.*File exists"):
        filters["hide"].pin(pins / "hide")
    with pytest.raises(MountError, match=r"cannot pin .*/slots'.*File exists"):
        shared.pin(pins)

    assert [path.name for path in (pins / "hide").iterdir()] == ["pre_name"]
    assert {path.name for path in pins.iterdir()} == {"hide", "slots", "stats", "recent", "filters"}


def test_pins_are_not_made_outside_the_bpf_file_system(filters: dict[str, Filter], tmp_path: Path) -> None:
    with pytest.raises(MountError, match="must be a BPF file system"):
        filters["hide"].pin(tmp_path / "a" / "b")

    assert list(tmp_path.iterdir()) == []


def test_a_compile_is_plain_data(stock: Compiled) -> None:
    assert isinstance(stock, compiler.Compiled)
    assert stock.functions["hide__pre__name"].uses[0] == (5, "fb_hooks")
    assert stock.warnings == ""
    assert not any("libbcc" in line for line in Path("/proc/self/maps").read_text().splitlines())


def _program_name(fd: int) -> str:
    info = dict(line.split(":\t", 1) for line in Path(f"/proc/self/fdinfo/{fd}").read_text().splitlines())
    shown = json.loads(support.run("bpftool", "-j", "prog", "show", "id", info["prog_id"]).stdout)
    return str(shown["name"])


def _dump(path: Path) -> list[dict[str, dict[str, Any]]]:
    return [
        row["formatted"]
        for row in json.loads(support.run("bpftool", "-j", "map", "dump", "pinned", path).stdout)
    ]


def test_what_a_filter_includes_is_sought_beside_it_and_not_where_the_command_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("beside", "here"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "who.h").write_text(f'#define WHO "{name}"\n')
    source = loader_support.write(
        tmp_path / "beside", '#include "who.h"\n' + HEAD.replace("5)", "5, .doc = WHO)") + HOOK
    )
    monkeypatch.chdir(tmp_path / "here")

    assert loader.compile_source(source).filters["f"].doc == "beside"


def test_a_byte_order_mark_is_not_part_of_a_filter(tmp_path: Path) -> None:
    source = loader_support.write(tmp_path, "\ufeff" + HEAD + HOOK)

    assert list(loader.compile_source(source).filters) == ["f"]
