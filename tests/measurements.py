"""Measurements as `bench` writes them, and the cells of a table."""

from __future__ import annotations


def record(name, seconds, check=None, ours=False, **more):
    runs = [{"seconds": s, "cpu_seconds": 2 * s, "peak_mib": 100 * s, "rss_mib": 90.0} for s in seconds]
    return {"name": name, "ours": ours, "options": {}, "spec": {}, "warmups": [], "runs": runs, "check": check, **more}


def result(part, contenders, precision="fp32", **more):
    return {"part": part, "workload": "w", "precision": precision, "threads": 2, "unit": "token", "units": 60.0,
            "gflop": None, "load_before": 0.5, "contenders": contenders, **more}


def cells(table: str) -> list[dict[str, str]]:
    head, _, *rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]
    return [dict(zip(head, row)) for row in rows]
