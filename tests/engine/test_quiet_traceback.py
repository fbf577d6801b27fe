"""What nobody foresaw is told by type and place, and quotes no row."""

from __future__ import annotations

import subprocess
import sys

import pytest

from engine.quiet_traceback import print_quietly

TEXT = "zebrafinch"


def printed(error: BaseException, capsys: pytest.CaptureFixture[str]) -> str:
    print_quietly(type(error), error, error.__traceback__)
    return capsys.readouterr().err


def raised(*errors: BaseException) -> BaseException:
    """The last of the errors, each raised while the one before it was handled."""
    try:
        if len(errors) > 1:
            try:
                raise raised(*errors[:-1])
            except BaseException:  # noqa: BLE001 - to chain it
                raise errors[-1]  # noqa: B904
        raise errors[0]
    except BaseException as error:  # noqa: BLE001
        return error


@pytest.mark.parametrize("kind", [ValueError, TypeError, KeyError, AssertionError])
def test_the_message_of_a_value_error_is_left_out(kind: type[Exception], capsys: pytest.CaptureFixture[str]) -> None:
    text = printed(raised(kind(TEXT)), capsys)
    assert TEXT not in text
    assert kind.__name__ in text
    assert "test_quiet_traceback.py" in text


def test_what_a_device_says_is_kept_and_the_cause_is_told_first(capsys: pytest.CaptureFixture[str]) -> None:
    text = printed(raised(ValueError(TEXT), RuntimeError("CUDA error: an illegal memory access")), capsys)
    assert text.index("ValueError") < text.index("RuntimeError: CUDA error: an illegal memory access")
    assert TEXT not in text


def test_arrow_quotes_values_and_is_quiet_too(capsys: pytest.CaptureFixture[str]) -> None:
    import pyarrow as pa

    with pytest.raises(pa.ArrowInvalid, match=TEXT) as caught:
        pa.array([TEXT]).cast(pa.int64())
    assert TEXT not in printed(caught.value, capsys)


def test_a_supervised_process_prints_that_way() -> None:
    code = "import engine.child as c, os, socket\na, b = socket.socketpair()\n"
    code += "c.main('builtins:int', b.detach(), os.pipe()[0], False)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert "its message is left out" in done.stderr
