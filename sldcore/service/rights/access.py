"""Which policies and models a key may use: names that the operator listed, policies of its own, and the floors under both."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any, Final

from sldcore.errors import ConfigurationError, PolicyError, listed, nearest
from sldcore.policy import Preset, SafetyPolicy
from sldcore.resolution import check_policies
from sldcore.service.rights.inline import Forbidden, InlinePolicies
from sldcore.service.rights.keys import Key, Keys
from sldcore.service.settings import ModelSettings, ServiceSettings
from sldcore.strictness import weaker_where

__all__ = ["Access", "Forbidden", "RequestLimits", "load_policies"]

KEPT_COMPARISONS: Final = 1024


@dataclass(frozen=True, slots=True)
class RequestLimits:
    """What one request of a key may ask for: the tighter of the key's limits and the service's."""

    pictures: int
    prompt_characters: int
    min_steps: int
    max_steps: int


def load_policies(settings: ServiceSettings) -> dict[str, SafetyPolicy]:
    """The policies of the settings under the names that clients use, everything that they name at hand.

    Raises:
        ConfigurationError: one cannot be read, or names what cannot be had.
    """
    found = {}
    for name, source in settings.policies.items():
        try:
            policy = _preset_or_file(source).replace(name=name)
            check_policies([policy])
        except ConfigurationError as problem:
            raise ConfigurationError(f"policies.{name}: {problem}") from None
        found[name] = policy
    return found


def _preset_or_file(source: str) -> SafetyPolicy:
    presets = [preset.value for preset in Preset]
    if source in presets:
        return SafetyPolicy.preset(source)
    if not Path(source).is_file():
        raise PolicyError(
            f"'{source}' is neither a preset nor a file{nearest(source, presets)} (presets: {listed(presets)})"
        )
    return SafetyPolicy.load(source)


class Access:
    """What keys may use. Made of the settings and, if there are any, the keys, which are checked now and when they change.

    Raises:
        ConfigurationError: a policy cannot be had; a named policy is weaker than a floor that it is to be used under; a key names
            what the service does not have.
    """

    def __init__(self, settings: ServiceSettings, keys: Keys | None = None) -> None:
        self._settings = settings
        self._compared: OrderedDict[tuple[str, str], tuple[str, ...]] = OrderedDict()
        self._lock = Lock()
        self._readers: dict[tuple[str, ...], InlinePolicies] = {}
        self.policies: Mapping[str, SafetyPolicy] = load_policies(settings)
        self.everybody = Keys.anonymous(settings)
        """Who asks where there are no keys."""
        if settings.floor is not None:
            for name in self.policies:
                self._require_above(f"policies.{name}", name, settings.floor)
        if keys is not None:
            keys.require(self.check_keys)
        else:
            self.check_keys([self.everybody])

    def check_keys(self, keys: Sequence[Key]) -> None:
        """Whether keys fit to the service.

        Raises:
            ConfigurationError: one names a policy or model that there is not, or a policy that is weaker than its floor.
        """
        for key in keys:
            where = f"key '{key.id}'"
            policies = (
                *key.policies,
                *(name for name in (key.floor, key.default_policy) if name is not None),
            )
            _require_known(f"{where}: policy", policies, self.policies)
            _require_known(f"{where}: model", key.models, self._settings.models)
            if key.floor is not None:
                for name in dict.fromkeys((*key.policies, *filter(None, [key.default_policy]))):
                    self._require_above(where, name, key.floor)
            if key.default_policy is not None and key.default_policy not in self.policies_of(key):
                raise ConfigurationError(
                    f"{where}: default_policy is '{key.default_policy}', which the key may not use "
                    f"(it may use: {listed(self.policies_of(key))})"
                )

    def policies_of(self, key: Key) -> dict[str, SafetyPolicy]:
        """The policies that a key may name, in the settings' order."""
        return {
            name: policy
            for name, policy in self.policies.items()
            if (not key.policies or name in key.policies)
            and (key.floor is None or not self._weaker(policy, self.policies[key.floor]))
        }

    def models_of(self, key: Key) -> dict[str, ModelSettings]:
        """The models that a key may use, the default first."""
        models = self._settings.models
        return {name: model for name, model in models.items() if not key.models or name in key.models}

    def default_policy(self, key: Key) -> str:
        """The name of the policy where a request names none."""
        if key.default_policy is not None:
            return key.default_policy
        allowed = self.policies_of(key)
        wanted = self._settings.default_policy or next(iter(self.policies))
        return wanted if wanted in allowed else next(iter(allowed))

    def limits_of(self, key: Key, model: ModelSettings) -> RequestLimits:
        """What one request of a key may ask of a model."""
        limits, own = self._settings.limits, key.limits
        return RequestLimits(
            pictures=_least(limits.pictures, limits.client_queue, own.pictures, own.pictures_per_minute),
            prompt_characters=_least(limits.prompt_characters, own.prompt_characters),
            min_steps=model.min_steps,
            max_steps=max(model.min_steps, _least(model.max_steps, own.steps)),
        )

    def policy_for(self, key: Key, asked: str | Mapping[str, Any] | None) -> SafetyPolicy:
        """The policy of a request that names one, brings one of its own, or says nothing.

        Raises:
            Forbidden: the key may not use it, or it is weaker than a floor; the message says in what.
            PolicyError: it is no policy.
        """
        if asked is None:
            return self.policies[self.default_policy(key)]
        if isinstance(asked, str):
            return self._named(key, asked)
        if not isinstance(asked, Mapping):
            raise PolicyError("policy: expected the name of a policy, or a policy")
        if not key.inline:
            raise Forbidden(
                f"this key may not send policies of its own; name one (available: {listed(self.policies_of(key))})"
            )
        return self._inline(key, asked)

    def _named(self, key: Key, asked: str) -> SafetyPolicy:
        allowed = self.policies_of(key)
        if asked not in allowed:
            raise Forbidden(
                f"policy: this key may use no policy {asked!r:.80}{nearest(asked[:80], allowed)} "
                f"(available: {listed(allowed)})"
            )
        return allowed[asked]

    def _inline(self, key: Key, content: Mapping[str, Any]) -> SafetyPolicy:
        floors = self._floors(key)
        policy = self._inline_policies(tuple(floors)).read(content)
        for name, floor in floors.items():
            if reasons := self._weaker(policy, floor):
                raise Forbidden(
                    f"policy: weaker than '{name}', which is the least here: {'; '.join(reasons)}"
                )
        return policy

    def _inline_policies(self, floors: tuple[str, ...]) -> InlinePolicies:
        """What inline policies under some floors may name; there are no more than pairs of named policies."""
        if floors not in self._readers:
            listed_first = [self.policies[name] for name in floors]
            self._readers[floors] = InlinePolicies([*listed_first, *self.policies.values()])
        return self._readers[floors]

    def _floors(self, key: Key) -> dict[str, SafetyPolicy]:
        """What a policy of a request must be at least as strict as: the floors, or the default policy where there are none."""
        names = [name for name in (key.floor, self._settings.floor) if name is not None]
        return {name: self.policies[name] for name in names or [self.default_policy(key)]}

    def _require_above(self, where: str, name: str, floor: str) -> None:
        if reasons := self._weaker(self.policies[name], self.policies[floor]):
            raise ConfigurationError(
                f"{where}: policy '{name}' is weaker than the floor '{floor}': {'; '.join(reasons)}. Take it out, or set "
                "another floor"
            )

    def _weaker(self, policy: SafetyPolicy, floor: SafetyPolicy) -> tuple[str, ...]:
        """As :func:`weaker_where`, kept for the policies that were compared last."""
        pair = policy.digest, floor.digest
        with self._lock:
            if pair in self._compared:
                self._compared.move_to_end(pair)
                return self._compared[pair]
        reasons = weaker_where(policy, floor)
        with self._lock:
            self._compared[pair] = reasons
            while len(self._compared) > KEPT_COMPARISONS:
                self._compared.popitem(last=False)
        return reasons


def _require_known(what: str, names: Sequence[str], known: Mapping[str, Any]) -> None:
    for name in names:
        if name not in known:
            raise ConfigurationError(
                f"{what} '{name}' is not in the settings{nearest(name, known)} (available: {listed(known)})"
            )


def _least(first: int, *others: int | None) -> int:
    return min([first, *(each for each in others if each is not None)])
