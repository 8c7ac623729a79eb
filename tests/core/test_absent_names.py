"""`--cache watch`: a name that is not there is asked for once, until it comes; by whatever door it does."""

import errno
import os
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import serving
import support
from chain.chained import source
from core.watched import MODES, is_stopped, requests_of, settled, watched


def is_gone(path: Path) -> bool:
    return not path.exists()


def is_as(path: Path, other: Path) -> bool:
    return path.exists() == other.exists()


SMALL = "cache=watch,profile=small"


@pytest.mark.parametrize("options", [*MODES, SMALL])
def test_a_name_that_is_not_there_is_asked_for_once(directory: Path, options: str) -> None:
    (directory / "src" / "d").mkdir(parents=True)
    with watched(directory, options) as served:
        assert not (served.path / "d" / "absent").exists()
        before = settled(served)

        for _ in range(5):
            assert not (served.path / "d" / "absent").exists()

        assert requests_of(served) == before


@pytest.mark.parametrize("options", ["", "cache=none", "cache=watch,nodefault_permissions"])
def test_elsewhere_it_is_there_at_once(directory: Path, options: str) -> None:
    with watched(directory, options) as served:
        for number in range(20):
            assert not (served.path / f"f{number}").exists()
            (served.src / f"f{number}").touch()
            assert (served.path / f"f{number}").exists()


COMES: dict[str, Callable[[Path], object]] = {
    "touch": lambda path: path.touch(),
    "mkdir": lambda path: path.mkdir(),
    "mkfifo": os.mkfifo,
    "link": lambda path: path.hardlink_to(path.parent / "other"),
    "symlink": lambda path: path.symlink_to("other"),
    "rename": lambda path: (path.parent / "other").rename(path),
    "rename of a directory": lambda path: (path.parent / "dir").rename(path),
}


@pytest.mark.parametrize("how", COMES)
def test_it_is_seen_when_it_comes_behind(directory: Path, how: str) -> None:
    with watched(directory) as served:
        (served.src / "other").touch()
        (served.src / "dir").mkdir()
        assert not os.path.lexists(served.path / "new")

        COMES[how](served.src / "new")

        support.wait_until(lambda: os.path.lexists(served.path / "new"))


@pytest.mark.parametrize("how", COMES)
@pytest.mark.parametrize("options", ["cache=watch", SMALL])
def test_it_is_there_at_once_when_it_comes_through_the_mount(directory: Path, how: str, options: str) -> None:
    with watched(directory, options) as served:
        (served.src / "other").touch()
        (served.src / "dir").mkdir()
        for _ in range(2):
            assert not os.path.lexists(served.path / "new")

        COMES[how](served.path / "new")

        assert os.path.lexists(served.path / "new")


def test_it_comes_and_goes_and_comes(directory: Path) -> None:
    with watched(directory) as served:
        for number in range(50):
            here, there = served.path / "f", served.src / "f"
            if number % 2:
                here, there = there, here
            assert not here.exists()
            here.touch()
            support.wait_until(there.exists)
            there.unlink()
            support.wait_until(partial(is_gone, here))


def test_a_mount_of_the_backing_below_itself_is_told_of_its_own_names(directory: Path) -> None:
    """One directory has two names there, so what the mount changes under one is a change behind the other."""
    (directory / "src" / "a").mkdir(parents=True)
    (directory / "src" / "b").mkdir()
    support.run("mount", "--bind", directory / "src" / "a", directory / "src" / "b")
    try:
        with watched(directory) as served:
            assert not (served.path / "a" / "f").exists()
            assert not (served.path / "b" / "f").exists()

            (served.path / "a" / "f").touch()

            support.wait_until((served.path / "b" / "f").exists)
    finally:
        support.umount(directory / "src" / "b", 0)


def test_after_an_overflow_it_is_asked_for_anew(directory: Path) -> None:
    most = int(Path("/proc/sys/fs/fanotify/max_queued_events").read_text())
    with watched(directory) as served:
        (served.src / "d").mkdir()
        assert not (served.path / "late").exists()
        assert not (served.path / "d" / "0").exists()
        os.kill(served.pid, signal.SIGSTOP)
        try:
            support.wait_until(lambda: is_stopped(served.pid))
            for number in range(most):
                (served.src / "d" / str(number)).touch()
                (served.src / "d" / str(number)).unlink()
            (served.src / "late").touch()
        finally:
            os.kill(served.pid, signal.SIGCONT)

        support.wait_until(lambda: served.counters()["watch_overflows"] > 0)
        support.wait_until((served.path / "late").exists)


def test_more_names_than_are_kept_in_mind_are_seen_when_they_come(directory: Path) -> None:
    with watched(directory) as served:
        names = [f"n{number}" for number in range(66000)]
        for name in names:
            assert not os.access(served.path / name, os.F_OK)

        for name in (names[0], names[-1]):
            (served.src / name).touch()
            support.wait_until((served.path / name).exists)


# ------------------------------------------------------------------------------- with filters

LEADS = """
FILTER(leads, .altitude = 500)

PRE(leads, name)
{
	if (ctx->op == FB_OP_lookup || !fb_name_is(ctx, "asked"))
		return FB_CONTINUE;
	__builtin_memcpy(ctx->name.text, "used", 5);
	ctx->name_len = 4;
	ctx->edits = FB_EDIT_NAME;
	return FB_REWRITE;
}
"""
MAKES = {name: COMES[name] for name in ("touch", "mkdir", "mkfifo", "link", "symlink")}


@pytest.mark.parametrize("how", MAKES)
def test_a_name_that_a_filter_makes_in_its_place_is_there(directory: Path, how: str) -> None:
    filters = [source(directory, LEADS, "leads")]
    with serving.serve(directory, "leads", filters=filters, options="cache=watch") as served:
        (served.src / "other").touch()
        assert not os.path.lexists(served.path / "used")

        MAKES[how](served.path / "asked")

        support.wait_until(lambda: os.path.lexists(served.path / "used"))
        assert not os.path.lexists(served.path / "asked")


LATE = """
FILTER(late, .altitude = 500)

FB_ALWAYS_INLINE int late_refuse(struct fb_slot *ctx)
{
	return !ctx->error && ctx->op != FB_OP_lookup ? -EDQUOT : FB_CONTINUE;
}

POST(late, create) { return late_refuse(ctx); }
POST(late, mkdir) { return late_refuse(ctx); }
POST(late, mknod) { return late_refuse(ctx); }
POST(late, symlink) { return late_refuse(ctx); }
POST(late, link) { return late_refuse(ctx); }
POST(late, rename) { return late_refuse(ctx); }
POST(late, unlink) { return late_refuse(ctx); }
POST(late, rmdir) { return late_refuse(ctx); }
"""


@pytest.mark.parametrize("how", COMES)
def test_what_was_done_and_is_refused_afterwards_is_seen_as_it_is(directory: Path, how: str) -> None:
    """A post hook does not undo the op; the kernel, told that it failed, must not go on as if it had."""
    filters = [source(directory, LATE, "late")]
    with serving.serve(directory, "late", filters=filters, options="cache=watch") as served:
        (served.src / "other").touch()
        (served.src / "dir").mkdir()
        assert (served.path / "other").exists()
        assert (served.path / "dir").exists()
        assert not os.path.lexists(served.path / "new")

        with pytest.raises(OSError, match="quota") as refused:
            COMES[how](served.path / "new")

        assert refused.value.errno == errno.EDQUOT
        support.wait_until(lambda: os.path.lexists(served.path / "new"))
        for name in ("other", "dir"):
            support.wait_until(partial(is_as, served.path / name, served.src / name))


@pytest.mark.parametrize(("make", "remove"), [(Path.touch, Path.unlink), (Path.mkdir, Path.rmdir)])
def test_what_was_removed_and_is_refused_afterwards_is_gone(
    directory: Path, make: Callable[[Path], None], remove: Callable[[Path], None]
) -> None:
    filters = [source(directory, LATE, "late")]
    with serving.serve(directory, "late", filters=filters, options="cache=watch") as served:
        make(served.src / "x")
        assert (served.path / "x").exists()

        with pytest.raises(OSError, match="quota"):
            remove(served.path / "x")

        support.wait_until(lambda: not (served.path / "x").exists())
        assert "x" not in os.listdir(served.path)


def test_a_filter_that_comes_later_is_asked_for_it(mount: support.Mounter) -> None:
    mounted = mount(options="cache=watch")
    (mounted.src / "there").write_text("text")
    assert not (mounted.path / "absent").exists()

    support.run(support.COMMAND, "attach", mounted.name, "redirect", "--set", "redirect.names=absent:there")

    assert (mounted.path / "absent").read_text() == "text"


def test_hide_lets_it_be_kept_for_its_ttl(directory: Path) -> None:
    sets = {"hide.names": "*.key", "hide.ttl": "3600000"}
    with serving.serve(directory, "hides", filters=["hide"], sets=sets, options="cache=watch") as served:
        assert not (served.path / "absent").exists()
        before = settled(served)

        for _ in range(5):
            assert not (served.path / "absent").exists()

        assert requests_of(served) == before
        (served.src / "absent").touch()
        support.wait_until((served.path / "absent").exists)


def test_what_a_filter_alone_says_is_absent_is_not_kept(directory: Path) -> None:
    """Of a filter's own ENOENT nobody said for how long it holds, whatever one above it lets be kept."""
    text = """
    FILTER(above, .altitude = 600)
    FILTER(below, .altitude = 500)
    BPF_ARRAY(below__open, u32, 1);
    PRE(above, lookup)
    {
        ctx->ttl_ns = 3600000000000;
        ctx->edits = FB_EDIT_TTL;
        return FB_REWRITE;
    }
    PRE(below, lookup) { return fb_name_is(ctx, "f") ? -ENOENT : FB_CONTINUE; }
    """
    filters = [source(directory, text, "two")]
    with serving.serve(directory, "two", filters=filters, options="cache=watch") as served:
        (served.src / "f").touch()
        assert not (served.path / "f").exists()
        before = settled(served)

        assert not (served.path / "f").exists()

        assert requests_of(served) > before


def test_where_the_backing_judges_who_looks_another_caller_is_told_what_it_says_of_him(
    directory: Path,
) -> None:
    os.chmod(directory, 0o755)
    (directory / "src" / "d").mkdir(parents=True)
    (directory / "src" / "d").chmod(0o700)
    options = "cache=watch,nodefault_permissions"
    sets = {"hide.ttl": "3600000"}
    with serving.serve(directory, "judges", filters=["hide"], sets=sets, options=options) as served:
        assert not (served.path / "d" / "x").exists()

        said = support.run("stat", served.path / "d" / "x", user=65534, check=False)

        assert "Permission denied" in said.stderr


NEVER = """
FILTER(never, .altitude = 500)

PRE(never, mkdir)
{
	ctx->ttl_ns = 0;
	ctx->edits = FB_EDIT_TTL;
	if (fb_name_is(ctx, "asked")) {
		__builtin_memcpy(ctx->name.text, "used", 5);
		ctx->name_len = 4;
		ctx->edits |= FB_EDIT_NAME;
	}
	return FB_REWRITE;
}
"""


def test_a_name_that_is_made_in_the_place_of_one_that_may_not_be_kept_is_there(directory: Path) -> None:
    filters = [source(directory, NEVER, "never")]
    with serving.serve(directory, "never", filters=filters, options="cache=watch") as served:
        assert not (served.path / "used").exists()

        (served.path / "asked").mkdir()

        support.wait_until((served.path / "used").exists)


@pytest.mark.parametrize("options", ["cache=watch", SMALL])
@pytest.mark.parametrize("how", ["fifo", "link"])
def test_what_came_a_moment_ago_is_opened_as_what_it_is(directory: Path, how: str, options: str) -> None:
    """The kernel has not been told yet, and asks for a file to be made."""
    with watched(directory, options) as served:
        for number in range(30):
            name = f"n{number}"
            assert not (served.path / name).exists()
            if how == "fifo":
                os.mkfifo(served.src / name)
            else:
                (served.src / name).symlink_to("target")

            os.close(os.open(served.path / name, os.O_RDWR | os.O_CREAT | os.O_NONBLOCK))

            if how == "link":
                assert (served.src / "target").exists()
