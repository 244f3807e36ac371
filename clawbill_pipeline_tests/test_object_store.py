"""Object storage as a folder: whole objects, one version of each, and errors that say what to do and hold no secret."""

from __future__ import annotations

import json
from contextlib import suppress
from datetime import timedelta
from pathlib import Path

import pytest

from clawbill_pipeline.object_store import Gone, ObjectFolder, Replaced, StoreError
from clawbill_pipeline.storage import DiskFolder, Folder, folder
from clawbill_pipeline_tests.object_store import CREDENTIALS, Bucket, Store


@pytest.fixture(params=["disk", "store"])
def place(request: pytest.FixtureRequest, tmp_path: Path, bucket: Bucket) -> Folder:
    return folder(tmp_path / "files" if request.param == "disk" else f"{bucket.address}/files/")


def test_a_file_appears_whole_or_not_at_all(place: Folder) -> None:
    with place.made("a/b c.txt") as path:
        path.write_bytes(b"one")
        assert not place.exists("a/b c.txt")
    assert place.read("a/b c.txt") == b"one"
    with suppress(ZeroDivisionError), place.made("a/b c.txt") as path:
        path.write_bytes(b"tw")
        raise ZeroDivisionError
    assert place.read("a/b c.txt") == b"one"
    with place.made("a/b c.txt") as path:
        path.write_bytes(b"three")
    with place.open("a/b c.txt") as file:
        assert (file.read(2), file.seek(-2, 2), file.read()) == (b"th", 3, b"ee")
    if isinstance(place, DiskFolder):
        assert [path.name for path in (place.root / "a").iterdir()] == ["b c.txt"]


def test_old_files_beside_one_are_deleted(place: Folder) -> None:
    for name in ("a/1", "a/2", "a/3", "b/1"):
        with place.made(name) as path:
            path.write_bytes(b"x")
    assert place.prune("a/3", timedelta(hours=1)) == 0, "those who read them may finish"
    assert place.prune("a/3", timedelta(seconds=-5)) == 2
    assert [place.exists(name) for name in ("a/1", "a/2", "a/3", "b/1")] == [False, False, True, True]
    assert place.prune("a/3", timedelta(seconds=-5)) == 0


def test_a_file_that_is_not_there(place: Folder) -> None:
    assert not place.exists("nothing")
    for reading in (place.read, place.open):
        with pytest.raises(FileNotFoundError):
            reading("nothing")


def test_what_is_read_is_one_version(bucket: Bucket) -> None:
    files = ObjectFolder(bucket.address)
    bucket.put("a", b"x" * 9_000_000)
    with files.open(files.find("a")) as file:
        assert file.read(10) == b"x" * 10
        bucket.put("a", b"y" * 9_000_000)
        with pytest.raises(Replaced, match="it was replaced while it was read"):
            file.read()
    with files.open(files.find("a")) as file:
        bucket.delete("a")
        with pytest.raises(Gone, match="no such object"):
            file.read()


def test_patterns_are_those_of_folders(bucket: Bucket, tmp_path: Path) -> None:
    names = ["a.jsonl", "x/a.jsonl", "x/y/a.jsonl.gz", "x/b.csv", "z/[1].csv", "day=1/ü.csv"]
    for name in names:
        bucket.put(f"logs/{name}", b"1")
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"1")
    bucket.put("logs2/a.jsonl", b"1")
    files = ObjectFolder(f"{bucket.address}/logs")
    for pattern in ("**/*.jsonl", "*.jsonl", "x/**/*.jsonl*", "**/*.csv", "x/*.csv", "*/[ab].csv", "z/[[]1].csv"):
        on_disk = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.glob(pattern) if path.is_file())
        assert [found.name for found in files.matching([pattern])] == on_disk, pattern
    bucket.store.asked.clear()
    files.matching(["x/y/*.gz"])
    assert all("prefix=logs%2Fx%2Fy%2F" in asked for asked in bucket.store.asked)


def test_errors_say_what_to_do(bucket: Bucket, s3: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    bucket.put("a", b"1")
    files = ObjectFolder(bucket.address, tries=1)
    with pytest.raises(Gone, match=r"s3://nowhere: there is no bucket 'nowhere'; correct the address"):
        list(ObjectFolder("s3://nowhere").listed())
    monkeypatch.setattr(s3, "refuse", lambda _: 403)
    for doing in (lambda: list(files.listed()), lambda: files.read("a"), lambda: files.write("a", b"2")):
        with pytest.raises(StoreError, match=r"no permission \(403 AccessDenied\).*AWS_SECRET_ACCESS_KEY") as refused:
            doing()
        assert not any(secret in str(refused.value) for secret in list(CREDENTIALS.values())[:2])
        assert "\n" not in str(refused.value)
    monkeypatch.setattr(s3, "refuse", lambda _: 503)
    with pytest.raises(StoreError, match=r"busy or away \(503 SlowDown, after 2 tries\); it is tried again next time"):
        files.read("a")
    monkeypatch.setattr(s3, "refuse", lambda _: None)
    bucket.put("logs//b", b"1")
    with pytest.raises(
        StoreError,
        match="beside the object 'logs//b', since its name has an empty part or a control character; move it",
    ):
        list(files.listed("logs"))
    away = ObjectFolder(bucket.address, endpoint="http://127.0.0.1:9", tries=0)
    with pytest.raises(StoreError, match=r"at http://127\.0\.0\.1:9 can't be reached"):
        away.exists("a")


def test_a_store_that_is_busy_for_a_while_is_waited_for(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    bucket.put("a", b"1")
    answers = iter([503, 503, 503])
    monkeypatch.setattr(bucket.store, "refuse", lambda _: next(answers, None))
    assert ObjectFolder(bucket.address).read("a") == b"1"
    answers = iter([503])
    ObjectFolder(bucket.address).write("b", b"2")
    assert bucket.get("b") == b"2"


@pytest.mark.parametrize("address", ["s3://", "s3:///prefix", "ftp://bucket/a", "s3://key:secret@bucket", "s3:/a"])
def test_an_address_of_another_form_is_refused(address: str) -> None:
    with pytest.raises(ValueError, match="write s3://bucket/prefix"):
        ObjectFolder(address)


def test_googles_and_azures_stores(bucket: Bucket, s3: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Google's store answers the same requests as S3 for what is used here, so moto can stand in for it."""
    account = {
        "gcs_base_url": s3.url,
        "disable_oauth": True,
        "client_email": "",
        "private_key": "",
        "private_key_id": "",
    }
    (tmp_path / "account.json").write_text(json.dumps(account))
    monkeypatch.setenv("GOOGLE_SERVICE_ACCOUNT", str(tmp_path / "account.json"))
    google = folder(f"gs://{bucket.name}/logs")
    with google.made("a/b") as path:
        path.write_bytes(b"one")
    assert google.read("a/b") == b"one"
    assert google.address("a/b") == f"gs://{bucket.name}/logs/a/b"
    files = ObjectFolder(f"gs://{bucket.name}/logs")
    assert [(found.name, found.size) for found in files.matching(["**/*"])] == [("a/b", 3)]
    with files.open(files.find("a/b")) as file:
        assert file.read() == b"one"
    monkeypatch.delenv("AZURE_STORAGE_ACCOUNT_NAME", raising=False)
    with pytest.raises(StoreError, match=r"az://container/logs: .*ccount"):
        folder("az://container/logs").exists("a")
