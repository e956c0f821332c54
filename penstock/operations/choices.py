"""The words that some parameters are limited to. The doors offer them without importing what operations need."""

from __future__ import annotations

from typing import Literal

KeyKind = Literal["personal", "team", "account", "inference", "management", "worker", "tools_worker"]
KeyScope = Literal["inference", "read", "management", "operator", "connect", "shared"]
Role = Literal["owner", "member"]
Lane = Literal["credits", "contract"]
State = Literal["final", "review"]
SurfaceChoice = Literal["router", "trust", "forward"]
Need = Literal["tools", "images", "json_schema"]
