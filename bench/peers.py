"""Other ways to the ten best by dot product, each on one thread: calls from vectors [B, d] to rows [B, k].

faiss-cpu, scann, usearch and hnswlib are the extra `bench`. One that is not installed is left out by name.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import TensorProto, helper

from export.score import IR_VERSION, quantize, scan_node
from functions.core.models import OPSET
from functions.core.runtime import session_options

Table = NDArray[np.float32]
Query = Callable[[Table], NDArray[Any]]
Made = Iterator[tuple[str, Callable[[Table, int], Query]]]
PROBES = 24
GRAPHS_TO = 100_000  # items; over more, a graph takes half an hour to build, so it has to be kept
EF = 256  # of a graph's search


def peers(rows: int, graphs: Path | None = None) -> Made:
    """Name and maker of each method that is installed and that can be built over so many rows.

    graphs: a folder where graphs are kept, so that they can be of any size.
    """
    yield "numpy fp32", numpy_search
    yield "ORT fp32", ort_float
    yield "ORT MatMulNBits, TopK", ort_nbits
    if find_spec("faiss"):
        for name, key in FAISS.items():
            yield f"FAISS {name}", _faiss(key)
    if find_spec("scann"):
        yield "ScaNN int8 brute force", scann_brute
        yield "ScaNN tree", scann_tree
    if find_spec("usearch"):
        yield "usearch exact int8", usearch_exact
        if graphs or rows <= GRAPHS_TO:
            yield "usearch HNSW", partial(usearch_graph, graphs=graphs)
    if find_spec("hnswlib") and (graphs or rows <= GRAPHS_TO):
        yield "hnswlib", partial(hnswlib_graph, graphs=graphs)


def numpy_search(table: Table, k: int) -> Query:
    """One product with the whole table, and a partition of the scores."""

    def search(vectors: Table) -> NDArray[Any]:
        scores = (table @ vectors[0])[None] if len(vectors) == 1 else vectors @ table.T
        return np.argpartition(-scores, k - 1, axis=1)[:, :k]

    return search


def ort_float(table: Table, k: int) -> Query:
    """MatMul in float32 without prepacking, which is the faster one at one row, and TopK."""
    product = helper.make_node("MatMul", ["vector", "table"], ["scores"])
    weights = {"table": np.ascontiguousarray(table.T)}
    return _session([product], weights, table.shape[1], k, {"session.disable_prepacking": "1"})


def ort_nbits(table: Table, k: int) -> Query:
    """MatMulNBits and a TopK of all scores, without rescoring."""
    codes, scales = quantize(table.astype(np.float16))
    rows, dim = table.shape
    scan = scan_node(rows, dim)
    return _session([scan], {"codes": codes, "scales": scales.ravel()}, dim, k, {})


def _session(
    nodes: list[Any], weights: dict[str, NDArray[Any]], dim: int, k: int, entries: dict[str, str]
) -> Query:
    handed = []
    for name, array in weights.items():
        kind = helper.np_dtype_to_tensor_dtype(array.dtype)
        tensor = helper.make_tensor(name, kind, [0], [])
        del tensor.dims[:]
        tensor.dims.extend(array.shape)
        tensor.data_location = TensorProto.EXTERNAL
        entry = tensor.external_data.add()
        entry.key, entry.value = "location", name
        handed.append(tensor)
    graph = helper.make_graph(
        [*nodes, helper.make_node("TopK", ["scores", "k"], ["top", "rows"], axis=1)],
        "peer",
        [helper.make_tensor_value_info("vector", TensorProto.FLOAT, [None, dim])],
        [helper.make_tensor_value_info("rows", TensorProto.INT64, None)],
        initializer=[*handed, helper.make_tensor("k", TensorProto.INT64, [1], [k])],
    )
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION)
    options = session_options()
    for key, value in entries.items():
        options.add_session_config_entry(key, value)
    values = [ort.OrtValue.ortvalue_from_numpy(array) for array in weights.values()]
    options.add_external_initializers(list(weights), values)
    session = ort.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"])

    def search(vectors: Table, kept: object = (values, weights)) -> NDArray[Any]:
        rows: NDArray[np.int64] = session.run(["rows"], {"vector": vectors})[0]
        return rows

    return search


FAISS = {
    "Flat": "Flat",
    "SQfp16": "SQfp16",
    "SQ8": "SQ8",
    "SQ8_direct_signed": "direct",
    f"IVF-flat, nprobe {PROBES}": "IVF{lists},Flat",
    f"IVF-SQ8, nprobe {PROBES}": "IVF{lists},SQ8",
    "PQ fast-scan, refined": "PQ{halves}x4fs,RFlat",
}


def _faiss(key: str) -> Callable[[Table, int], Query]:
    def make(table: Table, k: int) -> Query:
        import faiss

        faiss.omp_set_num_threads(1)
        rows, dim = table.shape
        factor = 1.0
        index: Any
        if key == "direct":  # takes whole numbers -128..127 as they are
            index = faiss.IndexScalarQuantizer(
                dim, faiss.ScalarQuantizer.QT_8bit_direct_signed, faiss.METRIC_INNER_PRODUCT
            )
            factor = 127 / float(np.abs(table).max())
        else:
            lists = 1 << round(np.log2(rows) / 2)
            index = faiss.index_factory(
                dim, key.format(lists=lists, halves=dim // 2), faiss.METRIC_INNER_PRODUCT
            )
        given = np.rint(table * factor) if key == "direct" else table
        index.train(given[: 64 * 1024])
        index.add(given)
        if key.startswith("IVF"):
            index.nprobe = PROBES
        if "RFlat" in key:
            index.k_factor = 10
        return lambda vectors: index.search(vectors, k)[1]

    return make


def scann_brute(table: Table, k: int) -> Query:
    """ScaNN's brute force on int8."""
    import scann

    builder = scann.scann_ops_pybind.builder(table, k, "dot_product").score_brute_force(quantize=True)
    searcher = builder.set_n_training_threads(1).build()
    return _scann(searcher)


def scann_tree(table: Table, k: int) -> Query:
    """ScaNN's partitions with asymmetric hashing and reordering."""
    import scann

    leaves = 1 << round(np.log2(len(table)) / 2)
    builder = scann.scann_ops_pybind.builder(table, k, "dot_product")
    builder = builder.tree(leaves, PROBES, training_sample_size=min(len(table), 64 * 1024))
    searcher = builder.score_ah(2, anisotropic_quantization_threshold=0.2).reorder(100).build()
    return _scann(searcher)


def _scann(searcher: Any) -> Query:
    def find(vectors: Table) -> NDArray[Any]:
        if len(vectors) == 1:
            return np.asarray(searcher.search(vectors[0])[0])[None]
        return np.asarray(searcher.search_batched(vectors)[0])

    return find


def usearch_exact(table: Table, k: int) -> Query:
    """usearch's exact search on int8 codes with one scale for all."""
    from usearch.index import MetricKind, search

    factor = 127 / float(np.abs(table).max())
    codes = np.rint(table * factor).astype(np.int8)

    def find(vectors: Table) -> NDArray[Any]:
        largest = np.maximum(np.abs(vectors).max(1, keepdims=True), 1e-9)
        asked = np.rint(vectors * (127 / largest)).astype(np.int8)
        found = search(codes, asked, k, MetricKind.IP, exact=True, threads=1)
        return np.asarray(found.keys).reshape(len(vectors), -1)

    return find


def usearch_graph(table: Table, k: int, graphs: Path | None = None) -> Query:
    """usearch's HNSW in float32."""
    from usearch.index import Index

    index = Index(ndim=table.shape[1], metric="ip", dtype="f32", expansion_search=EF)
    kept = _kept(graphs, "usearch", table)
    if kept and kept.exists():
        index.load(str(kept))
        index.expansion_search = EF
    else:
        index.add(np.arange(len(table)), table, threads=1)
        if kept:
            index.save(str(kept))
    return lambda vectors: np.asarray(index.search(vectors, k, threads=1).keys).reshape(len(vectors), -1)


def hnswlib_graph(table: Table, k: int, graphs: Path | None = None) -> Query:
    """hnswlib in float32."""
    import hnswlib

    index = hnswlib.Index("ip", table.shape[1])
    kept = _kept(graphs, "hnswlib", table)
    if kept and kept.exists():
        index.load_index(str(kept))
    else:
        index.init_index(len(table), ef_construction=200, M=16, random_seed=1)
        index.add_items(table, num_threads=1)
        if kept:
            index.save_index(str(kept))
    index.set_num_threads(1)
    index.set_ef(EF)
    return lambda vectors: index.knn_query(vectors, k, num_threads=1)[0]


def _kept(graphs: Path | None, kind: str, table: Table) -> Path | None:
    """Where a graph of this table lies, or will."""
    if graphs is None:
        return None
    graphs.mkdir(parents=True, exist_ok=True)
    named = hashlib.sha256(table.tobytes()).hexdigest()[:16]
    return graphs / f"{kind}-{named}"


def installed() -> dict[str, str]:
    """Versions of what is measured."""
    from importlib.metadata import PackageNotFoundError, version

    found = {"onnxruntime": ort.__version__, "numpy": np.__version__}
    for name in ("faiss-cpu", "scann", "usearch", "hnswlib"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed, not run"
    return found


def scratch(folder: Path, name: str) -> Path:
    """A new folder in `folder`."""
    made = folder / name
    made.mkdir()
    return made
