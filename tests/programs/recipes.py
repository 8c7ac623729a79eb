"""What real programs do in a directory: scripts that say the same wherever it lies."""

# ruff: noqa: E501 - scripts are easier to read unbroken

import textwrap
from dataclasses import dataclass

USER = 61001


@dataclass(frozen=True)
class Recipe:
    """A script for `bash -euo pipefail`.

    Attributes:
        script: What is run; $PYTHON is one with pip.
        user: As whom; 0 where a program wants root.
        seconds: After which it is killed.
        same_tree: Files, modes and xattrs that it leaves are compared too.
    """

    script: str
    user: int = USER
    seconds: float = 60
    same_tree: bool = True

    @property
    def text(self) -> str:
        """The script without its indentation."""
        return textwrap.dedent(self.script)


_TREE = """
    mkdir -p tree/a/b tree/empty 'tree/a name'
    for n in $(seq 40); do seq "$n" $((n * 50)) > "tree/a/f$n"; done
    ln tree/a/f1 tree/a/b/hard; ln -s ../f2 tree/a/b/soft; mkfifo tree/fifo
    truncate -s 5M tree/sparse; printf end >> tree/sparse
    setfattr -n user.note -v 'a value' tree/a/f3; setfattr -n user.dir -v x tree/a
    setfacl -m u:61002:rw,g:61777:r tree/a/f4; setfacl -d -m u:61002:rx tree/a/b
    chmod 640 tree/a/f5; chmod 2755 tree/a/b; chmod 4755 tree/a/f6; chmod 444 tree/a/f7
    touch -d '2001-02-03 04:05:06.789' tree/a/f8 tree/empty
"""

RECIPES = {
    "git": Recipe(
        """
        export GIT_AUTHOR_NAME=a GIT_AUTHOR_EMAIL=a@b GIT_COMMITTER_NAME=a GIT_COMMITTER_EMAIL=a@b HOME=$PWD
        export GIT_AUTHOR_DATE='2020-01-01T00:00:00Z' GIT_COMMITTER_DATE='2020-01-01T00:00:00Z'
        git -c init.defaultBranch=main init -q one; cd one
        for n in $(seq 100); do mkdir -p "d$((n % 7))"; seq "$n" $((n + 300)) > "d$((n % 7))/f$n"; done
        git add .; git commit -qm first; cd ..
        git clone -q --no-hardlinks one two; git clone -q one three; cd two
        for n in $(seq 5); do echo "$n" >> d1/f1; git commit -qam "change $n"; done
        git mv d2 moved; git rm -q d3/f3; git commit -qm moved; git push -q origin HEAD:side
        git gc -q --aggressive --prune=now; git fsck --strict --no-progress; git status --porcelain; git log --format=%H
        cd ../one; git checkout -q side; git worktree add -q ../four main; git stash list; git fsck --no-progress
        git status --porcelain; git rev-parse HEAD side main
        """,
        same_tree=False,
    ),
    "sqlite_in_rollback_and_wal": Recipe(
        """
        for mode in delete truncate wal; do
            sqlite3 "$mode.db" "pragma journal_mode=$mode; create table t (writer, n); create index i on t (n)"
            write() { for n in $(seq 60); do echo ".timeout 30000"; echo "begin immediate; insert into t
                values ('$1', $n); update t set n = n where writer = '$1'; commit;"; done | sqlite3 "$mode.db"; }
            write one & first=$!; write two & second=$!
            wait "$first"; wait "$second"
            sqlite3 "$mode.db" "pragma integrity_check; select writer, count(*), sum(n) from t group by writer"
        done
        sqlite3 wal.db "pragma wal_checkpoint(truncate); vacuum; pragma integrity_check"
        """,
        same_tree=False,
    ),
    "a_sqlite_lock_keeps_the_other_out": Recipe(
        """
        sqlite3 x.db 'create table t (n)'
        mkfifo go
        (echo 'begin exclusive; insert into t values (1);'; echo .shell touch held; cat go; echo 'commit;') |
            sqlite3 x.db & holder=$!
        exec 3> go
        until [ -e held ]; do sleep 0.01; done
        ! said=$(sqlite3 x.db 'begin immediate; commit;' 2>&1); echo "$said" | grep -o 'database is locked'
        exec 3>&-; wait "$holder"
        sqlite3 x.db 'select n from t'; rm go
        """,
        same_tree=False,
    ),
    "make": Recipe(
        """
        for n in $(seq 20); do
            echo "int part$n(int x) { static int calls; return x * $n + calls++; }" > "part$n.c"
            echo "int part$n(int);" >> parts.h; echo "sum += part$n(i);" >> calls.h
        done
        printf '#include <stdio.h>\\n#include "parts.h"\\nint main(void) { int sum = 0;
            for (int i = 0; i < 10; i++) {\\n#include "calls.h"\\n} return printf("%%d\\\\n", sum) < 0; }\\n' > main.c
        printf 'OBJECTS = $(patsubst %%.c,%%.o,$(wildcard *.c))\\nprogram: libparts.a main.o\\n\\t$(CC) -o $@ main.o libparts.a\\n
        libparts.a: $(filter-out main.o,$(OBJECTS))\\n\\tar rcsD $@ $^\\n%%.o: %%.c parts.h\\n\\t$(CC) -O1 -c -o $@ $<\\n' > Makefile
        make -s -j4 CC=gcc; ./program; make -j4 CC=gcc; touch parts.h; make -s -j4 CC=gcc; ./program
        """,
    ),
    "pip": Recipe(
        """
        mkdir -p source/hello; echo 'def main(): print("hello")' > source/hello/__init__.py
        cat > wheel.py <<'END'
        import zipfile
        with zipfile.ZipFile("hello-1.0-py3-none-any.whl", "w") as wheel:
            wheel.write("source/hello/__init__.py", "hello/__init__.py")
            info = "hello-1.0.dist-info/"
            wheel.writestr(info + "METADATA", "Metadata-Version: 2.1\\nName: hello\\nVersion: 1.0\\n")
            wheel.writestr(info + "WHEEL", "Wheel-Version: 1.0\\nGenerator: x\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n")
            wheel.writestr(info + "entry_points.txt", "[console_scripts]\\nhello = hello:main\\n")
            names = ["hello/__init__.py", info + "METADATA", info + "WHEEL", info + "entry_points.txt", info + "RECORD"]
            wheel.writestr(info + "RECORD", "".join(name + ",,\\n" for name in names))
        END
        "$PYTHON" wheel.py; "$PYTHON" -m venv --without-pip there
        pip() { "$PYTHON" -m pip -q --disable-pip-version-check --no-input --python there/bin/python "$@"; }
        pip install --no-index --no-deps hello-1.0-py3-none-any.whl
        there/bin/hello; pip check; pip uninstall -y hello; ls there/lib/python3*/site-packages | wc -l
        """,
        user=0,
        same_tree=False,
    ),
    "tar": Recipe(
        _TREE
        + """
        tar --xattrs --acls --sort=name --sparse -cf it.tar tree; mkdir out
        tar --xattrs --acls -xpf it.tar -C out; tar --compare --xattrs --acls -f it.tar -C out; getfacl -R out | md5sum
        rm it.tar
        """
    ),
    "rsync": Recipe(
        _TREE
        + """
        rsync -aHAXS --inplace tree/ copy; rsync -aHAXSi --delete tree/ copy; echo changed >> tree/a/f9; touch -d 2005-01-01 tree/a/f9; rm tree/a/f10
        rsync -aHAXOi --delete tree/ copy; rsync -aHAXOic tree/ copy; getfacl -R copy | md5sum
        """
    ),
    "cp_find_rm": Recipe(
        _TREE
        + """
        cp -a --reflink=auto tree copy; diff -r --no-dereference --exclude=fifo tree copy
        cp --sparse=always tree/sparse sparse; cmp tree/sparse sparse
        find copy -type f -links +1 | sort; find copy -size +4M; find copy -perm -4000; find copy -empty | sort
        find copy -newermt 2001-01-01 ! -newermt 2002-01-01 | sort; find copy -name 'f?' -printf '%m %y %s %p\\n' | sort
        mv copy/a/b moved; rm -rf copy tree; ls -A
        """
    ),
    "compileall": Recipe(
        """
        mkdir -p package/sub; for n in $(seq 30); do echo "def f$n(): return $n" > "package/sub/m$n.py"; done
        touch package/__init__.py package/sub/__init__.py
        /usr/bin/python3 -m compileall -q -j 2 --invalidation-mode checked-hash package
        /usr/bin/python3 -c 'from package.sub import m7; print(m7.f7(), m7.__cached__.rsplit("/", 1)[1])'
        """
    ),
    "shell_tools": Recipe(
        _TREE
        + """
        sort -R tree/a/f40 | sort -n -T . > sorted; split -b 300 sorted part; cat part* | cmp - sorted
        sed -i s/9/x/g tree/a/f*; dd if=tree/a/f30 of=dd bs=100 seek=3 conv=notrunc,fsync status=none; md5sum dd
        gzip -k -n sorted; zcat sorted.gz | cmp - sorted; truncate -s 3 dd; install -m 750 dd installed; wc -c tree/a/f?
        flock lock -c 'echo locked'; mkdir -p x/y/z; rmdir -p x/y/z; touch -d '2001-02-03' dd; stat -c '%Y %a %s' dd
        chattr +d dd; lsattr dd | cut -c1-20
        """
    ),
}

POSTGRES = Recipe(
    """
    export PATH=$PATH:$(echo /usr/lib/postgresql/*/bin) PGUSER=bench PGDATABASE=postgres
    export PGHOST=$(mktemp -d) # a socket's path is short
    initdb -D data -U bench --auth=trust --data-checksums > initdb.log
    printf "listen_addresses = ''\\nunix_socket_directories = '$PGHOST'\\nshared_buffers = 16MB\\n" >> data/postgresql.conf
    trap 'pg_ctl -D data -m immediate stop > /dev/null 2>&1 || :; rm -rf "$PGHOST"' EXIT
    pg_ctl -D data -l log -w start > /dev/null || cat log
    pgbench -q -i -s 1 2> /dev/null
    pgbench -c 4 -j 2 -t 200 | grep -E 'actually processed|failed'
    psql -Atc 'select sum(abalance) = (select sum(delta) from pgbench_history), count(*) from pgbench_accounts'
    psql -Atc 'vacuum full' -c checkpoint; pg_ctl -D data -m immediate stop > /dev/null
    pg_ctl -D data -l log -w start > /dev/null; psql -Atc 'select count(*) from pgbench_history'
    pg_ctl -D data -m fast stop > /dev/null; pg_checksums -D data | grep Bad
    """,
    user=65534,
    seconds=300,
    same_tree=False,
)
