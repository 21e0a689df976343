"""Whether a whole study can be done, before anything of it is computed: what the data and the model alone can tell."""

from __future__ import annotations

from dataclasses import replace

from experiments.privatesnn.setting import PrivateStudy, Setting
from snnfl.auditing.judge import judge_network
from snnfl.config import ConfigError
from snnfl.conversion import fold
from snnfl.data import Dataset, load
from snnfl.private_snn import last_weight
from snnfl.spiking import ConversionError
from snnfl.workspace import Workspace


def check_networks(study: PrivateStudy) -> None:
    """Refuse a network that cannot be built, or doesn't convert, of each that isn't trained yet.

    Raises:
        ConfigError: Naming the setting.
        DataNotFoundError: If a data set isn't there.
    """
    untrained = {each.network: each for each in study.settings if each.run is None and not each.ann.exists()}
    for setting in untrained.values():
        work = Workspace(setting.config)
        try:
            last_weight(work.graph, fold(work.graph, work.initial_state))
        except (ConfigError, ConversionError) as error:
            raise ConfigError(f"{setting.name}: {error}") from None


def check_images(study: PrivateStudy) -> None:
    """Refuse an encryption, a variant or a lock that wants more images than are made.

    Raises:
        ConfigError: Naming how many there are.
    """
    for setting in study.settings:
        locks = [lock.encryption for lock in setting.locks.values()]
        most = max(each.images for each in (setting.private.encryption, *setting.variants, *locks))
        if most > (made := setting.private.synthesis.images):
            raise ConfigError(
                f"encryption.images={most}: there are {made} synthetic images; lower it, or raise synthesis.images"
            )


def check_attacks(study: PrivateStudy) -> None:
    """Refuse an owner who leaves too few images for judge and attacker, a judge that cannot be, and nothing to attack.

    Raises:
        ConfigError: Saying how many there must be, or what the judge lacks.
    """
    for setting in study.settings:
        if not setting.attack.networks and not setting.locks:
            raise ConfigError("attack.networks=[]: nothing to attack; name some, such as [encrypted], or give locks")
        if not setting.config.data.training_images:
            way = "set it to half of them, for example" if setting.run is None else "take a run that has set it"
            raise ConfigError(
                f"data.training_images=0: the owner has all training images, and judge and attacker need others; {way}"
            )
        data = spare_data(setting)
        try:
            judge_network(setting.attack.judge, data.input_shape, len(data.class_names), seed=0)
        except ConfigError as error:
            told = str(error).replace("model.name=", "attack.judge=").replace("model=", "attack.judge=")
            raise ConfigError(told) from None


def spare_data(setting: Setting) -> Dataset:
    """Return the owner's data set with the images behind the owner's that are the judge's and the attacker's.

    Raises:
        ConfigError: If there are too few.
    """
    data, attack = setting.config.data, setting.attack
    own, several = data.training_images, attack.judge_images + attack.images
    try:
        return load(replace(data, training_images=own + several))
    except ConfigError as error:
        raise ConfigError(
            f"attack.judge_images={attack.judge_images}, attack.images={attack.images}: {several} images that the "
            f"owner of {own} doesn't have ({error})"
        ) from None
