"""What is said of a full disk, and what is not taken for one. Real disks that run full: deploy/test_full_disk."""

from __future__ import annotations

import errno
import tempfile
from pathlib import Path
from types import SimpleNamespace

import pytest

from clawbill_pipeline import disk
from clawbill_pipeline.disk import DiskFull, blamed, scratch, told


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_told_with_its_folder_and_what_to_do(tmp_path: Path, number: int) -> None:
    wanted = r"no room left below .* MB are free\): free some space there, or walk"
    with pytest.raises(DiskFull, match=wanted) as caught, told(tmp_path, "walk"):
        raise OSError(number, "no")
    assert str(tmp_path) in str(caught.value)
    # It must not pass for an input that can't be read, without which all others go on.
    assert not isinstance(caught.value, OSError)


def test_other_errors_stay_what_they_are(tmp_path: Path) -> None:
    with pytest.raises(PermissionError), told(tmp_path):
        raise PermissionError(errno.EACCES, "no")
    with pytest.raises(KeyError), scratch("test"):
        raise KeyError


def test_scratch_is_gone_afterwards_and_says_where_it_may_not_be(monkeypatch: pytest.MonkeyPatch) -> None:
    with scratch("test") as folder:
        (folder / "file").write_text("x")
    assert not folder.exists()

    def nowhere() -> str:
        raise FileNotFoundError(errno.ENOENT, "No usable temporary directory found in ['/tmp', '/var/tmp']")

    monkeypatch.setattr(tempfile, "gettempdir", nowhere)
    with pytest.raises(DiskFull, match=r"'/var/tmp'\]: free some space there, or set TMPDIR"), scratch("test"):
        pass


def test_what_fails_on_a_full_disk_is_blamed_on_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    error = RuntimeError("500 Internal Server Error\nand so on")
    assert blamed(tmp_path, error) is error
    monkeypatch.setattr(disk.shutil, "disk_usage", lambda _: SimpleNamespace(free=15_000_000, total=10**9))
    said = str(blamed(tmp_path, error))
    assert f"no room left below {tmp_path} (15.0 MB of 1,000.0 MB are free)" in said
    assert said.endswith("It showed as RuntimeError: 500 Internal Server Error")
    told_already = DiskFull("no room")
    assert blamed(tmp_path, told_already) is told_already
