"""What is recorded of each picture, review and refused request.

A record holds no prompt and no reason unless the operator asks for prompts: a prompt is there as a hash, salted with the ledger's
secret. Libraries are there as a digest of their versions; the record of the service's start spells them out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from typing import TYPE_CHECKING, Any, Final, Literal

from sldcore.audit_records import account_record, now, prompt_hash, review_seconds, without_prompt
from sldcore.provenance import json_text, library_versions
from sldcore.service.jobs import Failed, PictureAnswer, PictureJob, ReviewAnswer, ReviewJob

if TYPE_CHECKING:
    from sldcore.service.settings import AuditSettings

FORMAT: Final = 1
"""Version of the layout of a record."""

Kind = Literal["image", "review"]
_MODEL: Final = ("device", "dtype", "scheduler", "providers")
"""What is taken from provenance as it is; ``versions`` becomes a digest."""


@dataclass(frozen=True, slots=True)
class Wording:
    """How prompts are recorded: hashed with a salt, and as they are only if ``plain``."""

    salt: bytes = b""
    plain: bool = False

    @classmethod
    def of(cls, settings: AuditSettings) -> Wording:
        """As the service's settings say.

        Raises:
            ConfigurationError: The file with the secret cannot be had.
        """
        from sldcore.service.ledger.chain import read_secret

        secret = b"" if settings.secret_file is None else read_secret(settings.secret_file)
        return cls(secret, settings.plain_prompts)

    def of_prompt(self, prompt: str) -> dict[str, str]:
        """The fields that stand for a prompt."""
        plain = {"prompt": prompt} if self.plain else {}
        return {"prompt_sha256": prompt_hash(prompt, self.salt), **plain}

    def of_message(self, message: str, prompt: str) -> str:
        """A message without the prompt that it may quote."""
        return message if self.plain else without_prompt(message, prompt)


def picture_record(
    job: PictureJob,
    answer: PictureAnswer | Failed,
    wording: Wording,
    *,
    request: str,
    key: str | None,
    index: int,
    partials: int = 0,
) -> dict[str, Any]:
    """What became of one picture of a request.

    Args:
        job: What was asked.
        answer: What became of it.
        wording: How the prompt is recorded.
        request: The request's id.
        key: The id of the API key, None where the service asks for none.
        index: Which picture of the request, from 0.
        partials: How many pictures of the way there were sent to the client.
    """
    record = _begun("image", request, key, index, job.model)
    record |= wording.of_prompt(job.prompt)
    if isinstance(answer, Failed):
        asked = {"seed": job.seed, **_policy(job)}
        return record | asked | _failed(answer, job.prompt, wording) | {"partials": partials}
    record |= _answered(answer, wording) | {"partials": partials, "explained": job.explain}
    if answer.unguided_account is not None:
        unguided = account_record(answer.unguided_account, plain=wording.plain)
        record["unguided"] = {"shown": answer.unguided is not None, **unguided}
    return record


def review_record(
    job: ReviewJob,
    answer: ReviewAnswer | Failed,
    wording: Wording,
    *,
    request: str,
    key: str | None,
    index: int,
) -> dict[str, Any]:
    """What the filters said of one text or picture of a request: arguments as of :func:`picture_record`.

    Of a picture there is ``picture_sha256``, a salted hash of the file.
    """
    record = _begun("review", request, key, index, job.model)
    if job.picture is not None:
        record["picture_sha256"] = sha256(wording.salt + job.picture).hexdigest()
    else:
        record |= wording.of_prompt(job.text or "")
    if isinstance(answer, Failed):
        return record | _policy(job) | _failed(answer, job.text or "", wording)
    return record | _answered(answer, wording)


def refused_record(
    kind: Kind,
    reason: str,
    message: str,
    wording: Wording,
    *,
    request: str,
    key: str | None,
    model: str | None = None,
    prompt: str | None = None,
) -> dict[str, Any]:
    """A request of which nothing was carried out: the queue was full, the key may not, and so on."""
    words = {} if prompt is None else wording.of_prompt(prompt)
    told = {"reason": reason, "message": wording.of_message(message, prompt or "")}
    return _begun(kind, request, key, None, model) | words | {"action": "refused", "failed": told}


def begin_record(fingerprint: str | None, continues: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The first record of a ledger: with which secret it is chained, and which ledger it continues."""
    return {
        "format": FORMAT,
        "time": now(),
        "kind": "begin",
        "secret": fingerprint,
        "continues": None if continues is None else dict(continues),
    }


def start_record() -> dict[str, Any]:
    """The start of a service, with the versions of all libraries that later records name by their digest."""
    versions = library_versions()
    return {
        "format": FORMAT,
        "time": now(),
        "kind": "start",
        "libraries": versions_digest(versions),
        "versions": versions,
    }


def versions_digest(versions: Mapping[str, str]) -> str:
    """A short name for a set of versions."""
    return sha256(json_text(dict(sorted(versions.items()))).encode()).hexdigest()[:16]


def _begun(kind: Kind, request: str, key: str | None, index: int | None, model: str | None) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "time": now(),
        "kind": kind,
        "request": request,
        "index": index,
        "key": key,
        "model": model,
    }


def _answered(answer: PictureAnswer | ReviewAnswer, wording: Wording) -> dict[str, Any]:
    versions = answer.provenance.get("versions")
    return {
        **account_record(answer.account, plain=wording.plain),
        "timings": {"review": review_seconds(answer.account), **answer.timings},
        **{name: answer.provenance[name] for name in _MODEL if name in answer.provenance},
        **({"libraries": versions_digest(versions)} if versions else {}),
    }


def _policy(job: PictureJob | ReviewJob) -> dict[str, Any]:
    return {"policy": job.policy.name, "policy_digest": job.policy.digest}


def _failed(answer: Failed, prompt: str, wording: Wording) -> dict[str, Any]:
    return {
        "action": "failed",
        "failed": {"reason": answer.reason, "message": wording.of_message(answer.message, prompt)},
    }
