"""API keys: what each may do, the file that holds them, and who a token belongs to.

A key is 32 random bytes, and the file holds only its sha256. Passwords need a slow, salted hash because people choose them and lists
of them can be tried; 256 random bits cannot be tried, so that a fast hash gives nothing away and costs requests nothing.
"""

from __future__ import annotations

import logging
import os
import stat
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from datetime import UTC, date, datetime, time
from hashlib import sha256
from hmac import compare_digest
from pathlib import Path
from secrets import token_hex, token_urlsafe
from threading import Lock
from typing import TYPE_CHECKING, Annotated, Any, Final, NamedTuple, Self

from pydantic import BeforeValidator, Field, ValidationError, model_validator

from sldcore.documents import Strict, describe_invalid, read_mapping, to_yaml
from sldcore.errors import ConfigurationError, listed
from sldcore.service.settings import Name

if TYPE_CHECKING:
    from sldcore.service.settings import ServiceSettings

logger = logging.getLogger("sldcore.service")

MARK: Final = "sld-"
"""How every key begins, so that scanners for leaked secrets know one when they see it."""
RANDOM_BYTES: Final = 32
ANONYMOUS: Final = "anonymous"
NO_HASH: Final = "0" * 64
"""In place of the hash of a key that nobody has."""

_READERS: Final = stat.S_IRGRP | stat.S_IROTH

Check = Callable[[Sequence["Key"]], None]
"""Raises ``ConfigurationError`` if keys do not fit to the service."""


def _moment(value: Any) -> Any:
    """Dates are their first moment, and times without a zone are in UTC."""
    if isinstance(value, str):
        value = datetime.fromisoformat(value)
    if isinstance(value, date) and not isinstance(value, datetime):
        value = datetime.combine(value, time())
    return value.replace(tzinfo=UTC) if isinstance(value, datetime) and value.tzinfo is None else value


Moment = Annotated[datetime, BeforeValidator(_moment)]


class KeyLimits(Strict):
    """Limits of one key, beside the service's; the tighter one counts."""

    requests_per_minute: int | None = Field(None, ge=1, description="Requests in a minute.")
    pictures_per_minute: int | None = Field(None, ge=1, description="Pictures in a minute.")
    pictures: int | None = Field(None, ge=1, description="Largest n of a request.")
    prompt_characters: int | None = Field(None, ge=1, description="Longest prompt.")
    steps: int | None = Field(None, ge=1, description="The most steps that a request may ask for.")


class Key(Strict):
    """What the holder of a key may do. The key itself is nowhere: only its sha256."""

    id: Name = Field(description="What logs and the audit call it.")
    sha256: str = Field(
        pattern=r"^[0-9a-f]{64}$", description="sha256 of the key, hex, as `sld keys new` writes it."
    )
    created: Moment = Field(description="When it was made.")
    expires: Moment | None = Field(None, description="From when on it is refused; never by default.")
    policies: tuple[Name, ...] = Field(
        (),
        description="The service's policies that it may use; empty: all that are at least as strict as its floors.",
    )
    default_policy: Name | None = Field(
        None,
        description="Where a request names none; by default the service's if the key may use it, else the key's first.",
    )
    floor: Name | None = Field(
        None,
        description="The policy that its requests must be at least as strict as, beside the service's floor.",
    )
    inline: bool = Field(
        False,
        description="May send policies of its own with a request. They must be at least as strict as the floors, or as its "
        "default policy if there is no floor.",
    )
    operator: bool = Field(
        False, description="May read the history and ask for unguided pictures of the same seed."
    )
    models: tuple[Name, ...] = Field((), description="The service's models that it may use; empty: all.")
    limits: KeyLimits = Field(default_factory=KeyLimits)

    def expired(self, now: datetime) -> bool:
        """Whether it is refused, at a moment with a time zone."""
        return self.expires is not None and now >= self.expires


class KeyFile(Strict):
    """All keys of a service."""

    keys: tuple[Key, ...] = ()

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        ids = [key.id for key in self.keys]
        if ANONYMOUS in ids:
            raise ValueError(f"no key may be called '{ANONYMOUS}': this is who asks where there are no keys")
        if twice := {each for each in ids if ids.count(each) > 1}:
            raise ValueError(f"keys have the same id: {listed(twice)}")
        if len({key.sha256 for key in self.keys}) < len(ids):
            raise ValueError("two keys have the same sha256: they are the same key")
        return self


def new_token() -> str:
    """A new key: ``sld-`` and 32 random bytes, in URL-safe base64."""
    return f"{MARK}{token_urlsafe(RANDOM_BYTES)}"


def hash_of(token: str) -> str:
    """sha256 of a key, hex; of any text, also one that no key can be."""
    return sha256(token.encode(errors="surrogatepass")).hexdigest()


def read_keys(path: Path) -> KeyFile:
    """The keys of a file.

    Raises:
        ConfigurationError: it cannot be read, is no file of keys, or others could add keys to it.
    """
    content = read_mapping(path)
    if path.stat().st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise ConfigurationError(
            f"{path}: others than its owner may write to the file of keys; `chmod 600 {path}`"
        )
    try:
        return KeyFile.model_validate(content)
    except ValidationError as invalid:
        raise ConfigurationError(describe_invalid(str(path), invalid)) from None


def write_keys(path: Path, file: KeyFile) -> None:
    """Write a file of keys: readers see the old content or the new one.

    A new one can be read by its owner only. One that is replaced keeps its owner and who may read it, so that a service which
    runs as another user than this process still sees the change.

    Raises:
        ConfigurationError: it cannot be written.
    """
    content = file.model_dump(mode="json", exclude_defaults=True)
    temporary = path.with_name(f".{path.name}.{token_hex(4)}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        number = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(number, "w", encoding="utf-8") as opened:
            _keep_readers(number, path)
            opened.write(to_yaml(content))
            opened.flush()
            os.fsync(opened.fileno())
        temporary.replace(path)
    except OSError as problem:
        raise ConfigurationError(f"cannot write {path}: {problem.strerror or problem}") from None
    finally:
        temporary.unlink(missing_ok=True)


def _keep_readers(number: int, path: Path) -> None:
    """Give an open file the owner, the group and the readers of the one at ``path``, if there is one and this may be done."""
    if os.name != "posix":
        return
    with suppress(FileNotFoundError, PermissionError):
        before = path.stat()
        os.fchown(number, before.st_uid, before.st_gid)
        os.fchmod(number, stat.S_IMODE(before.st_mode) & _READERS | stat.S_IRUSR | stat.S_IWUSR)


class _Stamp(NamedTuple):
    """By what one sees that a file is another one."""

    modified: int
    inode: int
    size: int


class Keys:
    """The keys of a service, read again when their file changes.

    A file that cannot be read after a change is spoken of in the log, and the keys from before stay. So is a key in it that does not
    fit to the service, which stays as it was; the others change, since a key that was revoked must go whatever else is wrong.
    """

    def __init__(self, entries: Sequence[Key], path: Path | None = None, stamp: _Stamp | None = None) -> None:
        self._entries = tuple(entries)
        self._path = path
        self._stamp = stamp
        self._checks: list[Check] = []
        self._lock = Lock()

    @classmethod
    def load(cls, path: Path) -> Keys:
        """The keys of a file.

        Raises:
            ConfigurationError: as :func:`read_keys`.
        """
        stamp = _stamp_of(path)
        return cls(read_keys(path).keys, path, stamp)

    @staticmethod
    def anonymous(settings: ServiceSettings) -> Key:
        """Everybody, where there are no keys: all named policies and models, within the service's floor and limits.

        Not an operator and without policies of its own, although the service listens on this machine only: every user of the machine
        and every web page that a browser on it shows can reach the address, and neither is to read other people's history or to make
        unguided pictures. Whoever wants that makes a key.
        """
        return Key(id=ANONYMOUS, sha256=NO_HASH, created=datetime.fromtimestamp(0, UTC))

    @property
    def entries(self) -> tuple[Key, ...]:
        """All keys, expired ones too."""
        return self._entries

    def require(self, check: Check) -> None:
        """Check the keys now, together, and each key by itself whenever the file is read again.

        Raises:
            ConfigurationError: as ``check`` does.
        """
        check(self._entries)
        self._checks.append(check)

    def find(self, token: str) -> Key | None:
        """The key that a token is; None if it is none, or has expired.

        Every entry is compared, each in constant time, so that the time it takes says nothing of what is in the file.
        """
        self.refresh()
        own = hash_of(token)
        found = None
        for key in self._entries:
            if compare_digest(key.sha256, own):
                found = key
        return found if found is not None and not found.expired(datetime.now(UTC)) else None

    def refresh(self) -> None:
        """Read the file again if it has changed."""
        if self._path is None:
            return
        with self._lock:  # whoever asks meanwhile waits: a key that was revoked must not pass once more
            stamp = _stamp_of(self._path)
            if stamp != self._stamp:
                self._stamp = stamp  # a broken file is spoken of once
                self._read(self._path)

    def _read(self, path: Path) -> None:
        try:
            entries = read_keys(path).keys
        except ConfigurationError as problem:
            logger.error("the keys from before stay in use, since the changed file cannot be: %s", problem)
            return
        self._entries = tuple(self._usable(entries))
        logger.info("read %d keys from %s, of which %d are in use", len(entries), path, len(self._entries))

    def _usable(self, entries: Sequence[Key]) -> Iterator[Key]:
        """The keys that fit; of one that does not, what it was before, if it was there."""
        before = {key.sha256: key for key in self._entries}
        for key in entries:
            try:
                for check in self._checks:
                    check([key])
            except ConfigurationError as problem:
                fate = "stays as it was" if key.sha256 in before else "is refused"
                logger.error(
                    "key '%s' %s, since what the file says of it cannot be: %s", key.id, fate, problem
                )
                if key.sha256 not in before:
                    continue
                key = before[key.sha256]
            yield key


def _stamp_of(path: Path) -> _Stamp | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return _Stamp(status.st_mtime_ns, status.st_ino, status.st_size)
