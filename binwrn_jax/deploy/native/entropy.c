/* The decoder of coded 3x3 kernels: rANS with one table for each kernel. */
#include "entropy.h"

#include <string.h>

#define TAPS 9
#define SCALE_BITS 13
#define LOW ((uint32_t)1 << 16) /* the state is at least this between two patterns */
#define MAX_STREAM 65536        /* patterns */
#define MAX_RATIO 16
#define LENGTHS (ENTROPY_PATTERNS / 4) /* words of the table's lengths */

static uint32_t word(const entropy_kernel *k, size_t index) {
  return (uint32_t)k->words[2 * index] | (uint32_t)k->words[2 * index + 1] << 8;
}

/* The table begins at word 1; returns NULL and the number of its words in `used`. */
static const char *read_table(entropy_kernel *k, size_t *used) {
  const size_t start = 1 + LENGTHS;
  size_t bit = 0, end;
  uint32_t sum = 0, rest = 0, s, i;
  if (k->count < start) return "the table is truncated";
  for (s = 0; s < ENTROPY_PATTERNS; s++) {
    uint32_t length = word(k, 1 + s / 4) >> 4 * (s % 4) & 15;
    if (length > SCALE_BITS + 1) return "a frequency is too large";
    rest += length > 1 ? length - 1 : 0;
  }
  end = start + (rest + 15) / 16;
  if (k->count < end) return "the table is truncated";
  for (s = 0; s < ENTROPY_PATTERNS; s++) {
    uint32_t length = word(k, 1 + s / 4) >> 4 * (s % 4) & 15, frequency = 0;
    if (length) {
      for (i = 0; i + 1 < length; i++, bit++) frequency |= (word(k, start + bit / 16) >> bit % 16 & 1) << i;
      frequency |= (uint32_t)1 << (length - 1);
    }
    if (frequency > ENTROPY_SCALE - sum) return "the frequencies do not sum to 8192";
    k->frequency[s] = (uint16_t)frequency;
    k->below[s] = (uint16_t)sum;
    for (i = 0; i < frequency; i++) k->pattern_at[sum + i] = (uint16_t)s;
    sum += frequency;
  }
  if (sum != ENTROPY_SCALE) return "the frequencies do not sum to 8192";
  if (bit % 16 && word(k, start + bit / 16) >> bit % 16) return "padding bits of the table are set";
  *used = end - 1;
  return NULL;
}

const char *binwrn_entropy_open(entropy_kernel *k, const unsigned char *words, size_t size, uint32_t outputs,
                                uint32_t channels) {
  const uint64_t uncoded = (uint64_t)outputs * (((uint64_t)channels * TAPS + 7) / 8);
  const char *wrong;
  size_t table = 0, total, i;
  k->words = words, k->count = size / 2, k->outputs = outputs, k->channels = channels;
  if (size % 2 || size < (uncoded + MAX_RATIO - 1) / MAX_RATIO) return "it claims to be more than 16 x smaller";
  if (k->count < 1) return "the table is truncated";
  k->rows = word(k, 0);
  if (k->rows < 1 || k->rows > outputs || (uint64_t)k->rows * channels > MAX_STREAM) return "bad rows in a stream";
  wrong = read_table(k, &table);
  if (wrong) return wrong;
  k->streams = (outputs + k->rows - 1) / k->rows;
  k->sizes = 1 + table;
  k->first = k->sizes + k->streams;
  if (k->count < k->first) return "the sizes of the streams are truncated";
  for (total = k->first, i = 0; i < k->streams; i++) {
    if (word(k, k->sizes + i) < 2) return "a stream has no state";
    total += word(k, k->sizes + i);
  }
  return total == k->count ? NULL : "the streams do not fill the tensor";
}

/* Sets `count` bits, at most 64, of a row of zeros. */
static void put(unsigned char *row, size_t at, uint64_t value, uint32_t count) {
  const uint32_t shift = (uint32_t)(at % 8);
  uint32_t done = 8 - shift;
  row += at / 8;
  *row++ |= (unsigned char)(value << shift);
  for (; done < count; done += 8) *row++ |= (unsigned char)(value >> done);
}

/* Decodes one stream of `rows` output channels from `count` words. */
static const char *decode_stream(const entropy_kernel *k, size_t at, size_t count, uint32_t rows,
                                 unsigned char *row) {
  const size_t row_bytes = ((size_t)k->channels * TAPS + 7) / 8, end = at + count;
  uint32_t x = word(k, at) | word(k, at + 1) << 16, r, c, i, t;
  if (x < LOW) return "a stream begins with a wrong state";
  at += 2;
  for (r = 0; r < rows; r++, row += row_bytes) {
    memset(row, 0, row_bytes);
    for (c = 0; c < k->channels; c += 64) {
      const uint32_t n = k->channels - c < 64 ? k->channels - c : 64;
      uint64_t taps[TAPS] = {0};
      for (i = 0; i < n; i++) {
        const uint32_t slot = x & (ENTROPY_SCALE - 1), s = k->pattern_at[slot];
        x = k->frequency[s] * (x >> SCALE_BITS) + slot - k->below[s];
        if (x < LOW) {
          if (at == end) return "a stream does not end where it should";
          x = x << 16 | word(k, at++);
        }
        for (t = 0; t < TAPS; t++) taps[t] |= (uint64_t)(s >> t & 1) << i;
      }
      for (t = 0; t < TAPS; t++) put(row, (size_t)t * k->channels + c, taps[t], n);
    }
  }
  return at == end && x == LOW ? NULL : "a stream does not end where it should";
}

const char *binwrn_entropy_decode(const entropy_kernel *k, uint32_t first, uint32_t end, unsigned char *bits) {
  const size_t row_bytes = ((size_t)k->channels * TAPS + 7) / 8;
  size_t at = k->first;
  uint32_t i;
  for (i = 0; i < end && i < k->streams; i++) {
    const size_t count = word(k, k->sizes + i);
    if (i >= first) {
      const uint32_t done = i * k->rows, rows = k->outputs - done < k->rows ? k->outputs - done : k->rows;
      const char *wrong = decode_stream(k, at, count, rows, bits + done * row_bytes);
      if (wrong) return wrong;
    }
    at += count;
  }
  return NULL;
}
