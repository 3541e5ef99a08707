// The inner loop of exact.py: exact scores of rows that lie anywhere in memory, and their order.
//
// There is one inner product, with one order of additions, whatever else is scored in the same
// call and whatever the processor; so a score has the same bits everywhere. NumPy needs a dozen
// calls and a copy of every vector for what is done here while the vectors are on their way.

#define Py_LIMITED_API 0x030B0000  // with buffers: one build serves every later Python
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <limits>
#include <new>
#include <vector>

#if defined(__x86_64__) && defined(__GLIBC__)
// Compiled for several generations of processors; the one at hand is chosen when it is loaded.
#define FOR_EACH_PROCESSOR __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define FOR_EACH_PROCESSOR
#endif

namespace {

constexpr Py_ssize_t kLanes = 16;           // sums that are added up side by side
constexpr Py_ssize_t kRowsAhead = 6;        // fetched from memory while one is scored; measured
constexpr Py_ssize_t kFloatsInALine = 16;   // what one fetch brings
constexpr Py_ssize_t kLockedFloats = 1 << 17;  // some 50 us; longer work lets other threads run

typedef float Lanes __attribute__((vector_size(kLanes * sizeof(float)), aligned(sizeof(float))));

// Vectors of one dimension, row after row.
struct Vectors {
  const float* data;
  Py_ssize_t n;
  Py_ssize_t dim;

  const float* row(Py_ssize_t i) const { return data + i * dim; }
};

inline float InnerProduct(const float* a, const float* b, Py_ssize_t dim) {
  Lanes sums = {};
  Py_ssize_t i = 0;
  for (; i + kLanes <= dim; i += kLanes) {
    sums += *reinterpret_cast<const Lanes*>(a + i) * *reinterpret_cast<const Lanes*>(b + i);
  }
  for (Py_ssize_t lane = 0; i < dim; ++i, ++lane) sums[lane] += a[i] * b[i];
  for (Py_ssize_t width = kLanes / 2; width > 0; width /= 2) {
    for (Py_ssize_t lane = 0; lane < width; ++lane) sums[lane] += sums[lane + width];
  }
  return sums[0] + 0.0f;  // mends -0, which would sort apart from 0
}

// Turns the bits of a float so that, unsigned, they fall as the number rises; or turns them back.
inline uint32_t Turned(uint32_t bits) { return bits >> 31 ? bits : ~bits & 0x7FFFFFFFu; }

// A scored row as an integer that sorts as the results must: best score, then lower row.
inline uint64_t Key(float score, uint32_t row) {
  uint32_t bits;
  std::memcpy(&bits, &score, sizeof bits);
  return uint64_t{Turned(bits)} << 32 | row;
}

inline int64_t RowOf(uint64_t key) { return static_cast<uint32_t>(key); }

inline float ScoreOf(uint64_t key) {
  const uint32_t bits = Turned(static_cast<uint32_t>(key >> 32));
  float score;
  std::memcpy(&score, &bits, sizeof score);
  return score;
}

// Scores the rows that there are, among n numbers; any other number is none.
FOR_EACH_PROCESSOR void Score(const Vectors& vectors, const float* query, const int64_t* rows,
                              Py_ssize_t n, std::vector<uint64_t>& keys) {
  const auto exists = [&](int64_t row) { return row >= 0 && row < vectors.n; };
  for (Py_ssize_t i = 0; i < n; ++i) {
    if (i + kRowsAhead < n && exists(rows[i + kRowsAhead])) {
      const float* ahead = vectors.row(rows[i + kRowsAhead]);
      for (Py_ssize_t j = 0; j < vectors.dim; j += kFloatsInALine) __builtin_prefetch(ahead + j);
    }
    if (exists(rows[i])) {
      const float score = InnerProduct(vectors.row(rows[i]), query, vectors.dim);
      keys.push_back(Key(score, static_cast<uint32_t>(rows[i])));
    }
  }
}

// Leaves the best k keys, in order, repeated ones counted once.
void KeepBest(std::vector<uint64_t>& keys, size_t k) {
  const auto sorted_up_to = [&](size_t n) {
    if (n < keys.size()) std::nth_element(keys.begin(), keys.begin() + n, keys.end());
    std::sort(keys.begin(), keys.begin() + n);
    return std::unique(keys.begin(), keys.begin() + n);
  };
  const size_t n = std::min(k, keys.size());
  auto end = sorted_up_to(n);
  if (end < keys.begin() + n && n < keys.size()) end = sorted_up_to(keys.size());
  keys.resize(std::min<size_t>(k, end - keys.begin()));
}

// The memory of a NumPy array, lent for as long as this lives.
class Array {
 public:
  Array(PyObject* array, int flags) : is_lent_(PyObject_GetBuffer(array, &view_, flags) == 0) {}
  Array(const Array&) = delete;
  Array& operator=(const Array&) = delete;
  ~Array() {
    if (is_lent_) PyBuffer_Release(&view_);
  }

  // Whether it has two dimensions, and lines of so many items of so many bytes.
  bool Is(Py_ssize_t width, size_t itemsize) const {
    return is_lent_ && view_.ndim == 2 && view_.shape[1] == width &&
           static_cast<size_t>(view_.itemsize) == itemsize;
  }
  Py_ssize_t n() const { return is_lent_ && view_.ndim == 2 ? view_.shape[0] : -1; }
  Py_ssize_t width() const { return is_lent_ && view_.ndim == 2 ? view_.shape[1] : -1; }

  template <typename T>
  T* line(Py_ssize_t i) const {
    return static_cast<T*>(view_.buf) + i * width();
  }

 private:
  Py_buffer view_;
  const bool is_lent_;
};

void RescoreAll(const Array& embeddings, const Array& queries, const Array& rows,
                const Array& best_rows, const Array& best_scores) {
  const Vectors vectors = {embeddings.line<float>(0), embeddings.n(), embeddings.width()};
  std::vector<uint64_t> keys;
  keys.reserve(rows.width());
  for (Py_ssize_t i = 0; i < queries.n(); ++i) {
    keys.clear();
    Score(vectors, queries.line<float>(i), rows.line<int64_t>(i), rows.width(), keys);
    KeepBest(keys, best_rows.width());
    int64_t* const row = best_rows.line<int64_t>(i);
    float* const score = best_scores.line<float>(i);
    std::transform(keys.begin(), keys.end(), row, RowOf);
    std::transform(keys.begin(), keys.end(), score, ScoreOf);
    std::fill(row + keys.size(), best_rows.line<int64_t>(i + 1), -1);
    std::fill(score + keys.size(), best_scores.line<float>(i + 1),
              -std::numeric_limits<float>::infinity());
  }
}

constexpr char kRescoreDoc[] =
    "Score the rows proposed for each query, and write the best of them, best first.\n\n"
    "All arrays are two-dimensional and in C order. Other threads run while it takes long.\n\n"
    "Args:\n"
    "    embeddings: (n_candidates, dim) float32.\n"
    "    queries: (n_queries, dim) float32.\n"
    "    rows: (n_queries, n) int64; what is no row of the embeddings is left out.\n"
    "    best_rows: (n_queries, k) int64, written: each row once, -1 where there are no more.\n"
    "    best_scores: (n_queries, k) float32, written: -inf where there are no more.\n\n"
    "Raises:\n"
    "    ValueError: if the arrays do not fit one another.\n";

PyObject* Rescore(PyObject*, PyObject* const* arguments, Py_ssize_t n_arguments) {
  if (n_arguments != 5) {
    PyErr_Format(PyExc_TypeError, "rescore takes 5 arguments, not %zd", n_arguments);
    return nullptr;
  }
  const Array embeddings(arguments[0], PyBUF_ND);
  const Array queries(arguments[1], PyBUF_ND);
  const Array rows(arguments[2], PyBUF_ND);
  const Array best_rows(arguments[3], PyBUF_ND | PyBUF_WRITABLE);
  const Array best_scores(arguments[4], PyBUF_ND | PyBUF_WRITABLE);
  if (PyErr_Occurred()) return nullptr;
  const Py_ssize_t n = queries.n(), dim = embeddings.width(), k = best_rows.width();
  if (!embeddings.Is(dim, sizeof(float)) || !queries.Is(dim, sizeof(float)) ||
      !rows.Is(rows.width(), sizeof(int64_t)) || !best_rows.Is(k, sizeof(int64_t)) ||
      !best_scores.Is(k, sizeof(float)) || rows.n() != n || best_rows.n() != n ||
      best_scores.n() != n) {
    PyErr_SetString(PyExc_ValueError, "the arrays do not fit one another");
    return nullptr;
  }
  const bool is_long = n * rows.width() * dim > kLockedFloats;
  PyThreadState* const state = is_long ? PyEval_SaveThread() : nullptr;
  bool has_memory = true;
  try {
    RescoreAll(embeddings, queries, rows, best_rows, best_scores);
  } catch (const std::bad_alloc&) {
    has_memory = false;
  }
  if (is_long) PyEval_RestoreThread(state);
  if (!has_memory) return PyErr_NoMemory();
  Py_RETURN_NONE;
}

PyMethodDef methods[] = {
    {"rescore", reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(Rescore)), METH_FASTCALL,
     kRescoreDoc},
    {nullptr, nullptr, 0, nullptr},
};

PyModuleDef module = {
    PyModuleDef_HEAD_INIT, "_exact", "The inner loop of exact.py.", 0, methods,
    nullptr,               nullptr,  nullptr,                       nullptr,
};

}  // namespace

PyMODINIT_FUNC PyInit__exact() { return PyModuleDef_Init(&module); }
