"""Runs pip-audit on the locked packages: `python requirements/audit.py LOCK`, in an environment that has it.

Known vulnerabilities are printed and give exit code 1. If the advisories cannot be reached, a message says so, which is
not a failure.
"""

from __future__ import annotations

import json
import subprocess
import sys


def main(lock: str) -> int:
    command = [sys.executable, "-m", "pip_audit", "--requirement", lock, "--disable-pip", "--require-hashes",
               "--format", "json", "--progress-spinner", "off", "--timeout", "15"]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    return report(lock, done.returncode, done.stdout, done.stderr)


def report(lock: str, code: int, out: str, err: str) -> int:
    """Print what pip-audit found; the packages it skips are those for which it got no answer."""
    try:
        packages = json.loads(out)["dependencies"]
    except (ValueError, KeyError, TypeError):
        if any(sign in err for sign in UNREACHED):
            return unknown(lock)
        print(f"{lock}: pip-audit failed with exit code {code}:\n{err.strip()}", file=sys.stderr)
        return 1
    skipped = [package["name"] for package in packages if "skip_reason" in package]
    if len(skipped) == len(packages):
        return unknown(lock)
    found = [(package, advisory) for package in packages for advisory in package.get("vulns", ())]
    for package, advisory in found:
        print(f"{package['name']} {package['version']}: {advisory['id']}, fixed in "
              f"{', '.join(advisory.get('fix_versions', ())) or 'no version yet'}")
    if skipped:
        print(f"{lock}: NOT audited: {', '.join(skipped)}.")
    print(f"{lock}: {len(packages) - len(skipped)} packages audited, {len(found)} vulnerabilities known.")
    return 1 if found else 0


def unknown(lock: str) -> int:
    print(f"{lock}: NOT audited: the advisories cannot be reached from here.")
    return 0


UNREACHED = ("ConnectionError", "ConnectTimeout", "ReadTimeout", "Max retries exceeded", "Failed to establish",
             "NameResolutionError", "Name or service not known", "Temporary failure in name resolution",
             "ServiceError", "HTTPError", "ProxyError", "SSLError")

if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
