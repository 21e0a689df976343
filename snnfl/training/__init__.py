"""How a client trains and how a model is evaluated: plain loops over batches that are already tensors."""

from snnfl.training.accumulation import gradient_weight
from snnfl.training.control import control_change, controlled
from snnfl.training.evaluation import Evaluation, accuracies, accuracy, evaluate
from snnfl.training.label_calibration import label_calibrated
from snnfl.training.local import TrainingDivergedError, TrainingResult, learning_rate, train_locally
from snnfl.training.normalisation import precise_batch_norm
from snnfl.training.objectives import Batch, Objective, cross_entropy, model_contrastive, proximal
from snnfl.training.resident import copy_arrays, exchangeable, is_statistic, load_arrays, normalisation, private_biases
from snnfl.training.smallest_batch import needs_two

__all__ = [
    "Batch",
    "Evaluation",
    "Objective",
    "TrainingDivergedError",
    "TrainingResult",
    "accuracies",
    "accuracy",
    "control_change",
    "controlled",
    "copy_arrays",
    "cross_entropy",
    "evaluate",
    "exchangeable",
    "gradient_weight",
    "is_statistic",
    "label_calibrated",
    "learning_rate",
    "load_arrays",
    "model_contrastive",
    "needs_two",
    "normalisation",
    "precise_batch_norm",
    "private_biases",
    "proximal",
    "train_locally",
]
