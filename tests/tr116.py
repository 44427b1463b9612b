"""What TR116 prints of its sixty runs: Appendix A, and what sections 3.1, 7.1 and 9.3 make of the same runs.

Two agents share one GPU through two Ollama instances. A group is client, model and scenario, five runs in order.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Run:
    """A line of Appendix A: speedup in x, efficiency in %, deltas between the agents in tok/s and ms."""

    speedup: float
    efficiency: float
    throughput_delta: float
    ttft_delta: float
    contention: bool = False


@dataclass(frozen=True)
class Aggregates:
    """What Appendix A prints below a group, of its efficiencies: percent, and percentage points for sd and range."""

    mean: float
    sd: float
    min: float
    max: float
    range: float
    cv: float


@dataclass(frozen=True)
class Overall:
    """A line of section 3.1: mean speedup in x, mean and peak efficiency in %."""

    speedup: float
    efficiency: float
    peak: float


@dataclass(frozen=True)
class Variance:
    """A line of section 7.1: mean efficiency in %, its standard deviation in points, its CV in %."""

    mean: float
    sd: float
    cv: float


# Appendix A, the runs: speedup, efficiency, throughput delta, TTFT delta
RUNS: Mapping[str, Sequence[Run]] = {
    "rust qwen baseline_vs_chimera": (
        Run(1.7015, 85.08, 30.47, 1422.8),
        Run(1.7037, 85.18, 30.69, 119.4),
        Run(1.9916, 99.58, -0.35, 17.7),
        Run(1.9758, 98.79, -13.13, 86.9),
        Run(1.6239, 81.20, 14.33, 49.8),
    ),
    "rust qwen chimera_homo": (
        Run(1.9185, 95.92, -3.65, -468.2),
        Run(1.9481, 97.40, -3.49, 111.6),
        Run(1.7989, 89.94, -16.06, 58.5),
        Run(1.8360, 91.80, -6.18, 89.0),
        Run(1.4400, 72.00, -32.73, 159.9, contention=True),
    ),
    "rust gemma baseline_vs_chimera": (
        Run(1.9493, 97.46, 0.43, 1270.3),
        Run(1.9689, 98.45, 2.22, 145.3),
        Run(1.9140, 95.70, -5.75, 116.4),
        Run(1.9248, 96.24, -4.96, 173.9),
        Run(1.9744, 98.72, -1.57, 159.9),
    ),
    "rust gemma chimera_homo": (
        Run(1.9821, 99.11, -7.39, -1563.3),
        Run(1.9972, 99.86, 0.45, 164.0),
        Run(1.9829, 99.15, 1.11, 259.9),
        Run(1.9945, 99.73, -0.25, 163.0),
        Run(1.9651, 98.26, 2.27, 275.0),
    ),
    "rust llama baseline_vs_chimera": (
        Run(1.9235, 96.18, 4.33, 1441.1),
        Run(1.9333, 96.66, -3.13, 149.6),
        Run(1.9034, 95.17, -5.35, 128.1),
        Run(1.9100, 95.50, -4.31, 127.5),
        Run(1.9847, 99.23, 0.81, 140.6),
    ),
    "rust llama chimera_homo": (
        Run(1.9809, 99.05, -0.71, -487.8),
        Run(1.9505, 97.52, -2.79, 75.6),
        Run(1.9701, 98.51, -1.42, 149.3),
        Run(1.9861, 99.30, -0.51, 94.3),
        Run(1.9672, 98.36, -1.57, 78.9),
    ),
    "python qwen baseline_vs_chimera": (
        Run(1.1063, 55.31, 14.32, -11.7),
        Run(1.6568, 82.84, 16.26, 0.8),
        Run(1.6800, 84.00, 14.71, 4.3),
        Run(1.6309, 81.54, 17.53, 6.5),
        Run(1.6827, 84.14, 15.15, 0.2),
    ),
    "python qwen chimera_homo": (
        Run(1.6309, 81.54, 13.18, -97.4),
        Run(1.6858, 84.29, 14.64, -5.3),
        Run(1.6565, 82.83, 16.26, 6.5),
        Run(1.6784, 83.92, 15.01, 0.5),
        Run(1.7601, 88.01, 10.52, 0.0),
    ),
    "python gemma baseline_vs_chimera": (
        Run(1.2023, 60.12, 10.16, 35.3),
        Run(1.6815, 84.07, 16.05, 0.6),
        Run(1.7503, 87.51, 11.43, -0.5),
        Run(1.6788, 83.94, 16.57, -1.0),
        Run(1.7108, 85.54, 13.99, 0.0),
    ),
    "python gemma chimera_homo": (
        Run(1.5950, 79.75, 12.49, -43.5),
        Run(1.7251, 86.25, 13.03, -0.5),
        Run(1.7082, 85.41, 13.74, 0.1),
        Run(1.6842, 84.21, 15.31, 0.0),
        Run(1.7729, 88.64, 9.83, -0.2),
    ),
    "python llama baseline_vs_chimera": (
        Run(1.2039, 60.19, 9.78, -5.1),
        Run(1.8258, 91.29, 6.47, 0.0),
        Run(1.7514, 87.57, 10.08, -0.6),
        Run(1.8266, 91.33, 6.31, 0.5),
        Run(1.7722, 88.61, 9.17, 0.8),
    ),
    "python llama chimera_homo": (
        Run(1.3911, 69.56, 15.70, -72.9),
        Run(1.7874, 89.37, 8.43, -0.1),
        Run(1.8054, 90.27, 7.18, 0.0),
        Run(1.8337, 91.68, 5.91, 0.6),
        Run(1.7599, 88.00, 9.84, 0.6),
    ),
}

# Appendix A, printed below them: mean, standard deviation, min, max, range, CV
AGGREGATES: Mapping[str, Aggregates] = {
    "rust qwen baseline_vs_chimera": Aggregates(89.97, 8.57, 81.20, 99.58, 18.38, 9.53),
    "rust qwen chimera_homo": Aggregates(89.41, 10.19, 72.00, 97.40, 25.41, 11.40),
    "rust gemma baseline_vs_chimera": Aggregates(97.31, 1.33, 95.70, 98.72, 3.02, 1.36),
    "rust gemma chimera_homo": Aggregates(99.22, 0.64, 98.26, 99.86, 1.61, 0.64),
    "rust llama baseline_vs_chimera": Aggregates(96.55, 1.61, 95.17, 99.23, 4.06, 1.67),
    "rust llama chimera_homo": Aggregates(98.55, 0.69, 97.52, 99.30, 1.78, 0.70),
    "python qwen baseline_vs_chimera": Aggregates(77.57, 12.48, 55.31, 84.14, 28.82, 16.09),
    "python qwen chimera_homo": Aggregates(84.12, 2.42, 81.54, 88.01, 6.46, 2.88),
    "python gemma baseline_vs_chimera": Aggregates(80.24, 11.34, 60.12, 87.51, 27.40, 14.13),
    "python gemma chimera_homo": Aggregates(84.85, 3.28, 79.75, 88.64, 8.89, 3.87),
    "python llama baseline_vs_chimera": Aggregates(83.80, 13.30, 60.19, 91.33, 31.14, 15.87),
    "python llama chimera_homo": Aggregates(85.77, 9.17, 69.56, 91.68, 22.13, 10.69),
}

SECTION_3_1: Mapping[str, Overall] = {
    "rust gemma baseline_vs_chimera": Overall(1.95, 97.3, 99.5),
    "rust gemma chimera_homo": Overall(1.98, 99.2, 99.9),
    "rust llama baseline_vs_chimera": Overall(1.93, 96.5, 98.8),
    "rust llama chimera_homo": Overall(1.97, 98.5, 99.7),
    "rust qwen baseline_vs_chimera": Overall(1.80, 90.0, 92.3),
    "rust qwen chimera_homo": Overall(1.79, 89.4, 91.8),
    "python llama baseline_vs_chimera": Overall(1.68, 83.8, 87.2),
    "python llama chimera_homo": Overall(1.72, 85.8, 89.1),
    "python gemma baseline_vs_chimera": Overall(1.60, 80.2, 84.5),
    "python gemma chimera_homo": Overall(1.70, 84.9, 88.3),
    "python qwen baseline_vs_chimera": Overall(1.55, 77.6, 81.2),
    "python qwen chimera_homo": Overall(1.68, 84.1, 87.6),
}

SECTION_7_1: Mapping[str, Variance] = {
    "rust gemma baseline_vs_chimera": Variance(97.3, 1.2, 1.2),
    "rust gemma chimera_homo": Variance(99.2, 0.4, 0.4),
    "rust llama baseline_vs_chimera": Variance(96.5, 1.8, 1.9),
    "rust llama chimera_homo": Variance(98.5, 0.8, 0.8),
    "rust qwen baseline_vs_chimera": Variance(90.0, 2.3, 2.6),
    "rust qwen chimera_homo": Variance(89.4, 1.5, 1.7),
}

SECTION_9_3_GROUP = "python gemma chimera_homo"
SECTION_9_3_RUNS = (84.0, 86.0, 85.0, 84.5, 85.5)
SECTION_9_3_MEAN, SECTION_9_3_CV = 84.9, 2.2
