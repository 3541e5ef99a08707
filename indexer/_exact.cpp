// The inner loops of exact.py: exact scores of rows that lie anywhere in memory, and their order.
//
// There is one inner product, with one order of additions, whatever else is scored in the same
// call and whatever the processor; so a score has the same bits everywhere. NumPy needs a dozen
// calls, and copies of vectors or of scores, for what is done here while vectors are on their way.

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

constexpr Py_ssize_t kLanes = 16;              // sums that are added up side by side
constexpr Py_ssize_t kRowsAhead = 12;          // fetched from memory while one is scored; measured
constexpr int kSecondLevel = 1;                // of caches: more can be on their way to it at once
constexpr Py_ssize_t kFloatsInALine = 16;      // what one fetch brings
constexpr Py_ssize_t kRowsInAPart = 512;       // of a mask that are gathered before they are scored
constexpr Py_ssize_t kDense = 4;               // rows to one eligible, below which all are read
constexpr int64_t kMaxRows = int64_t{1} << 32;  // that the lower half of a key tells apart
constexpr Py_ssize_t kShortWork = 1 << 17;  // some 50 us; longer work lets other threads run

typedef float Lanes16 __attribute__((vector_size(64), aligned(sizeof(float))));
typedef float Lanes8 __attribute__((vector_size(32)));
typedef float Lanes4 __attribute__((vector_size(16)));

// Vectors of one dimension, row after row.
struct Vectors {
  const float* data;
  Py_ssize_t n;
  Py_ssize_t dim;

  const float* row(Py_ssize_t i) const { return data + i * dim; }
};

inline float InnerProduct(const float* a, const float* b, Py_ssize_t dim) {
  Lanes16 sums = {};
  Py_ssize_t i = 0;
  for (; i + kLanes <= dim; i += kLanes) {
    sums += *reinterpret_cast<const Lanes16*>(a + i) * *reinterpret_cast<const Lanes16*>(b + i);
  }
  for (Py_ssize_t lane = 0; i < dim; ++i, ++lane) sums[lane] += a[i] * b[i];
  // Copied, which costs nothing: GCC knows no __builtin_shufflevector before its version 12.
  Lanes8 eights[2];
  std::memcpy(eights, &sums, sizeof sums);
  const Lanes8 eight = eights[0] + eights[1];
  Lanes4 fours[2];
  std::memcpy(fours, &eight, sizeof eight);
  const Lanes4 four = fours[0] + fours[1];
  // Adding 0 mends -0, which would sort apart from 0.
  return ((four[0] + four[2]) + (four[1] + four[3])) + 0.0f;
}

// Turns the bits of a float so that, unsigned, they fall as the number rises; or turns them back.
inline uint32_t Turned(uint32_t bits) { return bits >> 31 ? bits : ~bits & 0x7FFFFFFFu; }

// A scored row as an integer that sorts as the results must: best score, then lower row.
inline uint64_t Key(float score, Py_ssize_t row) {
  uint32_t bits;
  std::memcpy(&bits, &score, sizeof bits);
  return uint64_t{Turned(bits)} << 32 | static_cast<uint32_t>(row);
}

inline int64_t RowOf(uint64_t key) { return static_cast<uint32_t>(key); }

inline float ScoreOf(uint64_t key) {
  const uint32_t bits = Turned(static_cast<uint32_t>(key >> 32));
  float score;
  std::memcpy(&score, &bits, sizeof score);
  return score;
}

// The best k of the rows that are scored one after the other.
class Best {
 public:
  // Up to `n_held` keys are held at once; where rows may repeat, it must be all.
  Best(size_t k, size_t n_held) : k_(k), n_held_(std::max(n_held, k + 1)) { keys_.reserve(n_held_); }

  void Clear() {
    keys_.clear();
    worst_ = ~uint64_t{0};
  }

  void Add(uint64_t key) {
    if (key > worst_) return;
    if (keys_.size() == n_held_) DropAllButBest();
    keys_.push_back(key);
  }

  // Writes rows and scores, best first and repeated ones once; -1 and -inf where there are no more.
  void Write(int64_t* rows, float* scores) {
    const size_t n = std::min(k_, keys_.size());
    auto end = SortedUpTo(n);
    if (end < keys_.begin() + n && n < keys_.size()) end = SortedUpTo(keys_.size());
    end = std::min(end, keys_.begin() + n);
    std::fill(std::transform(keys_.begin(), end, rows, RowOf), rows + k_, -1);
    std::fill(std::transform(keys_.begin(), end, scores, ScoreOf), scores + k_,
              -std::numeric_limits<float>::infinity());
  }

 private:
  using Keys = std::vector<uint64_t>;

  void DropAllButBest() {
    std::nth_element(keys_.begin(), keys_.begin() + (k_ - 1), keys_.end());
    keys_.resize(k_);
    worst_ = keys_.back();
  }

  // Sorts the n best keys to the front, and returns the end of the different ones among them.
  Keys::iterator SortedUpTo(size_t n) {
    if (n < keys_.size()) std::nth_element(keys_.begin(), keys_.begin() + n, keys_.end());
    std::sort(keys_.begin(), keys_.begin() + n);
    return std::unique(keys_.begin(), keys_.begin() + n);
  }

  const size_t k_;
  const size_t n_held_;
  uint64_t worst_ = ~uint64_t{0};  // nothing behind it is among the best
  Keys keys_;
};

// Adds the rows that there are, among n numbers; any other number is none.
FOR_EACH_PROCESSOR void AddRows(const Vectors& vectors, const float* query, const int64_t* rows,
                                Py_ssize_t n, Best& best) {
  const auto exists = [&](int64_t row) { return row >= 0 && row < vectors.n; };
  for (Py_ssize_t i = 0; i < n; ++i) {
    if (i + kRowsAhead < n && exists(rows[i + kRowsAhead])) {
      const float* ahead = vectors.row(rows[i + kRowsAhead]);
      for (Py_ssize_t j = 0; j < vectors.dim; j += kFloatsInALine) {
        __builtin_prefetch(ahead + j, 0, kSecondLevel);
      }
    }
    if (exists(rows[i])) {
      best.Add(Key(InnerProduct(vectors.row(rows[i]), query, vectors.dim), rows[i]));
    }
  }
}

// Adds the rows from `start` to `end`, or the eligible ones of them.
FOR_EACH_PROCESSOR void AddRange(const Vectors& vectors, const float* query, Py_ssize_t start,
                                 Py_ssize_t end, const uint8_t* eligible, Best& best) {
  for (Py_ssize_t row = start; row < end; ++row) {
    const uint64_t key = Key(InnerProduct(vectors.row(row), query, vectors.dim), row);
    if (eligible == nullptr || eligible[row]) best.Add(key);
  }
}

// Adds all eligible rows, part by part: few of many are gathered, most are read in passing.
void AddEligible(const Vectors& vectors, const float* query, const uint8_t* eligible, Best& best) {
  int64_t rows[kRowsInAPart];
  for (Py_ssize_t start = 0, end = 0; start < vectors.n; start = end) {
    Py_ssize_t n = 0;
    while (end < vectors.n && n + 8 <= kRowsInAPart) {
      uint64_t eight = 1;
      if (end + 8 <= vectors.n) std::memcpy(&eight, eligible + end, 8);
      const Py_ssize_t next = std::min<Py_ssize_t>(end + 8, vectors.n);
      if (eight == 0) {
        end = next;
      } else {
        for (; end < next; ++end) {
          rows[n] = end;
          n += eligible[end] != 0;
        }
      }
    }
    if (end - start < kDense * n) {
      AddRange(vectors, query, start, end, eligible, best);
    } else {
      AddRows(vectors, query, rows, n, best);
    }
  }
}

// A set of numbers, made for a few hundred: half of its places stay empty.
class FewRows {
 public:
  FewRows(const int64_t* rows, size_t n) {
    size_t size = 16;
    while (size < 2 * n) size *= 2;
    places_.assign(size, kEmpty);
    for (size_t i = 0; i < n; ++i) places_[PlaceOf(rows[i])] = rows[i];
  }

  bool Has(int64_t row) const { return places_[PlaceOf(row)] == row && row != kEmpty; }

 private:
  static constexpr int64_t kEmpty = -1;

  // Where a row is, or would be.
  size_t PlaceOf(int64_t row) const {
    const size_t last = places_.size() - 1;
    // The upper half of a product with an odd number spreads rows that lie close together.
    size_t place = (static_cast<uint64_t>(row) * 0x9E3779B97F4A7C15u >> 32) & last;
    while (places_[place] != kEmpty && places_[place] != row) place = (place + 1) & last;
    return place;
  }

  std::vector<int64_t> places_;
};

// The format codes of arrays whose items are read as T. NumPy's for int64 depends on the platform.
template <typename T>
constexpr const char* kCodes = "";
template <>
constexpr const char* kCodes<float> = "f";
template <>
constexpr const char* kCodes<int64_t> = "lq";
template <>
constexpr const char* kCodes<uint8_t> = "?B";

// The memory of a NumPy array, lent for as long as this lives.
class Array {
 public:
  // In C order; `flags` ask for more.
  explicit Array(PyObject* array, int flags = 0)
      : is_lent_(PyObject_GetBuffer(array, &view_, PyBUF_ND | PyBUF_FORMAT | flags) == 0) {}
  Array(const Array&) = delete;
  Array& operator=(const Array&) = delete;
  ~Array() {
    if (is_lent_) PyBuffer_Release(&view_);
  }

  // Whether it has so many dimensions, and items that are T.
  template <typename T>
  bool Is(int ndim) const {
    return is_lent_ && view_.ndim == ndim && view_.itemsize == Py_ssize_t{sizeof(T)} &&
           IsOneOf(kCodes<T>);
  }
  Py_ssize_t n() const { return view_.shape[0]; }
  Py_ssize_t width() const { return view_.shape[1]; }

  template <typename T>
  T* items() const {
    return static_cast<T*>(view_.buf);
  }
  template <typename T>
  T* line(Py_ssize_t i) const {
    return items<T>() + i * width();
  }

 private:
  // Whether the format is one of these codes and no more: more tells of another order of bytes.
  bool IsOneOf(const char* codes) const {
    const char* const code = view_.format;
    return code != nullptr && code[0] != '\0' && code[1] == '\0' &&
           std::strchr(codes, code[0]) != nullptr;
  }

  Py_buffer view_;
  const bool is_lent_;
};

// Embeddings, queries, and where the answers go.
struct Task {
  explicit Task(PyObject* const* arguments)
      : embeddings(arguments[0]),
        queries(arguments[1]),
        best_rows(arguments[2], PyBUF_WRITABLE),
        best_scores(arguments[3], PyBUF_WRITABLE) {}

  bool Fits() const {
    return embeddings.Is<float>(2) && queries.Is<float>(2) && best_rows.Is<int64_t>(2) &&
           best_scores.Is<float>(2) && queries.width() == embeddings.width() &&
           best_rows.n() == queries.n() && best_scores.n() == queries.n() &&
           best_rows.width() == best_scores.width() && best_rows.width() > 0 &&
           embeddings.n() <= kMaxRows;
  }
  Vectors vectors() const {
    return {embeddings.line<float>(0), embeddings.n(), embeddings.width()};
  }
  size_t k() const { return best_rows.width(); }

  // Answers each query with the best of the rows that `add` adds for it.
  template <typename AddTo>
  void Answer(Best& best, AddTo add) const {
    for (Py_ssize_t i = 0; i < queries.n(); ++i) {
      best.Clear();
      add(queries.line<float>(i), i, best);
      best.Write(best_rows.line<int64_t>(i), best_scores.line<float>(i));
    }
  }

  const Array embeddings, queries, best_rows, best_scores;
};

PyObject* RefuseArrays() {
  if (!PyErr_Occurred()) PyErr_SetString(PyExc_ValueError, "the arrays do not fit one another");
  return nullptr;
}

// Does what may take long or want memory; other threads run while it takes long.
template <typename Work>
PyObject* Run(bool is_long, Work work) {
  PyThreadState* const state = is_long ? PyEval_SaveThread() : nullptr;
  bool has_memory = true;
  try {
    work();
  } catch (const std::bad_alloc&) {
    has_memory = false;
  }
  if (is_long) PyEval_RestoreThread(state);
  if (!has_memory) return PyErr_NoMemory();
  Py_RETURN_NONE;
}

bool Expect(Py_ssize_t expected, Py_ssize_t found, const char* function) {
  if (found == expected) return true;
  PyErr_Format(PyExc_TypeError, "%s takes %zd arguments, not %zd", function, expected, found);
  return false;
}

PyObject* Rescore(PyObject*, PyObject* const* arguments, Py_ssize_t n_arguments) {
  if (!Expect(5, n_arguments, "rescore")) return nullptr;
  const Task task(arguments);
  const Array rows(arguments[4]);
  if (!task.Fits() || !rows.Is<int64_t>(2) || rows.n() != task.queries.n()) {
    return RefuseArrays();
  }
  const Vectors vectors = task.vectors();
  return Run(rows.n() * rows.width() * vectors.dim > kShortWork, [&] {
    Best best(task.k(), rows.width());
    task.Answer(best, [&](const float* query, Py_ssize_t i, Best& found) {
      AddRows(vectors, query, rows.line<int64_t>(i), rows.width(), found);
    });
  });
}

PyObject* Scan(PyObject*, PyObject* const* arguments, Py_ssize_t n_arguments) {
  if (!Expect(5, n_arguments, "scan")) return nullptr;
  const Task task(arguments);
  const Array eligible(arguments[4]);
  if (!task.Fits() || !eligible.Is<uint8_t>(1) ||
      (eligible.n() != 0 && eligible.n() != task.embeddings.n())) {
    return RefuseArrays();
  }
  const Vectors vectors = task.vectors();
  return Run(task.queries.n() * vectors.n * vectors.dim > kShortWork, [&] {
    Best best(task.k(), 2 * task.k() + kRowsInAPart);
    task.Answer(best, [&](const float* query, Py_ssize_t, Best& found) {
      if (eligible.n() == 0) {
        AddRange(vectors, query, 0, vectors.n, nullptr, found);
      } else {
        AddEligible(vectors, query, eligible.items<uint8_t>(), found);
      }
    });
  });
}

PyObject* Drop(PyObject*, PyObject* const* arguments, Py_ssize_t n_arguments) {
  if (!Expect(3, n_arguments, "drop")) return nullptr;
  const Array rows(arguments[0], PyBUF_WRITABLE);
  const Array scores(arguments[1], PyBUF_WRITABLE);
  const Array excluded(arguments[2]);
  if (!rows.Is<int64_t>(1) || !scores.Is<float>(1) || !excluded.Is<int64_t>(1) ||
      rows.n() != scores.n()) {
    return RefuseArrays();
  }
  Py_ssize_t n_kept = 0;
  PyObject* const done = Run(false, [&] {
    const FewRows dropped(excluded.items<int64_t>(), excluded.n());
    int64_t* const row = rows.items<int64_t>();
    float* const score = scores.items<float>();
    for (Py_ssize_t i = 0; i < rows.n(); ++i) {
      row[n_kept] = row[i];
      score[n_kept] = score[i];
      n_kept += !dropped.Has(row[i]);
    }
  });
  if (done == nullptr) return nullptr;
  Py_DECREF(done);
  return PyLong_FromSsize_t(n_kept);
}

constexpr char kRescoreDoc[] =
    "Score the rows proposed for each query, and write the best of them, best first.\n\n"
    "All arrays are in C order. Other threads run while it takes long.\n\n"
    "Args:\n"
    "    embeddings: (n_candidates, dim) float32.\n"
    "    queries: (n_queries, dim) float32.\n"
    "    best_rows: (n_queries, k) int64, written: each row once, -1 where there are no more.\n"
    "    best_scores: (n_queries, k) float32, written: -inf where there are no more.\n"
    "    rows: (n_queries, n) int64; what is no row of the embeddings is left out.\n\n"
    "Raises:\n"
    "    ValueError: if the arrays do not fit one another.\n";

constexpr char kScanDoc[] =
    "Score all rows, or the eligible ones, for each query, and write the best, best first.\n\n"
    "All arrays are in C order. Other threads run while it takes long.\n\n"
    "Args:\n"
    "    embeddings: (n_candidates, dim) float32.\n"
    "    queries: (n_queries, dim) float32.\n"
    "    best_rows: (n_queries, k) int64, written: -1 where there are no more.\n"
    "    best_scores: (n_queries, k) float32, written: -inf where there are no more.\n"
    "    eligible: (n_candidates,) bool; empty if all are.\n\n"
    "Raises:\n"
    "    ValueError: if the arrays do not fit one another.\n";

constexpr char kDropDoc[] =
    "Move the results that are not excluded to the front, in their order.\n\n"
    "Args:\n"
    "    rows: (n,) int64 in C order, written.\n"
    "    scores: (n,) float32 in C order, written.\n"
    "    excluded: (n_excluded,) int64 in C order; they may repeat.\n\n"
    "Returns:\n"
    "    How many results are kept; what lies behind them means nothing.\n\n"
    "Raises:\n"
    "    ValueError: if the arrays do not fit one another.\n";

template <typename Function>
PyCFunction AsMethod(Function function) {
  return reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(function));
}

PyMethodDef methods[] = {
    {"rescore", AsMethod(Rescore), METH_FASTCALL, kRescoreDoc},
    {"scan", AsMethod(Scan), METH_FASTCALL, kScanDoc},
    {"drop", AsMethod(Drop), METH_FASTCALL, kDropDoc},
    {nullptr, nullptr, 0, nullptr},
};

PyModuleDef module = {
    PyModuleDef_HEAD_INIT, "_exact", "The inner loops of exact.py.", 0, methods,
    nullptr,               nullptr,  nullptr,                        nullptr,
};

}  // namespace

PyMODINIT_FUNC PyInit__exact() { return PyModuleDef_Init(&module); }
