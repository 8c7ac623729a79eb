"""A hook that leaves no verdict, two, or one for something else: its op fails, and nothing else does."""

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import serving
import support
from chain.chained import HERE, Chained, chained, source
from core.table import attempt, in_child

WAYS = {
    1: "left no verdict",
    2: "more than one verdict",
    3: "for another request",
    4: "for another request",
    5: "for another request",
    6: "for another request",
    7: "for another request",
    8: "something else than a verdict",
    9: "something else than a verdict",
    10: "something else than a verdict",
    11: "something else than a verdict",
}


@pytest.fixture(scope="module")
def raw(run_directory: Path) -> Iterator[Chained]:
    with chained(run_directory, [HERE / "raw.c", "audit"]) as made:
        yield made


def n_broken(mount: Chained, phase: str) -> int:
    return mount.mounted.stats().get(("raw", f"FB_{phase.upper()}", "FB_OP_mkdir", "FB_BROKEN"), 0)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("phase", ["pre", "post"])
def test_what_is_no_verdict_fails_the_op_and_no_other(raw: Chained, phase: str, way: int) -> None:
    through, behind = raw.fresh()
    before, log = n_broken(raw, phase), len(raw.mounted.log)

    with raw.map("raw/way").put(["pre", "post"].index(phase), way):
        results = [in_child(attempt, os.mkdir, through / f"d{index}") for index in range(3)]
        other = in_child(attempt, os.symlink, "x", through / "link")

    assert results == ["EIO"] * 3
    assert other is None
    made = [name for name in os.listdir(behind) if name.startswith("d")]
    assert len(made) == (0 if phase == "pre" else 3)
    assert n_broken(raw, phase) == before + 3
    expected = f"filter raw: its {phase} hook on mkdir broke a rule"

    def is_logged() -> bool:  # the log is rate-limited: then it says so again
        with raw.map("raw/way").put(["pre", "post"].index(phase), way):
            in_child(attempt, os.mkdir, through / f"again{time.monotonic_ns()}")
        return expected in raw.mounted.log[log:] and WAYS[way] in raw.mounted.log[log:]

    support.wait_until(is_logged)
    assert in_child(attempt, os.mkdir, through / "after") is None


@pytest.mark.parametrize(
    "hook",
    [
        "POST(odd, mkdir) { return FB_REPLY; }",
        "POST(odd, dirent) { return FB_DROP | 0x400; }",
        "POST(odd, dirent) { return FB_DROP | FB_REWRITE; }",
        "POST(odd, dirent) { ctx->edits = FB_EDIT_SIZE; return FB_DROP | FB_REWRITE; }",
    ],
)
def test_a_verdict_that_its_hook_does_not_have_fails_the_op(
    directory: Path, mount: support.Mounter, hook: str
) -> None:
    mounted = mount(filters=[source(directory, f"FILTER(odd, .altitude = 500)\n{hook}\n")])
    (mounted.src / "there").touch()

    if "mkdir" in hook:
        assert in_child(attempt, os.mkdir, mounted.path / "d") == "EIO"
    else:
        assert in_child(attempt, os.listdir, mounted.path) == "EIO"
    support.wait_until(lambda: "filter odd: its post hook on" in mounted.log)


WILD = """
FILTER(wild, .altitude = 500)
PRE(wild, statfs)
{
	u32 i;

#pragma clang loop unroll(disable)
	for (i = 0; i < FB_N_PLACES; i++) {
		u32 place = i;
		struct fb_hook *hook = fb_hooks.lookup(&place);

		asm volatile("" : "+r"(i));
		if (hook)
			hook->thread = VALUE;
	}
	return FB_CONTINUE;
}
"""


@pytest.mark.parametrize("value", ["0", "0x7ffffff"])
def test_what_a_hook_writes_over_is_right_again_for_the_next_op(
    directory: Path, mount: support.Mounter, value: str
) -> None:
    wild = source(directory, f"#define VALUE {value}\n{WILD}")
    mounted = mount(filters=["hide", wild], sets={"hide.names": "secret"})

    for _ in range(20):
        in_child(attempt, os.statvfs, mounted.path)
        for name in ("a", "b"):
            in_child(attempt, os.stat, mounted.path / name)
    os.mkdir(mounted.path / "d")

    assert os.listdir(mounted.path) == ["d"]


def test_an_undeclared_daemon_fails_the_op(directory: Path, mount: support.Mounter) -> None:
    text = """
    FILTER(asks, .altitude = 500)
    PRE(asks, mkdir) { return FB_DAEMON; }
    POST(asks, symlink) { return FB_DAEMON; }
    """
    mounted = mount(filters=[source(directory, text)])

    assert in_child(attempt, os.mkdir, mounted.path / "d") == "EIO"
    assert in_child(attempt, os.symlink, "x", mounted.path / "link") == "EIO"

    assert os.listdir(mounted.src) == ["link"]
    support.wait_until(lambda: "FB_DAEMON, and the mount has no daemon" in mounted.log)


@pytest.mark.alone
def test_nothing_leaks_when_ops_fail_closed(directory: Path) -> None:
    text = """
    FILTER(broken, .altitude = 500)
    int broken__post__create(void *none) { return 0; }
    int broken__post__mkdir(void *none) { return 0; }
    int broken__post__open(void *none) { return 0; }
    int broken__post__opendir(void *none) { return 0; }
    """

    def work(p: Path) -> set[object]:
        found = set()
        for index in range(50):
            found.add(attempt(os.open, p / f"f{index}", os.O_CREAT | os.O_RDWR))
            found.add(attempt(os.mkdir, p / f"d{index}"))
            found.add(attempt(os.open, p / "f0", os.O_RDONLY))
            found.add(attempt(os.listdir, p))
        return found

    with serving.serve(directory, "closed", filters=[source(directory, text)]) as served:
        n_descriptors = served.n_descriptors()
        assert in_child(work, served.path) == {"EIO"}

        assert served.counters()["failed_closed"] == 200
        assert is_all_given_back(served)
        support.wait_until(lambda: served.n_descriptors() <= n_descriptors + served.counters()["workers"])


@pytest.mark.alone
@pytest.mark.parametrize("op", ["lookup", "create", "mkdir", "open", "opendir", "readdir", "symlink", "link"])
def test_nothing_leaks_when_a_post_hook_fails_an_op_that_succeeded(directory: Path, op: str) -> None:
    text = f"""
    FILTER(fails, .altitude = 500)
    BPF_ARRAY(fails__on, u32, 1);
    POST(fails, {op}) {{
        u32 zero = 0, *on = fails__on.lookup(&zero);
        return on && *on ? -EDQUOT : FB_CONTINUE;
    }}
    """

    def work(p: Path) -> object:
        calls = {
            "lookup": lambda: os.stat(p / "f1"),
            "create": lambda: os.open(p / "new", os.O_CREAT | os.O_RDWR),
            "mkdir": lambda: os.mkdir(p / "new"),
            "open": lambda: os.open(p / "f1", os.O_RDONLY),
            "opendir": lambda: os.listdir(p),
            "readdir": lambda: os.listdir(p),
            "symlink": lambda: os.symlink("x", p / "new"),
            "link": lambda: os.link(p / "f1", p / "new"),
        }
        return attempt(calls[op])

    (directory / "src").mkdir()
    for index in range(40):
        (directory / "src" / f"f{index}").write_text("x")
    with serving.serve(
        directory, "fails", filters=[source(directory, text)], sets={"fails.on": "1"}
    ) as served:
        assert in_child(work, served.path) == "EDQUOT"
        assert is_all_given_back(served)


def is_all_given_back(served: serving.Served) -> bool:
    """Whether only the root is left when the kernel has forgotten all."""

    def is_over() -> bool:
        Path("/proc/sys/vm/drop_caches").write_text("2")
        counters = served.counters()
        return (counters["inodes"], counters["handles"], counters["slots_in_use"]) == (1, 0, 0)

    return support.wait_until(is_over)
