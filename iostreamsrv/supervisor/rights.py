"""Give up root's rights, once the sockets are bound."""

import os
import pwd

from ..errors import OptionError
from .settings import Settings


def drop_rights(settings: Settings) -> None:
    """Become the user and the group of the settings, if they name any. A user's further groups come with it.

    :raises OptionError: this process may not.
    """
    uid, gid = settings.uid, settings.gid
    if uid in (None, os.getuid()) and gid in (None, os.getgid()):
        return
    try:
        if gid is not None:
            _set_groups(uid, gid)
            os.setgid(gid)
        if uid is not None:
            os.setuid(uid)
    except PermissionError as error:
        name, value = ("group", settings.group) if uid is None else ("user", settings.user)
        raise OptionError(name, value, "needs the rights of root") from error


def _set_groups(uid: int | None, gid: int) -> None:
    try:
        os.initgroups(pwd.getpwuid(os.getuid() if uid is None else uid).pw_name, gid)
    except KeyError:  # a number without a name, as in containers
        os.setgroups([gid])
