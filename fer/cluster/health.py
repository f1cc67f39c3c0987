"""What Ray itself says about its token, without a cluster."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module

from fer import processes


@dataclass(frozen=True)
class Authentication:
    """How a connection to a cluster would be made from here.

    Attributes:
        wanted: RAY_AUTH_MODE is `token`.
        token: one is there, in RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH or ~/.ray/auth_token.
    """

    wanted: bool
    token: bool


def authentication() -> Authentication:
    """Reads Ray's own settings, so that what is told is what Ray will do."""
    processes.quiet_libraries()
    from ray.exceptions import AuthenticationError

    native = import_module("ray._raylet")  # a compiled module, without types

    try:
        token = bool(native.AuthenticationTokenLoader.instance().has_token(ignore_auth_mode=True))
    except AuthenticationError:  # RAY_AUTH_TOKEN_PATH names a file that cannot be read
        token = False
    return Authentication(wanted=native.get_authentication_mode() == native.AuthenticationMode.TOKEN, token=token)
