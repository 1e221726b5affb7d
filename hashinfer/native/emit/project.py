"""A compiled model as a Python project of its own: what `pip install FOLDER` needs, NumPy its only dependency.

The project brings copies of the four modules that load a library, so that hashinfer is not needed where it runs.
"""

import os
import re
import secrets
import shutil
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path

from hashinfer.errors import InputError
from hashinfer.native.emit.build import Built

COPIED = ("errors", "native.runtime", "session.compiled", "session.face", "session.options")
INSIDE = "_hashinfer"

PYPROJECT = """[build-system]
requires = ["hatchling>=1.25"]
build-backend = "hatchling.build"

[project]
name = "{name}"
version = "{version}"
description = "A model compiled by hashinfer for {target}"
requires-python = ">=3.11"
dependencies = ["numpy>=2.0"]

[tool.hatch.build.targets.wheel]
packages = ["{name}"]
artifacts = ["*.so"]

[tool.hatch.build.targets.wheel.hooks.custom]
"""
HOOK = '''"""A wheel of this project is for one platform."""

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class Platform(BuildHookInterface):
    """Names it in the wheel's tag."""

    def initialize(self, version, build_data):
        """Called by hatchling."""
        build_data["tag"] = "py3-none-{platform}"
        build_data["pure_python"] = False
'''
INIT = '''"""A model compiled by hashinfer {version} for {target}.

    import {name}
    session = {name}.session()
    outputs = session.run(None, {{{feed}}})
"""

from pathlib import Path

from {name}.{inside}.session.compiled import CompiledSession


def session(**options):
    """A session over the model: hashinfer.InferenceSession's face and options."""
    return CompiledSession(Path(__file__).with_name("model.so"), **options)
'''


def project_files(built: Built, version: str) -> dict[str, bytes]:
    """The project's files, by path. built: a shared library. version: of the project.

    Raises InputError for a target that has no tag for wheels, a name that no package may have, a version that is none.
    """
    about, name = built.about, str(built.about["name"])
    target = str(about["target"])
    if not name[0].isalnum() or not name[-1].isalnum():
        raise InputError(f"name {name!r} begins or ends with _, which a package's may not; give another by --name")
    if not re.fullmatch(r"\d+(\.\d+)*((a|b|rc)\d+)?", version):
        raise InputError(f"version {version!r}; expected numbers with dots, such as 1.2.0")
    arch = {"armv7": "armv7l"}.get(target.split("-", maxsplit=1)[0], target.split("-", maxsplit=1)[0])
    if "linux" not in target:
        raise InputError(f"a wheel for {target} has no tag that is known here; expected a Linux target")
    feed = ", ".join(f'"{port["name"]}": ...' for port in about["inputs"])
    texts = {
        "pyproject.toml": PYPROJECT.format(name=name, version=version, target=target),
        "hatch_build.py": HOOK.format(platform=f"linux_{arch}"),
        f"{name}/__init__.py": INIT.format(
            name=name, inside=INSIDE, version=about["version"], target=target, feed=feed
        ),
        f"{name}/model.h": built.header,
    }
    for module in COPIED:
        source = Path(str(import_module(f"hashinfer.{module}").__file__)).read_text()
        at = Path(name, INSIDE, *module.split(".")).with_suffix(".py")
        texts[at.as_posix()] = source.replace("from hashinfer.", f"from {name}.{INSIDE}.")
        for folder in (at.parent, at.parent.parent):
            if folder.name and folder != Path(name):
                texts.setdefault((folder / "__init__.py").as_posix(), "")
    return {path: text.encode() for path, text in texts.items()} | {f"{name}/model.so": built.data}


def check_new(folder: Path) -> None:
    """Raise InputError where something is there already."""
    if folder.exists():
        raise InputError(f"{folder} is there already; a project is written into a new folder")


def write_folder(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write all files into a new folder, whole or not at all. Raises InputError where something is there already."""
    temporary = folder.with_name(f".{folder.name}.{secrets.token_hex(6)}.tmp")
    try:
        for name, data in files.items():
            path = temporary / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        check_new(folder)
        os.replace(temporary, folder)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
