"""Hypergradients beyond architectures, each through ``fastnas.hypergradient``, each checked against the truth.

python -m examples.weight_decay     an L2 coefficient of its own for every weight of a logistic regression
python -m examples.data_cleaning    a weight of its own for every training example, two fifths of them mislabelled
python -m examples.few_shot         implicit MAML: where to start from so that a few examples of a new task will do
"""
