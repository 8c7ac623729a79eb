"""The stock filter `idshift`: owners shown and stored differently."""

import os

import pytest
import support

from fusebpf.testing import Chain

RANGES = {"idshift.uids": "0:100000:1000,5000:7:1", "idshift.gids": "0:200000:1000"}


def test_ids_are_shown_and_stored_by_ranges() -> None:
    with Chain("idshift", maps=RANGES) as chain:
        for stored, shown in ((100000, 0), (100999, 999), (101000, 65534), (7, 5000), (8, 65534), (0, 65534)):
            assert chain.run("getattr", attr={"uid": stored, "gid": 200001}).attr["uid"] == shown
        said = chain.run("mkdir", name="d", uid=5, gid=6)
        assert (said.slot["uid"], said.slot["gid"]) == (100005, 200006)
        assert chain.run("mkdir", name="d", uid=1000, gid=6).error == 75, "EOVERFLOW"
        said = chain.run("setattr", args={"valid": 2, "uid": 999, "gid": 5000})
        assert (said.error, said.args["uid"], said.args["gid"]) == (0, 100999, 5000)
        assert chain.run("setattr", args={"valid": 4, "gid": 5000}).error == 75
        assert chain.run("setattr", args={"valid": 1, "mode": 0o600}).verdict == "FB_CONTINUE"
        assert chain.run("getattr", error="EACCES").error == 13


def test_without_ranges_ids_are_what_they_are() -> None:
    with Chain("idshift") as chain:
        assert chain.run("getattr", attr={"uid": 5, "gid": 6}).attr["uid"] == 5
        assert chain.run("mkdir", name="d", uid=5).slot["uid"] == 5


def test_a_range_that_is_taken_out_leaves_those_behind_it() -> None:
    maps = {"idshift.uids": "1=0:100000:1000", "idshift.gids": "0:0:0,0:200000:1000"}

    with Chain("idshift", maps=maps) as chain:
        said = chain.run("getattr", attr={"uid": 100005, "gid": 200006})
        assert (said.attr["uid"], said.attr["gid"]) == (5, 6)
        assert chain.run("getattr", attr={"uid": 0, "gid": 0}).attr["uid"] == 65534
        assert chain.run("mkdir", name="d", uid=5, gid=6).slot["gid"] == 200006


def test_a_range_does_not_go_round_to_the_first_ids() -> None:
    with Chain("idshift", maps={"idshift.uids": "1000:0xfffffff0:100"}) as chain:
        assert chain.run("mkdir", name="d", uid=1005, gid=6).slot["uid"] == 0xFFFFFFF5
        for uid in (1015, 1016, 1017):
            assert chain.run("mkdir", name="d", uid=uid, gid=6).error == 75
        assert chain.run("getattr", attr={"uid": 0, "gid": 0}).attr["uid"] == 65534


def test_idshift_on_a_mount(mount: support.Mounter) -> None:
    mounted = mount(filters=["idshift"], sets=RANGES)
    os.chown(mounted.src, 100000, 200000)

    (mounted.path / "file").write_text("x")
    (mounted.path / "link").symlink_to("file")
    (mounted.path / "dir").mkdir()
    os.chown(mounted.path / "file", 33, 44)

    stored, shown = (mounted.src / "file").stat(), (mounted.path / "file").stat()
    assert (stored.st_uid, stored.st_gid, shown.st_uid, shown.st_gid) == (100033, 200044, 33, 44)
    for name in ("link", "dir"):
        assert (mounted.src / name).lstat().st_uid == 100000
        assert (mounted.path / name).lstat().st_uid == 0
    with pytest.raises(OSError, match="Value too large"):
        os.chown(mounted.path / "file", 4000, -1)
    support.run("test", "-O", mounted.path, user=None)
