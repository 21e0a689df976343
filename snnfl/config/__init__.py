"""The configuration of a run: frozen dataclasses, and how YAML, command line and Flower's run config become them."""

from snnfl.config.algorithms import ClientSide, client_side
from snnfl.config.auditing import AuditConfig
from snnfl.config.checks import mistakes, validate
from snnfl.config.conversion import ConversionConfig, ConversionSearch
from snnfl.config.declaration import ConfigError, FlatValue, counted, nearest
from snnfl.config.kinds import UpdateKind, converts, keeps_biases, prefixed, spikes_natively, update_kind
from snnfl.config.merging import assigned, assignments, compose, flatten, to_yaml, unflatten
from snnfl.config.modelling import ModelConfig, TrainingConfig
from snnfl.config.options import (
    OWN,
    READING,
    Config,
    DataConfig,
    EngineConfig,
    EvaluationConfig,
    RunConfig,
    StrategyConfig,
    options,
    value_of,
)
from snnfl.config.poisoning import DetectionConfig, PoisoningConfig
from snnfl.config.privacy import PrivacyConfig
from snnfl.config.private_snn import (
    EncryptionConfig,
    ModelAttackConfig,
    PrivateSNNConfig,
    PublishingConfig,
    SynthesisConfig,
)
from snnfl.config.quantization import QuantizationConfig
from snnfl.config.selection import exactly, part_of, sampled_clients, secure_tolerance

__all__ = [
    "OWN",
    "READING",
    "AuditConfig",
    "ClientSide",
    "Config",
    "ConfigError",
    "ConversionConfig",
    "ConversionSearch",
    "DataConfig",
    "DetectionConfig",
    "EncryptionConfig",
    "EngineConfig",
    "EvaluationConfig",
    "FlatValue",
    "ModelAttackConfig",
    "ModelConfig",
    "PoisoningConfig",
    "PrivacyConfig",
    "PrivateSNNConfig",
    "PublishingConfig",
    "QuantizationConfig",
    "RunConfig",
    "StrategyConfig",
    "SynthesisConfig",
    "TrainingConfig",
    "UpdateKind",
    "assigned",
    "assignments",
    "client_side",
    "compose",
    "converts",
    "counted",
    "exactly",
    "flatten",
    "keeps_biases",
    "mistakes",
    "nearest",
    "options",
    "part_of",
    "prefixed",
    "sampled_clients",
    "secure_tolerance",
    "spikes_natively",
    "to_yaml",
    "unflatten",
    "update_kind",
    "validate",
    "value_of",
]
