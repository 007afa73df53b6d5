"""The one file that imports ONNX Runtime: the towers as callables on numpy arrays."""

import threading
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from functions.core.features import Int64, ItemFeatures
from functions.core.selection import Scores, ScoreType
from functions.core.user_row import Float16

COLUMNS = ("state", "item", "kind", "gap", "value")  # of a step
OUTPUTS = ("state_out", "vector")
HALF = np.dtype(np.float16)
SCORES: dict[str, ScoreType] = {"tensor(float)": np.float32, "tensor(int32)": np.int32}
MOST_ROWS = 256  # of one run: its tensors fit a core's cache, and are all there until its end


def session_options() -> ort.SessionOptions:
    """One CPU thread, without spinning: a Lambda has no core to spare."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return options


def open_session(model: Path, options: ort.SessionOptions | None = None) -> ort.InferenceSession:
    """A session on the CPU, of `session_options` unless others are given."""
    chosen = options or session_options()
    return ort.InferenceSession(str(model), chosen, providers=["CPUExecutionProvider"])


class OnnxStep:
    """The exported user tower as the fold's Step; its rounding to float16 is inside the graph.

    One user's tensors are bound once: to hand arrays over costs a fifth of a step.
    """

    def __init__(self, model: Path) -> None:
        options = session_options()
        options.enable_mem_reuse = False  # a step's tensors are few: to keep count of them takes longer
        options.enable_cpu_mem_arena = False  # by its pattern they are one piece: malloc hands it out faster
        self._session = open_session(model, options)
        inputs = {i.name: i for i in self._session.get_inputs()}
        self.state_width: int = inputs["state"].shape[1]
        self.dim: int = inputs["item"].shape[1]
        state, item = np.zeros((1, self.state_width), np.float16), np.zeros((1, self.dim), np.float16)
        codes = [np.zeros(1, np.int64) for _ in range(3)]
        self._inputs: list[NDArray[Any]] = [state, item, *codes]
        self._outputs = (np.zeros_like(state), np.zeros_like(item))
        self._binding = self._session.io_binding()
        for name, a in zip(COLUMNS, self._inputs, strict=True):
            self._binding.bind_input(name, "cpu", 0, a.dtype.type, a.shape, a.ctypes.data)
        for name, a in zip(OUTPUTS, self._outputs, strict=True):
            self._binding.bind_output(name, "cpu", 0, a.dtype.type, a.shape, a.ctypes.data)
        self._run_bound = self._session.run_with_iobinding
        self._lock = threading.Lock()

    def __call__(
        self, state: Float16, item: Float16, kind: Int64, gap: Int64, value: Int64
    ) -> tuple[Float16, Float16]:
        """One event of each of B users: [B, S], [B, d], codes [B] → state [B, S], vector [B, d], float16."""
        if len(state) != 1:
            return self._run_many(state, item, kind, gap, value)
        if state.dtype != HALF or item.dtype != HALF:
            raise TypeError(f"a state of type {state.dtype}, an item of {item.dtype}; expected {HALF}")
        with self._lock:  # the tensors are one thread's at a time
            # one by one: a loop over them would take two hundredths of a step
            to_state, to_item, to_kind, to_gap, to_value = self._inputs
            to_state[...], to_item[...] = state, item
            to_kind[...], to_gap[...], to_value[...] = kind, gap, value
            self._run_bound(self._binding)
            after, vector = self._outputs
            return after.copy(), vector.copy()

    def _run_many(
        self, state: Float16, item: Float16, kind: Int64, gap: Int64, value: Int64
    ) -> tuple[Float16, Float16]:
        columns: dict[str, NDArray[Any]] = dict(zip(COLUMNS, (state, item, kind, gap, value), strict=True))
        after, vector = np.empty_like(state), np.empty_like(item)
        for start in range(0, len(state), MOST_ROWS):
            rows = slice(start, start + MOST_ROWS)
            part = {name: column[rows] for name, column in columns.items()}
            after[rows], vector[rows] = self._session.run(OUTPUTS, part)
        return after, vector


class OnnxItemTower:
    """The exported item tower: ids and content → embeddings [B, d] float32."""

    def __init__(self, model: Path) -> None:
        self._session = open_session(model)

    def __call__(self, item_id: Int64, content: ItemFeatures) -> NDArray[np.float32]:
        """Embed B products; `item_id` is row + 1, or 0 for a product that training never saw."""
        inputs = {"item_id": item_id, **content.columns()}
        embedding: NDArray[np.float32] = self._session.run(["item_embedding"], inputs)[0]
        return embedding


class OnnxScan:
    """The exported scan of int8 codes: a user vector → approximate scores of all rows.

    The graph is a stub of a kilobyte; codes, and scales where it has some, are handed over as they lie in the
    bundle's files.
    """

    def __init__(self, model: Path, codes: NDArray[Any], scales: NDArray[np.float32] | None = None) -> None:
        handed_over = {"codes": codes} if scales is None else {"codes": codes, "scales": scales}
        self._initializers = [ort.OrtValue.ortvalue_from_numpy(a) for a in handed_over.values()]
        options = session_options()
        options.add_external_initializers(list(handed_over), self._initializers)
        self._session = open_session(model, options)
        output = self._session.get_outputs()[0]
        self.rows: int = output.shape[1]
        self.dim: int = self._session.get_inputs()[0].shape[1]
        self.dtype = SCORES[output.type]
        self._vector = np.zeros(self._session.get_inputs()[0].shape, np.float32)
        self._binding = self._session.io_binding()
        vector = self._vector
        self._binding.bind_input("vector", "cpu", 0, np.float32, vector.shape, vector.ctypes.data)
        self._bound: Scores | None = None

    def __call__(self, vector: NDArray[np.float32], out: Scores) -> None:
        """vector [d] → out [M]; one caller at a time."""
        if self._bound is None or out.ctypes.data != self._bound.ctypes.data:
            self._bound = out  # written to as long as it is bound
            self._binding.bind_output("scores", "cpu", 0, self.dtype, (1, self.rows), out.ctypes.data)
        np.copyto(self._vector[0], vector)
        self._session.run_with_iobinding(self._binding)
