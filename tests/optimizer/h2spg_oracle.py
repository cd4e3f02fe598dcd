"""H2SPG in plain NumPy float64, written from the formulas: one group and one number at a time.

The oracle of `test_h2spg.py`. It shares no code and no data layout with the library.
"""

from collections import Counter

import numpy as np


class Sgd:
    """u = −α (g + weight_decay·x), with momentum m ← μ m + g where μ > 0."""

    def __init__(self, momentum=0.0, weight_decay=0.0):
        self.momentum, self.weight_decay, self.trace = momentum, weight_decay, {}

    def __call__(self, alpha, grads, params):
        updates = {}
        for path, grad in grads.items():
            grad = grad + self.weight_decay * params[path]
            self.trace[path] = grad + self.momentum * self.trace.get(path, 0.0)
            updates[path] = -alpha * self.trace[path]
        return updates


class Adam:
    """u = −α m̂ / (√v̂ + ε)."""

    def __init__(self, b1=0.9, b2=0.999, eps=1e-8):
        self.b1, self.b2, self.eps, self.count, self.m, self.v = b1, b2, eps, 0, {}, {}

    def __call__(self, alpha, grads, params):
        del params
        self.count += 1
        updates = {}
        for path, grad in grads.items():
            self.m[path] = self.b1 * self.m.get(path, 0.0) + (1 - self.b1) * grad
            self.v[path] = self.b2 * self.v.get(path, 0.0) + (1 - self.b2) * grad**2
            m_hat = self.m[path] / (1 - self.b1**self.count)
            v_hat = self.v[path] / (1 - self.b2**self.count)
            updates[path] = -alpha * m_hat / (np.sqrt(v_hat) + self.eps)
        return updates


class Oracle:
    """Steps parameters with a base optimizer followed by H2SPG; counts in `branches` which case each group met.

    Args:
        groups: for each group a list of `(path, index)`, index as in `array[index]`.
        is_valid: function of a set of groups: may they go together?
        base: `Sgd` or `Adam`.
        learning_rate: function of the step.
        num_redundant: the target.
        rest: options of h2spg.
    """

    def __init__(
        self, groups, is_valid, base, learning_rate, num_redundant, warmup_steps, projection_steps,
        periods=1, lmbda=1e-3, amplify=2.0, hat=10.0, epsilon=0.0, omega=0.9, guarantee_target=True,
    ):  # fmt: skip
        self.groups, self.is_valid, self.base, self.learning_rate = groups, is_valid, base, learning_rate
        self.num_redundant, self.warmup_steps, self.projection_steps = num_redundant, warmup_steps, projection_steps
        self.lmbda, self.amplify, self.hat, self.epsilon, self.omega = lmbda, amplify, hat, epsilon, omega
        self.guarantee_target = guarantee_target
        self.starts = [warmup_steps + p * projection_steps // periods for p in range(periods + 1)]
        self.sizes = [(p + 1) * num_redundant // periods for p in range(periods)]
        self.step_number, self.scores, self.num_scores = 0, np.zeros(len(groups)), 0
        self.redundant, self.zero, self.start_norm = set(), set(), {}
        self.branches = Counter()

    def vector(self, tree, group):
        """All entries of a group, in a row."""
        return np.concatenate([tree[path][index].ravel() for path, index in self.groups[group]])

    def step(self, params, grads):
        """Returns the next parameters."""
        t = self.step_number
        alpha = self.learning_rate(t)
        updates = self.base(alpha, grads, params)
        if t in self.starts[:-1]:
            self.select(params, self.sizes[self.starts.index(t)])
        rises = any(
            self.learning_rate(later) > self.learning_rate(later - 1) for later in range(t + 1, self.starts[0] + 1)
        )
        if t < self.starts[-2] and not rises:
            self.average_scores(params, grads)
        after = {path: np.array(params[path] + updates[path]) for path in params}
        for group in self.redundant:
            x, u = self.vector(params, group), self.vector(updates, group)
            self.write(after, group, self.next_value(group, x, u, alpha, t))
        self.step_number += 1
        return after

    def write(self, tree, group, vector):
        position = 0
        for path, index in self.groups[group]:
            part = tree[path][index]
            tree[path][index] = vector[position : position + part.size].reshape(part.shape)
            position += part.size

    def average_scores(self, params, grads):
        cosines, reciprocals = np.zeros(len(self.groups)), np.zeros(len(self.groups))
        is_zero = np.zeros(len(self.groups), bool)
        for group in range(len(self.groups)):
            x, g = self.vector(params, group), self.vector(grads, group)
            if np.linalg.norm(x) == 0 or group in self.zero:
                self.branches["score: zero group"] += 1
                is_zero[group] = True
                continue
            reciprocals[group] = 1 / (np.linalg.norm(x) / x.size)
            cosines[group] = np.dot(x, g) / (np.linalg.norm(x) * np.linalg.norm(g))
        cosines /= np.linalg.norm(cosines)
        reciprocals /= np.linalg.norm(reciprocals)
        reciprocals[is_zero] = 1.0
        score = 0.5 * cosines + 0.5 * reciprocals
        # The mean of the first scores, as long as it gives each of them more weight than the moving average would.
        weight = max(1 / (self.num_scores + 1), 1 - self.omega)
        self.scores = (1 - weight) * self.scores + weight * score
        self.num_scores += 1

    def select(self, params, size):
        order = sorted(range(len(self.groups)), key=lambda group: -self.scores[group])
        for group in order:
            if len(self.redundant) < size and group not in self.redundant:
                if self.is_valid(self.redundant | {group}):
                    self.redundant = self.redundant | {group}
                else:
                    self.branches["selection: refused"] += 1
        assert len(self.redundant) == size, "the oracle knows no fallback: choose other problems"
        for group in self.redundant:
            self.start_norm[group] = np.linalg.norm(self.vector(params, group))

    def strength(self, x, u, alpha):
        """λ_g."""
        d = -u / alpha
        if np.dot(x, d) >= 0:
            self.branches["lambda: shrinking by itself"] += 1
            return self.lmbda
        lower = -np.dot(x, d) / np.linalg.norm(x)
        upper = -np.dot(d, d) * np.linalg.norm(x) / np.dot(x, d)
        amplified = self.amplify * lower
        chosen = min(max(amplified, self.lmbda), self.hat * self.lmbda)
        if chosen >= upper:
            self.branches["lambda: mean of bounds"] += 1
            return (lower + upper) / 2
        if chosen == amplified:
            self.branches["lambda: amplified lower bound"] += 1
        elif chosen == self.lmbda:
            self.branches["lambda: raised to lmbda"] += 1
        else:
            self.branches["lambda: held at hat"] += 1
        return chosen

    def next_value(self, group, x, u, alpha, t):
        """Where a redundant group goes."""
        if group in self.zero:
            self.branches["zero: frozen"] += 1
            return np.zeros_like(x)
        if np.linalg.norm(x) == 0:
            self.branches["zero: found so"] += 1
            self.zero.add(group)
            return np.zeros_like(x)
        x_hat = x + u - alpha * self.strength(x, u, alpha) * x / np.linalg.norm(x)
        if np.dot(x_hat, x) < self.epsilon * np.dot(x, x):
            self.branches["zero: half-space"] += 1
            self.zero.add(group)
            return np.zeros_like(x)
        if self.guarantee_target:
            part = max(p for p, start in enumerate(self.starts[:-1]) if start <= t)
            first, end = self.starts[part], self.starts[part + 1]
            if t + 1 >= end:
                self.branches["zero: end of the line"] += 1
                self.zero.add(group)
                return np.zeros_like(x)
            limit = self.start_norm[group] * (1 - (t - first + 1) / (end - first))
            if np.linalg.norm(x_hat) > limit:
                self.branches["line: held down"] += 1
                return x_hat * (limit / np.linalg.norm(x_hat))
            self.branches["line: already below"] += 1
        else:
            self.branches["line: none"] += 1
        return x_hat


BRANCHES = {
    "score: zero group",
    "selection: refused",
    "lambda: shrinking by itself",
    "lambda: mean of bounds",
    "lambda: amplified lower bound",
    "lambda: raised to lmbda",
    "lambda: held at hat",
    "zero: frozen",
    "zero: found so",
    "zero: half-space",
    "zero: end of the line",
    "line: held down",
    "line: already below",
    "line: none",
}
