"""attach, detach, replace and filters: what they do to a mount that works, and what they refuse."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import support
from cli_support import assert_refused
from live.live_support import chain_of, fusebpf, gatekeeper, may_mkdir, names_of, start


def test_a_filter_works_from_the_attach_to_the_detach(mount: support.Mounter) -> None:
    mounted = mount()
    for name in ("plain", "secret.key"):
        (mounted.src / name).touch()
    assert sorted(path.name for path in mounted.path.iterdir()) == ["plain", "secret.key"]

    done = fusebpf("attach", mounted.path, "hide", "--set", "hide.names=*.key")

    assert (done.stdout, done.stderr) == ("", "")
    assert [path.name for path in mounted.path.iterdir()] == ["plain"]
    assert not (mounted.path / "secret.key").exists()
    assert (mounted.pins / "hide" / "names").exists()
    assert mounted.stats()["hide", "FB_POST", "FB_OP_dirent", "FB_DROP"] == 1

    done = fusebpf("detach", mounted.name, "hide")

    assert (done.stdout, done.stderr) == ("", "")
    assert (mounted.path / "secret.key").exists()
    assert not (mounted.pins / "hide").exists()
    assert mounted.dump("stats") == []
    assert names_of(mounted) == []


def test_filters_shows_the_chain_and_its_revisions(mount: support.Mounter) -> None:
    mounted = mount(filters=["hide"])
    fusebpf("attach", mounted.name, "audit")

    shown = fusebpf("filters", mounted.path).stdout.splitlines()
    assert max(map(len, shown)) < 160
    told = chain_of(mounted)

    assert shown[0] == "revision 2"
    assert shown[1].split() == ["name", "altitude", "revision", "hooks", "doc"]
    assert [line.split()[:3] for line in shown[2:]] == [["audit", "900", "2"], ["hide", "710", "1"]]
    assert "post_dirent" in shown[3]
    assert "absent" in shown[3]
    assert told["revision"] == 2
    assert [(one["name"], one["revision"], one["maps"]) for one in told["filters"]] == [
        ("audit", 2, []),
        ("hide", 1, ["names", "ttl"]),
    ]
    assert "audit@900 hide@710" in fusebpf("list").stdout


def test_places_are_given_by_number_or_beside_another(mount: support.Mounter) -> None:
    mounted = mount(filters=["hide@500"])
    fusebpf("attach", mounted.name, "audit@above:hide", "deny@below:hide")
    fusebpf("attach", mounted.name, "readonly@below:audit")

    assert names_of(mounted) == ["audit@501", "hide@500", "deny@499", "readonly@498"]


def test_a_mount_takes_places_beside_another_too(mount: support.Mounter) -> None:
    assert names_of(mount(filters=["audit@above:hide", "hide"])) == ["audit@711", "hide@710"]


@pytest.fixture(scope="module")
def hidden(run_directory: Path) -> Iterator[support.Mounted]:
    """A mount with hide and audit, whose chain stays as it is."""
    directory = run_directory / "refusals"
    directory.mkdir(mode=0o755)
    mounter = support.Mounter(directory, "refusals-")
    mounted = mounter(filters=["hide", "audit"])
    yield mounted
    assert mounter.take_down() == []


@pytest.mark.parametrize(
    ("words", "exit_code", "parts"),
    [
        (["attach", "readonly@710"], 1, ["'hide' and 'readonly'", "710", "709 and 711"]),
        (
            ["attach", "hide@5"],
            1,
            ["'hide' is in the chain already", "`fusebpf replace ", "`fusebpf detach "],
        ),
        (["attach", "nosuch"], 2, ["no stock filter 'nosuch'"]),
        (["attach", "./nosuch.c"], 1, ["nosuch.c", "no such file"]),
        (["attach", "deny@1000"], 2, ["'1000' is not a number"]),
        (["attach", "deny@above:nobody"], 1, ["above 'nobody'", "audit, hide"]),
        (["attach", "deny", "--set", "hide.names=x"], 2, ["'hide' is in the chain", " hide names set …`"]),
        (["attach", "deny", "--set", "hid.names=x"], 2, ["no filter of this attach (its filters are: deny)"]),
        (["attach", "deny", "--set", "deny.rules=x"], 2, ["deny.rules", "'x' has 1 field"]),
        (["attach", "deny", "--revision", "7"], 1, ["revision 1", "saw 7"]),
        (["attach"], 2, ["FILTER"]),
        (["detach", "nobody"], 2, ["'nobody' is no filter", "audit@900, hide@710"]),
        (["detach", "hide", "--revision", "0"], 1, ["revision 1", "saw 0"]),
        (["replace", "nobody", "hide"], 2, ["'nobody' is no filter"]),
        (["replace", "hide", "hide@900"], 1, ["'audit' and 'hide'", "900"]),
        (["replace", "hide", "hide", "--revision", "2"], 1, ["revision 1", "saw 2"]),
        (["replace", "hide", "hide", "--open-files", "perhaps"], 2, ["perhaps"]),
    ],
    ids=lambda words: "-".join(words) if isinstance(words, list) else "",
)
def test_what_does_not_fit_changes_nothing(
    hidden: support.Mounted, words: list[str], exit_code: int, parts: list[str]
) -> None:
    command, *rest = words

    done = fusebpf(command, hidden.name, *rest, check=False)

    assert_refused(done, exit_code, *parts)
    assert (chain_of(hidden)["revision"], names_of(hidden)) == (1, ["audit@900", "hide@710"])
    assert sorted(path.name for path in hidden.pins.iterdir()) == [
        *("audit", "filters", "hide", "recent", "slots", "stats")
    ]


def test_a_target_that_is_no_mount_is_named(tmp_path: Path) -> None:
    for words in (["filters", "nosuch"], ["attach", tmp_path, "hide"], ["detach", tmp_path / "no", "hide"]):
        done = fusebpf(*words, check=False)
        assert_refused(done, 1, str(words[1]), "fusebpf list")


def test_a_filter_that_does_not_compile_or_verify_changes_nothing(
    mount: support.Mounter, directory: Path
) -> None:
    mounted = mount()
    bad = directory / "bad.c"
    bad.write_text('#include "fusebpf.h"\nFILTER(bad, .altitude = 5)\nPRE(bad, mkdir) { return nothing; }\n')

    done = fusebpf("attach", mounted.name, bad, check=False)

    assert_refused(done, 1, f"{bad}:3", "'nothing'", n_lines=None)
    assert chain_of(mounted) == {"revision": 0, "filters": []}
    assert not mounted.pins.exists()


def test_a_filter_that_needs_a_daemon_is_refused_as_at_mount(mount: support.Mounter, directory: Path) -> None:
    mounted = mount()
    path = gatekeeper(directory)
    path.write_text(path.read_text().replace(".doc", ".wants = FB_WANTS_DAEMON, .doc"))

    assert_refused(fusebpf("attach", mounted.name, path, check=False), 1, "'keeper'", "daemon")


def test_a_chain_holds_32_filters_and_no_more(mount: support.Mounter, directory: Path) -> None:
    mounted = mount()
    text = '#include "fusebpf.h"\n' + "".join(
        f"FILTER(f{number}, .altitude = {100 + number})\nPRE(f{number}, mkdir) {{ return FB_CONTINUE; }}\n"
        for number in range(32)
    )
    many = directory / "many.c"
    many.write_text(text)

    fusebpf("attach", mounted.name, many)

    assert len(names_of(mounted)) == 32
    assert may_mkdir(mounted.path / "made")
    done = fusebpf("attach", mounted.name, "hide", check=False)
    assert_refused(done, 1, "33 filters are too many: a chain holds at most 32")
    # A full chain can still be changed one for one.
    fusebpf("replace", mounted.name, "f7", f"{many}:f7")
    fusebpf("detach", mounted.name, "f8")
    fusebpf("attach", mounted.name, "hide")
    assert len(names_of(mounted)) == 32


def count_of(mounted: support.Mounted, name: str = "keeper") -> int:
    """How often the gatekeeper was asked."""
    row = mounted.dump(f"{name}/count")[0]
    return int(row.get("formatted", row)["value"])


def test_a_replacement_keeps_place_name_and_maps(mount: support.Mounter, directory: Path) -> None:
    mounted = mount(filters=[f"{gatekeeper(directory)}@321"])
    assert not may_mkdir(mounted.path / "made")

    done = fusebpf(
        "replace", mounted.name, "keeper", gatekeeper(directory, verdict="FB_CONTINUE", file="two")
    )

    assert done.stderr == ""
    assert names_of(mounted) == ["keeper@321"]
    assert may_mkdir(mounted.path / "made")
    assert count_of(mounted) == 2
    assert sorted(path.name for path in (mounted.pins / "keeper").iterdir()) == ["count", "pre_mkdir", "seen"]
    assert not (mounted.pins / "keeper-new").exists()

    fusebpf("replace", mounted.name, "keeper", f"{gatekeeper(directory)}@322", "--fresh-maps")

    assert names_of(mounted) == ["keeper@322"]
    assert count_of(mounted) == 0


def test_a_map_of_another_size_takes_the_content_over(mount: support.Mounter, directory: Path) -> None:
    mounted = mount(filters=[gatekeeper(directory)])
    assert not may_mkdir(mounted.path / "made")

    done = fusebpf("replace", mounted.name, "keeper", gatekeeper(directory, size=5))

    assert done.stderr == ""
    assert [row["formatted"]["value"] for row in mounted.dump("keeper/count")] == [1, 0, 0, 0, 0]


def test_an_array_that_would_lose_what_is_in_it_is_refused(mount: support.Mounter, directory: Path) -> None:
    mounted = mount(filters=[gatekeeper(directory, size=5)], sets={"keeper.count": "1,2,3,0,0"})
    three, two = (gatekeeper(directory, size=size, file=f"with{size}") for size in (3, 2))

    done = fusebpf("replace", mounted.name, "keeper", two, check=False)
    left = [row["formatted"]["value"] for row in mounted.dump("keeper/count")]
    fusebpf("replace", mounted.name, "keeper", three)

    assert_refused(done, 2, "the map 'count' holds 2 elements now, and had more", "fresh maps")
    assert left == [1, 2, 3, 0, 0]
    assert [row["formatted"]["value"] for row in mounted.dump("keeper/count")] == [1, 2, 3]


def test_a_map_of_another_type_is_fresh_and_is_told_of(mount: support.Mounter, directory: Path) -> None:
    mounted = mount(filters=[gatekeeper(directory)])
    other = gatekeeper(directory, file="other")
    other.write_text(other.read_text().replace("__seen, u32, u64", "__seen, u32, s64"))

    done = fusebpf("replace", mounted.name, "keeper", other)

    assert "these maps took nothing over: seen\n" in done.stderr


def test_a_map_that_is_set_is_not_told_of(mount: support.Mounter, directory: Path) -> None:
    mounted = mount(filters=[gatekeeper(directory)])

    done = fusebpf("replace", mounted.name, "keeper", gatekeeper(directory), "--set", "keeper.count=7")

    assert done.stderr == ""
    assert count_of(mounted) == 7


def test_a_filter_of_another_name_may_take_the_place(mount: support.Mounter, directory: Path) -> None:
    mounted = mount(filters=[f"{gatekeeper(directory)}@321"])
    assert not may_mkdir(mounted.path / "made")
    other = gatekeeper(directory, "other", verdict="-EDQUOT")

    fusebpf("replace", mounted.name, "keeper", other)

    assert names_of(mounted) == ["other@321"]
    assert "quota" in support.run("mkdir", mounted.path / "made", check=False).stderr.lower()
    assert count_of(mounted, "other") == 2
    assert not (mounted.pins / "keeper").exists()
    assert {key[0] for key in mounted.stats()} == {"other"}


def test_a_set_map_of_a_replacement_begins_anew(mount: support.Mounter) -> None:
    mounted = mount(filters=["hide"], sets={"hide.names": "*.key"})
    (mounted.src / "a.key").touch()
    (mounted.src / "a.pem").touch()

    fusebpf("replace", mounted.name, "hide", "hide", "--set", "hide.names=*.pem")

    assert [path.name for path in mounted.path.iterdir()] == ["a.key"]


def test_a_change_by_another_is_noticed(mount: support.Mounter) -> None:
    mounted = mount(filters=["audit"])
    seen = str(chain_of(mounted)["revision"])
    fusebpf("attach", mounted.name, "deny", "--revision", seen)

    done = fusebpf("detach", mounted.name, "audit", "--revision", seen, check=False)

    assert_refused(done, 1, "revision 2", "saw 1", "fusebpf filters")
    assert names_of(mounted) == ["audit@900", "deny@700"]


def test_the_registry_knows_the_chain_and_a_remount_compares_with_it(mount: support.Mounter) -> None:
    mounted = mount()
    fusebpf("attach", mounted.name, "hide")

    (row,) = [one for one in json.loads(fusebpf("list", "--json").stdout) if one["name"] == mounted.name]

    assert [one["name"] for one in row["filters"]] == ["hide"]


def test_an_op_that_waits_keeps_what_it_began_with(mount: support.Mounter, directory: Path) -> None:
    """Behind a lock that another holds: the detach says that an op still uses the filter, which ends well."""
    source = directory / "watcher.c"
    source.write_text(
        '#include "fusebpf.h"\nFILTER(watcher, .altitude = 5)\n'
        "PRE(watcher, flock) { return FB_CONTINUE; }\nPOST(watcher, flock) { return FB_CONTINUE; }\n"
    )
    mounted = mount(filters=[source])
    file = mounted.path / "file"
    file.touch()
    held = start("flock", file, "sh", "-c", "echo held; read line")
    assert held.stdout is not None
    assert held.stdout.readline() == "held\n"
    waits = start("flock", file, "echo", "got it")
    support.wait_until(lambda: mounted.stats().get(("watcher", "FB_PRE", "FB_OP_flock", "FB_CONTINUE")) == 2)

    done = fusebpf("detach", mounted.name, "watcher")

    assert "ops that began before it still use the old chain (1 in flight" in done.stderr
    assert names_of(mounted) == []
    held.communicate("\n", timeout=20)
    assert waits.communicate(timeout=20)[0] == "got it\n"
    fusebpf("attach", mounted.name, source)
    assert names_of(mounted) == ["watcher@5"]
