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

// Of four vectors in bytes and a query in whole numbers small enough for the sums.
inline void CoarseProducts(const int8_t* const* vectors, const int16_t* query, Py_ssize_t dim,
                           int32_t* products) {
  std::fill(products, products + 4, 0);
  Py_ssize_t i = 0;
#ifdef __AVX2__
  __m256i sums[4] = {};
  for (; i + kLanes <= dim; i += kLanes) {
    const __m256i numbers = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(query + i));
    for (Py_ssize_t j = 0; j < 4; ++j) {
      const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(vectors[j] + i));
      sums[j] =
          _mm256_add_epi32(sums[j], _mm256_madd_epi16(_mm256_cvtepi8_epi16(bytes), numbers));
    }
  }
  const __m256i halves = _mm256_hadd_epi32(_mm256_hadd_epi32(sums[0], sums[1]),
                                           _mm256_hadd_epi32(sums[2], sums[3]));
  _mm_storeu_si128(
      reinterpret_cast<__m128i*>(products),
      _mm_add_epi32(_mm256_castsi256_si128(halves), _mm256_extracti128_si256(halves, 1)));
#endif
  for (; i < dim; ++i) {
    for (Py_ssize_t j = 0; j < 4; ++j) products[j] += int32_t{vectors[j][i]} * query[i];
  }
}

// Adds the vectors in bytes at up to four places by their coarse scores, under these names.
inline void AddFour(const int8_t* vectors, Py_ssize_t dim, const int16_t* query,
                    const int64_t* places, const int64_t* names, Py_ssize_t n, Best& best) {
  const int8_t* four[4];
  // The first stands in for those that there are not.
  for (Py_ssize_t j = 0; j < 4; ++j) four[j] = vectors + places[j < n ? j : 0] * dim;
  int32_t scores[4];
  CoarseProducts(four, query, dim, scores);
  for (Py_ssize_t j = 0; j < n; ++j) best.Add(Key(static_cast<float>(scores[j]), names[j]));
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

// Adds all centres under their numbers.
void AddCenters(const Cells& cells, const int16_t* query, Best& best) {
  int64_t places[4] = {0, 1, 2, 3};
  while (places[0] + 4 <= cells.n) {
    AddFour(cells.centers, cells.dim, query, places, places, 4, best);
    for (int64_t& place : places) place += 4;
  }
  const Py_ssize_t n_left = cells.n - places[0];
  if (n_left > 0) AddFour(cells.centers, cells.dim, query, places, places, n_left, best);
}

// Adds the members at these places as rows.
void AddMembers(const Cells& cells, const int16_t* query, const int64_t* places, Py_ssize_t n,
                Best& best) {
  int64_t rows[4];
  const auto add = [&](Py_ssize_t i, Py_ssize_t n_here) {
    for (Py_ssize_t j = 0; j < n_here; ++j) rows[j] = cells.members[places[i + j]];
    AddFour(cells.coarse, cells.dim, query, places + i, rows, n_here, best);
  };
  Py_ssize_t i = 0;
  for (; i + 4 <= n; i += 4) {
    for (Py_ssize_t j = i + kRowsAhead; j < std::min(n, i + kRowsAhead + 4); ++j) {
      __builtin_prefetch(cells.coarse + places[j] * cells.dim);
    }
    add(i, 4);
  }
  if (i < n) add(i, n - i);
}

// Adds the eligible rows of as many cells as the last step says. `n_seen` and `n_kept` then tell
// how many rows were in the cells up to each step, and how many of them were eligible.
void AddCells(const Cells& cells, const int16_t* query, const uint8_t* eligible,
              const int64_t* steps, Py_ssize_t n_steps, int64_t* n_seen, int64_t* n_kept,
              Best& best) {
  const int64_t n_searched = steps[n_steps - 1];
  Best nearest(n_searched, 2 * n_searched);
  AddCenters(cells, query, nearest);
  std::vector<int64_t> numbers(n_searched);
  std::vector<float> scores(n_searched);
  nearest.Write(numbers.data(), scores.data());
  int64_t places[kRowsInAPart];
  Py_ssize_t n = 0;
  int64_t seen = 0, added = 0;
  const int64_t last_member = cells.starts[cells.n] - 1;
  for (Py_ssize_t i = 0, step = 0; i < n_searched; ++i) {
    const int64_t last = cells.starts[numbers[i] + 1];
    seen += last - cells.starts[numbers[i]];
    for (int64_t at = cells.starts[numbers[i]]; at < last;) {
      const int64_t end = std::min<int64_t>(last, at + kRowsInAPart - n);
      for (; at < end; ++at) {
        __builtin_prefetch(eligible + cells.members[std::min(at + kLooksAhead, last_member)]);
        places[n] = at;
        n += eligible[cells.members[at]] != 0;
      }
      if (n == kRowsInAPart) {
        AddMembers(cells, query, places, n, best);
        added += n;
        n = 0;
      }
    }
    if (i + 1 == steps[step]) {
      n_seen[step] = seen;
      n_kept[step++] = added + n;
    }
  }
  AddMembers(cells, query, places, n, best);
}
