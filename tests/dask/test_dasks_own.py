"""Dask's own tests of shuffle, and of data frames' merge and groupby, with the plugin on.

They come with Dask, and are run by a pytest of their own, so that all they compute is computed on a rack. Some
cannot pass on any cluster (what they compute cannot be pickled, or is looked at where it was made): stock Dask's
cluster says which. That takes twenty minutes, and is part of the soak; a choice that all pass is run each time.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import soaking

MODULES = [f"dask.dataframe.dask_expr.tests.test_{name}" for name in ("shuffle", "merge", "groupby")]
CHOICE = "tuple_left_on or merge_p2p or (pairwise and 3-3) or task_shuffle or groupby_agg_split_out"


def run(by: str, tmp_path: Path, *choice: str) -> tuple[set[str], int, int]:
    """Which failed, how many passed, and how many grants were made."""
    path = [
        str(Path(__file__).parent),
        *filter(None, [os.environ.get("PYTHONPATH")]),
    ]  # where an older Dask may lie
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-q", "-rf", "-p", "dasks_own", "-p", "no:cacheprovider"),
            *("--tb=no", "--timeout=120", "--rootdir", str(tmp_path), *choice, "--pyargs", *MODULES),
        ],
        env=os.environ | {"DASKS_OWN": by, "PYTHONPATH": os.pathsep.join(path)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    told = done.stdout
    print(told[-4000:], done.stderr[-4000:])
    passed, made = re.search(r"(\d+) passed", told), re.search(r"grants: (\d+)", told)
    assert passed is not None and made is not None
    return set(re.findall(r"^FAILED (\S+)", told, re.MULTILINE)), int(passed[1]), int(made[1])


@pytest.mark.soak
@pytest.mark.slow
@pytest.mark.timeout(soaking.timeout(3600, 240))
def test_all_pass_that_pass_on_dask_s_own_cluster(tmp_path: Path) -> None:
    choice = () if soaking.SCALE else ("-k", CHOICE)
    failed, passed, grants = run("rack", tmp_path, *choice)
    stocks, _, none = run("stock", tmp_path) if soaking.SCALE else (set(), 0, 0)
    assert failed <= stocks
    assert passed >= (400 if soaking.SCALE else 15)
    assert grants > 0
    assert none == 0
