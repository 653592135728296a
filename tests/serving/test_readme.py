"""The READMEs' programs, on tiny models."""

import json
import re
import urllib.request
from pathlib import Path

import pytest
from live import CHECKOUT, Live
from PIL import Image

SERVING = (CHECKOUT / "serving" / "README.md").read_text()
WITH_CLIENT, WITH_TRITONCLIENT, ON_A_GPU = (
    program
    for file in ("README.md", "serving/README.md", "serving/engines/README.md")
    for program in re.findall(r"```python\n(.*?)```", (CHECKOUT / file).read_text(), re.DOTALL)
)


@pytest.mark.parametrize("program", [WITH_CLIENT, WITH_TRITONCLIENT])
def test_they_show_something(
    live: Live, program: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    program = program.replace("127.0.0.1:8001", live.url("grpc")).replace('"pig"', '"tiny"')
    exec(compile(program, "README", "exec"), {})
    printed = capsys.readouterr().out
    assert "dpmpp_2m" in printed
    assert len(printed) < 2000
    if program.count("sheet.png"):
        assert Image.open("sheet.png").width > 8 * 100


def test_what_curl_sends_is_answered_in_few_words(live: Live) -> None:
    url, body = re.search(r"curl -s (\S+) -d '(.*?)'", SERVING, re.DOTALL).groups()
    url = f"http://{url.replace('127.0.0.1:8000', live.url('http')).replace('/pig/', '/tiny/')}"
    answer = urllib.request.urlopen(url, body.encode()).read()
    assert len(answer) < 2000
    (output,) = json.loads(answer)["outputs"]
    assert json.loads(output["data"][0])["seed"] == 7


def test_what_needs_a_gpu_says_so(live: Live) -> None:
    program = ON_A_GPU.replace("REPOSITORY, bundle_folder", "bundle_folder").replace('"pig"', '"tiny"')
    with pytest.raises(SystemExit, match="on the CPU here: outputs that stay on a GPU need one"):
        exec(compile(program, "README", "exec"), {"REPOSITORY": live.repository})
