"""The script and the page of instructions in a bundle."""

from __future__ import annotations

from jittor_lora import __version__
from jittor_lora.tasks.bundle_wheels import Target

INSTALL = "install.sh"

_SCRIPT = r"""#!/bin/sh
# Installs jittor-lora @version@ into .venv in this folder, without a network.
# Another Python @python@ than the one on the path: PYTHON=/path/to/python ./install.sh
set -eu
cd "$(dirname "$0")"

echo "Checking files ..."
sha256sum --check --quiet SHA256SUMS || {
    echo "install.sh: files are damaged or missing; copy the folder again." >&2
    exit 1
}
for python in "${PYTHON:-}" python@python@ python3; do
    check='import sys, venv, ensurepip; sys.exit("%d.%d" % sys.version_info[:2] != "@python@")'
    if "$python" -c "$check" 2>/dev/null; then break; fi
    python=
done
[ -n "$python" ] || {
    echo "install.sh: expected Python @python@ with venv, found none. Debian, Ubuntu: the packages" >&2
    echo "python@python@ and python@python@-venv; or name one: PYTHON=/path/to/python ./install.sh" >&2
    exit 1
}
"$python" -m venv .venv
PIP_CONFIG_FILE=/dev/null .venv/bin/python -m pip --isolated --disable-pip-version-check install --quiet \
    --no-index --find-links wheels "jittor-lora==@version@"
.venv/bin/jittor-lora doctor || exit 1
echo
echo "Installed. To train:"
echo "  $(sed -n 's/^    \(\.venv.* train .*\)$/\1/p' README.txt | head -n 1)"
"""

_README = """\
jittor-lora @version@, for Python @python@ on Linux (@platform@), without a network

The machine needs Python @python@ with venv and headers, and g++, from its system's packages
(Debian, Ubuntu: g++ python@python@-dev python@python@-venv). Then, in this folder:

    ./install.sh
    @train@

The first training compiles Jittor for 1 to 3 minutes. What is in this folder:

    wheels/       jittor-lora and all packages that it needs
    base/         the base model
    data/         the data
    SHA256SUMS    checksums of all files; install.sh checks them first


jittor-lora @version@，用于无网络的 Linux 机器（Python @python@，@platform@）

机器上需要有 Python @python@（含 venv 和头文件）与 g++，由系统的软件包提供
（Debian、Ubuntu：g++ python@python@-dev python@python@-venv）。然后在本文件夹中执行：

    ./install.sh
    @train@

首次训练时会编译 Jittor，需要 1 到 3 分钟。本文件夹的内容：

    wheels/       jittor-lora 及其依赖的全部软件包
    base/         基座模型
    data/         数据
    SHA256SUMS    所有文件的校验和，install.sh 会先行校验
"""


def files(target: Target, train: str) -> dict[str, str]:
    """Their texts by name.

    Args:
        train: the command that trains, to be run in the folder.
    """
    values = {"@version@": __version__, "@python@": target.python, "@platform@": target.platform, "@train@": train}
    texts = {INSTALL: _SCRIPT, "README.txt": _README}
    for mark, value in values.items():
        texts = {name: text.replace(mark, value) for name, text in texts.items()}
    return texts
