"""What pyproject.toml cannot say: the C extension is every .c file of fusebpf/_core."""

from concurrent.futures import ThreadPoolExecutor
from os import environ
from pathlib import Path
from typing import Any

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

# SAN=address,undefined builds the extension with those sanitizers (see `make help`).
SANITIZERS = [f"-fsanitize={environ['SAN']}", "-fno-omit-frame-pointer"] if environ.get("SAN") else []
# It does not know fences, and would refuse the one of slots.c, whose readers are other processes.
SANITIZERS += ["-Wno-tsan"] if "thread" in environ.get("SAN", "") else []
WARNINGS = [
    "-Wall",
    "-Wextra",
    "-Werror",
    "-Wshadow",
    "-Wswitch-enum",
    "-Wstrict-prototypes",
    "-Wno-missing-field-initializers",
]


class BuildSideBySide(build_ext):
    """Compiles an extension's sources on all cores."""

    def build_extensions(self) -> None:
        """Put a pool around the compiler that build_ext has chosen."""
        compile_some = self.compiler.compile

        def compile_all(sources: list[str], *args: Any, **options: Any) -> list[str]:
            with ThreadPoolExecutor() as pool:
                results = pool.map(lambda source: compile_some([source], *args, **options), sources)
                return [compiled for result in results for compiled in result]

        self.compiler.compile = compile_all
        super().build_extensions()


core = Extension(
    "fusebpf._core",
    sources=sorted(map(str, Path("fusebpf/_core").glob("*.c"))),
    depends=sorted(map(str, [*Path("fusebpf/_core").glob("*.h"), *Path("bpf").glob("*.h")])),
    include_dirs=["bpf"],
    extra_compile_args=["-std=gnu11", "-O2", "-g", *WARNINGS, *SANITIZERS],
    extra_link_args=["-lpthread", *SANITIZERS],
)

# `make setup` installs the checkout first and lets `make build` build the extension where it stands.
setup(
    ext_modules=[] if environ.get("FUSEBPF_NO_EXTENSION") else [core],
    cmdclass={"build_ext": BuildSideBySide},
)
