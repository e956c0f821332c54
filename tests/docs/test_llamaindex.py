"""LlamaIndex as its page says, run by `make clients`: it wants an older OpenAI SDK, so it has its own interpreter."""

from __future__ import annotations

import asyncio
import os
import re
from dataclasses import replace
from pathlib import Path

import pytest

from penstock.config_file import load
from tests.stories.gateway import running

PAGE = (Path(__file__).resolve().parents[2] / "docs/clients/llamaindex.md").read_text()
PYTHON = os.environ.get("PENSTOCK_LLAMAINDEX_PYTHON", "")


@pytest.mark.skipif(not PYTHON, reason="LlamaIndex is not here: make clients")
async def test_llamaindex_works_as_its_page_says(tmp_path: Path) -> None:
    shown = re.search(r"```text\n(.*?)```", PAGE, re.DOTALL)
    assert shown
    settings = load(None, {"PENSTOCK_DATABASE_URL": f"sqlite:///{tmp_path}/penstock.db"})
    async with running(replace(settings, server=replace(settings.server, port=0))) as gateway:
        ada = await gateway.person(usd="1")
        process = await asyncio.create_subprocess_exec(
            PYTHON, "-c", shown[1].replace("http://127.0.0.1:8420", gateway.url), cwd=tmp_path,
            env={"PATH": os.defpath, "HOME": str(tmp_path), "KEY": ada.personal_key.key, "no_proxy": "*"},
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        output, errors = await process.communicate()
        used = await gateway.usage(ada)
    assert process.returncode == 0, errors.decode()
    assert output.count(b"demo engine") == 2
    assert len(used) == 2
