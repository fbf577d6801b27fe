"""The Prefect server that the environment or a profile names, and Prefect's settings, checked before a flow needs them.

Prefect itself answers a wrong one with a traceback of its own.
"""

from __future__ import annotations

from data.errors import InputError, RunError

_PLACES = "a variable, .env, prefect.toml or pyproject.toml in this folder, or Prefect's profile"
_REMEDY = "set PREFECT_API_URL to a server that runs, or unset it for a server of the run's own"


def api_url() -> str | None:
    """The URL of the API that Prefect knows, wherever from; None for none. InputError if a setting is wrong."""
    from prefect.settings import get_current_settings
    from pydantic import ValidationError
    from pydantic_settings import SettingsError

    try:
        return get_current_settings().api.url
    except SettingsError as error:
        raise InputError(str(error)) from error
    except ValidationError as error:
        wrong = error.errors()[0]
        name = _variable(error.title, str(wrong["loc"][0]) if wrong["loc"] else "")
        raise InputError(f"{name}: {wrong['msg']}, not {wrong['input']!r}; it is set in {_PLACES}") from error


def check_reachable(url: str) -> None:
    """Ask the configured server for its version, which Prefect then does not do again.

    Raises:
        InputError: the URL is none.
        RunError: the server does not answer, refuses, or is of another major version.
    """
    from httpx import HTTPError, InvalidURL
    from prefect.client.orchestration import get_client

    if not url.startswith(("http://", "https://")):
        raise InputError(f"PREFECT_API_URL: {url!r} is no URL of a Prefect API (http://HOST:PORT/api); {_REMEDY}")
    try:
        with get_client(sync_client=True) as client:
            client.raise_for_api_version_mismatch_once()
    except InvalidURL as error:
        raise InputError(f"PREFECT_API_URL: {error}; {_REMEDY}") from error
    except (RuntimeError, HTTPError, ImportError, ValueError) as error:  # the last two: of a proxy
        why = f"{error}: {error.__cause__}" if error.__cause__ else str(error)
        raise RunError(f"the configured Prefect server: {why}; {_REMEDY}") from error


def _variable(model: str, field: str) -> str:
    """The environment's name of a field of the model of settings with this name."""
    from prefect.settings.base import PrefectBaseSettings

    models = list(PrefectBaseSettings.__subclasses__())
    prefix = next((str(one.model_config.get("env_prefix")) for one in models if one.__name__ == model), "PREFECT_")
    return field.upper() if field.upper().startswith(prefix) else f"{prefix}{field.upper()}"
