// The loops of _exact.cpp, compiled once for each generation of processors.
//
// They are included inside a namespace and under a target of the compiler: what is a function of
// vectors of 16 numbers here becomes as few instructions as that target has for it.

// What a register holds: GCC keeps longer vectors in memory, and takes ten times as long.
#if defined(__AVX512F__)
constexpr Py_ssize_t kWidth = 16;
#elif defined(__AVX2__)
constexpr Py_ssize_t kWidth = 8;
#else
constexpr Py_ssize_t kWidth = 4;
#endif
typedef float Register __attribute__((vector_size(kWidth * sizeof(float)), aligned(sizeof(float))));

// In the order of these additions, whatever the target: sixteen sums, eight, four, two, one.
inline float InnerProduct(const float* a, const float* b, Py_ssize_t dim) {
  Register registers[kLanes / kWidth] = {};
  Py_ssize_t i = 0;
  for (; i + kLanes <= dim; i += kLanes) {
    for (Py_ssize_t j = 0; j < kLanes / kWidth; ++j) {
      registers[j] += *reinterpret_cast<const Register*>(a + i + j * kWidth) *
                      *reinterpret_cast<const Register*>(b + i + j * kWidth);
    }
  }
  // Copied, which costs nothing: GCC knows no __builtin_shufflevector before its version 12.
  Lanes4 sums[kLanes / 4];
  static_assert(sizeof sums == sizeof registers, "a sum for each lane");
  std::memcpy(sums, registers, sizeof sums);
  for (Py_ssize_t lane = 0; i < dim; ++i, ++lane) sums[lane / 4][lane % 4] += a[i] * b[i];
  const Lanes4 four = (sums[0] + sums[2]) + (sums[1] + sums[3]);
  // Adding 0 mends -0, which would sort apart from 0.
  return ((four[0] + four[2]) + (four[1] + four[3])) + 0.0f;
}

// Of a vector in bytes and a query in whole numbers small enough for the sum.
inline int32_t CoarseProduct(const int8_t* a, const int16_t* b, Py_ssize_t dim) {
  int32_t sum = 0;
  Py_ssize_t i = 0;
#ifdef __AVX2__
  __m256i sums = _mm256_setzero_si256();
  for (; i + kLanes <= dim; i += kLanes) {
    const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(a + i));
    const __m256i numbers = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(b + i));
    sums = _mm256_add_epi32(sums, _mm256_madd_epi16(_mm256_cvtepi8_epi16(bytes), numbers));
  }
  __m128i four = _mm_add_epi32(_mm256_castsi256_si128(sums), _mm256_extracti128_si256(sums, 1));
  four = _mm_add_epi32(four, _mm_shuffle_epi32(four, _MM_SHUFFLE(1, 0, 3, 2)));
  four = _mm_add_epi32(four, _mm_shuffle_epi32(four, _MM_SHUFFLE(2, 3, 0, 1)));
  sum = _mm_cvtsi128_si32(four);
#endif
  for (; i < dim; ++i) sum += int32_t{a[i]} * b[i];
  return sum;
}

// Adds the rows that there are, among n numbers; any other number is none.
void AddRows(const Vectors& vectors, const float* query, const int64_t* rows, Py_ssize_t n,
             Best& best) {
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
void AddRange(const Vectors& vectors, const float* query, Py_ssize_t start, Py_ssize_t end,
              const uint8_t* eligible, Best& best) {
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

// Adds members by their coarse scores.
void AddMembers(const Cells& cells, const int16_t* query, const int64_t* places, Py_ssize_t n,
                Best& best) {
  for (Py_ssize_t i = 0; i < n; ++i) {
    if (i + kRowsAhead < n) __builtin_prefetch(cells.coarse + places[i + kRowsAhead] * cells.dim);
    const int32_t score = CoarseProduct(cells.coarse + places[i] * cells.dim, query, cells.dim);
    best.Add(Key(static_cast<float>(score), cells.members[places[i]]));
  }
}

// Adds the eligible rows of as many cells as there is room for in `n_seen` and `n_kept`, which
// then tell how many rows were in the cells so far, and how many of them were eligible.
void AddCells(const Cells& cells, const int16_t* query, const uint8_t* eligible,
              Py_ssize_t n_searched, int64_t* n_seen, int64_t* n_kept, Best& best) {
  std::vector<uint64_t> nearest(cells.n);
  for (Py_ssize_t cell = 0; cell < cells.n; ++cell) {
    const int32_t score = CoarseProduct(cells.centers + cell * cells.dim, query, cells.dim);
    nearest[cell] = Key(static_cast<float>(score), cell);
  }
  std::partial_sort(nearest.begin(), nearest.begin() + n_searched, nearest.end());
  int64_t places[kRowsInAPart];
  Py_ssize_t n = 0;
  int64_t seen = 0, added = 0;
  for (Py_ssize_t i = 0; i < n_searched; ++i) {
    const int64_t cell = RowOf(nearest[i]);
    const int64_t last = cells.starts[cell + 1];
    seen += last - cells.starts[cell];
    for (int64_t at = cells.starts[cell]; at < last;) {
      const int64_t end = std::min<int64_t>(last, at + kRowsInAPart - n);
      for (; at < end; ++at) {
        places[n] = at;
        n += eligible[cells.members[at]] != 0;
      }
      if (n == kRowsInAPart) {
        AddMembers(cells, query, places, n, best);
        added += n;
        n = 0;
      }
    }
    n_seen[i] = seen;
    n_kept[i] = added + n;
  }
  AddMembers(cells, query, places, n, best);
}

