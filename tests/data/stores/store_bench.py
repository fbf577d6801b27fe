"""The bucket that a test publishes to, and the rows that it publishes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .faulty_store import FaultyStore

SECRET = "sentinel0secret0key0never0written"
ROWS = [{"id": number, "text": f"text {number * 7 % 60}" if number % 40 else ""} for number in range(300)]


@dataclass
class Bench:
    """A bucket behind the faulty proxy, and the same bucket reached directly."""

    store: FaultyStore
    direct: Any
    bucket: str

    @property
    def url(self) -> str:
        return f"s3://{self.bucket}/team/result"

    def names(self) -> list[str]:
        found = self.direct.list_objects_v2(Bucket=self.bucket).get("Contents", [])
        return sorted(entry["Key"].removeprefix("team/result/") for entry in found)

    def get(self, name: str) -> bytes:
        content: bytes = self.direct.get_object(Bucket=self.bucket, Key=f"team/result/{name}")["Body"].read()
        return content

    def put(self, name: str, content: bytes) -> None:
        self.direct.put_object(Bucket=self.bucket, Key=f"team/result/{name}", Body=content)
