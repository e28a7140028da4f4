/* Decodes coded 3x3 kernels (docs/packed-format-2.md, "entropy"): exactly the bits of the uncoded tensor.
 *
 * Needs no other file of this folder, allocates nothing, and reads and writes nothing outside of what it is given,
 * whatever the coded words are. */
#ifndef BINWRN_ENTROPY_H
#define BINWRN_ENTROPY_H

#include <stddef.h>
#include <stdint.h>

#define ENTROPY_PATTERNS 512
#define ENTROPY_SCALE 8192

/* A kernel that is being decoded; 18.5 kB. */
typedef struct {
  const unsigned char *words; /* little-endian, 16 bits each */
  size_t count;
  uint32_t outputs, channels, rows, streams;
  size_t sizes, first;                    /* of the streams: index of the first one's size, and of its words */
  uint16_t pattern_at[ENTROPY_SCALE];     /* by slot */
  uint16_t frequency[ENTROPY_PATTERNS], below[ENTROPY_PATTERNS];
} entropy_kernel;

/* Checks the table and where the streams lie.
 * words: `size` bytes. outputs, channels: 1 to 65536, C_out and the channels that each output channel sees.
 * Returns NULL, or what is wrong in a few words. */
const char *binwrn_entropy_open(entropy_kernel *kernel, const unsigned char *words, size_t size, uint32_t outputs,
                                uint32_t channels);

/* Decodes the streams from `first` to `end` - 1 into their rows; others are not touched, so that several threads can
 * work on one kernel, which does not change.
 * bits: `outputs` rows of (9 channels + 7) / 8 bytes. */
const char *binwrn_entropy_decode(const entropy_kernel *kernel, uint32_t first, uint32_t end, unsigned char *bits);

#endif
